// Floats to the blocks of GGUF types and to half floats: the inverse of src/quant. Knows no tensors.
#pragma once

#include <cstdint>

#include <llminfer/weight.hpp>

namespace llminfer::quantize {

/// Writes `cols` values, a whole number of blocks, to `out` (cols / block_values * block_bytes bytes). `importance` //
/// (cols) weighs the squared error of each column, or is null: then Q4_0 to Q8_0, and MXFP4 always, have the very bytes
/// of ggml's reference encoders. The values are finite, and their absolute value at most 65504 for all types but F32
/// and BF16.
void encode_row(WeightType type, const float* values, std::int64_t cols, const float* importance, std::uint8_t* out);

}  // namespace llminfer::quantize
