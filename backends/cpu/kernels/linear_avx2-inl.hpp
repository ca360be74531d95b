// Vector operations of the linear kernels on AVX2 with FMA and F16C, and with AVX-VNNI where the file is compiled for
// it: one vector is 8 of the 16 rows of a panel. Included inside the level's namespace.

#include "group_scale-inl.hpp"

namespace {

constexpr int kLanes = 8;
constexpr int kTileVectors = 2;
#if defined(LLMINFER_LOW_TILES)
constexpr int kTileRows = 2;
constexpr int high_tile_rows(PanelShape) { return 2; }
#elif defined(__AVXVNNI__)
constexpr int kTileRows = 3;  // 3 x 2 sums of high and of low bytes leave 4 of the 16 registers
constexpr int high_tile_rows(PanelShape) { return 4; }
#else
constexpr int kTileRows = 4;
#endif
/// From so many rows on, weights of this shape are unpacked into slices (docs/adr/0022).
#ifdef __AVXVNNI__
constexpr int slice_rows(PanelShape s) {
  if (s.table) return 20;
  if (s.sparse) return 12;
  if (s.bits == 8) return kNever;
  return s.bits == 4 ? 64 : s.bits == 2 ? 12 : 7;
}
#else
constexpr int slice_rows(PanelShape s) {
  if (s.bits == 8) return s.sparse ? 10 : 24;
  return !s.table && (s.bits == 4 || s.bits == 2) ? 13 : 8;
}
#endif

using Bytes = __m256i;  // 32 codes: [8 rows][4 values]
using Ints = __m256i;
using Floats = __m256;

[[gnu::always_inline]] inline Bytes load_bytes(const void* p) {
  return _mm256_loadu_si256(static_cast<const __m256i*>(p));
}
[[gnu::always_inline]] inline void store_bytes(void* p, Bytes v) { _mm256_storeu_si256(static_cast<__m256i*>(p), v); }
[[gnu::always_inline]] inline Bytes fill_bytes(int v) { return _mm256_set1_epi8(static_cast<char>(v)); }
[[gnu::always_inline]] inline Bytes and_bytes(Bytes a, Bytes b) { return _mm256_and_si256(a, b); }
[[gnu::always_inline]] inline Bytes xor_bytes(Bytes a, Bytes b) { return _mm256_xor_si256(a, b); }
[[gnu::always_inline]] inline Bytes add_bytes(Bytes a, Bytes b) { return _mm256_add_epi8(a, b); }
/// a | (b & mask)
[[gnu::always_inline]] inline Bytes or_masked(Bytes a, Bytes b, Bytes mask) {
  return _mm256_or_si256(a, _mm256_and_si256(b, mask));
}
/// Shifts 16-bit lanes; `n` is constant once loops are unrolled. Callers mask off what crosses into the neighbour byte.
[[gnu::always_inline]] inline Bytes shift_right(Bytes v, int n) { return _mm256_srli_epi16(v, n); }
/// To the right by -n where n is negative.
[[gnu::always_inline]] inline Bytes shift_left(Bytes v, int n) {
  return n > 0 ? _mm256_slli_epi16(v, n) : shift_right(v, -n);
}
[[gnu::always_inline]] inline Bytes load_table(const std::uint8_t* p) {
  return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
[[gnu::always_inline]] inline Bytes look_up(Bytes table, Bytes index) { return _mm256_shuffle_epi8(table, index); }

[[gnu::always_inline]] inline Ints zero_ints() { return _mm256_setzero_si256(); }
[[gnu::always_inline]] inline Ints add_ints(Ints a, Ints b) { return _mm256_add_epi32(a, b); }
/// Four consecutive activation codes, or one integer, in every lane.
[[gnu::always_inline]] inline Ints fill_quad(const void* p) {
  int v;
  __builtin_memcpy(&v, p, sizeof v);
  return _mm256_set1_epi32(v);
}
[[gnu::always_inline]] inline Ints load_ints(const void* p) { return load_bytes(p); }
/// A sparse quad as a dense one, rows from `lane` on: `codes` and `mask` as PanelLayout has them, `fill`, which is 128,
/// in the other columns.
[[gnu::always_inline]] inline Bytes spread_pairs(const std::uint8_t* codes, const std::uint8_t* mask, int lane,
                                                 Bytes fill) {
  // What four columns take, by the lower three of a row's four bits, which tell masks of two apart; 0x80: no code.
  const __m256i takes = _mm256_setr_epi32(0, 0x01808000, 0x01800080, static_cast<int>(0x80800100), 0x01008080,
                                          static_cast<int>(0x80018000), static_cast<int>(0x80010080), 0);
  const __m256i shift = _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28);
  const __m256i row = _mm256_setr_epi32(0, 0x02020202, 0x04040404, 0x06060606, 0, 0x02020202, 0x04040404, 0x06060606);
  const __m256i place = lane == 0 ? row : _mm256_or_si256(row, _mm256_set1_epi8(8));
  const __m256i column = _mm256_permutevar8x32_epi32(takes, _mm256_srlv_epi32(fill_quad(mask + lane / 2), shift));
  const __m256i pairs = _mm256_shuffle_epi8(load_bytes(codes), _mm256_or_si256(column, place));
  return _mm256_or_si256(pairs, _mm256_and_si256(column, fill));
}
/// To the left by n, to the right by -n.
template <int n>
[[gnu::always_inline]] inline Ints shift_ints(Ints v) {
  return n < 0 ? _mm256_srai_epi32(v, n < 0 ? -n : 0) : _mm256_slli_epi32(v, n < 0 ? 0 : n);
}

[[gnu::always_inline]] inline Floats zero_floats() { return _mm256_setzero_ps(); }
[[gnu::always_inline]] inline Floats fill_float(float v) { return _mm256_set1_ps(v); }
[[gnu::always_inline]] inline Floats to_floats(Ints v) { return _mm256_cvtepi32_ps(v); }
[[gnu::always_inline]] inline Floats multiply(Floats a, Floats b) { return _mm256_mul_ps(a, b); }
[[gnu::always_inline]] inline Floats add_floats(Floats a, Floats b) { return _mm256_add_ps(a, b); }
[[gnu::always_inline]] inline Floats subtract(Floats a, Floats b) { return _mm256_sub_ps(a, b); }
[[gnu::always_inline]] inline Floats divide(Floats a, Floats b) { return _mm256_div_ps(a, b); }
[[gnu::always_inline]] inline Floats smaller(Floats a, Floats b) { return _mm256_min_ps(a, b); }
[[gnu::always_inline]] inline Floats larger(Floats a, Floats b) { return _mm256_max_ps(a, b); }
[[gnu::always_inline]] inline Bytes bits_of(Floats v) { return _mm256_castps_si256(v); }
[[gnu::always_inline]] inline Floats floats_of(Bytes bits) { return _mm256_castsi256_ps(bits); }
[[gnu::always_inline]] inline Bytes fill_bits(int v) { return _mm256_set1_epi32(v); }
/// The nearest integers.
[[gnu::always_inline]] inline Ints to_ints(Floats v) { return _mm256_cvtps_epi32(v); }
[[gnu::always_inline]] inline void store_ints(std::int32_t* p, Ints v) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v);
}
/// a * b + c and c - a * b, rounded once
[[gnu::always_inline]] inline Floats fma(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
[[gnu::always_inline]] inline Floats fnma(Floats a, Floats b, Floats c) { return _mm256_fnmadd_ps(a, b, c); }
[[gnu::always_inline]] inline Floats load_floats(const void* p) {
  return _mm256_loadu_ps(static_cast<const float*>(p));
}
[[gnu::always_inline]] inline Floats load_halves(const void* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(static_cast<const __m128i*>(p)));
}
[[gnu::always_inline]] inline Floats load_bfloats(const void* p) {
  const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(static_cast<const __m128i*>(p)));
  return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}
