#include "divergence.hpp"

#include <algorithm>
#include <cmath>
#include <stdexcept>

namespace bench {

void log_softmax(std::span<const float> logits, std::span<double> out) {
  const double top = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (const float logit : logits) sum += std::exp(logit - top);
  if (!std::isfinite(sum)) throw std::runtime_error("the model gave a logit that is not finite");
  const double norm = top + std::log(sum);
  std::transform(logits.begin(), logits.end(), out.begin(), [&](float logit) { return logit - norm; });
}

void Mean::add(double value) {
  ++count_;
  const double step = value - mean_;
  mean_ += step / static_cast<double>(count_);
  squares_ += step * (value - mean_);
}

double Mean::standard_error() const {
  if (count_ < 2) return 0;
  const auto n = static_cast<double>(count_);
  return std::sqrt(squares_ / (n - 1) / n);
}

void Divergence::add(std::span<const double> reference, std::span<const double> run, std::size_t next) {
  double kl = 0;
  for (std::size_t i = 0; i < reference.size(); ++i) kl += std::exp(reference[i]) * (reference[i] - run[i]);
  kl_.add(kl);
  values_.push_back(kl);
  const auto top = [](std::span<const double> row) { return std::max_element(row.begin(), row.end()) - row.begin(); };
  same_top_.add(top(reference) == top(run) ? 1 : 0);
  surprise_.add(-reference[next]);
}

double Divergence::quantile(double q) const {
  if (values_.empty()) return 0;
  std::vector<double> sorted = values_;
  std::sort(sorted.begin(), sorted.end());
  return sorted[static_cast<std::size_t>(q * static_cast<double>(sorted.size() - 1))];
}

double Divergence::reference_perplexity() const { return std::exp(surprise_.mean()); }

}  // namespace bench
