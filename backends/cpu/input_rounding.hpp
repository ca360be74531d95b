// Rounding a linear layer's input as its checkpoint says (W8A8, FP8): to the very numbers that the integers or 8-bit
// floats stand for. One scalar implementation for all levels, so that all give the same bits.
#pragma once

#include <cstdint>

#include <llminfer/weight.hpp>

namespace llminfer::cpu {

/// out // (k) = x // (k) rounded. Where a value is not finite, all that share its scale become NaN.
void round_input(const InputQuantization& how, const float* x, std::int64_t k, float* out) noexcept;

}  // namespace llminfer::cpu
