// Weighted least-squares fits of integer codes to a few values: the searches that k-quants are made of.
#pragma once

#include <cstdint>

namespace llminfer::quantize {

/// Codes 0 … top with value = scale * code - minimum, scale >= 0, minimum >= 0: the best of a grid of roundings, each
/// with the scale and minimum that its codes want. `weight` // (count) of the squared errors.
struct RangeFit {
  float scale = 0, minimum = 0;
};
RangeFit fit_range(const float* x, const float* weight, int count, int top, std::uint8_t* code);

/// Codes -center … center - 1 with value = scale * code; codes are stored plus center. Gives the scale, of either sign.
float fit_symmetric(const float* x, const float* weight, int count, int center, std::uint8_t* code);

/// value = scale * table[code], table ascending // (16)
float fit_table(const float* x, const float* weight, int count, const std::int8_t* table, std::uint8_t* code);

}  // namespace llminfer::quantize
