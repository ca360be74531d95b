// The statistics of llminfer-perplexity.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

namespace bench {

/// out = log(softmax(logits)). Throws std::runtime_error if a logit is not finite.
void log_softmax(std::span<const float> logits, std::span<double> out);

/// A mean and how sure it is.
class Mean {
 public:
  void add(double value);
  std::size_t count() const { return count_; }
  double mean() const { return mean_; }
  double standard_error() const;  ///< 0 with fewer than two values

 private:
  std::size_t count_ = 0;
  double mean_ = 0, squares_ = 0;  ///< Welford's recurrence
};

/// KL(reference || this run), in nats, over the scored tokens.
class Divergence {
 public:
  /// Both are log-probabilities [vocab]; `next` is the text's token.
  void add(std::span<const double> reference, std::span<const double> run, std::size_t next);
  double mean() const { return kl_.mean(); }
  double standard_error() const { return kl_.standard_error(); }
  double quantile(double q) const;  ///< 0 to 1
  double same_top() const { return same_top_.mean(); }
  double reference_perplexity() const;

 private:
  Mean kl_, same_top_, surprise_;
  std::vector<double> values_;
};

}  // namespace bench
