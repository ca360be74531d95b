// Truncation steps, the draw and argmax. See sampler_steps.hpp.
#include "engine/sampler_steps.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

namespace llminfer::inline v0 {
namespace engine {
namespace {

constexpr double kNever = -std::numeric_limits<double>::infinity();

/// Of exp(logit - best).
double sum_of_exp(std::span<const Candidate> list, double best) {
  double sum = 0;
  for (std::size_t block = 0; block < list.size(); block += kSumBlock) {
    double part = 0;
    for (const Candidate& c : list.subspan(block, std::min(kSumBlock, list.size() - block))) {
      part += std::exp(c.logit - best);
    }
    sum += part;
  }
  return sum;
}

}  // namespace

void Candidates::assign(std::span<const float> logits) {
  list_.clear();
  list_.reserve(logits.size());
  by_id_ = true;
  rest_.reset();
  in_doubt_ = false;
  for (std::size_t i = 0; i < logits.size(); ++i) {
    if (logits[i] >= std::numeric_limits<float>::lowest()) {
      list_.push_back({static_cast<Token>(i), std::min(logits[i], std::numeric_limits<float>::max())});
    }
  }
}

Candidate Candidates::best() const { return *std::min_element(list_.begin(), list_.end(), better); }

double Candidates::total(double best) const { return sum_of_exp(list_, best); }

// Selects in growing prefixes, because the set is small as a rule and the vocabulary is not: O(V) unless it is large.
template <class Before, class Mass>
void Candidates::keep_mass(double target, Before before, Mass mass) {
  double sum = 0;
  std::size_t begin = 0;
  for (std::size_t step = 64; begin < list_.size(); step *= 4) {
    const std::size_t end = std::min(list_.size(), begin + step);
    const auto first = list_.begin() + static_cast<std::ptrdiff_t>(begin);
    const auto last = list_.begin() + static_cast<std::ptrdiff_t>(end);
    if (last != list_.end()) std::nth_element(first, last, list_.end(), before);
    std::sort(first, last, before);
    for (std::size_t i = begin; i < end; ++i) {
      sum += mass(list_[i]);
      if (sum >= target) {
        list_.resize(i + 1);
        by_id_ = false;
        return;
      }
    }
    begin = end;
  }
  by_id_ = false;
}

void Candidates::top_k(std::size_t k) {
  if (rest_) return top_k_of_best(k);
  if (k >= list_.size()) return;
  std::nth_element(list_.begin(), list_.begin() + static_cast<std::ptrdiff_t>(k), list_.end(), better);
  list_.resize(k);
  std::sort(list_.begin(), list_.end(), better);
  by_id_ = false;
}

void Candidates::top_p(double p) {
  if (rest_) return top_p_of_best(p);
  const double best = best_logit(), sum = total(best);
  keep_mass(p, better, [&](const Candidate& c) { return std::exp(c.logit - best) / sum; });
}

void Candidates::typical(double p) {
  if (rest_) return doubt();  // the entropy is that of all
  const double best = best_logit(), sum = total(best), log_sum = std::log(sum);
  double entropy = 0;  // nats
  for (const Candidate& c : list_) {
    const double log_probability = c.logit - best - log_sum;
    const double probability = std::exp(log_probability);
    if (probability > 0) entropy -= probability * log_probability;
  }
  const auto distance = [&](const Candidate& c) { return std::fabs(best + log_sum - c.logit - entropy); };
  const auto before = [&](const Candidate& a, const Candidate& b) {
    const double x = distance(a), y = distance(b);
    return x < y || (x == y && better(a, b));
  };
  keep_mass(p, before, [&](const Candidate& c) { return std::exp(c.logit - best) / sum; });
}

void Candidates::min_p(double p) {
  if (rest_) return min_p_of_best(p);
  const double least = best_logit() + std::log(p);
  std::erase_if(list_, [&](const Candidate& c) { return c.logit < least; });
}

void Candidates::xtc(double threshold) {
  if (rest_) return xtc_of_best(threshold);
  const double best = best_logit(), least = threshold * total(best);
  const auto top = [&](const Candidate& c) { return std::exp(c.logit - best) >= least; };
  const Candidate* kept = nullptr;
  for (const Candidate& c : list_) {
    if (top(c) && (!kept || better(*kept, c))) kept = &c;
  }
  if (!kept) return;
  const Token token = kept->token;
  std::erase_if(list_, [&](const Candidate& c) { return c.token != token && top(c); });
}

void Candidates::temperature(double temperature) {
  if (rest_) return temperature_of_best(temperature);
  for (Candidate& c : list_) c.logit /= temperature;
}

void Candidates::mirostat(double mu) {
  if (rest_) return mirostat_of_best(mu);
  const Candidate top = best();
  const double least = top.logit + std::log(total(top.logit)) - mu * std::log(2.0);
  if (top.logit < least) {
    list_.assign(1, top);
  } else {
    std::erase_if(list_, [&](const Candidate& c) { return c.logit < least; });
  }
}

Candidates::Drawn Candidates::draw(double u) {
  if (rest_) {
    doubt();
    return {};
  }
  const double best = best_logit();
  weights_.clear();
  weights_.reserve(list_.size());
  double sum = 0;
  for (const Candidate& c : list_) {
    weights_.push_back(std::exp(c.logit - best));
    sum += weights_.back();
  }
  const double target = u * sum;
  double below = 0;
  std::size_t chosen = 0;  // the last one with a weight, should rounding push the target past the end
  for (std::size_t i = 0; i < weights_.size(); ++i) {
    if (weights_[i] <= 0) continue;
    chosen = i;
    below += weights_[i];
    if (below > target) break;
  }
  return {list_[chosen].token, weights_[chosen] / sum};
}

double* Candidates::find(Token token) {
  const auto by_id = [](const Candidate& a, const Candidate& b) { return a.token < b.token; };
  if (!by_id_) std::sort(list_.begin(), list_.end(), by_id);
  by_id_ = true;
  const auto it = std::lower_bound(list_.begin(), list_.end(), Candidate{token, 0}, by_id);
  if (it != list_.end() && it->token == token) return &it->logit;
  // One of the rest, if anything: whatever is taken from it, it had no more than the best of them may have.
  if (rest_) rest_->sum.low = std::max(0.0, rest_->sum.low - std::exp(rest_->last.logit - rest_->origin));
  return nullptr;
}

double log_sum_exp(std::span<const Candidate> list) {
  if (list.empty()) return kNever;
  const double best = std::min_element(list.begin(), list.end(), better)->logit;
  return best + std::log(sum_of_exp(list, best));
}

std::vector<Candidate> best_of(std::span<const Candidate> list, std::size_t n) {
  std::vector<Candidate> out(std::min(n, list.size()));
  std::partial_sort_copy(list.begin(), list.end(), out.begin(), out.end(), better);
  return out;
}

// In independent lanes, which compilers turn into vector code without leave to reorder floats.
float greatest(std::span<const float> logits) {
  constexpr std::size_t kLanes = 16;
  std::array<float, kLanes> lanes;
  lanes.fill(-std::numeric_limits<float>::infinity());
  std::size_t i = 0;
  for (; i + kLanes <= logits.size(); i += kLanes) {
    for (std::size_t j = 0; j < kLanes; ++j) lanes[j] = logits[i + j] > lanes[j] ? logits[i + j] : lanes[j];
  }
  for (; i < logits.size(); ++i) lanes[0] = logits[i] > lanes[0] ? logits[i] : lanes[0];
  return *std::max_element(lanes.begin(), lanes.end());
}

// The first block that holds the maximum is searched.
std::int64_t argmax(std::span<const float> logits) {
  constexpr std::size_t kBlock = 512;
  float best = -std::numeric_limits<float>::infinity();
  std::size_t best_block = logits.size();
  for (std::size_t block = 0; block < logits.size(); block += kBlock) {
    const float most = greatest(logits.subspan(block, std::min(kBlock, logits.size() - block)));
    if (most > best) {
      best = most;
      best_block = block;
    }
  }
  for (std::size_t i = best_block; i < logits.size(); ++i) {
    if (logits[i] == best) return static_cast<std::int64_t>(i);
  }
  return -1;
}

}  // namespace engine
}  // namespace llminfer::inline v0
