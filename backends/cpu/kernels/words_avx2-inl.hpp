// Products of 16-bit words for AVX2, with or without AVX-VNNI. Included inside the level's namespace, after
// vec_avx2-inl.hpp.

/// Pairs of words, as many as a Vec has floats.
using Words = __m256i;
/// Sums of products, as the vector that the instruction has: of another one, gcc keeps two copies in a loop.
typedef std::int32_t Ints __attribute__((vector_size(32)));
inline constexpr int kWordCols = 2;  ///< vectors of a register block of matrix products
inline constexpr int kWordRows = 6;

static inline Words load_words(const std::int16_t* p) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
}
static inline Words load_words(const std::int8_t* p) {
  return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
static inline void store_words(std::int16_t* p, Words a) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), a); }
/// a, then b, rounded to the nearest integers.
static inline void store_words(std::int16_t* p, Vec a, Vec b) {
  const __m256i mixed = _mm256_packs_epi32(_mm256_cvtps_epi32(a.v), _mm256_cvtps_epi32(b.v));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_permute4x64_epi64(mixed, 0xd8));
}
static inline Words broadcast_pair(const std::int16_t* p) {
  std::int32_t pair;
  __builtin_memcpy(&pair, p, sizeof pair);
  return _mm256_set1_epi32(pair);
}
/// Codes n of words that hold four.
[[gnu::always_inline]] static inline Words codes_of(Words four, int n) {
  const Words shifted = n > 0 ? _mm256_srli_epi16(four, 4 * n) : four;
  return n < 3 ? _mm256_and_si256(shifted, _mm256_set1_epi16(15)) : shifted;
}
static inline Ints no_products() { return Ints{}; }
/// sum + the products of each pair; wraps around where words stand for values that are not numbers
static inline Ints multiply_add(Ints sum, Words a, Words b) {
#ifdef __AVXVNNI__
  return (Ints)_mm256_dpwssd_avx_epi32((__m256i)sum, a, b);
#else
  return (Ints)_mm256_add_epi32((__m256i)sum, _mm256_madd_epi16(a, b));
#endif
}
static inline Vec to_floats(Ints a) { return {_mm256_cvtepi32_ps((__m256i)a)}; }
