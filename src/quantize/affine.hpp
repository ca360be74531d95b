// Integer codes whose groups of columns share a scale and a zero point: value = scale * (code - zero). Choosing scales
// and codes, and the packings of GPTQ, AWQ and compressed-tensors.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace llminfer::quantize {

/// What the numbers of a linear layer may be.
struct AffineScheme {
  enum class Scales : std::uint8_t { f16, bf16 } scales = Scales::f16;
  int bits = 4;                 ///< codes are 0 … 2^bits - 1
  std::int64_t group_size = 0;  ///< columns of a group
  bool symmetric = true;        ///< every zero point is 2^(bits - 1)

  int top() const noexcept { return (1 << bits) - 1; }
  int center() const noexcept { return 1 << (bits - 1); }
  friend bool operator==(const AffineScheme&, const AffineScheme&) = default;
};

/// Scale and zero point of one row's group.
struct AffineGroup {
  float scale = 1;
  int zero = 0;

  std::uint8_t code(float value, int top) const noexcept;
  float value(int code) const noexcept { return scale * static_cast<float>(code - zero); }
};

/// From the smallest to the largest of `count` values `step` apart, both times `shrink`, zero included; symmetric: the
/// same distance to both sides. The scale is one that the scheme's type holds.
AffineGroup choose_group(const AffineScheme& scheme, const float* values, std::int64_t count, float shrink = 1);

/// A linear layer in integers.
struct AffineWeight {
  AffineScheme scheme;
  std::int64_t rows = 0, cols = 0;
  std::vector<std::uint8_t> codes;     ///< [rows, cols]
  std::vector<AffineGroup> groups;     ///< [rows, groups of a row]
  std::vector<std::int32_t> group_of;  ///< [cols] the group of each column, or empty: column / group_size

  AffineWeight(const AffineScheme& scheme, std::int64_t rows, std::int64_t cols);
  std::int64_t groups_of_row() const noexcept { return cols / scheme.group_size; }
  AffineGroup& group(std::int64_t row, std::int64_t g) noexcept {
    return groups[static_cast<std::size_t>(row * groups_of_row() + g)];
  }
  const AffineGroup& group(std::int64_t row, std::int64_t g) const noexcept {
    return groups[static_cast<std::size_t>(row * groups_of_row() + g)];
  }
  /// The values of a row // (cols).
  void unpack_row(std::int64_t row, float* out) const;
};

/// Rounds row `row` of values // (cols) to the nearest codes. `shrink` // (groups of a row), or empty: 1.
void round_row(AffineWeight& weight, std::int64_t row, const float* values, std::span<const float> shrink = {});

using Words = std::vector<std::uint32_t>;
using Halves = std::vector<std::uint16_t>;  ///< bits of F16 or BF16, as the scheme says

// The tensors of a layer; see dequantize.py in tests/golden/quantized for what each means.
Words gptq_qweight(const AffineWeight& weight);
/// `minus_one`: as version 1 of the format stores them.
Words gptq_qzeros(const AffineWeight& weight, bool minus_one);
Halves gptq_scales(const AffineWeight& weight);  ///< of AWQ, too
Words awq_qweight(const AffineWeight& weight);
Words awq_qzeros(const AffineWeight& weight);
Words ct_packed(const AffineWeight& weight);
Words ct_zero_points(const AffineWeight& weight);
Halves ct_scales(const AffineWeight& weight);
std::vector<std::int8_t> ct_int8(const AffineWeight& weight);  ///< codes less the center; bits == 8

}  // namespace llminfer::quantize
