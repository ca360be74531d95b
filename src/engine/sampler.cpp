// The public Sampler: options, history and random numbers around the steps of sampler_steps.hpp. Knows nothing of
// models.
#include "engine/sampler.hpp"

#include <algorithm>
#include <cmath>
#include <exception>
#include <limits>

#include "core/error.hpp"
#include "engine/row_candidates.hpp"
#include "engine/sampler_steps.hpp"

namespace llminfer::inline v0 {
namespace {

/// The finalizer of SplitMix64 (Steele et al. 2014).
std::uint64_t mix(std::uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

enum class Stream : std::uint64_t { token, xtc };

/// A number in [0, 1) that depends on nothing but its arguments, so that a choice can be made again at any time.
double uniform(std::uint64_t seed, std::uint64_t position, Stream stream) {
  constexpr std::uint64_t kGolden = 0x9e3779b97f4a7c15u;
  const std::uint64_t counter = 2 * position + static_cast<std::uint64_t>(stream);
  return static_cast<double>(mix(mix(seed + kGolden) + kGolden * (counter + 1)) >> 11) * 0x1p-53;
}

std::span<const Token> last(std::span<const Token> history, std::int32_t window) {
  if (window < 0 || static_cast<std::size_t>(window) >= history.size()) return history;
  return history.last(static_cast<std::size_t>(window));
}

/// The most candidates that are looked for in a row at hand.
constexpr std::int32_t kMostScanned = 256;

float to_float(double value) { return static_cast<float>(value); }

}  // namespace

struct [[gnu::visibility("hidden")]] Sampler::Impl {  // it would inherit the visibility of Sampler
  Impl(const SamplingOptions& o, const Tokenizer& t) : options(o), tokenizer(t), vocab_size(t.vocab_size()) {
    const auto in_chain = [&](SamplerStep step) {
      return std::find(o.chain.begin(), o.chain.end(), step) != o.chain.end();
    };
    const bool neutral = o.repetition_penalty == 1.0f && o.presence_penalty == 0.0f && o.frequency_penalty == 0.0f;
    penalties = in_chain(SamplerStep::penalties) && !neutral && o.penalty_window != 0;
    dry = in_chain(SamplerStep::dry) && o.dry_multiplier > 0 && o.dry_window != 0;
    greedy = o.temperature == 0.0f;
    takes_best = greedy && !penalties && !dry;
    mirostat = !greedy && o.mirostat_tau > 0;
    edits = !o.logit_bias.empty() || o.processor;
  }

  Result<Sample> sample(std::span<const float> raw);
  Result<Sample> sample_whole(std::span<const float> raw);
  Result<Token> choose(std::span<const float> raw);
  /// The chain on the candidates and the draw; none if the candidates are in doubt.
  std::optional<Token> choose_from_candidates();
  Error forbidden() const;
  CandidateWish draw_of_all() const;
  CandidateWish wish(std::int32_t most) const;
  Result<std::optional<Sample>> sample(const engine::RowCandidates& row);
  bool add_logprobs(const engine::RowCandidates& row, Sample& sample) const;
  void count(bool doubt);
  Result<std::span<const float>> edit(std::span<const float> raw);
  void run(SamplerStep step);
  void add_logprobs(std::span<const float> raw, Sample & sample);
  void accept(Token token);

  double mu() const { return mus.empty() ? 2.0 * static_cast<double>(options.mirostat_tau) : mus.back(); }

  SamplingOptions options;
  Tokenizer tokenizer;
  std::int32_t vocab_size;
  bool penalties, dry, greedy, mirostat, edits;
  bool takes_best;  ///< the choice is the best token of the edited logits

  std::vector<Token> history;
  bool lost_history = false;  ///< accept() ran out of memory
  /// Mirostat's mu after each accepted token, so that truncate() can go back; empty without Mirostat.
  std::vector<double> mus;
  struct {
    std::size_t position = SIZE_MAX;
    Token token = 0;
    double mu = 0;
  } pending;  ///< Mirostat: what the last choice makes of mu if it is accepted

  /// After candidates that were in doubt so many rows are wanted whole, more each time: which way costs what is not
  /// known here, but one of two that often fails costs both.
  int whole_rows = 0, next_whole_rows = 1;

