// Vector operations of the linear kernels on NEON (AArch64), with the dot products of bytes (Armv8.2) and their matrix
// products (i8mm, Armv8.6) where the file is compiled for them: one vector is 4 of the 16 rows of a panel. Included
// inside the level's namespace.

#include "group_scale-inl.hpp"

namespace {

constexpr int kLanes = 4;
constexpr int kTileVectors = 4;
constexpr int kTileRows = 2;  // 2 x 4 pairs of sums and as many floats, of 32 registers
constexpr int high_tile_rows(PanelShape) { return 2; }
/// From so many rows on, weights of this shape are unpacked into slices (docs/adr/0022).
constexpr int slice_rows(PanelShape) { return 9; }

using Bytes = uint8x16_t;  // 16 codes: [4 rows][4 values]
using Ints = int32x4_t;
using Floats = float32x4_t;

[[gnu::always_inline]] inline Bytes load_bytes(const void* p) { return vld1q_u8(static_cast<const std::uint8_t*>(p)); }
[[gnu::always_inline]] inline void store_bytes(void* p, Bytes v) { vst1q_u8(static_cast<std::uint8_t*>(p), v); }
[[gnu::always_inline]] inline Bytes fill_bytes(int v) { return vdupq_n_u8(static_cast<std::uint8_t>(v)); }
[[gnu::always_inline]] inline Bytes and_bytes(Bytes a, Bytes b) { return vandq_u8(a, b); }
[[gnu::always_inline]] inline Bytes xor_bytes(Bytes a, Bytes b) { return veorq_u8(a, b); }
[[gnu::always_inline]] inline Bytes add_bytes(Bytes a, Bytes b) { return vaddq_u8(a, b); }
/// a | (b & mask)
[[gnu::always_inline]] inline Bytes or_masked(Bytes a, Bytes b, Bytes mask) { return vorrq_u8(a, vandq_u8(b, mask)); }
/// Shifts 16-bit lanes; `n` is constant once loops are unrolled. Callers mask off what crosses into the neighbour byte.
[[gnu::always_inline]] inline Bytes shift_right(Bytes v, int n) {
  return vreinterpretq_u8_u16(vreinterpretq_u16_u8(v) >> static_cast<std::uint16_t>(n));
}
/// To the right by -n where n is negative.
[[gnu::always_inline]] inline Bytes shift_left(Bytes v, int n) {
  if (n < 0) return shift_right(v, -n);
  return vreinterpretq_u8_u16(vreinterpretq_u16_u8(v) << static_cast<std::uint16_t>(n));
}
[[gnu::always_inline]] inline Bytes load_table(const std::uint8_t* p) { return vld1q_u8(p); }
[[gnu::always_inline]] inline Bytes look_up(Bytes table, Bytes index) { return vqtbl1q_u8(table, index); }

[[gnu::always_inline]] inline Ints zero_ints() { return vdupq_n_s32(0); }
[[gnu::always_inline]] inline Ints add_ints(Ints a, Ints b) { return vaddq_s32(a, b); }
/// Four consecutive bytes of activation codes, or one integer, in every lane.
[[gnu::always_inline]] inline Ints fill_quad(const void* p) {
  std::int32_t v;
  __builtin_memcpy(&v, p, sizeof v);
  return vdupq_n_s32(v);
}
[[gnu::always_inline]] inline Ints load_ints(const void* p) { return vld1q_s32(static_cast<const std::int32_t*>(p)); }
/// A sparse quad as a dense one, rows from `lane` on: `codes` and `mask` as PanelLayout has them, `fill` in the other
/// columns.
[[gnu::always_inline]] inline Bytes spread_pairs(const std::uint8_t* codes, const std::uint8_t* mask, int lane,
                                                 Bytes fill) {
  std::uint16_t both;
  __builtin_memcpy(&both, mask + lane / 2, sizeof both);
  const auto first = static_cast<std::uint16_t>(both & ~(both - 0x1111));  // the lowest bit of each four
  const uint8x16_t bits = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
  const auto has = [&](std::uint16_t columns) __attribute__((always_inline)) {
    const uint8x8_t low = vdup_n_u8(static_cast<std::uint8_t>(columns)), high = vdup_n_u8(columns >> 8);
    return vtstq_u8(vcombine_u8(low, high), bits);
  };
  const uint8x16_t place = {0, 0, 0, 0, 2, 2, 2, 2, 4, 4, 4, 4, 6, 6, 6, 6};
  const uint8x8_t pairs = vld1_u8(codes + pair_at(lane));
  const uint8x16_t all = vcombine_u8(pairs, pairs);
  const uint8x16_t second = vqtbl1q_u8(all, vaddq_u8(place, vdupq_n_u8(1)));
  return vbslq_u8(has(first), vqtbl1q_u8(all, place), vbslq_u8(has(both), second, fill));
}
template <int n>
[[gnu::always_inline]] inline Ints shift_ints(Ints v) {
  return vshlq_s32(v, vdupq_n_s32(n));
}

[[gnu::always_inline]] inline Floats zero_floats() { return vdupq_n_f32(0.0f); }
[[gnu::always_inline]] inline Floats fill_float(float v) { return vdupq_n_f32(v); }
[[gnu::always_inline]] inline Floats to_floats(Ints v) { return vcvtq_f32_s32(v); }
[[gnu::always_inline]] inline Floats multiply(Floats a, Floats b) { return vmulq_f32(a, b); }
[[gnu::always_inline]] inline Floats add_floats(Floats a, Floats b) { return vaddq_f32(a, b); }
[[gnu::always_inline]] inline Floats subtract(Floats a, Floats b) { return vsubq_f32(a, b); }
[[gnu::always_inline]] inline Floats divide(Floats a, Floats b) { return vdivq_f32(a, b); }
[[gnu::always_inline]] inline Floats smaller(Floats a, Floats b) { return vminq_f32(a, b); }
[[gnu::always_inline]] inline Floats larger(Floats a, Floats b) { return vmaxq_f32(a, b); }
[[gnu::always_inline]] inline Bytes bits_of(Floats v) { return vreinterpretq_u8_f32(v); }
[[gnu::always_inline]] inline Floats floats_of(Bytes bits) { return vreinterpretq_f32_u8(bits); }
[[gnu::always_inline]] inline Bytes fill_bits(int v) { return vreinterpretq_u8_s32(vdupq_n_s32(v)); }
/// The nearest integers.
[[gnu::always_inline]] inline Ints to_ints(Floats v) { return vcvtnq_s32_f32(v); }
[[gnu::always_inline]] inline void store_ints(std::int32_t* p, Ints v) { vst1q_s32(p, v); }
/// a * b + c and c - a * b, rounded once
[[gnu::always_inline]] inline Floats fma(Floats a, Floats b, Floats c) { return vfmaq_f32(c, a, b); }
[[gnu::always_inline]] inline Floats fnma(Floats a, Floats b, Floats c) { return vfmsq_f32(c, a, b); }
[[gnu::always_inline]] inline Floats load_floats(const void* p) { return vld1q_f32(static_cast<const float*>(p)); }
[[gnu::always_inline]] inline Floats load_halves(const void* p) {
  return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(static_cast<const std::uint16_t*>(p))));
}
[[gnu::always_inline]] inline Floats load_bfloats(const void* p) {
  return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(static_cast<const std::uint16_t*>(p)), 16));
}
/// The nearest BF16 numbers of finite ones, ties away from zero.
[[gnu::always_inline]] inline Floats to_bfloats(Floats v) {
  const uint32x4_t nearest = vaddq_u32(vreinterpretq_u32_f32(v), vdupq_n_u32(0x8000));
  return vreinterpretq_f32_u32(vandq_u32(nearest, vdupq_n_u32(0xffff0000u)));
}
/// The low halves of lanes as BF16 numbers.
[[gnu::always_inline]] inline Floats low_bfloats(Floats v) {
  return vreinterpretq_f32_u32(vshlq_n_u32(vreinterpretq_u32_f32(v), 16));
}
/// Those of BF16 numbers, 16 bits each.
[[gnu::always_inline]] inline void store_bfloats(std::uint8_t* p, Floats v) {
  vst1_u16(reinterpret_cast<std::uint16_t*>(p), vshrn_n_u32(vreinterpretq_u32_f32(v), 16));
}
/// E4M3 divided by 2^8; see panel_e4m3.
[[gnu::always_inline]] inline Floats load_e4m3(const void* p) {
  const int16x4_t wide = vget_low_s16(vmovl_s8(vreinterpret_s8_s32(vget_low_s32(fill_quad(p)))));
  const int16x4_t sign = vand_s16(wide, vdup_n_s16(static_cast<std::int16_t>(0x8000)));
  const int16x4_t rest = vand_s16(vshl_n_s16(wide, 7), vdup_n_s16(0x3f80));
  return vcvt_f32_f16(vreinterpret_f16_s16(vorr_s16(sign, rest)));
}
/// Which of four values each lane takes, as the places of their bytes: two bits a lane, from bit 2 * (first + lane) of
/// a word on.
using Choice = uint8x16_t;
[[gnu::always_inline]] inline Choice load_choice(const void* p, int first) {
  std::uint32_t word;
  __builtin_memcpy(&word, p, sizeof word);
  const int32x4_t shift = {0, -2, -4, -6};
  const uint32x4_t choice = vandq_u32(vshlq_u32(vdupq_n_u32(word >> 2 * first), shift), vdupq_n_u32(3));
  return vreinterpretq_u8_u32(vmlaq_n_u32(vdupq_n_u32(0x03020100), choice, 0x04040404));
}
[[gnu::always_inline]] inline Floats fill_four(const float* p) { return vld1q_f32(p); }
[[gnu::always_inline]] inline Floats choose(Floats four, Choice choice) {
  return vreinterpretq_f32_u8(vqtbl1q_u8(vreinterpretq_u8_f32(four), choice));
}
[[gnu::always_inline]] inline Floats load_int8(const void* p) {
  const int8x8_t four = vreinterpret_s8_s32(vget_low_s32(fill_quad(p)));
  return vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(four))));
}
[[gnu::always_inline]] inline Floats load_uint8(const void* p) {
  const uint8x8_t four = vreinterpret_u8_s32(vget_low_s32(fill_quad(p)));
  return vcvtq_f32_u32(vmovl_u16(vget_low_u16(vmovl_u8(four))));
}
[[gnu::always_inline]] inline void store_floats(float* p, Floats v) { vst1q_f32(p, v); }
/// The first `count` of 4; the others are 0.
[[gnu::always_inline]] inline Floats load_some(const float* p, int count) {
  float lanes[kLanes] = {};
  for (int i = 0; i < count; ++i) lanes[i] = p[i];
  return vld1q_f32(lanes);
}
[[gnu::always_inline]] inline void store_some(float* p, Floats v, int count) {
  float lanes[kLanes];
  vst1q_f32(lanes, v);
  for (int i = 0; i < count; ++i) p[i] = lanes[i];
}

