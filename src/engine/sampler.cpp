// The public Sampler: options, history and random numbers around the steps of sampler_steps.hpp. Knows nothing of models.
#include "engine/sampler.hpp"

#include <algorithm>
#include <cmath>
#include <exception>
#include <limits>

#include "core/error.hpp"
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
    mirostat = !greedy && o.mirostat_tau > 0;
    edits = !o.logit_bias.empty() || o.processor;
  }

  Result<Sample> sample(std::span<const float> raw);
  Result<Token> choose(std::span<const float> raw);
  Result<std::span<const float>> edit(std::span<const float> raw);
  void run(SamplerStep step);
  void add_logprobs(std::span<const float> raw, Sample& sample);
  void accept(Token token);

  double mu() const { return mus.empty() ? 2.0 * static_cast<double>(options.mirostat_tau) : mus.back(); }

  SamplingOptions options;
  Tokenizer tokenizer;
  std::int32_t vocab_size;
  bool penalties, dry, greedy, mirostat, edits;

  std::vector<Token> history;
  bool lost_history = false;  ///< accept() ran out of memory
  /// Mirostat's mu after each accepted token, so that truncate() can go back; empty without Mirostat.
  std::vector<double> mus;
  struct {
    std::size_t position = SIZE_MAX;
    Token token = 0;
    double mu = 0;
  } pending;  ///< Mirostat: what the last choice makes of mu if it is accepted

  // Scratch, kept for its memory.
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
      return core::fail(ErrorCode::callback_failed, "the logits processor threw: ", e.what());
    } catch (...) {
      return core::fail(ErrorCode::callback_failed, "the logits processor threw");
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
      }
      return;
    case SamplerStep::dry:
      if (dry) {
        engine::apply_dry(candidates, last(history, o.dry_window),
                          {o.dry_multiplier, o.dry_base, o.dry_allowed_length, o.dry_breakers}, tokenizer);
      }
      return;
    case SamplerStep::temperature:
      if (!greedy && o.temperature != 1.0f) candidates.temperature(o.temperature);
      return;
    default: break;
  }
  if (greedy || mirostat) return;
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
    default: return;
  }
}

Result<Token> Sampler::Impl::choose(std::span<const float> raw) {
  const auto forbidden = [&] {
    return core::fail(ErrorCode::invalid_state, "every one of the ", vocab_size, " tokens is forbidden");
  };
  const std::span<const float> logits = LLMINFER_TRY(edit(raw));
  if (greedy && !penalties && !dry) {
    const std::int64_t token = engine::argmax(logits);
    if (token < 0) return forbidden();
    return static_cast<Token>(token);
  }
  candidates.assign(logits);
  if (candidates.empty()) return forbidden();
  for (const SamplerStep step : options.chain) run(step);
  if (greedy) return candidates.best().token;
  if (mirostat) candidates.mirostat(mu());
  const auto drawn = candidates.draw(uniform(options.seed, history.size(), Stream::token));
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

}  // namespace llminfer::inline v0