  // Scratch, kept for its memory.
  engine::RowScan scan;
  std::vector<float> work;  // [vocab_size]
  std::vector<Token> sorted;
  engine::Candidates candidates;
};

Result<std::span<const float>> Sampler::Impl::edit(std::span<const float> raw) {
  if (!edits) return raw;
  work.assign(raw.begin(), raw.end());
  for (float& logit : work) logit = std::isnan(logit) ? -std::numeric_limits<float>::infinity() : logit;
  for (const LogitBias& bias : options.logit_bias) work[static_cast<std::size_t>(bias.token)] += bias.bias;
  if (options.processor) {
    try {
      options.processor(history, work);
    } catch (const std::exception& e) {
      return core::fail(ErrorCode::callback_failed, "SamplingOptions::processor threw: ", e.what());
    } catch (...) {
      return core::fail(ErrorCode::callback_failed, "SamplingOptions::processor threw");
    }
  }
  return std::span<const float>(work);
}

void Sampler::Impl::run(SamplerStep step) {
  const SamplingOptions& o = options;
  switch (step) {
    case SamplerStep::penalties:
      if (penalties) {
        engine::apply_penalties(candidates, last(history, o.penalty_window),
                                {o.repetition_penalty, o.presence_penalty, o.frequency_penalty}, sorted);
        candidates.settle();
      }
      return;
    case SamplerStep::dry:
      if (dry) {
        engine::apply_dry(candidates, last(history, o.dry_window),
                          {o.dry_multiplier, o.dry_base, o.dry_allowed_length, o.dry_breakers}, tokenizer);
        candidates.settle();
      }
      return;
    case SamplerStep::temperature:
      if (!greedy && o.temperature != 1.0f) candidates.temperature(o.temperature);
      return;
    default:
      break;
  }
  if (greedy || mirostat || candidates.in_doubt()) return;
  switch (step) {
    case SamplerStep::top_k:
      if (o.top_k > 0) candidates.top_k(static_cast<std::size_t>(o.top_k));
      return;
    case SamplerStep::typical:
      if (o.typical_p < 1.0f) candidates.typical(o.typical_p);
      return;
    case SamplerStep::top_p:
      if (o.top_p < 1.0f) candidates.top_p(o.top_p);
      return;
    case SamplerStep::min_p:
      if (o.min_p > 0.0f) candidates.min_p(o.min_p);
      return;
    case SamplerStep::xtc:
      if (uniform(o.seed, history.size(), Stream::xtc) < o.xtc_probability) candidates.xtc(o.xtc_threshold);
      return;
    default:
      return;
  }
}

Error Sampler::Impl::forbidden() const {
  return core::fail(ErrorCode::invalid_state, "every one of the ", vocab_size, " tokens is forbidden");
}

Result<Token> Sampler::Impl::choose(std::span<const float> raw) {
  const std::span<const float> logits = LLMINFER_TRY(edit(raw));
  if (takes_best) {
    const std::int64_t token = engine::argmax(logits);
    if (token < 0) return forbidden();
    return static_cast<Token>(token);
  }
  candidates.assign(logits);
  if (candidates.empty()) return forbidden();
  return *choose_from_candidates();
}

std::optional<Token> Sampler::Impl::choose_from_candidates() {
  for (const SamplerStep step : options.chain) {
    if (candidates.in_doubt()) return {};
    run(step);
  }
  if (candidates.in_doubt()) return {};
  if (greedy) return candidates.best().token;
  if (mirostat) candidates.mirostat(mu());
  if (candidates.in_doubt()) return {};
  const auto drawn = candidates.draw(uniform(options.seed, history.size(), Stream::token));
  if (candidates.in_doubt()) return {};
  if (mirostat) {
    const double surprise = -std::log2(drawn.probability);
    const double tau = options.mirostat_tau, eta = options.mirostat_eta;
    pending = {history.size(), drawn.token, mu() - eta * (surprise - tau)};
  }
  return drawn.token;
}

void Sampler::Impl::add_logprobs(std::span<const float> raw, Sample& sample) {
  candidates.assign(raw);
  const double log_sum = engine::log_sum_exp(candidates.list());
  const double* chosen = candidates.find(sample.token);
  sample.logprob = chosen ? to_float(*chosen - log_sum) : -std::numeric_limits<float>::infinity();
  for (const auto& c : engine::best_of(candidates.list(), static_cast<std::size_t>(options.logprobs))) {
    sample.top.push_back({c.token, to_float(c.logit - log_sum)});
  }
}

Result<Sample> Sampler::Impl::sample(std::span<const float> raw) {
  if (raw.size() != static_cast<std::size_t>(vocab_size)) {
    return core::fail(ErrorCode::invalid_argument, "logits has ", raw.size(), " values, expected the vocabulary's ",
                      vocab_size);
  }
  // The best of a large vocabulary are found in a tenth of the time that the chain takes over all of it.
  const CandidateWish wanted = takes_best && options.logprobs == 0 ? CandidateWish() : wish(kMostScanned);
  if (wanted.count > 0) {
    auto chosen = LLMINFER_TRY(sample(scan.find(raw, wanted)));
    if (chosen) return *std::move(chosen);
  }
  return sample_whole(raw);
}

Result<Sample> Sampler::Impl::sample_whole(std::span<const float> raw) {
  if (lost_history) return core::fail(ErrorCode::out_of_memory, "no memory was left for the accepted tokens");
  Sample sample;
  sample.token = LLMINFER_TRY(choose(raw));
  if (options.logprobs > 0) add_logprobs(raw, sample);
  return sample;
}

void Sampler::Impl::accept(Token token) {
  if (mirostat) {
    const bool chosen = pending.position == history.size() && pending.token == token;
    mus.push_back(chosen ? pending.mu : mu());
  }
  history.push_back(token);
}

/// What to draw where the chain leaves all tokens and changes nothing but the temperature.
CandidateWish Sampler::Impl::draw_of_all() const {
  const auto& chain = options.chain;
  const bool tempers = std::find(chain.begin(), chain.end(), SamplerStep::temperature) != chain.end();
  return {.count = 1,
          .temperature = tempers ? static_cast<double>(options.temperature) : 1.0,
          .place = uniform(options.seed, history.size(), Stream::token)};
}

CandidateWish Sampler::Impl::wish(std::int32_t most) const {
  const SamplingOptions& o = options;
  if (o.processor || most <= 0) return {};
  // The rest may only become less likely.
  for (const LogitBias& bias : o.logit_bias) {
    if (bias.bias > 0) return {};
  }
  if (penalties && (o.repetition_penalty < 1.0f || o.presence_penalty < 0.0f || o.frequency_penalty < 0.0f)) return {};
  // So many candidates may fall behind the rest. (DRY and XTC take few, as a rule.)
  constexpr std::int64_t kFew = 8;
  std::int64_t fallen = static_cast<std::int64_t>(o.logit_bias.size()) + (dry ? kFew : 0);
  if (penalties) fallen += static_cast<std::int64_t>(last(history, o.penalty_window).size());

  std::int64_t needed = 0;
  bool sum = false, tempered = false;
  CandidateWish wish;
  if (greedy) {
    needed = 1;
  } else if (mirostat) {
    needed = most;
    sum = true;
  } else {
    for (const SamplerStep step : o.chain) {
      if (step == SamplerStep::top_k && o.top_k > 0) needed = std::int64_t{o.top_k} + 1;
      if (step == SamplerStep::top_p && o.top_p < 1.0f) {
        needed = most;
        sum = sum || !tempered;
      }
      if (step == SamplerStep::min_p && o.min_p > 0.0f) needed = std::max(1, most / 2);
      if (needed > 0) break;
      if (step == SamplerStep::typical && o.typical_p < 1.0f) return {};
      if (step == SamplerStep::xtc && uniform(o.seed, history.size(), Stream::xtc) < o.xtc_probability) {
        fallen += kFew;
        sum = !tempered;
      }
      tempered = tempered || (step == SamplerStep::temperature && o.temperature != 1.0f);
    }
  }
  if (needed == 0) {
    if (fallen > 0 || penalties) return {};
    wish = draw_of_all();
    needed = wish.count;
  }
  if (o.logprobs > 0) {
    needed = std::max(needed, std::int64_t{o.logprobs});
    sum = true;
  }
  if (needed > most) return {};
  wish.count = static_cast<std::int32_t>(std::min<std::int64_t>(most, needed + fallen));
  wish.sum = sum;
  return wish;
}

Result<std::optional<Sample>> Sampler::Impl::sample(const engine::RowCandidates& row) {
  if (lost_history) return core::fail(ErrorCode::out_of_memory, "no memory was left for the accepted tokens");
  if (row.best.empty() || row.best.front().token < 0) return forbidden();
  Sample sample;
  if (takes_best && !edits) {
    sample.token = row.best.front().token;
  } else if (row.drawn) {
    if (!engine::certain(*row.drawn, draw_of_all(), row.best.front().logit, vocab_size)) return std::optional<Sample>();
    sample.token = row.drawn->token;
  } else {
    candidates.assign(row.best, vocab_size, row.sum);
    if (candidates.in_doubt()) return std::optional<Sample>();
    for (const LogitBias& bias : options.logit_bias) candidates.add(bias.token, bias.bias);
    candidates.settle();
    if (candidates.empty() && !candidates.has_rest()) return forbidden();
    const auto token = choose_from_candidates();
    if (!token) return std::optional<Sample>();
    sample.token = *token;
  }
  if (options.logprobs > 0 && !add_logprobs(row, sample)) return std::optional<Sample>();
  return std::optional<Sample>(std::move(sample));
}

void Sampler::Impl::count(bool doubt) {
  constexpr int kMostRows = 32;
  whole_rows = doubt ? next_whole_rows + 1 : 0;  // the row in doubt comes first
  next_whole_rows = doubt ? std::min(2 * next_whole_rows, kMostRows) : 1;
}

/// Whether the log probabilities are certain to the last bit.
bool Sampler::Impl::add_logprobs(const engine::RowCandidates& row, Sample& sample) const {
  if (!row.sum) return false;
  const engine::SumBounds log_sum = engine::log_sum_bounds(row.best.front().logit, *row.sum, vocab_size);
  const auto add = [&](const TokenLogit& c, float& logprob) {
    logprob = to_float(c.logit - log_sum.low);
    return logprob == to_float(c.logit - log_sum.high);
  };
  if (row.drawn && !add({row.drawn->token, row.drawn->logit}, sample.logprob)) return false;
  const auto none = std::find_if(row.best.begin(), row.best.end(), [](const TokenLogit& c) { return c.token < 0; });
  const auto wanted = std::min<std::ptrdiff_t>(options.logprobs, none - row.best.begin());
  for (auto c = row.best.begin(); c != none; ++c) {
    if (c->token == sample.token && !add(*c, sample.logprob)) return false;
    if (c - row.best.begin() >= wanted) continue;
    sample.top.push_back({c->token, 0.0f});
    if (!add(*c, sample.top.back().logprob)) return false;
  }
  return true;
}

Sampler::Sampler(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Sampler::~Sampler() = default;
Sampler::Sampler(Sampler&&) noexcept = default;
Sampler& Sampler::operator=(Sampler&&) noexcept = default;

Result<Sampler> Sampler::create(const SamplingOptions& options, const Tokenizer& tokenizer) {
  return core::guarded([&]() -> Result<Sampler> {
    LLMINFER_TRY(engine::check_sampling(options, tokenizer.vocab_size()));
    return Sampler(std::make_unique<Impl>(options, tokenizer));
  });
}

void Sampler::accept(std::span<const Token> tokens) {
  if (!impl_) return;
  try {
    for (const Token token : tokens) impl_->accept(token);
  } catch (...) {
    impl_->lost_history = true;
  }
}

Result<Sample> Sampler::sample(std::span<const float> logits) {
  if (!impl_) return core::fail(ErrorCode::invalid_state, "the sampler was moved from");
  impl_->whole_rows = std::max(0, impl_->whole_rows - 1);
  return core::guarded([&] { return impl_->sample(logits); });
}

void Sampler::truncate(std::size_t count) {
  if (!impl_ || count >= impl_->history.size()) return;
  impl_->history.resize(count);
  if (impl_->mirostat) impl_->mus.resize(count);
  impl_->pending = {};
}

std::span<const Token> Sampler::history() const noexcept {
  return impl_ ? std::span<const Token>(impl_->history) : std::span<const Token>();
}

namespace engine {

CandidateWish CandidateSampler::wish(const Sampler& sampler, std::int32_t most) noexcept {
  return sampler.impl_ && sampler.impl_->whole_rows == 0 ? sampler.impl_->wish(most) : CandidateWish();
}

Result<Sample> CandidateSampler::sample_whole(Sampler& sampler, std::span<const float> logits) {
  if (!sampler.impl_) return core::fail(ErrorCode::invalid_state, "the sampler was moved from");
  return core::guarded([&] { return sampler.impl_->sample_whole(logits); });
}

Result<std::optional<Sample>> CandidateSampler::sample(Sampler& sampler, const RowCandidates& row) {
  if (!sampler.impl_) return core::fail(ErrorCode::invalid_state, "the sampler was moved from");
  return core::guarded([&] {
    auto sample = sampler.impl_->sample(row);
    sampler.impl_->count(sample && !*sample);
    return sample;
  });
}

}  // namespace engine
}  // namespace llminfer::inline v0
