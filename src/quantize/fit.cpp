#include "quantize/fit.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

namespace llminfer::quantize {
namespace {

constexpr int kMaxCount = 32;
constexpr int kTries = 20;  ///< to each side of the plain rounding
constexpr float kStep = 0.05f;

float magnitude(const float* x, int count) {
  float most = 0;
  for (int i = 0; i < count; ++i) most = std::fabs(x[i]) > std::fabs(most) ? x[i] : most;
  return most;
}

/// The scale that codes c want, sum w c x / sum w c^2, and how much of sum w x^2 it explains.
struct Explained {
  float scale = 0, share = 0;
};
template <class Value>
Explained explain(const float* x, const float* weight, int count, const Value& value) {
  float xc = 0, cc = 0;
  for (int i = 0; i < count; ++i) {
    const auto c = static_cast<float>(value(i));
    xc += weight[i] * c * x[i];
    cc += weight[i] * c * c;
  }
  return cc > 0 ? Explained{xc / cc, xc * xc / cc} : Explained{};
}

}  // namespace

RangeFit fit_range(const float* x, const float* weight, int count, int top, std::uint8_t* code) {
  const float low = std::min(0.0f, *std::min_element(x, x + count));
  const float high = *std::max_element(x, x + count);
  std::fill_n(code, count, static_cast<std::uint8_t>(0));
  if (high <= low) return {0, -low};
  float w = 0, wx = 0;
  for (int i = 0; i < count; ++i) {
    w += weight[i];
    wx += weight[i] * x[i];
  }
  RangeFit best;
  float least = std::numeric_limits<float>::infinity();
  std::uint8_t tried[kMaxCount];
  for (int step = -kTries; step <= kTries; ++step) {
    const float inverse = (static_cast<float>(top) + kStep * static_cast<float>(step)) / (high - low);
    float wc = 0, wcc = 0, wcx = 0;
    for (int i = 0; i < count; ++i) {
      const float c = std::clamp(std::nearbyintf(inverse * (x[i] - low)), 0.0f, static_cast<float>(top));
      tried[i] = static_cast<std::uint8_t>(c);
      wc += weight[i] * c;
      wcc += weight[i] * c * c;
      wcx += weight[i] * c * x[i];
    }
    const float determinant = w * wcc - wc * wc;
    RangeFit fit{1 / inverse, -low};
    if (determinant > 1e-6f * w * wcc) {  // else all codes are the same
      fit = {(w * wcx - wc * wx) / determinant, (wc * wcx - wcc * wx) / determinant};
    }
    if (fit.minimum < 0) fit = {wcc > 0 ? wcx / wcc : 0, 0};
    if (!(fit.scale > 0)) continue;
    float error = 0;
    for (int i = 0; i < count; ++i) {
      const float e = fit.scale * static_cast<float>(tried[i]) - fit.minimum - x[i];
      error += weight[i] * e * e;
    }
    if (error >= least) continue;
    least = error;
    best = fit;
    std::memcpy(code, tried, static_cast<std::size_t>(count));
  }
  return best;
}

float fit_symmetric(const float* x, const float* weight, int count, int center, std::uint8_t* code) {
  const float most = magnitude(x, count);
  std::fill_n(code, count, static_cast<std::uint8_t>(center));
  if (std::fabs(most) < 1e-30f) return 0;
  Explained best;
  std::uint8_t tried[kMaxCount];
  for (int step = -kTries; step <= kTries; ++step) {
    // The extreme value goes to the side that has one code more.
    const float inverse = -(static_cast<float>(center) + kStep * static_cast<float>(step)) / most;
    for (int i = 0; i < count; ++i) {
      const float c = std::nearbyintf(inverse * x[i]);
      tried[i] = static_cast<std::uint8_t>(std::clamp(c, -static_cast<float>(center), static_cast<float>(center - 1)) +
                                           static_cast<float>(center));
    }
    const Explained fit = explain(x, weight, count, [&](int i) { return tried[i] - center; });
    if (fit.share <= best.share) continue;
    best = fit;
    std::memcpy(code, tried, static_cast<std::size_t>(count));
  }
  return best.scale;
}

float fit_table(const float* x, const float* weight, int count, const std::int8_t* table, std::uint8_t* code) {
  const float most = magnitude(x, count);
  std::fill_n(code, count, static_cast<std::uint8_t>(0));
  if (std::fabs(most) < 1e-30f) return 0;
  Explained best;
  std::uint8_t tried[kMaxCount];
  for (int step = -kTries; step <= kTries; ++step) {
    for (const float end : {static_cast<float>(table[0]), static_cast<float>(table[15])}) {
      const float inverse = (end + std::copysign(4 * kStep * static_cast<float>(step), end)) / most;
      for (int i = 0; i < count; ++i) {
        const float wanted = inverse * x[i];
        const std::int8_t* up = std::lower_bound(table, table + 16, wanted);
        const auto at = static_cast<int>(up - table);
        const bool down =
            at == 16 || (at > 0 && wanted - static_cast<float>(table[at - 1]) < static_cast<float>(table[at]) - wanted);
        tried[i] = static_cast<std::uint8_t>(down ? at - 1 : at);
      }
      const Explained fit = explain(x, weight, count, [&](int i) { return table[tried[i]]; });
      if (fit.share <= best.share) continue;
      best = fit;
      std::memcpy(code, tried, static_cast<std::size_t>(count));
    }
  }
  return best.scale;
}

}  // namespace llminfer::quantize
