// Products of 16-bit words for NEON (AArch64). Included inside the level's namespace, after vec_neon-inl.hpp.

/// Pairs of words, as many as a Vec has floats: the first ones, and the second ones.
using Words = int16x4x2_t;
/// Sums of products.
using Ints = int32x4_t;
inline constexpr int kWordCols = 4;  ///< vectors of a register block of matrix products
inline constexpr int kWordRows = 4;

static inline Words load_words(const std::int16_t* p) { return vld2_s16(p); }
static inline Words load_words(const std::int8_t* p) {
  const int16x8_t wide = vmovl_s8(vld1_s8(p));
  return vuzp_s16(vget_low_s16(wide), vget_high_s16(wide));
}
static inline void store_words(std::int16_t* p, Words a) { vst2_s16(p, a); }
/// a, then b, rounded to the nearest integers.
static inline void store_words(std::int16_t* p, Vec a, Vec b) {
  vst1q_s16(p, vcombine_s16(vmovn_s32(vcvtnq_s32_f32(a.v)), vmovn_s32(vcvtnq_s32_f32(b.v))));
}
static inline Words broadcast_pair(const std::int16_t* p) { return vld2_dup_s16(p); }
/// Codes n of words that hold four.
[[gnu::always_inline]] static inline Words codes_of(Words four, int n) {
  const int16x4_t mask = vdup_n_s16(15), shift = vdup_n_s16(-4 * n);
  const auto codes = [&](int16x4_t word) __attribute__((always_inline)) {
    return vand_s16(vshl_s16(word, shift), mask);
  };
  return {{codes(four.val[0]), codes(four.val[1])}};
}
static inline Ints no_products() { return vdupq_n_s32(0); }
/// sum + the products of each pair
static inline Ints multiply_add(Ints sum, Words a, Words b) {
  return vmlal_s16(vmlal_s16(sum, a.val[0], b.val[0]), a.val[1], b.val[1]);
}
static inline Vec to_floats(Ints a) { return {vcvtq_f32_s32(a)}; }