/// The nearest BF16 numbers of finite ones, ties away from zero.
[[gnu::always_inline]] inline Floats to_bfloats(Floats v) {
  const __m256i nearest = _mm256_add_epi32(_mm256_castps_si256(v), _mm256_set1_epi32(0x8000));
  return _mm256_castsi256_ps(_mm256_and_si256(nearest, _mm256_set1_epi32(static_cast<int>(0xffff0000u))));
}
/// The low halves of lanes as BF16 numbers.
[[gnu::always_inline]] inline Floats low_bfloats(Floats v) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(v), 16));
}
/// Those of BF16 numbers, 16 bits each.
[[gnu::always_inline]] inline void store_bfloats(std::uint8_t* p, Floats v) {
  const __m256i wide = _mm256_srli_epi32(_mm256_castps_si256(v), 16);
  const __m128i words = _mm_packus_epi32(_mm256_castsi256_si128(wide), _mm256_extracti128_si256(wide, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), words);
}
/// E4M3 divided by 2^8; see panel_e4m3.
[[gnu::always_inline]] inline Floats load_e4m3(const void* p) {
  const __m128i wide = _mm_cvtepi8_epi16(_mm_loadl_epi64(static_cast<const __m128i*>(p)));
  const __m128i sign = _mm_and_si128(wide, _mm_set1_epi16(static_cast<short>(0x8000)));
  const __m128i rest = _mm_and_si128(_mm_slli_epi16(wide, 7), _mm_set1_epi16(0x3f80));
  return _mm256_cvtph_ps(_mm_or_si128(sign, rest));
}
/// Which of four values each lane takes: two bits a lane, from bit 2 * (first + lane) of a word on.
using Choice = __m256i;
[[gnu::always_inline]] inline Choice load_choice(const void* p, int first) {
  const __m256i shift = _mm256_add_epi32(_mm256_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14), _mm256_set1_epi32(2 * first));
  return _mm256_srlv_epi32(fill_quad(p), shift);  // what is above the two bits does not count
}
/// Four values again and again, and of them those that are chosen.
[[gnu::always_inline]] inline Floats fill_four(const float* p) {
  return _mm256_broadcast_ps(reinterpret_cast<const __m128*>(p));
}
[[gnu::always_inline]] inline Floats choose(Floats four, Choice choice) { return _mm256_permutevar_ps(four, choice); }
[[gnu::always_inline]] inline Floats load_int8(const void* p) {
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(static_cast<const __m128i*>(p))));
}
[[gnu::always_inline]] inline Floats load_uint8(const void* p) {
  return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(static_cast<const __m128i*>(p))));
}
[[gnu::always_inline]] inline void store_floats(float* p, Floats v) { _mm256_storeu_ps(p, v); }
[[gnu::always_inline]] inline __m256i first_lanes(int count) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
/// The first `count` of 8; the others are 0.
[[gnu::always_inline]] inline Floats load_some(const float* p, int count) {
  return _mm256_maskload_ps(p, first_lanes(count));
}
[[gnu::always_inline]] inline void store_some(float* p, Floats v, int count) {
  _mm256_maskstore_ps(p, first_lanes(count), v);
}

