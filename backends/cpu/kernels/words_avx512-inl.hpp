// Products of 16-bit words for AVX-512, with or without VNNI. Included inside the level's namespace, after
// vec_avx512-inl.hpp.

/// Pairs of words, as many as a Vec has floats.
using Words = __m512i;
/// Sums of products, as the vector that the instruction has: of another one, gcc keeps two copies in a loop.
typedef std::int32_t Ints __attribute__((vector_size(64)));
inline constexpr int kWordCols = 4;  ///< vectors of a register block of matrix products
inline constexpr int kWordRows = 6;

static inline Words load_words(const std::int16_t* p) { return _mm512_loadu_si512(p); }
static inline Words load_words(const std::int8_t* p) {
  return _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
static inline void store_words(std::int16_t* p, Words a) { _mm512_storeu_si512(p, a); }
/// a, then b, rounded to the nearest integers.
static inline void store_words(std::int16_t* p, Vec a, Vec b) {
  const __m512i mixed = _mm512_packs_epi32(_mm512_cvtps_epi32(a.v), _mm512_cvtps_epi32(b.v));
  const __m512i order = _mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7);
  _mm512_storeu_si512(p, _mm512_permutexvar_epi64(order, mixed));
}
static inline Words broadcast_pair(const std::int16_t* p) {
  std::int32_t pair;
  __builtin_memcpy(&pair, p, sizeof pair);
  return _mm512_set1_epi32(pair);
}
/// Codes n of words that hold four.
[[gnu::always_inline]] static inline Words codes_of(Words four, int n) {
  const Words shifted = n > 0 ? _mm512_srli_epi16(four, 4 * n) : four;
  return n < 3 ? _mm512_and_si512(shifted, _mm512_set1_epi16(15)) : shifted;
}
static inline Ints no_products() { return Ints{}; }
/// sum + the products of each pair
static inline Ints multiply_add(Ints sum, Words a, Words b) {
#ifdef __AVX512VNNI__
  return (Ints)_mm512_dpwssd_epi32((__m512i)sum, a, b);
#else
  return (Ints)_mm512_add_epi32((__m512i)sum, _mm512_madd_epi16(a, b));
#endif
}
static inline Vec to_floats(Ints a) { return {_mm512_cvtepi32_ps((__m512i)a)}; }
