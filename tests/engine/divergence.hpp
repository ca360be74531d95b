// How far apart two distributions over the vocabulary are.
#pragma once

#include <cmath>
#include <cstddef>
#include <vector>

namespace llminfer::test {

/// KL divergence of softmax(q) from softmax(p).
inline double divergence(const std::vector<float>& p, const std::vector<float>& q) {
  double sum_p = 0, sum_q = 0, kl = 0;
  for (std::size_t i = 0; i < p.size(); ++i) sum_p += std::exp(double{p[i]}), sum_q += std::exp(double{q[i]});
  for (std::size_t i = 0; i < p.size(); ++i) {
    kl += std::exp(double{p[i]}) / sum_p * (double{p[i]} - double{q[i]} - std::log(sum_p) + std::log(sum_q));
  }
  return kl;
}

}  // namespace llminfer::test