#ifdef __AVXVNNI__
/// sum + the dot products of unsigned bytes with signed bytes, four to a lane.
[[gnu::always_inline]] inline Ints dot_bytes(Ints sum, Bytes codes, Ints x) {
  return _mm256_dpbusd_avx_epi32(sum, codes, x);
}
constexpr bool kSignedCodes = false;
#else
/// Below, unpacking into slices takes longer than multiplying words.
constexpr int kByteRows = 8;
/// Sums of two products of unsigned with signed bytes, in words; callers see to it that they fit.
[[gnu::always_inline]] inline Bytes multiply_pairs(Bytes codes, Bytes x) { return _mm256_maddubs_epi16(codes, x); }
[[gnu::always_inline]] inline Bytes add_words(Bytes a, Bytes b) { return _mm256_add_epi16(a, b); }
[[gnu::always_inline]] inline Bytes add_words(Bytes v, int n) {
  return _mm256_add_epi16(v, _mm256_set1_epi16(static_cast<short>(n)));
}
[[gnu::always_inline]] inline Bytes even_bytes(Bytes v) { return _mm256_and_si256(v, _mm256_set1_epi16(255)); }
[[gnu::always_inline]] inline Bytes odd_bytes(Bytes v) { return _mm256_srli_epi16(v, 8); }
[[gnu::always_inline]] inline Ints fill_word(int v) { return _mm256_set1_epi16(static_cast<short>(v)); }
using WordSums = Ints;
[[gnu::always_inline]] inline WordSums start_words(Ints at) { return at; }
[[gnu::always_inline]] inline Ints total_words(WordSums sum) { return sum; }
/// sum + the dot products of 16-bit words, two to a lane. Two vpmaddubsw on the halves of the activation codes would
/// multiply as much, and what they add up to fits 16 bits for narrow codes only.
[[gnu::always_inline]] inline WordSums dot_words(WordSums sum, Bytes codes, Ints x) {
  return _mm256_add_epi32(sum, _mm256_madd_epi16(codes, x));
}
#endif

