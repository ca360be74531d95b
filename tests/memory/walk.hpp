// Calls of the public API while memory runs out at each of their allocations in turn, on a model that is made for it.
#pragma once

#include <llminfer/llminfer.hpp>

#include <algorithm>
#include <array>
#include <catch2/catch.hpp>
#include <chrono>
#include <optional>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "tests/load/gguf_writer.hpp"
#include "tests/memory/failing_memory.hpp"

namespace llminfer::test {

/// Tokens, without memory of their own.
struct Tokens {
  std::array<Token, 32> ids{};
  std::size_t count = 0;

  Tokens() = default;
  Tokens(std::span<const Token> from) : count(std::min(from.size(), ids.size())) {
    std::copy_n(from.begin(), count, ids.begin());
  }
  friend bool operator==(const Tokens&, const Tokens&) = default;
};

/// What an attempt came to.
struct Outcome {
  std::optional<ErrorCode> error;
  Tokens tokens;
};

template <class T>
Outcome failed(const Result<T>& result) {
  return {result.error().code, {}};
}

/// Waits until no more than `expected` blocks are held: the engine's thread drops a request after its result is out,
/// and `tidy` what hung on it.
template <class Tidy>
bool settles_at(long expected, Tidy&& tidy) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::milliseconds(300);
  while (test::live_blocks() > expected) {
    if (std::chrono::steady_clock::now() > end) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
    tidy();
  }
  return true;
}

/// Runs `attempt` with failing memory and `check` after each run, with memory again. Gives the number of allocations
/// that were made to fail.
template <class Attempt, class Check>
long walk(const char* what, long stride, Attempt&& attempt, Check&& check) {
  const Outcome expected = attempt();
  REQUIRE_FALSE(expected.error);
  check();
  attempt();
  check();
  long held = test::live_blocks();
  long count = 0;
  for (const Failing failing : {Failing::once, Failing::from_then_on}) {
    int growths = 0;  ///< of the memory held, in runs with the same n; buffers that stay grow once, a leak every time
    for (long n = 0;;) {
      Outcome outcome;
      bool escaped = false;
      test::arm(n, failing);
      try {
        outcome = attempt();
      } catch (...) {
        escaped = true;
      }
      const bool reached = test::disarm();
      check();
      const bool typed = outcome.error ? *outcome.error == ErrorCode::out_of_memory : outcome.tokens == expected.tokens;
      const bool settled = settles_at(held, check), clean = settled || ++growths < 4;
      if (escaped || !typed || !clean) {
        FAIL(what << ", allocation " << n << (failing == Failing::once ? "" : " and all after it") << ": "
                  << (escaped         ? "an exception reached the caller"
                      : !clean        ? "a leak"
                      : outcome.error ? to_string(*outcome.error)
                                      : "other tokens")
                  << ", " << test::live_blocks() << " blocks, " << held << " before");
      }
      if (!settled) {
        held = test::live_blocks();
        continue;
      }
      if (!reached) break;
      ++count;
      growths = 0;
      n += stride;
    }
  }
  CAPTURE(what, count);
  CHECK(count > 0);
  return count;
}

inline std::vector<float> random_values(std::size_t count) {
  static std::mt19937 random(7);
  std::vector<float> values(count);
  for (float& value : values) value = static_cast<float>(random() % 2001) / 1000.0f - 1.0f;
  return values;
}

