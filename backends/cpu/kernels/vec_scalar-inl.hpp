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
static inline float first_lane(Vec a) { return a.v[0]; }
static inline float reduce_add(Vec a) { return (a.v[0] + a.v[2]) + (a.v[1] + a.v[3]); }
static inline float reduce_max(Vec a) {
  const float x = a.v[0] > a.v[1] ? a.v[0] : a.v[1], y = a.v[2] > a.v[3] ? a.v[2] : a.v[3];
  return x > y ? x : y;
}

static inline float half_to_float(std::uint16_t h) {
  const std::uint32_t sign = static_cast<std::uint32_t>(h & 0x8000u) << 16, magnitude = h & 0x7fffu;
  std::uint32_t bits = (magnitude << 13) + 0x38000000u;
  float f;
  if (magnitude >= 0x7c00u) bits = 0x7f800000u | ((magnitude & 0x3ffu) << 13);
  if (magnitude < 0x0400u) {
    f = static_cast<float>(magnitude) * 0x1p-24f;
    __builtin_memcpy(&bits, &f, 4);
  }
  bits |= sign;
  __builtin_memcpy(&f, &bits, 4);
  return f;
}
static inline std::uint16_t float_to_half(float f) {
  std::uint32_t bits;
  __builtin_memcpy(&bits, &f, 4);
  const std::uint32_t sign = (bits >> 16) & 0x8000u, magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return static_cast<std::uint16_t>(sign | 0x7e00u);
  if (magnitude >= 0x477ff000u) return static_cast<std::uint16_t>(sign | 0x7c00u);
  if (magnitude < 0x38800000u) {  // subnormal half: let the float adder round at 2^-24
    float shifted;
    __builtin_memcpy(&shifted, &magnitude, 4);
    shifted += 0.5f;
    __builtin_memcpy(&bits, &shifted, 4);
    return static_cast<std::uint16_t>(sign | (bits - 0x3f000000u));
  }
  return static_cast<std::uint16_t>(sign | ((magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13));
}
static inline Vec load_half(const std::uint16_t* p) {
  return {Vec::Type{half_to_float(p[0]), half_to_float(p[1]), half_to_float(p[2]), half_to_float(p[3])}};
}
static inline Vec load_bfloat(const std::uint16_t* p) {
  Vec r;
  for (int i = 0; i < Vec::kWidth; ++i) {
    const std::uint32_t bits = static_cast<std::uint32_t>(p[i]) << 16;
    float f;
    __builtin_memcpy(&f, &bits, 4);
    r.v[i] = f;
  }
  return r;
}
static inline Vec load_int8(const std::int8_t* p) {
  return {Vec::Type{static_cast<float>(p[0]), static_cast<float>(p[1]), static_cast<float>(p[2]),
                    static_cast<float>(p[3])}};
}
