// The steps of the sampling chain, each a function on a list of candidates. Knows nothing of options, random numbers or
// history beyond its arguments. Deterministic: the order of every sum and tie is fixed.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include <llminfer/backend.hpp>
#include <llminfer/tokenizer.hpp>

namespace llminfer::inline v0 {
namespace engine {

/// Double, so that no legal option can overflow a finite float logit: penalties and temperature stay below 1e150.
struct Candidate {
  Token token = 0;
  double logit = 0;  ///< always finite
};

/// Sums of exponentials are added up in blocks, so that rounding hardly grows with the vocabulary.
inline constexpr std::size_t kSumBlock = 256;

/// Bounds of a sum of exponentials: that of a whole row as a computation in double precision may give it, whatever the
/// order of its additions.
struct SumBounds {
  double low = 0, high = 0;
};

/// The tokens that may still be chosen. The list has all of them, or only the best; the others are the rest.
///
/// With a rest each step does what it would do with all tokens, as far as the list proves what that is; once it does
/// not, the list is in doubt and what follows means nothing. (docs/adr/0030)
class Candidates {
 public:
  /// All tokens of logits [vocab_size] but those at -infinity or NaN; +infinity counts as the greatest float.
  void assign(std::span<const float> logits);
  /// The best of a row of so many tokens, as Batch::candidates has them; fewer than asked for are all. `sum`: as
  /// Batch::candidate_sums. In doubt if a logit counts as the greatest float.
  void assign(std::span<const TokenLogit> best, std::int32_t tokens, std::optional<double> sum);
  bool empty() const { return list_.empty(); }
  std::span<const Candidate> list() const { return list_; }
  bool has_rest() const { return rest_.has_value(); }
  bool in_doubt() const { return in_doubt_; }
  /// After changes through find() or add(), and with a rest: what is no better than the best of the rest may be joins
  /// it. In doubt if nothing is left.
  void settle();
  /// Adds a bias, at most 0, to a token's logit, in single precision as to a row of floats.
  void add(Token token, float bias);

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

  /// The candidate of a token, or null. Brings the list into the order of ids first. With a rest: logits may only be
  /// made lower, and settle() is due.
  double* find(Token token);

 private:
  /// What is known of the tokens that are not in the list.
  struct Rest {
    Candidate last;     ///< all come after it in order
    double tokens = 0;  ///< at most so many
    bool some = false;  ///< at least one
    double origin = 0;  ///< a logit
    SumBounds sum;      ///< of exp(logit - origin)
  };

  double best_logit() const { return best().logit; }
  // The steps where there is a rest.
  SumBounds bounds(double best) const;
  double slack() const;
  void top_k_of_best(std::size_t k);
  void top_p_of_best(double p);
  void min_p_of_best(double p);
  void xtc_of_best(double threshold);
  void temperature_of_best(double temperature);
  void mirostat_of_best(double mu);
  void doubt() { in_doubt_ = true; }
  /// The list has all that there is now, in the order of ids.
  void forget_rest();

  /// sum of exp(logit - best)
  double total(double best) const;
  template <class Before, class Mass>
  void keep_mass(double target, Before before, Mass mass);

  std::vector<Candidate> list_;
  std::vector<double> weights_;  ///< scratch of draw()
  bool by_id_ = true;
  std::optional<Rest> rest_;
  bool in_doubt_ = false;
};

/// Whether a comes before b: by logit, highest first, then by id.
inline bool better(const Candidate& a, const Candidate& b) {
  return a.logit > b.logit || (a.logit == b.logit && a.token < b.token);
}

/// Natural logarithm of the sum of exp(logit); -infinity if there is no candidate.
double log_sum_exp(std::span<const Candidate> list);
/// Bounds of what log_sum_exp() would give of a whole row of so many tokens with this highest logit, where a backend
/// says that the sum relative to that is `sum` (Batch::candidate_sums).
SumBounds log_sum_bounds(double best, double sum, std::int32_t tokens);
/// Whether Candidates::draw() would give this token of a whole row of so many, whose highest logit is `best`, where a
/// backend has drawn it as the wish says.
bool certain(const DrawnToken& drawn, const CandidateWish& wish, float best, std::int32_t tokens);
/// The n best, best first; ties by lower id.
std::vector<Candidate> best_of(std::span<const Candidate> list, std::size_t n);

/// The greatest value, NaN being less than everything; -infinity if there is none.
float greatest(std::span<const float> logits);
/// The first index of the greatest value of logits, NaN being less than everything; -1 if there is none above
/// -infinity.
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
/// DRY ("don't repeat yourself"): where the window's last L tokens occurred before, followed by t, choosing t would
/// prolong a repetition: its logit falls by multiplier * base^(L - allowed_length) for the greatest such L, if L >=
/// allowed_length. A repetition doesn't reach back over the end of a breaker's text, and a token that ends a breaker is
/// free. O(window) time.
void apply_dry(Candidates& candidates, std::span<const Token> window, const Dry& dry, const Tokenizer& tokenizer);

}  // namespace engine
}  // namespace llminfer::inline v0