[[gnu::always_inline]] inline std::int32_t sum_of(__m256i v) {
  const __m128i s4 = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  const __m128i s2 = _mm_add_epi32(s4, _mm_shuffle_epi32(s4, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(s2, _mm_shuffle_epi32(s2, 0xb1)));
}

// Quantization of one group of 32; see linear_scalar-inl.hpp.
void quantize_group(const float* x, ActivationCodes codes, QuantizedGroup* out) {
  __m256 v[4];
  __m256i most = _mm256_setzero_si256();
  for (int i = 0; i < 4; ++i) {
    v[i] = _mm256_loadu_ps(x + i * 8);
    most = _mm256_max_epi32(most, _mm256_and_si256(_mm256_castps_si256(v[i]), _mm256_set1_epi32(0x7fffffff)));
  }
  __m128i m = _mm_max_epi32(_mm256_castsi256_si128(most), _mm256_extracti128_si256(most, 1));
  m = _mm_max_epi32(m, _mm_shuffle_epi32(m, 0x4e));
  m = _mm_max_epi32(m, _mm_shuffle_epi32(m, 0xb1));
  const GroupScale s = group_scale(static_cast<std::uint32_t>(_mm_cvtsi128_si32(m)), codes);
  const __m256 inverse = _mm256_set1_ps(s.inverse);
  const __m256i live = _mm256_set1_epi32(s.zero ? 0 : -1);
  const __m128i shift = _mm_cvtsi32_si128(codes.shift);
  __m256i code[4];
  for (int i = 0; i < 4; ++i) {
    code[i] = _mm256_sll_epi32(_mm256_and_si256(_mm256_cvtps_epi32(_mm256_mul_ps(v[i], inverse)), live), shift);
  }
  auto* const to = reinterpret_cast<__m256i*>(out->codes);
  // Packing works within 128-bit halves; the permutations restore the order.
  const auto pack = [](const __m256i(&v)[4]) {
    const __m256i bytes = _mm256_packs_epi16(_mm256_packs_epi32(v[0], v[1]), _mm256_packs_epi32(v[2], v[3]));
    return _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
  };
#ifdef __AVXVNNI__
  __m256i high[4], low[4];
  for (int i = 0; i < 4; ++i) {
    high[i] = _mm256_srai_epi32(_mm256_add_epi32(code[i], _mm256_set1_epi32(128)), 8);
    low[i] = _mm256_sub_epi32(code[i], _mm256_slli_epi32(high[i], 8));
  }
  _mm256_storeu_si256(to, pack(high));
  _mm256_storeu_si256(to + 1, pack(low));
#else
  if (codes.bytes) {
    __m256i high[4];
    for (int i = 0; i < 4; ++i) high[i] = _mm256_srai_epi32(code[i], 8);
    _mm256_storeu_si256(to, pack(high));
    _mm256_storeu_si256(to + 1, _mm256_setzero_si256());
  } else {
    for (int i = 0; i < 2; ++i) {
      const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(code[2 * i], code[2 * i + 1]), 0xd8);
      _mm256_storeu_si256(to + i, _mm256_shufflehi_epi16(_mm256_shufflelo_epi16(words, 0xd8), 0xd8));
    }
  }
#endif
  const std::int32_t sum_a = sum_of(_mm256_add_epi32(code[0], code[1]));
  const std::int32_t sum_b = sum_of(_mm256_add_epi32(code[2], code[3]));
  finish_group(s, sum_a, sum_b, out);
}

float dot_row(const float* w, const float* x, std::int64_t k) {
  __m256 low = _mm256_setzero_ps(), high = _mm256_setzero_ps();
  for (; k >= 16; k -= 16, w += 16, x += 16) {
    low = _mm256_fmadd_ps(_mm256_loadu_ps(w), _mm256_loadu_ps(x), low);
    high = _mm256_fmadd_ps(_mm256_loadu_ps(w + 8), _mm256_loadu_ps(x + 8), high);
  }
  if (k > 0) {
    alignas(32) float sum[16];
    _mm256_store_ps(sum, low);
    _mm256_store_ps(sum + 8, high);
    for (int i = 0; i < k; ++i) sum[i] = __builtin_fmaf(w[i], x[i], sum[i]);
    low = _mm256_load_ps(sum);
    high = _mm256_load_ps(sum + 8);
  }
  const __m256 s8 = _mm256_add_ps(low, high);
  const __m128 s4 = _mm_add_ps(_mm256_castps256_ps128(s8), _mm256_extractf128_ps(s8, 1));
  const __m128 s2 = _mm_add_ps(s4, _mm_movehl_ps(s4, s4));
  return _mm_cvtss_f32(_mm_add_ss(s2, _mm_shuffle_ps(s2, s2, 1)));
}

}  // namespace