#if defined(__ARM_FEATURE_MATMUL_INT8)
/// Which half of two vectors' rows: rows 0 and 1, or 2 and 3, with the four values of `a` and then those of `b`.
[[gnu::always_inline]] inline Bytes interleave(Bytes a, Bytes b, int half) {
  const uint32x4_t x = vreinterpretq_u32_u8(a), y = vreinterpretq_u32_u8(b);
  return vreinterpretq_u8_u32(half == 0 ? vzip1q_u32(x, y) : vzip2q_u32(x, y));
}
/// sum [2 rows][2] + codes [2 rows][8], unsigned, times x [2][8], signed.
[[gnu::always_inline]] inline Ints dot_matrix(Ints sum, Bytes codes, Ints x) {
  return vusmmlaq_s32(sum, codes, vreinterpretq_s8_s32(x));
}
/// sum + the dot products of unsigned bytes with signed bytes, four to a lane.
[[gnu::always_inline]] inline Ints dot_row_bytes(Ints sum, Bytes codes, Ints x) {
  return vusdotq_s32(sum, codes, vreinterpretq_s8_s32(x));
}
/// [2 rows][high, low] of four rows in two vectors -> 256 * high + low.
[[gnu::always_inline]] inline Ints add_parts(Ints rows01, Ints rows23) {
  const int32x4_t shift = {8, 0, 8, 0};
  return vpaddq_s32(vshlq_s32(rows01, shift), vshlq_s32(rows23, shift));
}
/// v in the lanes of low parts, 0 in those of high ones.
[[gnu::always_inline]] inline Ints low_lanes(Ints v) { return vandq_s32(v, int32x4_t{0, -1, 0, -1}); }
#elif defined(__ARM_FEATURE_DOTPROD)
/// sum + the dot products of signed bytes, four to a lane.
[[gnu::always_inline]] inline Ints dot_bytes(Ints sum, Bytes codes, Ints x) {
  return vdotq_s32(sum, vreinterpretq_s8_u8(codes), vreinterpretq_s8_s32(x));
}
constexpr bool kSignedCodes = true;
#else
constexpr int kByteRows = kNever;
[[gnu::always_inline]] inline Bytes add_words(Bytes v, int n) {
  return vreinterpretq_u8_s16(vaddq_s16(vreinterpretq_s16_u8(v), vdupq_n_s16(static_cast<std::int16_t>(n))));
}
[[gnu::always_inline]] inline Bytes even_bytes(Bytes v) {
  return vreinterpretq_u8_u16(vandq_u16(vreinterpretq_u16_u8(v), vdupq_n_u16(255)));
}
[[gnu::always_inline]] inline Bytes odd_bytes(Bytes v) { return shift_right(v, 8); }

