// Vector operations of the linear kernels on AVX-512 (F, BW, DQ, VL), with VNNI where the file is compiled for it: one
// vector is the 16 rows of a panel. Included inside the level's namespace.

#include "group_scale-inl.hpp"

namespace {

constexpr int kLanes = 16;
constexpr int kTileVectors = 2;
constexpr int kTileRows = 4;  // 4 x 2 sums of high bytes, of low bytes and of floats, of 32 registers
/// Of high bytes alone, where two multiplications begin in each cycle and take 4; fewer where halves of a group have
/// scales of their own, and so a float more for each output.
constexpr int high_tile_rows(PanelShape s) { return s.group == kGroupValues ? 6 : 4; }
/// From so many rows on, weights of this shape are unpacked into slices (docs/adr/0022).
#ifdef __AVX512VNNI__
constexpr int slice_rows(PanelShape s) {
  if (s.table) return 32;
  if (s.sparse) return 12;
  if (s.bits == 8) return kNever;
  if (s.bits == 4) return s.scale == PanelScale::two_level ? 96 : kNever;
  return s.bits == 5 ? 48 : s.bits == 3 ? 14 : 24;
}
#else
constexpr int slice_rows(PanelShape) { return 9; }
#endif

using Bytes = __m512i;  // 64 codes: [16 rows][4 values]
using Ints = __m512i;
using Floats = __m512;

[[gnu::always_inline]] inline Bytes load_bytes(const void* p) { return _mm512_loadu_si512(p); }
[[gnu::always_inline]] inline void store_bytes(void* p, Bytes v) { _mm512_storeu_si512(p, v); }
[[gnu::always_inline]] inline Bytes fill_bytes(int v) { return _mm512_set1_epi8(static_cast<char>(v)); }
[[gnu::always_inline]] inline Bytes and_bytes(Bytes a, Bytes b) { return _mm512_and_si512(a, b); }
[[gnu::always_inline]] inline Bytes xor_bytes(Bytes a, Bytes b) { return _mm512_xor_si512(a, b); }
[[gnu::always_inline]] inline Bytes add_bytes(Bytes a, Bytes b) { return _mm512_add_epi8(a, b); }
/// a | (b & mask)
[[gnu::always_inline]] inline Bytes or_masked(Bytes a, Bytes b, Bytes mask) {
  return _mm512_ternarylogic_epi32(a, b, mask, 0xf8);
}
/// Shifts 16-bit lanes; `n` is constant once loops are unrolled. Callers mask off what crosses into the neighbour byte.
[[gnu::always_inline]] inline Bytes shift_right(Bytes v, int n) { return _mm512_srli_epi16(v, n); }
/// To the right by -n where n is negative.
[[gnu::always_inline]] inline Bytes shift_left(Bytes v, int n) {
  return n > 0 ? _mm512_slli_epi16(v, n) : shift_right(v, -n);
}
[[gnu::always_inline]] inline Bytes load_table(const std::uint8_t* p) {
  return _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
[[gnu::always_inline]] inline Bytes look_up(Bytes table, Bytes index) { return _mm512_shuffle_epi8(table, index); }

[[gnu::always_inline]] inline Ints zero_ints() { return _mm512_setzero_si512(); }
[[gnu::always_inline]] inline Ints add_ints(Ints a, Ints b) { return _mm512_add_epi32(a, b); }
/// Four consecutive activation codes, or one integer, in every lane.
[[gnu::always_inline]] inline Ints fill_quad(const void* p) {
  int v;
  __builtin_memcpy(&v, p, sizeof v);
  return _mm512_set1_epi32(v);
}
[[gnu::always_inline]] inline Ints load_ints(const void* p) { return load_bytes(p); }
/// A sparse quad as a dense one: `codes` and `mask` as PanelLayout has them, `fill` in the other columns.
[[gnu::always_inline]] inline Bytes spread_pairs(const std::uint8_t* codes, const std::uint8_t* mask, int, Bytes fill) {
  constexpr std::uint64_t kOnes = 0x1111111111111111;
  std::uint64_t both;
  __builtin_memcpy(&both, mask, sizeof both);
  const std::uint64_t first = both & ~(both - kOnes);  // the lowest bit of each four
  const __m512i place =
      _mm512_setr_epi32(0x00000000, 0x02020202, 0x04040404, 0x06060606, 0x00000000, 0x02020202, 0x04040404, 0x06060606,
                        0x08080808, 0x0a0a0a0a, 0x0c0c0c0c, 0x0e0e0e0e, 0x08080808, 0x0a0a0a0a, 0x0c0c0c0c, 0x0e0e0e0e);
  const __m512i pairs = _mm512_broadcast_i64x4(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes)));
  const __m512i second = _mm512_mask_shuffle_epi8(fill, both, pairs, _mm512_add_epi8(place, _mm512_set1_epi8(1)));
  return _mm512_mask_shuffle_epi8(second, first, pairs, place);
}
/// To the left by n, to the right by -n.
template <int n>
[[gnu::always_inline]] inline Ints shift_ints(Ints v) {
  return n < 0 ? _mm512_srai_epi32(v, n < 0 ? -n : 0) : _mm512_slli_epi32(v, n < 0 ? 0 : n);
}