/// A llama with a token for every byte, as a GGUF file.
inline std::string make_model_bytes(std::uint32_t layers) {
  constexpr std::uint64_t kWidth = 32;
  std::vector<std::string> tokens = {"</s>"};
  for (char32_t c = 0, other = 256; c < 256; ++c) {  // the alphabet of byte-level vocabularies
    const bool printable = (c >= 33 && c <= 126) || (c >= 161 && c != 173);
    const char32_t point = printable ? c : other++;
    std::string text;
    if (point < 0x80) {
      text += static_cast<char>(point);
    } else {
      text += static_cast<char>(0xc0 | point >> 6);
      text += static_cast<char>(0x80 | (point & 0x3f));
    }
    tokens.push_back(text);
  }
  tokens.insert(tokens.end(), {"ab", "cd"});
  test::GgufWriter file;
  file.string("general.architecture", "llama").u32("llama.block_count", layers).u32("llama.context_length", 256);
  file.u32("llama.embedding_length", kWidth).u32("llama.feed_forward_length", kWidth);
  file.u32("llama.attention.head_count", 2).f32("llama.attention.layer_norm_rms_epsilon", 1e-5f);
  file.string("tokenizer.ggml.model", "gpt2").string("tokenizer.ggml.pre", "gpt-2");
  file.strings("tokenizer.ggml.tokens", tokens).strings("tokenizer.ggml.merges", {"a b", "c d"});
  file.u32("tokenizer.ggml.eos_token_id", 0);
  file.string("tokenizer.chat_template",
              "{% for m in messages %}{{ m['role'] | upper }}: {{ m.content.strip() }}\n{% endfor %}"
              "{% if tools %}{{ tools | tojson }}{% endif %}{% if add_generation_prompt %}A:{% endif %}");
  const auto matrix = [&](const std::string& name, std::uint64_t cols, std::uint64_t rows) {
    file.f32_tensor(name, {cols, rows}, random_values(cols * rows));
  };
  matrix("token_embd.weight", kWidth, tokens.size());
  const std::vector<float> ones(kWidth, 1.0f);
  for (std::uint32_t layer = 0; layer < layers; ++layer) {
    const std::string prefix = "blk." + std::to_string(layer) + ".";
    for (const char* name : {"attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"}) {
      matrix(prefix + name + ".weight", kWidth, kWidth);
    }
    for (const char* name : {"attn_norm", "ffn_norm"}) file.f32_tensor(prefix + name + ".weight", {kWidth}, ones);
  }
  file.f32_tensor("output_norm.weight", {kWidth}, ones);
  return file.bytes();
}
/// With one layer.
inline const std::string& model_bytes() {
  static const std::string bytes = make_model_bytes(1);
  return bytes;
}

inline EngineOptions small() {
  EngineOptions options;
  options.threads = 2;
  return options;
}

inline Result<Engine> load_model(const EngineOptions& options = small(), const std::string& bytes = model_bytes()) {
  return Engine::load_memory(std::as_bytes(std::span(bytes)), nullptr, options);
}

/// Everything that the sampler has, so that everything is allocated.
inline GenerateOptions all_options() {
  GenerateOptions options;
  options.max_tokens = 6;
  options.ignore_end = true;
  options.stop = {"never in the text, and longer than a short string"};
  options.stop_tokens = {0};
  SamplingOptions& sampling = options.sampling;
  sampling.temperature = 1.5f;
  sampling.seed = 3;
  sampling.top_k = 50;
  sampling.top_p = 0.95f;
  sampling.typical_p = 0.99f;
  sampling.min_p = 0.001f;
  sampling.repetition_penalty = 1.1f;
  sampling.dry_multiplier = 0.5f;
  sampling.logprobs = 3;
  sampling.logit_bias = {{5, 0.25f}};
  options.on_token = [](const GeneratedToken&) { return true; };
  return options;
}

inline std::vector<Token> some_tokens(std::size_t count) {
  std::vector<Token> tokens(count);
  for (std::size_t i = 0; i < count; ++i) tokens[i] = static_cast<Token>(1 + (i * 37) % 256);
  return tokens;
}

/// An engine, and what lets two counts of its memory be compared.
struct Running {
  explicit Running(const EngineOptions& options = small(), const std::string& bytes = model_bytes())
      : engine(load_model(options, bytes).value()) {}
  Engine engine;

  /// Forgets the sequences that have ended, and sees that no page is left.
  void tidy() const {
    (void)engine.new_session().has_value();
    if (engine.stats().pages_used != pages) FAIL("pages are left: " << engine.stats().pages_used);
  }
  std::int32_t pages = 0;
};

}  // namespace llminfer::test
