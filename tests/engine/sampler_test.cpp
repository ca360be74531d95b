// Sampler against formulas written out anew.
#include <llminfer/llminfer.hpp>

#include <algorithm>
#include <catch2/catch.hpp>
#include <cmath>
#include <limits>
#include <map>
#include <set>

using namespace llminfer;

namespace {

const Tokenizer& tokenizer() {
  static const Engine engine =
      Engine::load(std::string(LLMINFER_TEST_DATA) + "/models/tiny-bf16", {.threads = 1}).value();
  return engine.tokenizer();
}

std::vector<float> logits_with(std::map<Token, float> values) {
  std::vector<float> logits(static_cast<std::size_t>(tokenizer().vocab_size()), -1000.0f);
  for (const auto& [token, value] : values) logits[static_cast<std::size_t>(token)] = value;
  return logits;
}

/// How often each token comes in `draws` choices.
std::map<Token, double> frequencies(const SamplingOptions& options, const std::vector<float>& logits,
                                    int draws = 20000) {
  Sampler sampler = Sampler::create(options, tokenizer()).value();
  std::map<Token, double> counts;
  const Token filler = 900;
  for (int i = 0; i < draws; ++i) {
    counts[sampler.sample(logits).value().token] += 1.0 / draws;
    sampler.accept(std::span(&filler, 1));
  }
  return counts;
}

const std::vector<float>& five() {  // probabilities 0.5, 0.25, 0.15, 0.07, 0.03
  static const std::vector<float> logits = logits_with({{10, std::log(0.5f)},
                                                        {20, std::log(0.25f)},
                                                        {30, std::log(0.15f)},
                                                        {40, std::log(0.07f)},
                                                        {50, std::log(0.03f)}});
  return logits;
}

SamplingOptions warm() {
  SamplingOptions options;
  options.temperature = 1.0f;
  options.seed = 42;
  return options;
}

std::set<Token> kept(const SamplingOptions& options) {
  std::set<Token> tokens;
  for (const auto& [token, frequency] : frequencies(options, five(), 3000)) tokens.insert(token);
  return tokens;
}

}  // namespace

TEST_CASE("samples follow the softmax at every temperature") {
  for (const float temperature : {0.5f, 1.0f, 2.0f}) {
    SamplingOptions options = warm();
    options.temperature = temperature;
    const auto seen = frequencies(options, five());
    double sum = 0;
    for (const double p : {0.5, 0.25, 0.15, 0.07, 0.03}) sum += std::pow(p, 1 / double{temperature});
    CHECK(seen.at(10) == Approx(std::pow(0.5, 1 / double{temperature}) / sum).margin(0.015));
    CHECK(seen.at(30) == Approx(std::pow(0.15, 1 / double{temperature}) / sum).margin(0.015));
  }
}

TEST_CASE("truncating steps keep what their definitions say") {
  SamplingOptions options = warm();
  options.top_k = 2;
  CHECK(kept(options) == std::set<Token>{10, 20});
  options = warm();
  options.top_p = 0.8f;
  CHECK(kept(options) == std::set<Token>{10, 20, 30});
  options = warm();
  options.min_p = 0.2f;
  CHECK(kept(options) == std::set<Token>{10, 20, 30});
  options = warm();
  options.xtc_probability = 1.0f;
  options.xtc_threshold = 0.1f;
  CHECK(kept(options) == std::set<Token>{30, 40, 50});
  options = warm();
  options.logit_bias = {{10, -std::numeric_limits<float>::infinity()}};
  CHECK(kept(options) == std::set<Token>{20, 30, 40, 50});
  options = warm();  // the chain is the user's: without its step an option does nothing
  options.top_k = 1;
  options.chain = {SamplerStep::temperature};
  CHECK(kept(options).size() == 5);
}

TEST_CASE("penalties change the greedy choice as their formulas say") {
  const auto choice = [](const SamplingOptions& options, std::vector<Token> history) {
    Sampler sampler = Sampler::create(options, tokenizer()).value();
    sampler.accept(history);
    return sampler.sample(logits_with({{10, 3.0f}, {20, 2.5f}, {30, 2.0f}})).value().token;
  };
  SamplingOptions options;
  CHECK(choice(options, {10, 10}) == 10);
  options.repetition_penalty = 1.3f;  // 3 / 1.3 < 2.5
  CHECK(choice(options, {10}) == 20);
  CHECK(choice(options, {30}) == 10);
  options = {};
  options.presence_penalty = 0.6f;
  CHECK(choice(options, {10, 10}) == 20);
  options = {};
  options.frequency_penalty = 0.3f;
  CHECK(choice(options, {10}) == 10);
  CHECK(choice(options, {10, 10}) == 20);
  options.penalty_window = 1;
  CHECK(choice(options, {10, 10}) == 10);
  options = {};
  options.dry_multiplier = 1.0f;
  options.dry_breakers = {};
  CHECK(choice(options, {7, 8, 9, 10, 6, 7, 8, 9}) == 20);  // 10 would prolong a repetition of three
  CHECK(choice(options, {7, 8, 9, 10, 6, 5}) == 10);
}