[[gnu::always_inline]] inline Floats zero_floats() { return _mm512_setzero_ps(); }
[[gnu::always_inline]] inline Floats fill_float(float v) { return _mm512_set1_ps(v); }
[[gnu::always_inline]] inline Floats to_floats(Ints v) { return _mm512_cvtepi32_ps(v); }
[[gnu::always_inline]] inline Floats multiply(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
[[gnu::always_inline]] inline Floats add_floats(Floats a, Floats b) { return _mm512_add_ps(a, b); }
[[gnu::always_inline]] inline Floats subtract(Floats a, Floats b) { return _mm512_sub_ps(a, b); }
[[gnu::always_inline]] inline Floats divide(Floats a, Floats b) { return _mm512_div_ps(a, b); }
[[gnu::always_inline]] inline Floats smaller(Floats a, Floats b) { return _mm512_min_ps(a, b); }
[[gnu::always_inline]] inline Floats larger(Floats a, Floats b) { return _mm512_max_ps(a, b); }
[[gnu::always_inline]] inline Bytes bits_of(Floats v) { return _mm512_castps_si512(v); }
[[gnu::always_inline]] inline Floats floats_of(Bytes bits) { return _mm512_castsi512_ps(bits); }
[[gnu::always_inline]] inline Bytes fill_bits(int v) { return _mm512_set1_epi32(v); }
/// The nearest integers.
[[gnu::always_inline]] inline Ints to_ints(Floats v) { return _mm512_cvtps_epi32(v); }
[[gnu::always_inline]] inline void store_ints(std::int32_t* p, Ints v) {
  _mm512_storeu_si512(reinterpret_cast<void*>(p), v);
}
/// a * b + c and c - a * b, rounded once
[[gnu::always_inline]] inline Floats fma(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
[[gnu::always_inline]] inline Floats fnma(Floats a, Floats b, Floats c) { return _mm512_fnmadd_ps(a, b, c); }
[[gnu::always_inline]] inline Floats load_floats(const void* p) { return _mm512_loadu_ps(p); }
[[gnu::always_inline]] inline Floats load_halves(const void* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(static_cast<const __m256i*>(p)));
}
[[gnu::always_inline]] inline Floats load_bfloats(const void* p) {
  const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(static_cast<const __m256i*>(p)));
  return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}
/// The nearest BF16 numbers of finite ones, ties away from zero.
[[gnu::always_inline]] inline Floats to_bfloats(Floats v) {
  const __m512i nearest = _mm512_add_epi32(_mm512_castps_si512(v), _mm512_set1_epi32(0x8000));
  return _mm512_castsi512_ps(_mm512_and_si512(nearest, _mm512_set1_epi32(static_cast<int>(0xffff0000u))));
}
/// The low halves of lanes as BF16 numbers.
[[gnu::always_inline]] inline Floats low_bfloats(Floats v) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(v), 16));
}
/// Those of BF16 numbers, 16 bits each.
[[gnu::always_inline]] inline void store_bfloats(std::uint8_t* p, Floats v) {
  const __m256i words = _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_castps_si512(v), 16));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), words);
}
/// E4M3 divided by 2^8; see panel_e4m3.
[[gnu::always_inline]] inline Floats load_e4m3(const void* p) {
  const __m256i wide = _mm256_cvtepi8_epi16(_mm_loadu_si128(static_cast<const __m128i*>(p)));
  const __m256i sign = _mm256_and_si256(wide, _mm256_set1_epi16(static_cast<short>(0x8000)));
  const __m256i rest = _mm256_and_si256(_mm256_slli_epi16(wide, 7), _mm256_set1_epi16(0x3f80));
  return _mm512_cvtph_ps(_mm256_or_si256(sign, rest));
}
/// Which of four values each lane takes: two bits a lane, from bit 2 * lane of a word on.
using Choice = __m512i;
[[gnu::always_inline]] inline Choice load_choice(const void* p, int) {
  const __m512i shift = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  return _mm512_srlv_epi32(fill_quad(p), shift);  // what is above the two bits does not count
}
/// Four values again and again, and of them those that are chosen.
[[gnu::always_inline]] inline Floats fill_four(const float* p) { return _mm512_broadcast_f32x4(_mm_loadu_ps(p)); }
[[gnu::always_inline]] inline Floats choose(Floats four, Choice choice) { return _mm512_permutevar_ps(four, choice); }
[[gnu::always_inline]] inline Floats load_int8(const void* p) {
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(static_cast<const __m128i*>(p))));
}
[[gnu::always_inline]] inline Floats load_uint8(const void* p) {
  return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(static_cast<const __m128i*>(p))));
}
[[gnu::always_inline]] inline void store_floats(float* p, Floats v) { _mm512_storeu_ps(p, v); }
/// The first `count` of 16; the others are 0.
[[gnu::always_inline]] inline Floats load_some(const float* p, int count) {
  return _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << count) - 1u), p);
}
[[gnu::always_inline]] inline void store_some(float* p, Floats v, int count) {
  _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << count) - 1u), v);
}

