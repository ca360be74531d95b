// The measurements of llminfer-bench: what is run and timed. Knows the public API alone, nothing of command lines or
// output.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include <llminfer/llminfer.hpp>

namespace bench {

/// One loaded engine and what its load took.
struct Loaded {
  llminfer::Engine engine;
  double load_ms = 0;         ///< Engine::load alone
  double first_token_ms = 0;  ///< from the begin, before the backend was made, to the first generated token
};

/// What one test runs. n_prompt > 0: prefill of so many tokens; n_gen > 0: so many tokens of each of n_parallel
/// sequences; neither: nothing, the load alone is of interest.
struct Test {
  std::int32_t n_prompt = 0;
  std::int32_t n_gen = 0;
  std::int32_t n_depth = 0;     ///< tokens that are in the KV cache before
  std::int32_t n_parallel = 0;  ///< 0: one Session; otherwise that many requests, which the engine batches
  std::int32_t n_prefix = 0;    ///< first tokens that are the same in all prompts, at most n_prompt

  bool empty() const { return n_prompt == 0 && n_gen == 0; }
  /// As in llama-bench: "pp512", "tg128 @ d1024"; batched decode is "tg128 x4", prompts that begin alike "pp512 p448".
  std::string label() const;
};

/// One repetition of a test.
struct Sample {
  std::int64_t ns = 0;
  std::int64_t tokens = 0;
};

/// Loads a model and generates one token. `begin`: of making its backend. Throws llminfer::Exception.
Loaded load(const std::string& path, const llminfer::EngineOptions& options,
            std::chrono::steady_clock::time_point begin);

/// A session that tests fork, so that a deep one costs only the tokens beyond those of the test before it.
struct Filled {
  std::optional<llminfer::Session> session;
  std::int32_t tokens = 0;
};

/// Runs the test `repetitions` times, after one run that is not counted if `warmup`. Token ids are drawn at random,
/// ever new ones but for n_prefix. `on_begin` is called before the first repetition that counts.
/// Throws llminfer::Exception.
std::vector<Sample> run(const llminfer::Engine& engine, Filled& filled, const Test& test, int repetitions, bool warmup,
                        std::mt19937& random, const std::function<void()>& on_begin = {});

/// Tokens that a sequence of this test needs room for.
std::int32_t context_tokens(const Test& test);

/// The most memory that the process has had resident since the last reset_peak_rss(). 0 where the system does not say.
std::int64_t peak_rss_bytes();
/// Best effort: without it the peak is that since the process began.
void reset_peak_rss();

}  // namespace bench
