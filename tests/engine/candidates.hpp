// What Batch::candidates, candidate_sums and draws are of a row, by definition.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <span>
#include <vector>

#include <llminfer/backend.hpp>

namespace llminfer::test {

inline std::vector<TokenLogit> best_candidates(std::span<const float> logits, std::int32_t count) {
  std::vector<TokenLogit> all;
  for (std::size_t i = 0; i < logits.size(); ++i) {
    if (logits[i] > -std::numeric_limits<float>::infinity()) all.push_back({static_cast<std::int32_t>(i), logits[i]});
  }
  std::stable_sort(all.begin(), all.end(), [](const auto& a, const auto& b) { return a.logit > b.logit; });
  all.resize(static_cast<std::size_t>(count));
  return all;
}

/// As Batch::draws, in higher precision than is asked for.
inline DrawnToken drawn_token(std::span<const float> logits, double temperature, double place) {
  float most = -std::numeric_limits<float>::infinity();
  for (const float x : logits) most = x > most ? x : most;
  const auto weight_of = [&](float x) {
    const bool exists = x > -std::numeric_limits<float>::infinity();
    return exists ? std::exp((static_cast<long double>(x) - most) / temperature) : 0.0L;
  };
  long double sum = 0, below = 0;
  for (const float x : logits) sum += weight_of(x);
  for (std::size_t i = 0; i < logits.size(); ++i) {
    const long double weight = weight_of(logits[i]);
    if (below + weight > place * sum) {
      return {static_cast<std::int32_t>(i), logits[i], static_cast<double>(below), static_cast<double>(weight),
              static_cast<double>(sum)};
    }
    below += weight;
  }
  return {};
}

/// In higher precision than is asked for.
inline double candidate_sum(std::span<const float> logits) {
  float most = -std::numeric_limits<float>::infinity();
  for (const float x : logits) most = x > most ? x : most;
  long double sum = 0;
  for (const float x : logits) {
    if (x > -std::numeric_limits<float>::infinity()) sum += std::exp(static_cast<long double>(x) - most);
  }
  return static_cast<double>(sum);
}

}  // namespace llminfer::test
