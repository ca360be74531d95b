// The types in which weights are stored, and a view of one stored weight.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <llminfer/config.hpp>
#include <llminfer/result.hpp>

namespace llminfer::inline v0 {

/// How the elements of a weight are encoded; each type is described by one trait struct in src/quant. Those up to nvfp4
/// are the ones of GGUF files. The others are what the packings of Hugging Face checkpoints (GPTQ, AWQ,
/// compressed-tensors, bitsandbytes, …) are turned into when they are read: blocks of 32 values, each with a float scale.
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
  w2,      ///< scale * (code - zero): a float, an integer zero point, codes of 2 bits
  w3,      ///< the same with 3 bits
  w4,      ///< 4 bits
  w8,      ///< 8 bits
  w4_sym,  ///< scale * (code - 8): a float, codes of 4 bits
  w8_sym,  ///< scale * code: a float, signed bytes
  nf4,     ///< scale * table[code]: QLoRA's table of normal quantiles (arXiv:2305.14314)
  fp4,     ///< the same with bitsandbytes' table of 4-bit floats
  fp4_16,  ///< scale * E2M1, a scale per 16 values
  fp8,     ///< scale * E4M3
  w2_min,  ///< scale * code - minimum: two floats, codes of 2 bits
  w3_min,  ///< the same with 3 bits
  w4_min,  ///< 4 bits
  w8_min,  ///< scale * (code - 128) - minimum: 8 bits
};

/// What can be known of a type without its data.
struct WeightTypeInfo {
  std::string_view name;       ///< as GGUF tools print it, e.g. "Q4_K"
  std::uint32_t block_values;  ///< elements of one block; a row is a whole number of blocks
  std::uint32_t block_bytes;
};
LLMINFER_API WeightTypeInfo weight_type_info(WeightType type) noexcept;

/// What a checkpoint says of a linear layer's input: its values are rounded to these numbers before they are multiplied.
struct InputQuantization {
  enum class Kind : std::uint8_t {
    none,
    int8,  ///< scale * (round(x / scale + zero) - zero), integers clamped to -128 … 127
    fp8,   ///< scale * E4M3(x / scale)
  } kind = Kind::none;
  bool dynamic = true;    ///< a scale per token: largest absolute value / 127.5 (int8) or / 448 (fp8), zero = 0
  std::int32_t group = 0;  ///< dynamic: the scale is per so many consecutive values instead; 0: per token
  float scale = 1.0f;     ///< static
  std::int32_t zero = 0;  ///< static
  /// With `none`: some values are far beyond the others and matter (LLM.int8()), so that whatever the host asks for no
  /// value is rounded to less than 16 bits.
  bool outliers = false;
  /// Dynamic: a scale is made as if no absolute value were larger, and larger ones are clipped to it (FBGEMM's bound).
  float limit = std::numeric_limits<float>::infinity();
  bool powers = false;  ///< dynamic: scales are rounded up to powers of two (UE8M0)
  friend bool operator==(const InputQuantization&, const InputQuantization&) = default;
};

/// What a weight may have beside its elements.
struct WeightDetails {
  /// Not null: stored column i belongs to input feature (*permutation)[i], a permutation of 0 … cols - 1 (activation
  /// order of GPTQ). unpack_rows undoes it.
  std::shared_ptr<const std::vector<std::int32_t>> permutation;
  /// The blocks of so many consecutive columns, a multiple of the block's, have equal scales (and zero points); 0: unknown.
  std::int64_t scale_columns = 0;
  InputQuantization input;
};

/// A weight as it lies in the checkpoint: `rows` (output features) rows of `cols` (input features) elements, row-major,
/// each row a whole number of blocks. A vector has rows == 1.
struct WeightView {
  std::string_view name;
  WeightType type = WeightType::f32;
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  std::span<const std::byte> data;   ///< rows * cols / block_values * block_bytes bytes, no alignment promised
  std::shared_ptr<const void> keep;  ///< owns `data`; copy it to use the bytes after the call
  WeightDetails details{};
};

/// Writes rows [first_row, first_row + rows) as float to `out` [rows, view.cols]: the exact value of every element.
/// Errors: invalid_argument if the range or the sizes do not fit.
LLMINFER_API Result<void> unpack_rows(const WeightView& view, std::int64_t first_row, std::int64_t rows,
                                      std::span<float> out);

}  // namespace llminfer::inline v0
