// Floats to the blocks of k-quants and of IQ4_NL, and searched forms of the plain types: each block by weighted least
// squares.
#pragma once

#include <cstdint>

#include <llminfer/weight.hpp>

namespace llminfer::quantize {

/// Writes one block of x; `weight` of the squared error of each value.
using SearchedEncoder = void (*)(const float* x, const float* weight, std::uint8_t* out);

/// Nothing for types that are not searched.
SearchedEncoder searched_encoder(WeightType type) noexcept;

}  // namespace llminfer::quantize
