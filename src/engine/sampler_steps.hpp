// The steps of the sampling chain, each a function on a list of candidates. Knows nothing of options, random numbers or
// history beyond its arguments. Deterministic: the order of every sum and tie is fixed.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include <llminfer/tokenizer.hpp>

namespace llminfer::inline v0 {
namespace engine {

/// Double, so that no legal option can overflow a finite float logit: penalties and temperature stay below 1e150.
struct Candidate {
  Token token = 0;
  double logit = 0;  ///< always finite
};

/// The tokens that may still be chosen.
class Candidates {
 public:
  /// All tokens of logits [vocab_size] but those at -infinity or NaN; +infinity counts as the greatest float.
  void assign(std::span<const float> logits);
  bool empty() const { return list_.empty(); }
  std::span<const Candidate> list() const { return list_; }

  // Each needs at least one candidate and leaves at least one.
  /// The best token; ties go to the lower id.
  Candidate best() const;
  void top_k(std::size_t k);
  /// The smallest set of the most probable tokens that has at least mass p (Holtzman et al. 2019).
  void top_p(double p);
  /// The smallest set with at least mass p of tokens whose surprise is nearest the entropy (Meister et al. 2022).
  void typical(double p);
  /// Tokens with at least p times the best one's probability (Nguyen et al. 2024). p > 0.
  void min_p(double p);
  /// Removes all tokens of probability >= threshold but the least probable of them.
  void xtc(double threshold);
  void temperature(double temperature);
  /// Tokens whose surprise, in bits, is at most mu; the best one if there is none (Basu et al. 2021, Mirostat 2).
  void mirostat(double mu);

  /// The candidate at u in [0, 1) of the cumulated distribution, and its probability.
  struct Drawn {
    Token token = 0;
    double probability = 1;
  };
  Drawn draw(double u);

  /// The candidate of a token, or null. Brings the list into the order of ids first.
  double* find(Token token);

 private:
  double best_logit() const { return best().logit; }
  /// sum of exp(logit - best)
  double total(double best) const;
  template <class Before, class Mass>
  void keep_mass(double target, Before before, Mass mass);

  std::vector<Candidate> list_;
  std::vector<double> weights_;  ///< scratch of draw()
  bool by_id_ = true;
};

/// Natural logarithm of the sum of exp(logit); -infinity if there is no candidate.
double log_sum_exp(std::span<const Candidate> list);
/// The n best, best first; ties by lower id.
std::vector<Candidate> best_of(std::span<const Candidate> list, std::size_t n);

/// The first index of the greatest value of logits, NaN being less than everything; -1 if there is none above -infinity.
std::int64_t argmax(std::span<const float> logits);

struct Penalties {
  double repetition = 1, presence = 0, frequency = 0;
};
/// `window` is what the penalties look back at; `counts` is scratch.
void apply_penalties(Candidates& candidates, std::span<const Token> window, const Penalties& penalties,
                     std::vector<Token>& scratch);

struct Dry {
  double multiplier = 0, base = 1.75;
  std::int64_t allowed_length = 2;
  std::span<const std::string> breakers;
};
/// DRY ("don't repeat yourself"): where the window's last L tokens occurred before, followed by t, choosing t would prolong a
/// repetition: its logit falls by multiplier * base^(L - allowed_length) for the greatest such L, if L >= allowed_length. A
/// repetition doesn't reach back over the end of a breaker's text, and a token that ends a breaker is free. O(window) time.
void apply_dry(Candidates& candidates, std::span<const Token> window, const Dry& dry, const Tokenizer& tokenizer);

}  // namespace engine
}  // namespace llminfer::inline v0
