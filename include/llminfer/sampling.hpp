// Sampling: how the next token is chosen from the logits.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <llminfer/config.hpp>
#include <llminfer/result.hpp>
#include <llminfer/tokenizer.hpp>

namespace llminfer::inline v0 {

namespace engine {
struct CandidateSampler;
}

/// The steps of the chain that turns logits into a choice. A step whose options have their neutral values does nothing.
enum class SamplerStep : std::uint8_t {
  penalties,  ///< repetition (CTRL, Keskar et al. 2019), presence and frequency penalties
  dry,        ///< "don't repeat yourself": penalises tokens that would prolong a repeated sequence
  top_k,
  typical,  ///< locally typical sampling (Meister et al. 2022)
  top_p,    ///< nucleus sampling (Holtzman et al. 2019)
  min_p,    ///< keep tokens with at least min_p times the best token's probability (Nguyen et al. 2024)
  xtc,      ///< exclude top choices
  temperature,
};

struct LogitBias {
  Token token = 0;
  float bias = 0.0f;  ///< added to the logit; -infinity forbids the token
};

/// Changes the logits [vocab_size] in place before the chain runs; `history` is the prompt and all generated tokens.
/// Called on the engine's thread; must not call into the engine.
using LogitsProcessor = std::function<void(std::span<const Token> history, std::span<float> logits)>;

/// Every default is neutral: plain greedy decoding, in which options that choose among words (seed, top_k, top_p, …)
/// have no effect until there is a temperature; Engine::recommended_sampling() gives the makers' choice. A value out of
/// its range is Error{invalid_argument}.
struct SamplingOptions {
  float temperature = 0.0f;             ///< >= 0; 0 is greedy: the best token after penalties, biases and the processor
  std::uint64_t seed = 0;               ///< the same one gives the same text, whatever the threads and the batch
  std::int32_t top_k = 0;               ///< >= 0; 0: off
  float top_p = 1.0f;                   ///< (0, 1]; 1: off
  float min_p = 0.0f;                   ///< [0, 1]; 0: off
  float typical_p = 1.0f;               ///< (0, 1]; 1: off
  float xtc_probability = 0.0f;         ///< [0, 1]; 0: off
  float xtc_threshold = 0.1f;           ///< [0, 1]; above 0.5 XTC does nothing
  float repetition_penalty = 1.0f;      ///< > 0; 1: off
  float presence_penalty = 0.0f;        ///< [-100, 100]; 0: off
  float frequency_penalty = 0.0f;       ///< [-100, 100]; 0: off
  std::int32_t penalty_window = 64;     ///< tokens that the penalties look back; -1: all; 0: none
  float dry_multiplier = 0.0f;          ///< >= 0; 0: off
  float dry_base = 1.75f;               ///< >= 1
  std::int32_t dry_allowed_length = 2;  ///< >= 0: repetitions up to this length are free
  std::int32_t dry_window = -1;         ///< tokens that DRY looks back; -1: all
  std::vector<std::string> dry_breakers = {"\n", ":", "\"", "*"};  ///< texts that end a repetition
  /// >= 0; above 0 Mirostat 2 (Basu et al. 2021) replaces top_k to xtc; the target surprise in bits.
  float mirostat_tau = 0.0f;
  float mirostat_eta = 0.1f;  ///< (0, 1]: learning rate
  std::vector<LogitBias> logit_bias{};
  /// The chain, in order, no step twice. Steps that are left out are off.
  std::vector<SamplerStep> chain = {SamplerStep::penalties, SamplerStep::dry,        SamplerStep::top_k,
                                    SamplerStep::typical,   SamplerStep::top_p,      SamplerStep::min_p,
                                    SamplerStep::xtc,       SamplerStep::temperature};
  LogitsProcessor processor{};
  std::int32_t logprobs = 0;  ///< [0, 100]: log probabilities of the chosen token and of this many best ones
};

struct TokenLogprob {
  Token token = 0;
  float logprob = 0.0f;  ///< natural logarithm, of softmax over the raw logits
};

/// A chosen token with its log probabilities (if asked for).
struct Sample {
  Token token = 0;
  float logprob = 0.0f;           ///< of the chosen token, of softmax over the raw logits; 0 unless logprobs > 0
  std::vector<TokenLogprob> top;  ///< the `logprobs` best, best first; ties by lower id
};

/// The sampler of one sequence: options, history and random numbers. For hosts that run Session::logits() themselves;
/// the engine uses the same. Movable; one thread at a time.
class LLMINFER_API Sampler {
 public:
  /// Errors: invalid_argument naming the option and its range.
  static Result<Sampler> create(const SamplingOptions& options, const Tokenizer& tokenizer);
  ~Sampler();
  Sampler(Sampler&&) noexcept;
  Sampler& operator=(Sampler&&) noexcept;

  /// Tells of tokens that are part of the text already (the prompt, or what another source chose).
  void accept(std::span<const Token> tokens);
  /// Chooses the next token; does not accept it. The random number of a choice depends on the seed and on how many
  /// tokens were accepted. NaN logits count as -infinity. Errors: invalid_argument if logits.size() is not the
  /// vocabulary's size, callback_failed if the processor threw, invalid_state if every token is forbidden.
  Result<Sample> sample(std::span<const float> logits);
  /// Forgets all but the first `count` accepted tokens (after Session::truncate).
  void truncate(std::size_t count);
  /// The accepted tokens.
  std::span<const Token> history() const noexcept;

 private:
  friend struct engine::CandidateSampler;
  struct Impl;
  explicit Sampler(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace llminfer::inline v0
