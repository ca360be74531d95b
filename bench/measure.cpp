// The measurements of llminfer-bench.
#include "measure.hpp"

#include <algorithm>
#include <chrono>
#include <fstream>
#include <memory>
#include <utility>

namespace bench {
namespace {

using Clock = std::chrono::steady_clock;

std::int64_t ns_between(Clock::time_point from, Clock::time_point to) {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(to - from).count();
}

/// Steps by which sequences that are prefilled first run ahead of the last one.
constexpr std::int32_t kHeadStart = 64;

/// `count` random ids; at the start of a sequence the model's BOS token comes first.
std::vector<llminfer::Token> random_tokens(const llminfer::Engine& engine, std::int32_t count, bool at_start,
                                           std::mt19937& random) {
  std::uniform_int_distribution<llminfer::Token> id(0, engine.info().vocab_size - 1);
  std::vector<llminfer::Token> tokens(static_cast<std::size_t>(count));
  for (auto& token : tokens) token = id(random);
  if (at_start && count > 0) tokens[0] = engine.tokenizer().bos().value_or(tokens[0]);
  return tokens;
}

/// The session holds the n_depth tokens already.
Sample run_prefill(const llminfer::Engine& engine, llminfer::Session& session, const Test& test, std::mt19937& random) {
  std::mt19937 same(1);
  auto tokens = random_tokens(engine, test.n_prefix, test.n_depth == 0, same);
  const auto rest = random_tokens(engine, test.n_prompt - test.n_prefix, test.n_depth + test.n_prefix == 0, random);
  tokens.insert(tokens.end(), rest.begin(), rest.end());
  const auto begin = Clock::now();
  session.prefill(tokens).value();
  return {ns_between(begin, Clock::now()), test.n_prompt};
}

/// The token that decoding starts from is timed too, so n_gen tokens cost n_gen forward passes, as in llama-bench.
Sample run_decode(const llminfer::Engine& engine, llminfer::Session& session, const Test& test, std::mt19937& random) {
  const auto tokens = random_tokens(engine, 1, test.n_depth == 0, random);
  llminfer::GenerateOptions options;
  options.max_tokens = test.n_gen;
  options.ignore_end = true;
  const auto begin = Clock::now();
  session.prefill(tokens).value();
  const auto result = session.generate(options).value();
  return {ns_between(begin, Clock::now()), static_cast<std::int64_t>(result.tokens.size())};
}

/// The time in which all sequences decode side by side: from the first token of the one that starts last to its token
/// n_gen later. The others run ahead and are ended with it. Written on the engine's thread only, read after the end.
struct Window {
  std::int32_t sequences = 0;
  std::int32_t wanted = 0;   ///< tokens of the last sequence
  std::int32_t started = 0;  ///< sequences that have a token
  std::int32_t last = -1;    ///< index of the one that started last
  std::int32_t own = 0;      ///< tokens of it inside the window
  std::int64_t tokens = 0;   ///< of all, inside the window
  bool closed = false;
  Clock::time_point begin{}, end{};
  std::vector<bool> seen;

  bool on_token(std::int32_t index) {
    if (closed) return false;
    const auto i = static_cast<std::size_t>(index);
    if (!seen[i]) {
      seen[i] = true;
      if (++started == sequences) {
        last = index;
        begin = Clock::now();
      }
      return true;
    }
    if (last < 0) return true;
    ++tokens;
    if (index != last || ++own < wanted) return true;
    end = Clock::now();
    closed = true;
    return false;
  }
};

Sample run_batched(const llminfer::Engine& engine, const Test& test, std::mt19937& random) {
  const auto window = std::make_shared<Window>();
  window->sequences = test.n_parallel;
  window->wanted = test.n_gen;
  window->seen.resize(static_cast<std::size_t>(test.n_parallel));
  std::vector<llminfer::Completion> completions;
  for (std::int32_t i = 0; i < test.n_parallel; ++i) {
    llminfer::CompletionRequest request;
    request.tokens = random_tokens(engine, std::max(test.n_depth, 1), true, random);
    request.options.ignore_end = true;
    request.options.on_token = [window, i](const llminfer::GeneratedToken&) { return window->on_token(i); };
    completions.push_back(engine.submit(std::move(request)).value());
  }
  for (auto& completion : completions) (void)completion.wait().value();
  if (!window->closed) {
    throw llminfer::Exception({llminfer::ErrorCode::context_overflow,
                               test.label() + ": the sequences did not all decode at the same time; the context or the "
                                              "KV cache is too small"});
  }
  return {ns_between(window->begin, window->end), window->tokens};
}

}  // namespace

std::string Test::label() const {
  std::string label = n_prompt > 0 ? "pp" + std::to_string(n_prompt) : "tg" + std::to_string(n_gen);
  if (n_parallel > 0) label += " x" + std::to_string(n_parallel);
  if (n_prefix > 0) label += " p" + std::to_string(n_prefix);
  if (n_depth > 0) label += " @ d" + std::to_string(n_depth);
  return label;
}

std::int32_t context_tokens(const Test& test) {
  const std::int32_t generated = std::max(test.n_gen, 1);  // load() generates a token
  return test.n_depth + test.n_prompt + generated + 1 + (test.n_parallel > 0 ? kHeadStart : 0);
}

Loaded load(const std::string& path, const llminfer::EngineOptions& options, Clock::time_point begin) {
  reset_peak_rss();
  const auto load_begin = Clock::now();
  Loaded loaded{llminfer::Engine::load(path, options).value()};
  loaded.load_ms = static_cast<double>(ns_between(load_begin, Clock::now())) * 1e-6;
  llminfer::CompletionRequest one;
  one.tokens = {loaded.engine.tokenizer().bos().value_or(0)};
  one.options.max_tokens = 1;
  (void)loaded.engine.complete(std::move(one)).value();
  loaded.first_token_ms = static_cast<double>(ns_between(begin, Clock::now())) * 1e-6;
  return loaded;
}

std::vector<Sample> run(const llminfer::Engine& engine, Filled& filled, const Test& test, int repetitions, bool warmup,
                        std::mt19937& random, const std::function<void()>& on_begin) {
  std::vector<Sample> samples;
  const bool batched = test.n_parallel > 0;
  // The sequences of a batched test may need its pages.
  if (batched || !filled.session || test.n_depth < filled.tokens) filled = {engine.new_session().value(), 0};
  llminfer::Session& session = *filled.session;
  if (!batched && test.n_depth > filled.tokens) {
    session.prefill(random_tokens(engine, test.n_depth - filled.tokens, filled.tokens == 0, random)).value();
    filled.tokens = test.n_depth;
  }
  for (int i = warmup ? -1 : 0; i < repetitions; ++i) {
    // A fork, not a truncation: a sliding window may have left pages behind that a shorter sequence needs.
    auto fork = session.fork().value();
    if (i == 0 && on_begin) on_begin();
    const Sample sample = batched             ? run_batched(engine, test, random)
                          : test.n_prompt > 0 ? run_prefill(engine, fork, test, random)
                                              : run_decode(engine, fork, test, random);
    if (i >= 0) samples.push_back(sample);
  }
  return samples;
}

std::int64_t peak_rss_bytes() {
  std::ifstream status("/proc/self/status");
  for (std::string key; status >> key; status.ignore(1024, '\n')) {
    std::int64_t kib = 0;
    if (key == "VmHWM:" && status >> kib) return kib * 1024;
  }
  return 0;
}

void reset_peak_rss() { std::ofstream("/proc/self/clear_refs") << "5"; }

}  // namespace bench