#ifdef __AVX512VNNI__
/// sum + the dot products of unsigned bytes with signed bytes, four to a lane.
[[gnu::always_inline]] inline Ints dot_bytes(Ints sum, Bytes codes, Ints x) {
  return _mm512_dpbusd_epi32(sum, codes, x);
}
constexpr bool kSignedCodes = false;
#else
constexpr int kByteRows = kNever;
[[gnu::always_inline]] inline Bytes add_words(Bytes v, int n) {
  return _mm512_add_epi16(v, _mm512_set1_epi16(static_cast<short>(n)));
}
[[gnu::always_inline]] inline Bytes even_bytes(Bytes v) { return _mm512_and_si512(v, _mm512_set1_epi16(255)); }
[[gnu::always_inline]] inline Bytes odd_bytes(Bytes v) { return _mm512_srli_epi16(v, 8); }
using WordSums = Ints;
[[gnu::always_inline]] inline WordSums start_words(Ints at) { return at; }
[[gnu::always_inline]] inline Ints total_words(WordSums sum) { return sum; }
/// sum + the dot products of 16-bit words, two to a lane.
[[gnu::always_inline]] inline WordSums dot_words(WordSums sum, Bytes codes, Ints x) {
  return _mm512_add_epi32(sum, _mm512_madd_epi16(codes, x));
}
#endif

// Quantization of one group of 32; see linear_scalar-inl.hpp.
void quantize_group(const float* x, ActivationCodes codes, QuantizedGroup* out) {
  const __m512 a = _mm512_loadu_ps(x);
  const __m512 b = _mm512_loadu_ps(x + 16);
  const __m512i sign = _mm512_set1_epi32(0x7fffffff);
  const __m512i absolute =
      _mm512_max_epi32(_mm512_and_si512(_mm512_castps_si512(a), sign), _mm512_and_si512(_mm512_castps_si512(b), sign));
  const std::int32_t bits = _mm512_reduce_max_epi32(absolute);
  const GroupScale s = group_scale(static_cast<std::uint32_t>(bits), codes);
  const __m512 inverse = _mm512_set1_ps(s.inverse);
  const __mmask16 live = s.zero ? 0 : 0xffff;
  const __m128i shift = _mm_cvtsi32_si128(codes.shift);
  const __m512i code_a = _mm512_sll_epi32(_mm512_maskz_cvtps_epi32(live, _mm512_mul_ps(a, inverse)), shift);
  const __m512i code_b = _mm512_sll_epi32(_mm512_maskz_cvtps_epi32(live, _mm512_mul_ps(b, inverse)), shift);
#ifdef __AVX512VNNI__
  const __m512i half = _mm512_set1_epi32(128);
  const __m512i high_a = _mm512_srai_epi32(_mm512_add_epi32(code_a, half), 8);
  const __m512i high_b = _mm512_srai_epi32(_mm512_add_epi32(code_b, half), 8);
  auto* const to = reinterpret_cast<__m128i*>(out->codes);
  _mm_storeu_si128(to, _mm512_cvtepi32_epi8(high_a));
  _mm_storeu_si128(to + 1, _mm512_cvtepi32_epi8(high_b));
  _mm_storeu_si128(to + 2, _mm512_cvtepi32_epi8(code_a));
  _mm_storeu_si128(to + 3, _mm512_cvtepi32_epi8(code_b));
#else
  const __m512i words =
      _mm512_inserti64x4(_mm512_castsi256_si512(_mm512_cvtepi32_epi16(code_a)), _mm512_cvtepi32_epi16(code_b), 1);
  _mm512_storeu_si512(out->codes, _mm512_shufflehi_epi16(_mm512_shufflelo_epi16(words, 0xd8), 0xd8));
#endif
  const std::int32_t sum_a = _mm512_reduce_add_epi32(code_a);
  const std::int32_t sum_b = _mm512_reduce_add_epi32(code_b);
  finish_group(s, sum_a, sum_b, out);
}

float dot_row(const float* w, const float* x, std::int64_t k) {
  __m512 sum = _mm512_setzero_ps();
  for (; k >= 16; k -= 16, w += 16, x += 16) sum = _mm512_fmadd_ps(_mm512_loadu_ps(w), _mm512_loadu_ps(x), sum);
  if (k > 0) {
    const __mmask16 tail = static_cast<__mmask16>((1u << k) - 1u);
    sum = _mm512_mask3_fmadd_ps(_mm512_maskz_loadu_ps(tail, w), _mm512_maskz_loadu_ps(tail, x), sum, tail);
  }
  const __m256 s8 = _mm256_add_ps(_mm512_castps512_ps256(sum), _mm512_extractf32x8_ps(sum, 1));
  const __m128 s4 = _mm_add_ps(_mm256_castps256_ps128(s8), _mm256_extractf128_ps(s8, 1));
  const __m128 s2 = _mm_add_ps(s4, _mm_movehl_ps(s4, s4));
  return _mm_cvtss_f32(_mm_add_ss(s2, _mm_shuffle_ps(s2, s2, 1)));
}

}  // namespace
