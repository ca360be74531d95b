// Vec for NEON (AArch64): four floats. Included inside namespace isa_neon, after <arm_neon.h>.

struct Vec {
  static constexpr int kWidth = 4;
  float32x4_t v;
};
inline constexpr int kBlockCols = 4;  ///< vectors of a register block of matrix products
inline constexpr int kBlockRows = 6;

static inline Vec load(const float* p) { return {vld1q_f32(p)}; }
static inline void store(float* p, Vec a) { vst1q_f32(p, a.v); }
static inline Vec broadcast(float x) { return {vdupq_n_f32(x)}; }
static inline Vec operator+(Vec a, Vec b) { return {vaddq_f32(a.v, b.v)}; }
static inline Vec operator-(Vec a, Vec b) { return {vsubq_f32(a.v, b.v)}; }
static inline Vec operator*(Vec a, Vec b) { return {vmulq_f32(a.v, b.v)}; }
static inline Vec operator/(Vec a, Vec b) { return {vdivq_f32(a.v, b.v)}; }
static inline Vec fma(Vec a, Vec b, Vec c) { return {vfmaq_f32(c.v, a.v, b.v)}; }
/// By comparison, since NEON's own maximum and minimum treat NaN and the sign of zero in another way than the other
/// levels.
static inline Vec max(Vec a, Vec b) { return {vbslq_f32(vcgtq_f32(a.v, b.v), a.v, b.v)}; }
static inline Vec min(Vec a, Vec b) { return {vbslq_f32(vcltq_f32(a.v, b.v), a.v, b.v)}; }
/// a where x >= y, else 0
static inline Vec where_at_least(Vec x, Vec y, Vec a) {
  return {vreinterpretq_f32_u32(vandq_u32(vcgeq_f32(x.v, y.v), vreinterpretq_u32_f32(a.v)))};
}
/// Lanes [begin, end) of a, and `other` in those outside. The bounds may lie outside of the vector.
static inline Vec select_lanes(Vec a, std::int32_t begin, std::int32_t end, Vec other) {
  const int32x4_t lane = {0, 1, 2, 3};
  const uint32x4_t inside = vandq_u32(vcgeq_s32(lane, vdupq_n_s32(begin)), vcltq_s32(lane, vdupq_n_s32(end)));
  return {vbslq_f32(inside, a.v, other.v)};
}
static inline Vec round(Vec a) { return {vrndnq_f32(a.v)}; }
/// a * 2^n for integers n in [-126, 127]
static inline Vec scale_exponent(Vec a, Vec n) {
  const int32x4_t exponent = vshlq_n_s32(vaddq_s32(vcvtq_s32_f32(n.v), vdupq_n_s32(127)), 23);
  return {vmulq_f32(a.v, vreinterpretq_f32_s32(exponent))};
}
/// Of each pair of lanes the other first: a1, a0, a3, a2, …
static inline Vec swap_pairs(Vec a) { return {vrev64q_f32(a.v)}; }
/// Each lane of the lower half, and of the upper one, twice: a0, a0, a1, a1, …
static inline Vec double_low(Vec a) { return {vzip1q_f32(a.v, a.v)}; }
static inline Vec double_high(Vec a) { return {vzip2q_f32(a.v, a.v)}; }
static inline float first_lane(Vec a) { return vgetq_lane_f32(a.v, 0); }
static inline float reduce_add(Vec a) {
  const float32x2_t x = vadd_f32(vget_low_f32(a.v), vget_high_f32(a.v));
  return vget_lane_f32(x, 0) + vget_lane_f32(x, 1);
}
static inline float reduce_max(Vec a) { return vmaxvq_f32(a.v); }
