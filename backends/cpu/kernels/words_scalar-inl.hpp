// Products of 16-bit words for the scalar level, in the compiler's own vector types. Included inside the level's
// namespace, after vec_scalar-inl.hpp.

/// Pairs of words, as many as a Vec has floats.
using Words = Vec::Int;
/// Sums of products.
using Ints = Vec::Int;
inline constexpr int kWordCols = 2;  ///< vectors of a register block of matrix products
inline constexpr int kWordRows = 4;

static inline Words load_words(const std::int16_t* p) {
  Words r;
  __builtin_memcpy(&r, p, sizeof r);
  return r;
}
static inline Words load_words(const std::int8_t* p) {
  std::int16_t wide[2 * Vec::kWidth];
  for (int i = 0; i < 2 * Vec::kWidth; ++i) wide[i] = p[i];
  return load_words(wide);
}
static inline void store_words(std::int16_t* p, Words a) { __builtin_memcpy(p, &a, sizeof a); }
/// a, then b, rounded to the nearest integers.
static inline void store_words(std::int16_t* p, Vec a, Vec b) {
  const Vec magic = broadcast(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer, in the lowest bits
  const Vec::Int low = (Vec::Int)(a + magic).v, high = (Vec::Int)(b + magic).v;
  for (int i = 0; i < Vec::kWidth; ++i) {
    p[i] = static_cast<std::int16_t>(low[i]);
    p[Vec::kWidth + i] = static_cast<std::int16_t>(high[i]);
  }
}
static inline Words broadcast_pair(const std::int16_t* p) {
  std::int32_t pair;
  __builtin_memcpy(&pair, p, sizeof pair);
  return Vec::Int{pair, pair, pair, pair};
}
/// Codes n of words that hold four.
[[gnu::always_inline]] static inline Words codes_of(Words four, int n) {
  return (four >> (4 * n)) & 0x000f000f;
}
static inline Ints no_products() { return Vec::Int{0, 0, 0, 0}; }
/// sum + the products of each pair; wraps around where words stand for values that are not numbers
static inline Ints multiply_add(Ints sum, Words a, Words b) {
  typedef std::uint32_t Wrapping __attribute__((vector_size(16)));
  const Vec::Int first = ((a << 16) >> 16) * ((b << 16) >> 16), second = (a >> 16) * (b >> 16);
  return (Ints)((Wrapping)sum + (Wrapping)first + (Wrapping)second);
}
static inline Vec to_floats(Ints a) { return {__builtin_convertvector(a, Vec::Type)}; }
