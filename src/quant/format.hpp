// The weight formats: one trait struct each, the scalar truth of how a block is decoded.
//
// A trait struct has
//   static constexpr WeightType type; const char* name; int block_values; int block_bytes;
//   static void unpack(const std::uint8_t* block, float* out);   // out[block_values], exact
// and, for formats of integer codes with scales (all but f32, f16, bf16, fp8), the decomposition that kernels pack
// from:
//   static constexpr GroupedShape shape;
//   static void decompose(const std::uint8_t* block, GroupedBlock& out);
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include <llminfer/weight.hpp>

namespace llminfer::quant {

/// How the scales of a format's groups are stored.
enum class ScaleKind : std::uint8_t {
  direct,     ///< one float per group
  two_level,  ///< super-scale d (and d_min) times an integer sub-scale (and sub-minimum) per group
  shared,     ///< one float per group, often the same for several (WeightDetails::scale_columns); minimums are int8
              ///< zero points times the scale
};

/// value = scale[g] * (table ? table[code] : code - zero) - minimum[g], with g = index / group.
/// Every grouped format fits this; formats with vector grids (IQ1, IQ2, IQ3) decode to 8-bit codes with zero = 128.
struct GroupedShape {
  int bits = 0;                        ///< width of a code: 2, 3, 4, 5, 6 or 8
  int group = 0;                       ///< values that share a scale: 16 or 32
  int zero = 0;                        ///< subtracted from each code (0 with a table, or a minimum, but for W8)
  const std::int8_t* table = nullptr;  ///< 16 integers that 4-bit codes index, or none
  bool minimum = false;
  ScaleKind scales = ScaleKind::direct;
  /// Every scale and minimum (every d and d_min of a two-level format) is exactly a half-precision number. Not so in
  /// MXFP4, whose scales are any power of two, and in the grid formats whose d carries a factor 1/8 or 1/4.
  bool half_scales = true;
  /// decompose() gives the very values of unpack(). Not so in NF4 and FP4, whose tables are no integers.
  bool exact = true;
};

/// One block, decomposed. Two-level formats: scale[g] == d * sub_scale[g] and minimum[g] == d_min * sub_minimum[g].
struct GroupedBlock {
  std::uint8_t code[256];
  float scale[16];
  float minimum[16];
  float d, d_min;                ///< two-level only; half-precision numbers where GroupedShape::half_scales
  std::int8_t zero_point[16];    ///< ScaleKind::shared with minimums: minimum == scale * zero_point
  std::int8_t sub_scale[16];     ///< two-level only
  std::uint8_t sub_minimum[16];  ///< two-level only
};

inline constexpr std::uint32_t kNotInGguf = 0xffffffffu;

/// A row of the format table.
struct Format {
  WeightType type;
  const char* name;
  std::uint32_t ggml_type;  ///< number in GGUF files, or kNotInGguf
  int block_values;
  int block_bytes;
  GroupedShape shape;  ///< bits == 0 for f32, f16, bf16, fp8
  void (*unpack)(const std::uint8_t* block, float* out);
  void (*decompose)(const std::uint8_t* block, GroupedBlock& out);  ///< nullptr where bits == 0
};

/// All formats, in the order of WeightType.
std::span<const Format> formats() noexcept;
/// `type` is an enumerator of WeightType.
const Format& format(WeightType type) noexcept;
/// nullptr if the number names no type that llminfer reads.
const Format* format_by_ggml_type(std::uint32_t ggml_type) noexcept;

}  // namespace llminfer::quant
