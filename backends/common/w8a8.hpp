// Which linear layers are multiplied as the integers that their weights and inputs are (W8A8), on every backend.
#pragma once

#include <cstdint>

#include <llminfer/weight.hpp>

namespace llminfer::backend {

/// Most columns of such a weight: sums of 2 * 128 * 128 * K fit 32 bits.
inline constexpr std::int64_t kMaxByteCols = 65535;

/// Whether a weight has one scale for each row, and its layer one for each row of inputs, which is rounded to 8 bits.
inline bool is_w8a8(WeightType type, std::int64_t cols, const WeightDetails& details) noexcept {
  const InputQuantization& input = details.input;
  return type == WeightType::w8_sym && input.kind == InputQuantization::Kind::int8 &&
         (!input.dynamic || input.group == 0) && details.scale_columns >= cols && !details.permutation &&
         cols <= kMaxByteCols;
}

}  // namespace llminfer::backend
