// The default model against logits and tokens of Hugging Face transformers. Needs the model: LLMINFER_TEST_MODEL names
// it.
#include <llminfer/llminfer.hpp>

#include <algorithm>
#include <catch2/catch.hpp>
#include <cmath>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>

#include "tests/engine/default_model.hpp"
#include "tests/engine/divergence.hpp"

using namespace llminfer;
using test::default_model;
using test::divergence;

namespace {

nlohmann::json reference() {
  return nlohmann::json::parse(
      std::ifstream(std::string(LLMINFER_TEST_DATA) + "/smollm2/reference-f32.json"))["prompts"];
}

std::vector<float> logits_of(const Engine& engine, const std::vector<Token>& tokens) {
  Session session = engine.new_session().value();
  session.prefill(tokens).value();
  return {session.logits().begin(), session.logits().end()};
}

}  // namespace

TEST_CASE("SmolLM2: the reference's tokens on every level of this machine, the reference's logits in exact mode") {
  if (!default_model()) return;
  EngineOptions exact_options{.threads = 2, .exact = true};
  exact_options.cache_type = CacheType::f32;
  const Engine exact = Engine::load(default_model(), exact_options).value();
  CHECK(exact.info().parameters == 134'515'008);
  std::map<std::string, std::vector<float>> exact_logits;
  for (const auto& prompt : reference()) {
    const std::vector<Token> tokens = prompt["ids"];
    CHECK(exact.tokenizer().encode(prompt["text"].get<std::string>()).value() == tokens);
    if (tokens.size() > 40) continue;  // exact mode is slow
    const auto& logits = exact_logits[prompt["name"]] = logits_of(exact, tokens);
    double error = 0, power = 0;
    for (std::size_t i = 0; i < 20; ++i) {
      const double expected = prompt["top20_logits"][i];
      error += std::pow(logits[prompt["top20_ids"][i]] - expected, 2);
      power += expected * expected;
    }
    CHECK(error / power < 1e-6);
  }
  for (const std::string& level : cpu_levels()) {
    if (level == "scalar") continue;  // its kernels are compared bit for bit in the tests of the backend
    EngineOptions options{.threads = 2, .cpu_level = level};
    const Engine engine = Engine::load(default_model(), options).value();
    CHECK_THAT(engine.info().backend, Catch::Contains("level " + level));
    for (const auto& prompt : reference()) {
      const std::vector<Token> tokens = prompt["ids"];
      if (tokens.size() > 40 && level != cpu_levels().back()) continue;
      const std::vector<Token> expected = prompt["greedy"];
      const std::vector<double> margins = prompt["margins"];
      CompletionRequest request;
      request.tokens = tokens;
      request.options.max_tokens = 64;
      request.options.ignore_end = true;
      const CompletionResult result = engine.complete(request).value();
      INFO(level << ", prompt " << prompt["name"]);
      REQUIRE(result.tokens.size() == 64);
      for (std::size_t i = 0; i < 64 && margins[i] >= 0.05; ++i) REQUIRE(result.tokens[i] == expected[i]);
      if (tokens.size() < 30) CHECK(divergence(exact_logits[prompt["name"]], logits_of(engine, tokens)) < 3e-3);
    }
  }
}

TEST_CASE(
    "SmolLM2: divergence of cache types and of 8-bit activations, and how often the reference's token is chosen",
    "[.slow]") {
  if (!default_model()) return;
  struct Case {
    CacheType type;
    const char* name;
    double mean, most, agree;  // bounds of the divergence after a token, and of the share of equal choices
    double sum = 0, highest = 0;
    int count = 0, decisive = 0, agreed = 0, activation_bits = 16;
  };
  Case cases[] = {{CacheType::f16, "f16", 1e-6, 1e-4, 1.0},
                  {CacheType::bf16, "bf16", 1e-6, 1e-4, 1.0},
                  {CacheType::int8, "int8", 1.5e-3, 4e-2, 0.99},
                  {CacheType::f16, "f16, activations of 8 bits", 1e-2, 2e-1, 0.97}};
  cases[3].activation_bits = 8;
  const auto open = [](CacheType type, int activation_bits) {
    EngineOptions options{.threads = 2};
    options.cache_type = type;
    options.activation_bits = activation_bits;
    return Engine::load(default_model(), options).value();
  };
  // Distributions after each token that the reference chose; by prompt.
  const auto chosen = [](const Engine& engine, const nlohmann::json& prompt) {
    std::vector<Token> tokens = prompt["ids"];
    const std::vector<Token> greedy = prompt["greedy"];
    const auto first = static_cast<std::int32_t>(tokens.size()) - 1;
    tokens.insert(tokens.end(), greedy.begin(), greedy.end() - 1);
    std::vector<std::vector<float>> all;
    PrefillOptions options;
    options.on_logits = [&](std::int32_t position, std::span<const float> logits) {
      if (position >= first) all.emplace_back(logits.begin(), logits.end());
      return true;
    };
    Session session = engine.new_session().value();
    session.prefill(tokens, options).value();
    return all;
  };
  const Engine floats = open(CacheType::f32, 16);
  std::vector<Engine> engines;
  for (const Case& c : cases) engines.push_back(open(c.type, c.activation_bits));
  for (const auto& prompt : reference()) {
    const auto expected = chosen(floats, prompt);
    const std::vector<Token> greedy = prompt["greedy"];
    const std::vector<double> margins = prompt["margins"];
    REQUIRE(expected.size() == greedy.size());
    for (std::size_t e = 0; e < engines.size(); ++e) {
      Case& c = cases[e];
      const auto found = chosen(engines[e], prompt);
      for (std::size_t i = 0; i < greedy.size(); ++i) {
        const double kl = divergence(expected[i], found[i]);
        c.sum += kl, c.highest = std::max(c.highest, kl), ++c.count;
        if (margins[i] < 0.05) continue;
        ++c.decisive;
        c.agreed += std::max_element(found[i].begin(), found[i].end()) - found[i].begin() == greedy[i];
      }
    }
  }
  for (const Case& c : cases) {
    INFO(c.name << ": mean divergence " << c.sum / c.count << ", highest " << c.highest << ", " << c.agreed << " of "
                << c.decisive << " decisive tokens are the reference's");
    CHECK(c.sum / c.count < c.mean);
    CHECK(c.highest < c.most);
    CHECK(c.agreed >= c.agree * c.decisive);
  }
}

TEST_CASE("SmolLM2 knows the capital of France") {
  if (!default_model()) return;
  const Engine engine = Engine::load(default_model(), {.threads = 2}).value();
  Chat chat = engine.new_chat().value();
  ChatStream answer = chat.send("What is the capital of France?");
  CHECK(answer.finish().value() == FinishReason::end_token);
  CHECK_THAT(answer.result().text, Catch::Contains("Paris"));
}
