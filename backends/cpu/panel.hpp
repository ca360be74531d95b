// The layout of packed weights and of quantized activations, as plain data that kernels of every instruction set read.
// Included by ISA files: no std container, no function that is not evaluated at compile time.
#pragma once

#include <cstddef>
#include <cstdint>

namespace llminfer::cpu {

/// Changes with the layout of panels, which files of packed weights are written in.
inline constexpr int kPanelVersion = 3;

/// Output rows of a panel. A weight [N, K] is ceil(N / 16) panels; the last one is filled up with zero rows.
inline constexpr int kPanelRows = 16;
/// Input values that share one scale of a quantized activation row. K of every grouped weight is a multiple of it.
inline constexpr int kGroupValues = 32;
/// Columns of fp8 panels whose products with BF16 numbers are summed before they are scaled; fewer, where fewer weights
/// share a scale: block_of().
inline constexpr int kBlockValues = 128;
/// Groups of 32 that share the super-scales of a two-level format.
inline constexpr int kSuperGroups = 8;

/// How a level's kernels want activation codes.
enum class ActivationForm : std::uint8_t {
  bytes,  ///< code = 256 * high + low: high [32], then low [32], both signed
  words,  ///< [8 quads][4], int16: values 0, 2, 1, 3 of each quad
  pairs,  ///< as bytes, but high and low ones of 8 values in turn: [4][high [8], low [8]]
};
/// How finely activations are quantized: code = nearest(x * limit / absmax) << shift, absmax that of the group.
struct ActivationCodes {
  std::int32_t limit;
  std::int32_t shift;
  bool bytes;  ///< low bytes, which are 0, may be left out: see kBytes8
};
/// 16 bits; the largest code is that whose high byte, when the low one is signed, is 127.
inline constexpr ActivationCodes kCodes16{127 * 257, 0, false};
/// 8 bits, with low bytes of 0, so that kernels may do without them and still give the same bits.
inline constexpr ActivationCodes kCodes8{127, 8, false};
/// The same numbers, for LinearKernels::byte_rows rows and more. Levels of ActivationForm::words that have kernels for
/// them store high [32], signed, in their place, which cannot be multiplied with wide_codes(); others store what they
/// store of kCodes8.
inline constexpr ActivationCodes kBytes8{127, 8, true};

/// One group of 32 values of an activation row: x ~ scale * code, |code| <= kCodes16.limit. The sums serve the zero
/// points and minimums of weights. All lies together, so that a kernel reaches it from one pointer. Of BF16 numbers,
/// x ~ scale * number, all else has no meaning.
struct alignas(32) QuantizedGroup {
  std::uint8_t codes[2 * kGroupValues];  ///< in the level's ActivationForm; or the numbers, as they lie in memory
  float scale;
  float scaled_sum;          ///< scale * sum(code)
  float scaled_half_sum[2];  ///< the same of values 0-15 and 16-31
  std::int32_t minus_sum;    ///< -sum(code)
  std::int32_t minus_half_sum[2];
  float high_scale;  ///< 256 * scale: that of high bytes alone
};
static_assert(sizeof(QuantizedGroup) == 96);

/// A number of rows that is never reached: the level has no use for slices of such weights.
inline constexpr int kNever = 1 << 30;
/// How a row of activations is rounded before it is multiplied: InputQuantization without what kernels do not see.
struct InputRounding {
  bool floats;                     ///< to E4M3, else to integers of 8 bits
  bool dynamic;                    ///< scale = largest absolute value / 448 or 127.5, zero = 0
  std::int64_t group;              ///< dynamic: values that share a scale; 0: all of the row
  float scale;                     ///< static
  std::int32_t zero;               ///< static
  float limit = __builtin_inff();  ///< dynamic: no larger value counts
  bool powers = false;             ///< dynamic: scales are rounded up to powers of two
};
/// A row of activations in integers of 8 bits: x ~ scale * (code - zero). Its codes, -128 … 127, follow: signed bytes,
/// or for levels of ActivationForm::words int16 [K / 4][4], values 0, 2, 1, 3 of each quad.
struct alignas(32) ByteRow {
  float scale;  ///< NaN: not all values were finite
  std::int32_t zero;
  std::int32_t minus_sum;  ///< -sum(code)
  std::int32_t unused[5];
};
static_assert(sizeof(ByteRow) == 32);

/// Scratch that a level needs to unpack once or twice kSuperGroups groups of a tile's panels.
inline constexpr std::int64_t kSliceBytes = 32768;

/// How scales lie in a panel, always [group][16 rows]. Scales of one level may be shared by 2^PanelLayout::scale_shift
/// groups of 32, and are stored once.
enum class PanelScale : std::uint8_t {
  f16,        ///< half; minimums follow likewise
  f32,        ///< float; a minimum is one, too, or the scale times a zero point, int8 (PanelLayout::float_minimums)
  two_level,  ///< int8 sub-scales (then uint8 sub-minimums) per group; half d (then d_min) per 256 values
};

/// What a kernel is instantiated for: value = scale * (code - zero) - minimum, or scale * table[code].
/// With a table, codes become unsigned bytes table[code] + 128 when they are unpacked, so that zero = 128.
struct PanelShape {
  int bits;   ///< of a stored code: 2, 3, 4, 5, 6 or 8; 0 for dense panels
  int group;  ///< 16 or 32
  int zero;   ///< a power of two or 0
  bool table;
  bool minimum;
  PanelScale scale;
  bool sparse = false;  ///< 8 bits: codes of two columns of each four; those of the others are `zero`
};

/// The kinds of panels. Grouped kinds are named after their first format; others share them: NF4 and FP4 are read as
/// MXFP4, W8_SYM as grid32.
enum class PanelKind : std::uint8_t {
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
  iq4_nl,
  iq4_xs,
  mxfp4,
  nvfp4,
  ternary,  ///< TQ1_0, TQ2_0
  grid32,   ///< formats with vector grids, expanded to 8 bits: a scale per 32 values
  grid16,   ///< and per 16
  w2,
  w3,
  w4,
  w8,
  w4_sym,
  fp4_16,
  w8a8,  ///< as grid32 with one scale for a row, multiplied with ByteRows; then [16] the sums of codes less 128, int32
  fp8,   ///< dense bytes, E4M3; a float scale per row and 32 << PanelLayout::scale_shift columns
  f16_sparse,   ///< f16 of which two of four neighbours are zero
  bf16_sparse,  ///< likewise
  q8_0_sparse,  ///< q8_0 and grid32 of which two of four neighbours are zero
  grid32_sparse,
};
inline constexpr int kPanelKinds = 32;

/// Whether codes have 8 bits once they are unpacked.
[[gnu::always_inline]] constexpr bool wide_codes(const PanelShape& shape) { return shape.bits == 8 || shape.table; }

[[gnu::always_inline]] constexpr PanelShape panel_shape(PanelKind kind) {
  switch (kind) {
    case PanelKind::f32:
    case PanelKind::f16:
    case PanelKind::bf16:
    case PanelKind::fp8:
    case PanelKind::f16_sparse:
    case PanelKind::bf16_sparse:
      return {0, 1, 0, false, false, PanelScale::f32};
    case PanelKind::q4_0:
      return {4, 32, 8, false, false, PanelScale::f16};
    case PanelKind::q4_1:
      return {4, 32, 0, false, true, PanelScale::f16};
    case PanelKind::q5_0:
      return {5, 32, 16, false, false, PanelScale::f16};
    case PanelKind::q5_1:
      return {5, 32, 0, false, true, PanelScale::f16};
    case PanelKind::q8_0:
      return {8, 32, 128, false, false, PanelScale::f16};
    case PanelKind::q8_0_sparse:
      return {8, 32, 128, false, false, PanelScale::f16, true};
    case PanelKind::q2_k:
      return {2, 16, 0, false, true, PanelScale::two_level};
    case PanelKind::q3_k:
      return {3, 16, 4, false, false, PanelScale::two_level};
    case PanelKind::q4_k:
      return {4, 32, 0, false, true, PanelScale::two_level};
    case PanelKind::q5_k:
      return {5, 32, 0, false, true, PanelScale::two_level};
    case PanelKind::q6_k:
      return {6, 16, 32, false, false, PanelScale::two_level};
    case PanelKind::iq4_nl:
      return {4, 32, 128, true, false, PanelScale::f16};
    case PanelKind::iq4_xs:
      return {4, 32, 128, true, false, PanelScale::two_level};
    case PanelKind::mxfp4:
      return {4, 32, 128, true, false, PanelScale::f32};
    case PanelKind::nvfp4:
      return {4, 16, 128, true, false, PanelScale::f16};
    case PanelKind::ternary:
      return {2, 32, 1, false, false, PanelScale::f32};
    case PanelKind::grid32:
    case PanelKind::w8a8:
      return {8, 32, 128, false, false, PanelScale::f32};
    case PanelKind::grid32_sparse:
      return {8, 32, 128, false, false, PanelScale::f32, true};
    case PanelKind::grid16:
      return {8, 16, 128, false, false, PanelScale::f32};
    case PanelKind::w2:
      return {2, 32, 0, false, true, PanelScale::f32};
    case PanelKind::w3:
      return {3, 32, 0, false, true, PanelScale::f32};
    case PanelKind::w4:
      return {4, 32, 0, false, true, PanelScale::f32};
    case PanelKind::w8:
      return {8, 32, 128, false, true, PanelScale::f32};
    case PanelKind::w4_sym:
      return {4, 32, 8, false, false, PanelScale::f32};
    case PanelKind::fp4_16:
      return {4, 16, 128, true, false, PanelScale::f32};
  }
  return {};
}

/// Where the parts of a grouped panel lie, in bytes from its start. Each part starts on a cache line. Codes come in
/// groups of 32 values, whose 8 quads are [16 rows][4 consecutive values] = 64 bytes:
///   8 bits  plane q is quad q
///   4 bits  plane p of 4: low nibbles quad p, high nibbles quad p + 4
///   2 bits  plane p of 2: bits 2j, 2j + 1 are quad p + 2j
///   5 bits  as 4, then one plane whose bit q is bit 4 of quad q
///   3 bits  as 2, then one plane whose bit q is bit 2 of quad q
///   6 bits  as 4, then two planes as for 2 bits with bits 4 and 5 of the codes
///   sparse  per quad the two codes of each row, at pair_at(row), [8 quads][32]; then per quad 64 bits, of which bit
///           4 * row + i says whether column i has a code, two of each four, [8 quads][8]
struct PanelLayout {
  std::int64_t code_bytes;  ///< of one group of 32
  std::int64_t scale;       ///< scales, or sub-scales
  std::int64_t minimum;     ///< minimums, or sub-minimums
  std::int64_t super_scale;
  std::int64_t super_minimum;
  std::int64_t bytes;   ///< of a panel
  int scale_shift;      ///< log2 of the groups of 32 that share a scale
  bool float_minimums;  ///< PanelScale::f32: minimums are floats, not zero points
};

/// Where the masks of a group of a sparse panel begin, and where in a quad's codes those of a row are: in the same
/// 16 bytes and, of rows 0 to 7 and 8 to 15, the same order as expanded ones, so that bytes move within 16 only.
inline constexpr std::int64_t kPairMasks = kGroupValues / 2 * kPanelRows;
[[gnu::always_inline]] constexpr int pair_at(int row) { return row / 4 % 2 * 16 + row / 8 * 8 + row % 4 * 2; }

/// `scale_shift` is 0 unless the shape has groups of 32 with scales of one level.
[[gnu::always_inline]] constexpr PanelLayout panel_layout(PanelShape shape, std::int64_t cols, int scale_shift = 0,
                                                          bool float_minimums = false) {
  const auto align = [](std::int64_t n) { return (n + 63) / 64 * 64; };
  const std::int64_t groups = (cols + kGroupValues - 1) / kGroupValues;
  const std::int64_t scales = (((groups - 1) >> scale_shift) + 1) * (kGroupValues / shape.group) * kPanelRows;
  const std::int64_t supers = (groups + kSuperGroups - 1) / kSuperGroups * kPanelRows;
  const bool two_level = shape.scale == PanelScale::two_level;
  const std::int64_t scale_bytes = align(scales * (two_level ? 1 : shape.scale == PanelScale::f16 ? 2 : 4));
  PanelLayout layout{};
  layout.code_bytes = shape.sparse ? kPairMasks + 64 : shape.bits * kGroupValues * kPanelRows / 8;
  layout.scale = groups * layout.code_bytes;
  layout.minimum = layout.scale + scale_bytes;
  const bool zero_points = shape.scale == PanelScale::f32 && !float_minimums;
  layout.super_scale = layout.minimum + (!shape.minimum ? 0 : zero_points ? align(scales) : scale_bytes);
  layout.super_minimum = layout.super_scale + (two_level ? align(supers * 2) : 0);
  layout.bytes = layout.super_minimum + (two_level && shape.minimum ? align(supers * 2) : 0);
  layout.scale_shift = scale_shift;
  layout.float_minimums = float_minimums;
  return layout;
}

[[gnu::always_inline]] constexpr std::int64_t block_of(const PanelLayout& layout) {
  return layout.scale_shift < 2 ? kGroupValues << layout.scale_shift : kBlockValues;
}

/// A packed weight as kernels see it. Dense panels are [cols][16] of the stored type; after those of fp8 come, at
/// layout.scale, the scales. Sparse panels of floats have for each four columns a first and a second value of each row,
/// [cols / 4][2][16]; at layout.scale follow, [cols / 4][2], words of 32 bits, of which bits 2 * lane and 2 * lane + 1
/// say which of the four columns the value belongs to, ascending. A row with fewer than two values has zeros for the
/// others.
struct PackedWeightView {
  const std::uint8_t* data;  ///< panel_count panels of layout.bytes each, 64-byte aligned
  std::int64_t rows;         ///< N
  std::int64_t cols;         ///< K
  PanelLayout layout;
  PanelKind kind;
  std::uint8_t table[16];   ///< table[code] + 128 for kinds with a table
  std::int32_t slice_rows;  ///< from so many rows on, slices; 0: as measured for the level. Changes no bit
};

/// The rows that a linear kernel multiplies: quantized for grouped kinds, float or BF16 for dense ones.
struct ActivationView {
  const float* f32;              ///< [rows, stride]
  std::int64_t stride;           ///< in floats
  const QuantizedGroup* groups;  ///< [rows, group_stride]; w8a8: a ByteRow at the start of each row
  std::int64_t group_stride;     ///< in groups, at least ceil(K / 32)
  bool high_only;                ///< all codes are of kBytes8
  bool bfloats;                  ///< groups are of BF16 numbers, which bf16 and fp8 multiply in the place of floats
};

/// The kernels of one instruction set level. All levels give the same bits, whatever the ranges and their split.
struct LinearKernels {
  const char* level;
  ActivationForm form;
  std::int32_t byte_rows;  ///< from so many rows of 8 bits on, kBytes8 is multiplied faster than kCodes8; or kNever
  /// x // (k) -> out // (ceil(k / 32)); the tail counts as zeros. A group whose values are not all finite gets a NaN
  /// scale.
  void (*quantize_row)(const float* x, std::int64_t k, ActivationCodes codes, QuantizedGroup* out);
  /// x // (k) -> out // (k): the numbers that x is rounded to, scale * (clamp(round(x / scale) + zero) - zero) or
  /// scale * E4M3(x / scale). Where a value is not finite, all that share its scale become NaN.
  void (*round_row)(const InputRounding& how, const float* x, std::int64_t k, float* out);
  /// x // (k), a multiple of 32 -> a ByteRow at `out`: the same numbers in integers, of one scale.
  void (*quantize_bytes)(const InputRounding& how, const float* x, std::int64_t k, QuantizedGroup* out);
  /// x // (k) -> out // (ceil(k / 32)), BF16 numbers: the nearest, ties away from zero, with scales of 1; or with `how`,
  /// of floats, the same numbers as round_row's and their scales apart, `how->group` a multiple of 32. The tail counts
  /// as zeros.
  void (*quantize_bfloats)(const InputRounding* how, const float* x, std::int64_t k, QuantizedGroup* out);
  /// out[row * out_stride + n] = sum over k of x[row, k] * w[n, k], for n in panels [panel_begin, panel_end) and rows
  /// [row_begin, row_end). `scratch` holds linear_scratch_bytes(w.cols) bytes, 64-byte aligned, and is the thread's
  /// own.
  void (*linear)(const PackedWeightView& w, std::int32_t panel_begin, std::int32_t panel_end, const ActivationView& x,
                 std::int32_t row_begin, std::int32_t row_end, float* out, std::int64_t out_stride, void* scratch);
  /// out[row] = dot(w // (k), x[row] // (k, stride)) in float: 16 partial sums over k mod 16, then a fixed tree.
  void (*dot_rows)(const float* w, std::int64_t k, const float* x, std::int64_t stride, std::int32_t rows, float* out,
                   std::int64_t out_stride);
};

}  // namespace llminfer::cpu
