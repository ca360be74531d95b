// Vec for the scalar level: four floats in the compiler's own vector type, so that it builds for every processor.
// Included inside namespace isa_scalar; the file before it includes <cstdint>.

struct Vec {
  static constexpr int kWidth = 4;
  typedef float Type __attribute__((vector_size(16)));
  typedef std::int32_t Int __attribute__((vector_size(16)));
  Type v;
};
inline constexpr int kBlockCols = 2;  ///< vectors of a register block of matrix products
inline constexpr int kBlockRows = 4;

static inline Vec load(const float* p) {
  Vec r;
  __builtin_memcpy(&r.v, p, sizeof r.v);
  return r;
}
static inline void store(float* p, Vec a) { __builtin_memcpy(p, &a.v, sizeof a.v); }
static inline Vec broadcast(float x) { return {Vec::Type{x, x, x, x}}; }
static inline Vec operator+(Vec a, Vec b) { return {a.v + b.v}; }
static inline Vec operator-(Vec a, Vec b) { return {a.v - b.v}; }
static inline Vec operator*(Vec a, Vec b) { return {a.v * b.v}; }
static inline Vec operator/(Vec a, Vec b) { return {a.v / b.v}; }
/// Rounded once, as on the other levels.
static inline Vec fma(Vec a, Vec b, Vec c) {
  Vec r;
  for (int i = 0; i < Vec::kWidth; ++i) r.v[i] = __builtin_fmaf(a.v[i], b.v[i], c.v[i]);
  return r;
}
static inline Vec select(Vec::Int mask, Vec a, Vec b) {
  return {(Vec::Type)(((Vec::Int)a.v & mask) | ((Vec::Int)b.v & ~mask))};
}
static inline Vec max(Vec a, Vec b) { return select(a.v > b.v, a, b); }
static inline Vec min(Vec a, Vec b) { return select(a.v < b.v, a, b); }
/// a where x >= y, else 0
static inline Vec where_at_least(Vec x, Vec y, Vec a) { return select(x.v >= y.v, a, broadcast(0.0f)); }
/// Lanes [begin, end) of a, and `other` in those outside. The bounds may lie outside of the vector.
static inline Vec select_lanes(Vec a, std::int32_t begin, std::int32_t end, Vec other) {
  for (std::int32_t i = 0; i < Vec::kWidth; ++i) a.v[i] = i >= begin && i < end ? a.v[i] : other.v[i];
  return a;
}
static inline Vec round(Vec a) {
  const Vec magic = broadcast(12582912.0f);  // 1.5 * 2^23
  return (a + magic) - magic;
}
/// a * 2^n for integers n in [-126, 127]
static inline Vec scale_exponent(Vec a, Vec n) {
  const Vec::Int exponent = (__builtin_convertvector(n.v, Vec::Int) + 127) << 23;
  return {a.v * (Vec::Type)exponent};
}
/// Of each pair of lanes the other first: a1, a0, a3, a2, …
static inline Vec swap_pairs(Vec a) { return {Vec::Type{a.v[1], a.v[0], a.v[3], a.v[2]}}; }
/// Each lane of the lower half, and of the upper one, twice: a0, a0, a1, a1, …
static inline Vec double_low(Vec a) { return {Vec::Type{a.v[0], a.v[0], a.v[1], a.v[1]}}; }
static inline Vec double_high(Vec a) { return {Vec::Type{a.v[2], a.v[2], a.v[3], a.v[3]}}; }
static inline float first_lane(Vec a) { return a.v[0]; }
static inline float reduce_add(Vec a) { return (a.v[0] + a.v[2]) + (a.v[1] + a.v[3]); }
static inline float reduce_max(Vec a) {
  const float x = a.v[0] > a.v[1] ? a.v[0] : a.v[1], y = a.v[2] > a.v[3] ? a.v[2] : a.v[3];
  return x > y ? x : y;
}
