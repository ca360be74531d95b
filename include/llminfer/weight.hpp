// The types in which weights are stored, and a view of one stored weight.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include <llminfer/config.hpp>
#include <llminfer/result.hpp>

namespace llminfer::inline v0 {

/// How the elements of a weight are encoded. The block types are those of GGUF files; each is described by one trait
/// struct in src/quant.
enum class WeightType : std::uint8_t {
  f32,
  f16,
  bf16,
  q4_0,
  q4_1,
  q5_0,
  q5_1,
  q8_0,
  q2_k,
  q3_k,
  q4_k,
  q5_k,
  q6_k,
  iq1_s,
  iq1_m,
  iq2_xxs,
  iq2_xs,
  iq2_s,
  iq3_xxs,
  iq3_s,
  iq4_nl,
  iq4_xs,
  tq1_0,
  tq2_0,
  mxfp4,
  nvfp4,
};

/// What can be known of a type without its data.
struct WeightTypeInfo {
  std::string_view name;       ///< as GGUF tools print it, e.g. "Q4_K"
  std::uint32_t block_values;  ///< elements of one block; a row is a whole number of blocks
  std::uint32_t block_bytes;
};
LLMINFER_API WeightTypeInfo weight_type_info(WeightType type) noexcept;

/// A weight as it lies in the checkpoint: `rows` (output features) rows of `cols` (input features) elements, row-major,
/// each row a whole number of blocks. A vector has rows == 1.
struct WeightView {
  std::string_view name;
  WeightType type = WeightType::f32;
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  std::span<const std::byte> data;   ///< rows * cols / block_values * block_bytes bytes, no alignment promised
  std::shared_ptr<const void> keep;  ///< owns `data`; copy it to use the bytes after the call
};

/// Writes rows [first_row, first_row + rows) as float to `out` [rows, view.cols]: the exact value of every element.
/// Errors: invalid_argument if the range or the sizes do not fit.
LLMINFER_API Result<void> unpack_rows(const WeightView& view, std::int64_t first_row, std::int64_t rows,
                                      std::span<float> out);

}  // namespace llminfer::inline v0
