// The steps of the sampling chain where only the best candidates are known. See Candidates.
//
// Every step compares numbers that a computation over all tokens would have. Logits of the list are known exactly, and
// of the rest an upper bound; sums over all tokens are known within bounds that hold for any order of their additions.
// Where a comparison has the same outcome for all values within the bounds, it has that for all tokens; where not, the
// list is in doubt. Comparisons are written so that a NaN is a doubt.
#include <algorithm>
#include <cmath>
#include <limits>

#include "engine/sampler_steps.hpp"

namespace llminfer::inline v0 {
namespace engine {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

/// Of a sum of so many exponentials in double precision and what is computed of it: the additions of a block and of the
/// blocks, each off by 2^-53 at most, and few other operations; twice that, for both ways of getting there.
double rounding_of(double tokens) { return (512 + tokens / static_cast<double>(kSumBlock)) * 0x1p-52; }

}  // namespace

void Candidates::assign(std::span<const TokenLogit> best, std::int32_t tokens, std::optional<double> sum) {
  list_.clear();
  by_id_ = false;
  rest_.reset();
  in_doubt_ = false;
  for (const TokenLogit& c : best) {
    if (c.token >= 0) list_.push_back({c.token, c.logit});
  }
  if (list_.empty()) return;
  if (list_.front().logit >= std::numeric_limits<float>::max()) return doubt();
  if (list_.size() < best.size()) return forget_rest();
  Rest rest;
  rest.last = list_.back();
  rest.tokens = static_cast<double>(tokens) - static_cast<double>(list_.size());
  rest.origin = list_.front().logit;
  rest.sum = {0, kInfinity};
  if (sum && std::isfinite(*sum)) {
    const double listed = total(rest.origin), off = *sum * kCandidateSumError + listed * 0x1p-44;
    rest.sum = {std::max(0.0, *sum - listed - off), std::max(0.0, *sum - listed + off)};
  }
  rest_ = rest;
}

void Candidates::forget_rest() {
  rest_.reset();
  std::sort(list_.begin(), list_.end(), [](const Candidate& a, const Candidate& b) { return a.token < b.token; });
  by_id_ = true;
}

void Candidates::settle() {
  if (!rest_) return;
  Rest& rest = *rest_;
  std::sort(list_.begin(), list_.end(), better);
  by_id_ = false;
  while (!list_.empty() && better(rest.last, list_.back())) {
    const double term = std::exp(list_.back().logit - rest.origin);
    rest.sum.low += term;
    rest.sum.high += term;
    rest.tokens += 1;
    rest.some = true;
    list_.pop_back();
  }
  if (list_.empty()) doubt();
}

void Candidates::add(Token token, float bias) {
  double* const logit = find(token);
  if (!logit) return;
  const float sum = static_cast<float>(*logit) + bias;
  if (sum >= std::numeric_limits<float>::lowest()) {
    *logit = sum;
  } else {
    std::erase_if(list_, [&](const Candidate& c) { return c.token == token; });
  }
}

/// Of the sum of exp(logit - best) over all tokens.
SumBounds Candidates::bounds(double best) const {
  const Rest& rest = *rest_;
  const double listed = total(best), scale = std::exp(rest.origin - best);
  const double high = std::min(rest.sum.high * scale, rest.tokens * std::exp(rest.last.logit - best));
  return {(listed + rest.sum.low * scale) * (1 - slack()), (listed + high) * (1 + slack())};
}

double Candidates::slack() const { return rounding_of(rest_->tokens + static_cast<double>(list_.size())); }

void Candidates::top_k_of_best(std::size_t k) {
  if (!(list_.size() > k || (list_.size() == k && rest_->some))) return doubt();
  list_.resize(k);
  rest_.reset();
}

void Candidates::top_p_of_best(double p) {
  const double best = list_.front().logit;
  const SumBounds all = bounds(best);
  double sum = 0;
  for (std::size_t i = 0; i < list_.size(); ++i) {
    sum += std::exp(list_[i].logit - best);
    if (sum * (1 + slack()) < p * all.low) continue;
    if (!(sum * (1 - slack()) >= p * all.high)) return doubt();
    list_.resize(i + 1);
    rest_.reset();
    return;
  }
  doubt();
}

void Candidates::min_p_of_best(double p) {
  const double least = list_.front().logit + std::log(p);
  if (!(rest_->last.logit < least)) return doubt();
  std::erase_if(list_, [&](const Candidate& c) { return c.logit < least; });
  forget_rest();
}

void Candidates::xtc_of_best(double threshold) {
  const double best = list_.front().logit;
  const SumBounds all = bounds(best);
  const double low = threshold * all.low * (1 - slack()), high = threshold * all.high * (1 + slack());
  if (!(std::exp(rest_->last.logit - best) < low)) return doubt();
  std::size_t top = 0;
  for (; top < list_.size(); ++top) {
    const double weight = std::exp(list_[top].logit - best);
    if (weight < low) break;
    if (!(weight >= high)) return doubt();
  }
  if (top > 1) list_.erase(list_.begin(), list_.begin() + static_cast<std::ptrdiff_t>(top) - 1);
}

/// Logits that differ may be the same afterwards, and then ids decide: no token at the rest's upper bound stays.
void Candidates::temperature_of_best(double temperature) {
  for (Candidate& c : list_) c.logit /= temperature;
  rest_->last = {-1, rest_->last.logit / temperature};
  rest_->origin /= temperature;
  rest_->sum = {0, kInfinity};
  settle();
}

void Candidates::mirostat_of_best(double mu) {
  const Candidate top = list_.front();
  const SumBounds all = bounds(top.logit);
  const auto least = [&](double sum, double sign) {
    const double log_sum = std::log(sum), surprise = mu * std::log(2.0);
    return top.logit + log_sum - surprise +
           sign * 0x1p-49 * (std::fabs(top.logit) + std::fabs(log_sum) + std::fabs(surprise));
  };
  const double low = least(all.low, -1), high = least(all.high, 1);
  if (top.logit < low) {
    list_.assign(1, top);
    return forget_rest();
  }
  if (!(top.logit >= high) || !(rest_->last.logit < low)) return doubt();
  for (const Candidate& c : list_) {
    if (c.logit >= low && c.logit < high) return doubt();
  }
  std::erase_if(list_, [&](const Candidate& c) { return c.logit < low; });
  forget_rest();
}

bool certain(const DrawnToken& drawn, const CandidateWish& wish, float best, std::int32_t tokens) {
  if (drawn.token < 0 || best >= std::numeric_limits<float>::max()) return false;
  // draw() adds one weight after the other, and rounds logits when it divides them: of those with a weight above e^-64,
  // which alone matter, none is larger than this.
  const double largest = std::fabs(static_cast<double>(best)) / wish.temperature + 64;
  const double off = drawn.sum * (2 * kCandidateSumError + tokens * 0x1p-52 + largest * 0x1p-51);
  const double target = wish.place * drawn.sum;
  return target - drawn.below >= off && drawn.below + drawn.weight - target >= off;
}

SumBounds log_sum_bounds(double best, double sum, std::int32_t tokens) {
  const double off = kCandidateSumError + rounding_of(tokens);
  const auto log_sum = [&](double factor, double sign) {
    const double log = std::log(sum * factor);
    return best + log + sign * 0x1p-50 * (std::fabs(best) + std::fabs(log));
  };
  return {log_sum(1 - off, -1), log_sum(1 + off, 1)};
}

}  // namespace engine
}  // namespace llminfer::inline v0
