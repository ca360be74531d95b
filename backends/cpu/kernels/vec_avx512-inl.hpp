// Vec for AVX-512: sixteen floats. Included inside namespace isa_avx512, after <immintrin.h>.

struct Vec {
  static constexpr int kWidth = 16;
  __m512 v;
};
inline constexpr int kBlockCols = 4;  ///< vectors of a register block of matrix products
inline constexpr int kBlockRows = 6;

static inline Vec load(const float* p) { return {_mm512_loadu_ps(p)}; }
static inline void store(float* p, Vec a) { _mm512_storeu_ps(p, a.v); }
static inline Vec broadcast(float x) { return {_mm512_set1_ps(x)}; }
static inline Vec operator+(Vec a, Vec b) { return {_mm512_add_ps(a.v, b.v)}; }
static inline Vec operator-(Vec a, Vec b) { return {_mm512_sub_ps(a.v, b.v)}; }
static inline Vec operator*(Vec a, Vec b) { return {_mm512_mul_ps(a.v, b.v)}; }
static inline Vec operator/(Vec a, Vec b) { return {_mm512_div_ps(a.v, b.v)}; }
static inline Vec fma(Vec a, Vec b, Vec c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
static inline Vec max(Vec a, Vec b) { return {_mm512_max_ps(a.v, b.v)}; }
static inline Vec min(Vec a, Vec b) { return {_mm512_min_ps(a.v, b.v)}; }
/// a where x >= y, else 0
static inline Vec where_at_least(Vec x, Vec y, Vec a) {
  return {_mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x.v, y.v, _CMP_GE_OQ), a.v)};
}
/// Lanes [begin, end) of a, and `other` in those outside. The bounds may lie outside of the vector.
static inline Vec select_lanes(Vec a, std::int32_t begin, std::int32_t end, Vec other) {
  const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __mmask16 from = _mm512_cmple_epi32_mask(_mm512_set1_epi32(begin), lane);
  const __mmask16 inside = _mm512_mask_cmpgt_epi32_mask(from, _mm512_set1_epi32(end), lane);
  return {_mm512_mask_mov_ps(other.v, inside, a.v)};
}
static inline Vec round(Vec a) { return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
/// a * 2^n for integers n in [-126, 127]
static inline Vec scale_exponent(Vec a, Vec n) { return {_mm512_scalef_ps(a.v, n.v)}; }
/// Of each pair of lanes the other first: a1, a0, a3, a2, …
static inline Vec swap_pairs(Vec a) { return {_mm512_permute_ps(a.v, 0xb1)}; }
/// Each lane of the lower half, and of the upper one, twice: a0, a0, a1, a1, …
static inline Vec double_low(Vec a) {
  const __m512i lanes = _mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);
  return {_mm512_permutexvar_ps(lanes, a.v)};
}
static inline Vec double_high(Vec a) {
  const __m512i lanes = _mm512_setr_epi32(8, 8, 9, 9, 10, 10, 11, 11, 12, 12, 13, 13, 14, 14, 15, 15);
  return {_mm512_permutexvar_ps(lanes, a.v)};
}
static inline float first_lane(Vec a) { return _mm512_cvtss_f32(a.v); }
static inline float reduce_add(Vec a) {
  const __m256 high = _mm256_castsi256_ps(_mm512_extracti64x4_epi64(_mm512_castps_si512(a.v), 1));
  const __m256 y = _mm256_add_ps(_mm512_castps512_ps256(a.v), high);
  __m128 x = _mm_add_ps(_mm256_castps256_ps128(y), _mm256_extractf128_ps(y, 1));
  x = _mm_add_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
}
static inline float reduce_max(Vec a) { return _mm512_reduce_max_ps(a.v); }
