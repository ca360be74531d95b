// The layout of a full cache page of one layer and KV head in 4 bits, after KIVI (Liu et al. 2024, arXiv:2402.02750): a
// key's elements share a scale and a minimum with the same element of the page's other tokens, a value's with each
// other. Included by ISA files: plain data only.
#pragma once

#include <cstdint>

#include "backends/cpu/attention.hpp"

namespace llminfer::cpu {

/// Codes lie so that words of 16 bits, shifted and masked, are what the integers of other pages are (attention.hpp):
/// word [k / 8][column][k % 2] has the code of row k in bits 4 * (k / 2 % 4) and on. Rows of keys are dimensions, their
/// columns the page's slots; rows of values are slots. Then come the ranges, a word for each row of codes: the minimum
/// in the low half, the scale in the high one, both bfloat16. value = scale * code + minimum.
struct Int4Layout {
  std::int32_t head_dim, padded_dim;
  std::int64_t values;        ///< offset of the values' codes, [64 / 8][padded_dim][2]; keys' come first
  std::int64_t key_ranges;    ///< [head_dim]
  std::int64_t value_ranges;  ///< [64]
  std::int64_t bytes;

  constexpr explicit Int4Layout(std::int32_t dim) : head_dim(dim), padded_dim((dim + 15) / 16 * 16) {
    values = std::int64_t{(head_dim + 7) / 8 * 8} * kPageSlots / 2;
    key_ranges = values + std::int64_t{padded_dim} * kPageSlots / 2;
    value_ranges = key_ranges + std::int64_t{head_dim} * 4;
    bytes = (value_ranges + kPageSlots * 4 + 63) / 64 * 64;
  }
  /// Floats of the same page's keys [head_dim][64] and values [64][padded_dim].
  constexpr std::int64_t float_keys() const { return std::int64_t{head_dim} * kPageSlots; }
  constexpr std::int64_t floats() const { return float_keys() + std::int64_t{padded_dim} * kPageSlots; }
};

/// What ElementwiseKernels::pack_int4 made of a page's keys and values. The padding of values may become any numbers.
void unpack_int4(const Int4Layout& layout, const std::uint8_t* in, float* keys, float* values);

}  // namespace llminfer::cpu