TEST_CASE("the same seed chooses the same, and truncation goes back") {
  SamplingOptions options = warm();
  options.mirostat_tau = 2.0f;
  Sampler a = Sampler::create(options, tokenizer()).value(), b = Sampler::create(options, tokenizer()).value();
  std::vector<Token> chosen;
  for (int i = 0; i < 50; ++i) {
    const Token token = a.sample(five()).value().token;
    CHECK(b.sample(five()).value().token == token);
    a.accept(std::span(&token, 1));
    b.accept(std::span(&token, 1));
    chosen.push_back(token);
  }
  a.truncate(20);
  CHECK(a.history().size() == 20);
  for (std::size_t i = 20; i < 50; ++i) {
    const Token token = a.sample(five()).value().token;
    CHECK(token == chosen[i]);
    a.accept(std::span(&token, 1));
  }
}

TEST_CASE("log probabilities are of the raw logits, best first") {
  SamplingOptions options;
  options.logprobs = 3;
  options.logit_bias = {{50, 100.0f}};
  Sampler sampler = Sampler::create(options, tokenizer()).value();
  const Sample sample = sampler.sample(five()).value();
  CHECK(sample.token == 50);
  CHECK(sample.logprob == Approx(std::log(0.03)).margin(1e-4));
  REQUIRE(sample.top.size() == 3);
  CHECK(sample.top[0].token == 10);
  CHECK(sample.top[1].logprob == Approx(std::log(0.25)).margin(1e-4));
}

TEST_CASE("the host's processor sees the history and changes the logits") {
  SamplingOptions options;
  options.processor = [](std::span<const Token> history, std::span<float> logits) {
    logits[static_cast<std::size_t>(history.back())] = 1e6f;
  };
  Sampler sampler = Sampler::create(options, tokenizer()).value();
  const Token token = 77;
  sampler.accept(std::span(&token, 1));
  CHECK(sampler.sample(five()).value().token == 77);
  options.processor = [](std::span<const Token>, std::span<float>) { throw 1; };
  CHECK(Sampler::create(options, tokenizer()).value().sample(five()).error().code == ErrorCode::callback_failed);
}

TEST_CASE("options out of range and hopeless logits are errors") {
  const auto refuses = [](auto set, const char* name) {
    SamplingOptions options;
    set(options);
    const auto sampler = Sampler::create(options, tokenizer());
    REQUIRE_FALSE(sampler);
    CHECK(sampler.error().code == ErrorCode::invalid_argument);
    CHECK_THAT(sampler.error().message, Catch::Contains(name));
  };
  const float nan = std::nanf("");
  for (const float bad : {-1.0f, nan}) {
    refuses([&](auto& o) { o.temperature = bad; }, "temperature");
    refuses([&](auto& o) { o.top_p = bad; }, "top_p");
    refuses([&](auto& o) { o.min_p = bad; }, "min_p");
    refuses([&](auto& o) { o.typical_p = bad; }, "typical_p");
    refuses([&](auto& o) { o.xtc_probability = bad; }, "xtc_probability");
    refuses([&](auto& o) { o.xtc_threshold = bad; }, "xtc_threshold");
    refuses([&](auto& o) { o.repetition_penalty = bad; }, "repetition_penalty");
    refuses([&](auto& o) { o.dry_multiplier = bad; }, "dry_multiplier");
    refuses([&](auto& o) { o.dry_base = bad; }, "dry_base");
    refuses([&](auto& o) { o.mirostat_tau = bad; }, "mirostat_tau");
    refuses([&](auto& o) { o.mirostat_eta = bad; }, "mirostat_eta");
  }
  refuses([&](auto& o) { o.presence_penalty = nan; }, "presence_penalty");
  refuses([&](auto& o) { o.frequency_penalty = nan; }, "frequency_penalty");
  refuses([](auto& o) { o.top_k = -1; }, "top_k");
  refuses([](auto& o) { o.logprobs = 101; }, "logprobs");
  refuses([](auto& o) { o.penalty_window = -2; }, "penalty_window");
  refuses([](auto& o) { o.dry_window = -2; }, "dry_window");
  refuses([](auto& o) { o.logit_bias = {{1 << 30, 1.0f}}; }, "logit_bias");
  refuses([](auto& o) { o.chain = {SamplerStep::top_k, SamplerStep::top_k}; }, "chain");

  Sampler sampler = Sampler::create({}, tokenizer()).value();
  CHECK(sampler.sample(std::vector<float>(3)).error().code == ErrorCode::invalid_argument);
  std::vector<float> nans(five().size(), nan);
  CHECK(sampler.sample(nans).error().code == ErrorCode::invalid_state);
  nans[5] = -3.0f;
  CHECK(sampler.sample(nans).value().token == 5);
}
