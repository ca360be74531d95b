// Penalties for what the text holds already: CTRL repetition, presence, frequency and DRY. See sampler_steps.hpp.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <string_view>

#include "engine/sampler_steps.hpp"

namespace llminfer::inline v0 {
namespace engine {
namespace {

constexpr double kMaxDryPenalty = 1e30;  // base^length has no bound, and two infinities have no order

/// z[i]: how many of the last tokens of `window` equal those that end i tokens before its end (Gusfield's Z algorithm on the
/// reversed window). z[0] is 0, and so is z[n]: nothing comes before the first token.
std::vector<std::int64_t> suffix_matches(std::span<const Token> window) {
  const auto n = static_cast<std::int64_t>(window.size());
  const auto at = [&](std::int64_t i) { return window[static_cast<std::size_t>(n - 1 - i)]; };
  std::vector<std::int64_t> z(window.size() + 1, 0);
  for (std::int64_t i = 1, left = 0, right = 0; i < n; ++i) {
    std::int64_t length = i < right ? std::min(right - i, z[static_cast<std::size_t>(i - left)]) : 0;
    while (i + length < n && at(length) == at(i + length)) ++length;
    z[static_cast<std::size_t>(i)] = length;
    if (i + length > right) {
      left = i;
      right = i + length;
    }
  }
  return z;
}

/// The text at the end of the window, as far as breakers need it.
class Tail {
 public:
  /// Looks at the last `tokens` tokens and enough text before them for a breaker that ends in them.
  Tail(std::span<const Token> window, std::size_t tokens, std::span<const std::string> breakers,
       const Tokenizer& tokenizer)
      : breakers_(breakers), tokenizer_(tokenizer) {
    for (const std::string& breaker : breakers) longest_ = std::max(longest_, breaker.size());
    std::size_t first = window.size() - tokens, context = 0;
    while (first > 0 && context + 1 < longest_) context += tokenizer.token_bytes(window[--first]).size();
    for (; first < window.size(); ++first) {
      if (first >= window.size() - tokens) starts_.push_back(text_.size());
      text_ += tokenizer.token_bytes(window[first]);
    }
  }

  /// How many of the last tokens follow the last breaker.
  std::int64_t unbroken() const {
    std::size_t end = 0;
    for (const std::string& breaker : breakers_) {
      const std::size_t at = text_.rfind(breaker);
      if (at != std::string::npos) end = std::max(end, at + breaker.size());
    }
    return starts_.end() - std::lower_bound(starts_.begin(), starts_.end(), end);
  }

  /// Whether a breaker would end inside this next token.
  bool broken_by(Token token) const {
    const std::string_view bytes = tokenizer_.token_bytes(token);
    const std::size_t keep = std::min(text_.size(), longest_ > 0 ? longest_ - 1 : 0);
    const std::string text = text_.substr(text_.size() - keep).append(bytes);
    return std::any_of(breakers_.begin(), breakers_.end(), [&](const std::string& breaker) {
      const std::size_t at = text.rfind(breaker);
      return at != std::string::npos && at + breaker.size() > keep;
    });
  }

 private:
  std::span<const std::string> breakers_;
  const Tokenizer& tokenizer_;
  std::size_t longest_ = 0;
  std::string text_;
  std::vector<std::size_t> starts_;  ///< where each of the last tokens begins in text_
};

}  // namespace

void apply_penalties(Candidates& candidates, std::span<const Token> window, const Penalties& penalties,
                     std::vector<Token>& scratch) {
  scratch.assign(window.begin(), window.end());
  std::sort(scratch.begin(), scratch.end());
  for (auto it = scratch.begin(); it != scratch.end();) {
    const auto next = std::upper_bound(it, scratch.end(), *it);
    if (double* logit = candidates.find(*it)) {
      // CTRL (Keskar et al. 2019), with the sign taken care of: a penalty never makes a token likelier.
      *logit = *logit > 0 ? *logit / penalties.repetition : *logit * penalties.repetition;
      *logit -= penalties.presence + penalties.frequency * static_cast<double>(next - it);
    }
    it = next;
  }
}

void apply_dry(Candidates& candidates, std::span<const Token> window, const Dry& dry, const Tokenizer& tokenizer) {
  if (window.empty()) return;
  const std::vector<std::int64_t> z = suffix_matches(window);
  const std::int64_t longest = *std::max_element(z.begin(), z.end());
  if (longest < dry.allowed_length) return;
  const Tail tail(window, static_cast<std::size_t>(longest), dry.breakers, tokenizer);
  const std::int64_t unbroken = tail.unbroken();

  std::vector<std::pair<Token, std::int64_t>> prolonging;  // a token and the length of the repetition before it
  for (std::size_t i = 1; i < z.size(); ++i) {
    const std::int64_t length = std::min(z[i], unbroken);
    if (length >= dry.allowed_length) prolonging.emplace_back(window[window.size() - i], length);
  }
  std::sort(prolonging.begin(), prolonging.end());
  for (std::size_t i = 0; i < prolonging.size(); ++i) {
    const auto [token, length] = prolonging[i];
    if (i + 1 < prolonging.size() && prolonging[i + 1].first == token) continue;  // a longer one follows
    if (tail.broken_by(token)) continue;
    if (double* logit = candidates.find(token)) {
      const double penalty = dry.multiplier * std::pow(dry.base, static_cast<double>(length - dry.allowed_length));
      *logit -= std::min(penalty, kMaxDryPenalty);
    }
  }
}

}  // namespace engine
}  // namespace llminfer::inline v0
