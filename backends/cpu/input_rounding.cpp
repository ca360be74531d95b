#include "backends/cpu/input_rounding.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

namespace llminfer::cpu {
namespace {

constexpr float kInt8Levels = 127.5f;  // compressed-tensors: half of the 255 steps between -128 and 127
constexpr float kFp8Limit = 448.0f;

/// The nearest E4M3 number, ties to even; beyond the largest one that.
float round_e4m3(float x) noexcept {
  const float magnitude = std::min(std::abs(x), kFp8Limit);
  int exponent = 0;
  (void)std::frexp(magnitude, &exponent);                           // magnitude in [2^(exponent - 1), 2^exponent)
  const float step = std::ldexp(1.0f, std::max(exponent, -5) - 4);  // 3 bits after the first; subnormals: 2^-9
  return std::copysign(std::nearbyint(magnitude / step) * step, x);
}

float largest(const float* x, std::int64_t n) noexcept {
  float most = 0.0f;
  for (std::int64_t i = 0; i < n; ++i) {
    if (!std::isfinite(x[i])) return std::numeric_limits<float>::quiet_NaN();
    most = std::max(most, std::abs(x[i]));
  }
  return most;
}

void round_with(InputQuantization::Kind kind, float scale, float zero, const float* x, std::int64_t n,
                float* out) noexcept {
  for (std::int64_t i = 0; i < n; ++i) {
    if (kind == InputQuantization::Kind::int8) {
      const float code = std::clamp(std::nearbyint(x[i] / scale) + zero, -128.0f, 127.0f);
      out[i] = scale * (code - zero);
    } else {
      out[i] = scale * round_e4m3(x[i] / scale);
    }
  }
}

}  // namespace

void round_input(const InputQuantization& how, const float* x, std::int64_t k, float* out) noexcept {
  const std::int64_t group = how.dynamic && how.group > 0 ? how.group : k;
  for (std::int64_t begin = 0; begin < k; begin += group, x += group, out += group) {
    const std::int64_t n = std::min(group, k - begin);
    const float most = largest(x, n);
    if (std::isnan(most)) {
      std::fill(out, out + n, most);
    } else if (!how.dynamic) {
      round_with(how.kind, how.scale, static_cast<float>(how.zero), x, n, out);
    } else if (most < std::numeric_limits<float>::min()) {
      std::fill(out, out + n, 0.0f);
    } else {
      round_with(how.kind, most / (how.kind == InputQuantization::Kind::int8 ? kInt8Levels : kFp8Limit), 0.0f, x, n,
                 out);
    }
  }
}

}  // namespace llminfer::cpu
