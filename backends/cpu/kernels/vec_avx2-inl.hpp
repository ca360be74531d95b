// Vec for AVX2 with FMA: eight floats. Included inside namespace isa_avx2, after <immintrin.h>.

struct Vec {
  static constexpr int kWidth = 8;
  __m256 v;
};
inline constexpr int kBlockCols = 2;  ///< vectors of a register block of matrix products
inline constexpr int kBlockRows = 6;

static inline Vec load(const float* p) { return {_mm256_loadu_ps(p)}; }
static inline void store(float* p, Vec a) { _mm256_storeu_ps(p, a.v); }
static inline Vec broadcast(float x) { return {_mm256_set1_ps(x)}; }
static inline Vec operator+(Vec a, Vec b) { return {_mm256_add_ps(a.v, b.v)}; }
static inline Vec operator-(Vec a, Vec b) { return {_mm256_sub_ps(a.v, b.v)}; }
static inline Vec operator*(Vec a, Vec b) { return {_mm256_mul_ps(a.v, b.v)}; }
static inline Vec operator/(Vec a, Vec b) { return {_mm256_div_ps(a.v, b.v)}; }
static inline Vec fma(Vec a, Vec b, Vec c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
static inline Vec max(Vec a, Vec b) { return {_mm256_max_ps(a.v, b.v)}; }
static inline Vec min(Vec a, Vec b) { return {_mm256_min_ps(a.v, b.v)}; }
/// a where x >= y, else 0
static inline Vec where_at_least(Vec x, Vec y, Vec a) {
  return {_mm256_and_ps(_mm256_cmp_ps(x.v, y.v, _CMP_GE_OQ), a.v)};
}
/// Lanes [begin, end) of a, and `other` in those outside. The bounds may lie outside of the vector.
static inline Vec select_lanes(Vec a, std::int32_t begin, std::int32_t end, Vec other) {
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  const __m256i before = _mm256_cmpgt_epi32(_mm256_set1_epi32(begin), lane);
  const __m256i inside = _mm256_andnot_si256(before, _mm256_cmpgt_epi32(_mm256_set1_epi32(end), lane));
  return {_mm256_blendv_ps(other.v, a.v, _mm256_castsi256_ps(inside))};
}
static inline Vec round(Vec a) { return {_mm256_round_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
/// a * 2^n for integers n in [-126, 127]
static inline Vec scale_exponent(Vec a, Vec n) {
  const __m256i exponent = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n.v), _mm256_set1_epi32(127)), 23);
  return {_mm256_mul_ps(a.v, _mm256_castsi256_ps(exponent))};
}
/// Of each pair of lanes the other first: a1, a0, a3, a2, …
static inline Vec swap_pairs(Vec a) { return {_mm256_permute_ps(a.v, 0xb1)}; }
/// Each lane of the lower half, and of the upper one, twice: a0, a0, a1, a1, …
static inline Vec double_low(Vec a) {
  return {_mm256_permutevar8x32_ps(a.v, _mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3))};
}
static inline Vec double_high(Vec a) {
  return {_mm256_permutevar8x32_ps(a.v, _mm256_setr_epi32(4, 4, 5, 5, 6, 6, 7, 7))};
}
static inline float first_lane(Vec a) { return _mm256_cvtss_f32(a.v); }
static inline float reduce_add(Vec a) {
  __m128 x = _mm_add_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  x = _mm_add_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
}
static inline float reduce_max(Vec a) {
  __m128 x = _mm_max_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  x = _mm_max_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)));
}
