// Elementary functions on Vec. Included inside namespace isa_<level>, after a vec_<level>-inl.hpp.

#include "unroll-inl.hpp"

/// Sums go through 16 lanes on every level, of one Vec or several, so that all levels give the same bits.
inline constexpr int kLaneVecs = 16 / Vec::kWidth;

/// The sum of 16 lanes: those 8 apart, then those 4 apart, then 2 and 1.
static inline float reduce_lanes(const Vec* lanes) {
  if constexpr (kLaneVecs == 1) return reduce_add(lanes[0]);
  if constexpr (kLaneVecs == 2) return reduce_add(lanes[0] + lanes[1]);
  if constexpr (kLaneVecs == 4) return reduce_add((lanes[0] + lanes[2]) + (lanes[1] + lanes[3]));
}

/// e^x within 2 units in the last place; 0 below -87. Cody-Waite reduction by ln 2 and a polynomial on
/// [-ln 2 / 2, ln 2 / 2] (the coefficients are those of Cephes' expf).
static inline Vec exp(Vec x) {
  const Vec lowest = broadcast(-87.0f);
  const Vec clamped = min(max(x, lowest), broadcast(88.3f));
  const Vec n = round(clamped * broadcast(1.44269504f));
  Vec r = fma(n, broadcast(-0.693359375f), clamped);
  r = fma(n, broadcast(2.12194440e-4f), r);
  Vec p = broadcast(1.9875691500e-4f);
  p = fma(p, r, broadcast(1.3981999507e-3f));
  p = fma(p, r, broadcast(8.3334519073e-3f));
  p = fma(p, r, broadcast(4.1665795894e-2f));
  p = fma(p, r, broadcast(1.6666665459e-1f));
  p = fma(p, r, broadcast(5.0000001201e-1f));
  p = fma(p, r * r, r + broadcast(1.0f));
  return where_at_least(x, lowest, scale_exponent(p, n));
}

/// x / (1 + e^-x)
static inline Vec silu(Vec x) { return x / (broadcast(1.0f) + exp(broadcast(0.0f) - x)); }

/// Hendrycks and Gimpel 2016: 0.5 x (1 + tanh(u)) = x / (1 + e^-2u), u = sqrt(2 / pi) (x + 0.044715 x^3)
static inline Vec gelu_tanh(Vec x) {
  const Vec u = x * fma(x * x, broadcast(0.044715f * 0.7978845608f), broadcast(0.7978845608f));
  return x / (broadcast(1.0f) + exp(u * broadcast(-2.0f)));
}