/// A sum of products of words, two to a row: a multiplication takes half of a vector, so that it has two halves.
struct WordSums {
  Ints rows01, rows23;  // [2 rows][2]
};
[[gnu::always_inline]] inline WordSums start_words(Ints at) {
  const Ints first = vandq_s32(at, int32x4_t{-1, 0, -1, 0});
  return {first, first};
}
[[gnu::always_inline]] inline WordSums dot_words(WordSums sum, Bytes codes, Ints x) {
  const int16x8_t a = vreinterpretq_s16_u8(codes), b = vreinterpretq_s16_s32(x);
  return {vmlal_s16(sum.rows01, vget_low_s16(a), vget_low_s16(b)), vmlal_high_s16(sum.rows23, a, b)};
}
[[gnu::always_inline]] inline Ints total_words(WordSums sum) { return vpaddq_s32(sum.rows01, sum.rows23); }
#endif

// Quantization of one group of 32; see linear_scalar-inl.hpp.
void quantize_group(const float* x, ActivationCodes codes, QuantizedGroup* out) {
  float32x4_t v[8];
  uint32x4_t most = vdupq_n_u32(0);
  for (int i = 0; i < 8; ++i) {
    v[i] = vld1q_f32(x + i * 4);
    most = vmaxq_u32(most, vandq_u32(vreinterpretq_u32_f32(v[i]), vdupq_n_u32(0x7fffffff)));
  }
  const GroupScale s = group_scale(vmaxvq_u32(most), codes);
  const int32x4_t shift = vdupq_n_s32(codes.shift);
  int32x4_t code[8];
  for (int i = 0; i < 8; ++i) {  // infinity * 0 is NaN and becomes 0
    code[i] = vshlq_s32(vcvtnq_s32_f32(vmulq_n_f32(v[i], s.inverse)), shift);
  }
  for (int i = 0; i < 4; ++i) {
    const int16x8_t words = vcombine_s16(vmovn_s32(code[2 * i]), vmovn_s32(code[2 * i + 1]));
#if defined(__ARM_FEATURE_DOTPROD) || defined(__ARM_FEATURE_MATMUL_INT8)
    const int8x8_t low = vmovn_s16(words);
    const int8x8_t high = vshrn_n_s16(vaddq_s16(words, vdupq_n_s16(128)), 8);
    auto* const to = reinterpret_cast<std::int8_t*>(out->codes);
#ifdef __ARM_FEATURE_MATMUL_INT8
    vst1q_s8(to + i * 16, vcombine_s8(high, low));
#else
    vst1_s8(to + i * 8, high);
    vst1_s8(to + kGroupValues + i * 8, low);
#endif
#else
    const uint8x16_t order = {0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15};
    vst1q_u8(out->codes + i * 16, vqtbl1q_u8(vreinterpretq_u8_s16(words), order));
#endif
  }
  const std::int32_t sum_a = vaddvq_s32(vaddq_s32(vaddq_s32(code[0], code[1]), vaddq_s32(code[2], code[3])));
  const std::int32_t sum_b = vaddvq_s32(vaddq_s32(vaddq_s32(code[4], code[5]), vaddq_s32(code[6], code[7])));
  finish_group(s, sum_a, sum_b, out);
}

float dot_row(const float* w, const float* x, std::int64_t k) {
  float32x4_t sum[4] = {vdupq_n_f32(0.0f), vdupq_n_f32(0.0f), vdupq_n_f32(0.0f), vdupq_n_f32(0.0f)};
  for (; k >= 16; k -= 16, w += 16, x += 16) {
    for (int i = 0; i < 4; ++i) sum[i] = vfmaq_f32(sum[i], vld1q_f32(w + i * 4), vld1q_f32(x + i * 4));
  }
  if (k > 0) {
    float lanes[16];
    for (int i = 0; i < 4; ++i) vst1q_f32(lanes + i * 4, sum[i]);
    for (int i = 0; i < k; ++i) lanes[i] = __builtin_fmaf(w[i], x[i], lanes[i]);
    for (int i = 0; i < 4; ++i) sum[i] = vld1q_f32(lanes + i * 4);
  }
  const float32x4_t s4 = vaddq_f32(vaddq_f32(sum[0], sum[2]), vaddq_f32(sum[1], sum[3]));
  const float32x2_t s2 = vadd_f32(vget_low_f32(s4), vget_high_f32(s4));
  return vget_lane_f32(s2, 0) + vget_lane_f32(s2, 1);
}

}  // namespace
