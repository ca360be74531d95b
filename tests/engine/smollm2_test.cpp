// The default model against logits and tokens of Hugging Face transformers. Needs the model: LLMINFER_TEST_MODEL names
// it.
#include <llminfer/llminfer.hpp>

#include <catch2/catch.hpp>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>

using namespace llminfer;

namespace {

const char* model() {
  const char* const path = std::getenv("LLMINFER_TEST_MODEL");
  if (!path) WARN("skipped: LLMINFER_TEST_MODEL does not name the default model");
  return path;
}

nlohmann::json reference() {
  return nlohmann::json::parse(
      std::ifstream(std::string(LLMINFER_TEST_DATA) + "/smollm2/reference-f32.json"))["prompts"];
}

std::vector<float> logits_of(const Engine& engine, const std::vector<Token>& tokens) {
  Session session = engine.new_session().value();
  session.prefill(tokens).value();
  return {session.logits().begin(), session.logits().end()};
}

/// KL divergence of softmax(q) from softmax(p).
double divergence(const std::vector<float>& p, const std::vector<float>& q) {
  double sum_p = 0, sum_q = 0, kl = 0;
  for (std::size_t i = 0; i < p.size(); ++i) sum_p += std::exp(double{p[i]}), sum_q += std::exp(double{q[i]});
  for (std::size_t i = 0; i < p.size(); ++i) {
    kl += std::exp(double{p[i]}) / sum_p * (double{p[i]} - double{q[i]} - std::log(sum_p) + std::log(sum_q));
  }
  return kl;
}

}  // namespace

TEST_CASE("SmolLM2: the reference's tokens on every level of this machine, the reference's logits in exact mode") {
  if (!model()) return;
  EngineOptions exact_options{.threads = 2, .exact = true};
  exact_options.cache_type = CacheType::f32;
  const Engine exact = Engine::load(model(), exact_options).value();
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
    const Engine engine = Engine::load(model(), options).value();
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

TEST_CASE("SmolLM2 knows the capital of France") {
  if (!model()) return;
  const Engine engine = Engine::load(model(), {.threads = 2}).value();
  Chat chat = engine.new_chat().value();
  ChatStream answer = chat.send("What is the capital of France?");
  CHECK(answer.finish().value() == FinishReason::end_token);
  CHECK_THAT(answer.result().text, Catch::Contains("Paris"));
}
