// The meaning of op::Moe for one token, in double precision.
#pragma once

#include <algorithm>
#include <cmath>
#include <functional>
#include <iterator>
#include <map>
#include <vector>

#include <llminfer/program.hpp>

namespace llminfer::test {

/// A gated unit.
inline double gated(Activation activation, double x, double up) {
  switch (activation) {
    case Activation::silu:
      return x / (1 + std::exp(-x)) * up;
    case Activation::gelu:
      return 0.5 * x * (1 + std::erf(x / std::sqrt(2.0))) * up;
    case Activation::gelu_tanh:
      return 0.5 * x * (1 + std::tanh(0.7978845608028654 * (x + 0.044715 * x * x * x))) * up;  // sqrt(2 / pi)
    case Activation::clamped_swiglu: {
      const double gate = std::min(x, 7.0);
      return gate / (1 + std::exp(-1.702 * gate)) * (std::clamp(up, -7.0, 7.0) + 1);
    }
  }
  return 0;
}

/// An input as a weight takes it that quantizes none.
struct AsItIs {
  std::vector<double> operator()(WeightId, const double* x, std::size_t size) const { return {x, x + size}; }
};

/// Adds to `out` // (width). `elements(id)` gives a weight's elements, row-major; x // (width), logits // (experts).
template <class Elements, class Input = AsItIs>
void add_mixture(const op::Moe& o, const Program& program, const Elements& elements, const double* x,
                 const double* logits, double* out, const Input& input_of = {}) {
  const auto width = static_cast<std::size_t>(program.values[static_cast<std::size_t>(o.in)].width);
  const auto product = [&](WeightId id, const std::vector<WeightId>& biases, std::size_t e, const double* input,
                           std::size_t cols) {
    std::vector<double> y(static_cast<std::size_t>(program.weights[static_cast<std::size_t>(id)].rows));
    if (!biases.empty()) std::copy_n(elements(biases[e]), y.size(), y.begin());
    const auto* w = elements(id);
    const std::vector<double> taken = input_of(id, input, cols);
    for (double& sum : y) {
      for (std::size_t k = 0; k < cols; ++k) sum += taken[k] * static_cast<double>(*w++);
    }
    return y;
  };
  std::multimap<double, std::size_t, std::greater<>> best;  // equal keys in the order of their insertion
  double divisor = 0;
  for (std::size_t e = 0; e < o.gate.size(); ++e) {
    const double score = o.scoring == Scoring::softmax ? std::exp(logits[e]) : 1 / (1 + std::exp(-logits[e]));
    divisor += score;
    best.emplace(score, e);
  }
  best.erase(std::next(best.begin(), o.used), best.end());
  if (o.scoring == Scoring::sigmoid) divisor = 1;
  if (o.normalize) {
    divisor = 0;
    for (const auto& [score, e] : best) divisor += score;
  }
  for (const auto& [score, e] : best) {
    std::vector<double> hidden = product(o.gate[e], o.gate_bias, e, x, width);
    const std::vector<double> up = product(o.up[e], o.up_bias, e, x, width);
    for (std::size_t i = 0; i < hidden.size(); ++i) hidden[i] = gated(o.activation, hidden[i], up[i]);
    const std::vector<double> y = product(o.down[e], o.down_bias, e, hidden.data(), hidden.size());
    for (std::size_t i = 0; i < width; ++i) out[i] += score / divisor * static_cast<double>(o.scale) * y[i];
  }
}

}  // namespace llminfer::test
