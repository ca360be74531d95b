// The sampler against brute-force formulas written anew here, its random numbers, its errors.
#include <algorithm>
#include <catch2/catch.hpp>
#include <cmath>
#include <functional>
#include <limits>
#include <map>
#include <random>
#include <set>
#include <stdexcept>

#include "engine/sampler.hpp"
#include "tests/engine/letters.hpp"

using namespace llminfer;
using test::letters;

namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
using Step = SamplerStep;

Sampler make(const SamplingOptions& options, std::int64_t size = 32) {
  auto sampler = Sampler::create(options, letters(size));
  if (!sampler) FAIL(sampler.error().message);
  return std::move(sampler).value();
}

std::vector<float> random_logits(std::size_t n, unsigned seed, float spread = 2.0f) {
  std::mt19937 random(seed);
  std::vector<float> logits(n);
  for (float& x : logits) x = spread * (static_cast<float>(random() % 20001) / 10000.0f - 1.0f);
  return logits;
}

/// The distribution, token to probability, that the chain should give.
using Distribution = std::map<Token, double>;

Distribution softmax(const std::map<Token, double>& logits) {
  double sum = 0;
  for (const auto& [token, logit] : logits) sum += std::exp(logit);
  Distribution out;
  for (const auto& [token, logit] : logits) out[token] = std::exp(logit) / sum;
  return out;
}

std::map<Token, double> as_map(const std::vector<float>& logits) {
  std::map<Token, double> out;
  for (std::size_t i = 0; i < logits.size(); ++i) out[static_cast<Token>(i)] = logits[i];
  return out;
}

Distribution renormalized(const Distribution& all, const std::vector<Token>& kept) {
  double sum = 0;
  for (const Token token : kept) sum += all.at(token);
  Distribution out;
  for (const Token token : kept) out[token] = all.at(token) / sum;
  return out;
}

std::vector<Token> ranked(const Distribution& p, const std::function<double(Token)>& key) {
  std::vector<Token> order;
  for (const auto& [token, probability] : p) order.push_back(token);
  std::stable_sort(order.begin(), order.end(), [&](Token a, Token b) { return key(a) < key(b); });
  return order;
}

std::vector<Token> until_mass(const Distribution& p, const std::vector<Token>& order, double mass) {
  std::vector<Token> kept;
  double sum = 0;
  for (const Token token : order) {
    kept.push_back(token);
    if ((sum += p.at(token)) >= mass) break;
  }
  return kept;
}

/// Counts of 20,000 choices at different positions against the expected distribution: chi square within 5 sigma of its
/// mean.
void check_distribution(const SamplingOptions& options, const std::vector<float>& logits,
                        const Distribution& expected) {
  constexpr int kDraws = 20000;
  Sampler sampler = make(options, static_cast<std::int64_t>(logits.size()));
  std::map<Token, int> counts;
  const Token padding = 31;
  for (int i = 0; i < kDraws; ++i) {
    ++counts[sampler.sample(logits).value().token];
    sampler.accept(std::span(&padding, 1));
  }
  double chi = 0, rare = 0, rare_count = 0;
  int cells = 0;
  for (const auto& [token, count] : counts) {
    CAPTURE(token, count);
    REQUIRE(expected.count(token) == 1);
  }
  for (const auto& [token, probability] : expected) {
    const double mean = probability * kDraws;
    if (mean < 10) {
      rare += mean;
      rare_count += counts[token];
      continue;
    }
    ++cells;
    chi += (counts[token] - mean) * (counts[token] - mean) / mean;
  }
  if (rare >= 10) ++cells, chi += (rare_count - rare) * (rare_count - rare) / rare;
  const double freedom = std::max(1, cells - 1);
  CAPTURE(chi, freedom);
  CHECK(chi < freedom + 5 * std::sqrt(2 * freedom) + 3);
}

SamplingOptions warm() {
  SamplingOptions options;
  options.temperature = 1.0f;
  options.seed = 7;
  return options;
}

}  // namespace

TEST_CASE("greedy takes the best token, the lowest id among equals, at every size and place") {
  for (const int size : {28, 32, 511, 512, 513, 1040, 5000}) {
    Sampler sampler = make({}, size);
    const auto n = static_cast<std::size_t>(size);
    auto logits = random_logits(n, static_cast<unsigned>(size));
    const auto best = std::max_element(logits.begin(), logits.end()) - logits.begin();
    CHECK(sampler.sample(logits).value().token == best);
    for (const std::size_t at : {std::size_t{0}, n / 2, n - 2}) {
      auto tied = logits;
      tied[at] = tied[n - 1] = 9.0f;
      CHECK(sampler.sample(tied).value().token == static_cast<Token>(at));
    }
    CHECK(sampler.sample(std::vector<float>(n, -5.0f)).value().token == 0);
  }
}

TEST_CASE("greedy: truncation does nothing, penalties, biases and the processor do") {
  std::vector<float> logits(32, 0.0f);
  logits[3] = 4.0f, logits[5] = 3.0f, logits[6] = 2.0f;
  SamplingOptions options;
  options.top_k = 5, options.top_p = 0.1f, options.typical_p = 0.1f, options.min_p = 0.5f;
  options.xtc_probability = 1.0f, options.xtc_threshold = 0.01f, options.mirostat_tau = 3.0f;
  options.presence_penalty = 1.5f;
  Sampler sampler = make(options);
  CHECK(sampler.sample(logits).value().token == 3);
  sampler.accept(std::vector<Token>{3});
  CHECK(sampler.sample(logits).value().token == 5);
  options.logit_bias = {{5, -kInf}, {6, 1.0f}};
  Sampler biased = make(options);
  biased.accept(std::vector<Token>{3});
  CHECK(biased.sample(logits).value().token == 6);
  options.processor = [](std::span<const Token> history, std::span<float> x) { x[history.size() + 8] = 50.0f; };
  Sampler processed = make(options);
  processed.accept(std::vector<Token>{3, 4});
  CHECK(processed.sample(logits).value().token == 10);
}

TEST_CASE("NaN counts as -infinity, and a vocabulary of them is invalid_state") {
  for (const float temperature : {0.0f, 1.0f}) {
    SamplingOptions options;
    options.temperature = temperature;
    Sampler sampler = make(options);
    std::vector<float> logits(32, kNan);
    CHECK(sampler.sample(logits).error().code == ErrorCode::invalid_state);
    logits[4] = -kInf;
    CHECK(sampler.sample(logits).error().code == ErrorCode::invalid_state);
    logits[9] = -3.0e38f;
    CHECK(sampler.sample(logits).value().token == 9);
    logits[11] = kInf;
    CHECK(sampler.sample(logits).value().token == 11);
    for (Token t = 0; t < 32; ++t) options.logit_bias.push_back({t, -kInf});
    CHECK(make(options).sample(std::vector<float>(32, kInf)).error().code == ErrorCode::invalid_state);
  }
}

TEST_CASE("the processor's exceptions and logits of a wrong size") {
  SamplingOptions options;
  options.processor = [](auto, auto) { throw std::runtime_error("no mood"); };
  const std::vector<float> logits(32, 0.0f);
  const auto thrown = make(options).sample(logits);
  CHECK(thrown.error().code == ErrorCode::callback_failed);
  CHECK(thrown.error().message.find("no mood") != std::string::npos);
  options.processor = [](auto, auto) { throw 3; };
  CHECK(make(options).sample(logits).error().code == ErrorCode::callback_failed);
  CHECK(make({}).sample(std::vector<float>(31)).error().code == ErrorCode::invalid_argument);
  CHECK(make({}).sample({}).error().code == ErrorCode::invalid_argument);
  Sampler moved = make({});
  const Sampler other = std::move(moved);
  CHECK(moved.sample(logits).error().code == ErrorCode::invalid_state);
  CHECK(moved.history().empty());
}

TEST_CASE("samples follow the distribution of each step") {
  const auto logits = random_logits(300, 3, 3.0f);  // more than one stretch of the prefix selection
  const Distribution p = softmax(as_map(logits));
  const auto by_p = ranked(p, [&](Token t) { return -p.at(t); });
  SamplingOptions o = warm();
  SECTION("temperature") {
    o.temperature = 0.6f;
    auto scaled = as_map(logits);
    for (auto& [t, x] : scaled) x /= 0.6f;
    check_distribution(o, logits, softmax(scaled));
  }
  SECTION("top_k") {
    o.top_k = 9;
    check_distribution(o, logits, renormalized(p, {by_p.begin(), by_p.begin() + 9}));
  }
  SECTION("top_p") {
    o.top_p = GENERATE(0.05f, 0.5f, 0.98f);
    check_distribution(o, logits, renormalized(p, until_mass(p, by_p, o.top_p)));
  }
  SECTION("min_p") {
    o.min_p = 0.3f;
    std::vector<Token> kept;
    for (const Token t : by_p)
      if (p.at(t) >= 0.3f * p.at(by_p[0])) kept.push_back(t);
    check_distribution(o, logits, renormalized(p, kept));
  }
  SECTION("typical") {
    o.typical_p = GENERATE(0.2f, 0.9f);
    double entropy = 0;
    for (const auto& [t, q] : p) entropy -= q * std::log(q);
    const auto order = ranked(p, [&](Token t) { return std::fabs(-std::log(p.at(t)) - entropy); });
    check_distribution(o, logits, renormalized(p, until_mass(p, order, o.typical_p)));
  }
  SECTION("xtc") {
    o.xtc_probability = GENERATE(0.4f, 1.0f);
    o.xtc_threshold = 0.015f;
    std::vector<Token> top, rest;
    for (const Token t : by_p) (p.at(t) >= o.xtc_threshold ? top : rest).push_back(t);
    REQUIRE(top.size() >= 3);
    rest.push_back(top.back());
    Distribution expected = renormalized(p, rest);
    for (auto& [t, q] : expected) q *= o.xtc_probability;
    for (const auto& [t, q] : p)
      if (o.xtc_probability < 1.0f) expected[t] += (1.0 - o.xtc_probability) * q;
    check_distribution(o, logits, expected);
  }
}

TEST_CASE("penalties are CTRL's, presence and frequency, within the window") {
  const auto logits = random_logits(32, 5);
  const std::vector<Token> history = {9, 1, 2, 2, 3, 2, 1};
  for (const std::int32_t window : {-1, 0, 3, 64}) {
    SamplingOptions o;
    o.repetition_penalty = 1.3f, o.presence_penalty = 0.4f, o.frequency_penalty = -0.2f, o.penalty_window = window;
    const std::size_t first = window < 0 || window > 7 ? 0 : history.size() - static_cast<std::size_t>(window);
    auto expected = as_map(logits);
    for (auto& [t, x] : expected) {
      const auto n = std::count(history.begin() + static_cast<std::ptrdiff_t>(first), history.end(), t);
      if (n == 0) continue;
      x = x > 0 ? x / 1.3f : x * 1.3f;
      x -= 0.4f + -0.2f * static_cast<double>(n);
    }
    // Seen through greedy choices: lift pairs of tokens so that which of two wins shows their difference.
    o.temperature = 1.0f;
    o.top_k = 1;
    for (Token a = 0; a < 12; ++a) {
      for (Token b = 0; b < 12; ++b) {
        if (a == b || std::fabs(expected[a] - expected[b]) < 1e-5) continue;
        o.logit_bias.clear();
        for (Token t = 0; t < 32; ++t)
          if (t != a && t != b) o.logit_bias.push_back({t, -kInf});
        Sampler sampler = make(o);
        sampler.accept(history);
        sampler.accept(std::vector<Token>{});
        CHECK(sampler.sample(logits).value().token == (expected[a] > expected[b] ? a : b));
      }
    }
  }
  // Tokens that are not in the vocabulary are part of the text, no more.
  SamplingOptions o;
  o.presence_penalty = 1.0f, o.dry_multiplier = 1.0f;
  Sampler sampler = make(o);
  sampler.accept(std::vector<Token>{-5, 1000000, -5, 1000000, -5});
  CHECK(sampler.sample(logits).has_value());
}

namespace {

/// DRY by its definition, quadratic and more: for every earlier place, compare backwards.
std::map<Token, double> dry_penalties(const Tokenizer& tokenizer, std::vector<Token> history,
                                      const SamplingOptions& o) {
  if (o.dry_window >= 0 && static_cast<std::size_t>(o.dry_window) < history.size())
    history.erase(history.begin(), history.end() - o.dry_window);
  // Whether a breaker's text ends in the last token.
  const auto broken = [&](std::size_t count, Token extra) {
    std::string text;
    for (std::size_t i = 0; i < count; ++i) text += tokenizer.token_bytes(history[i]);
    const std::size_t before = text.size();
    text += tokenizer.token_bytes(extra);
    for (const auto& breaker : o.dry_breakers)
      for (std::size_t at = 0; at + breaker.size() <= text.size(); ++at)
        if (text.compare(at, breaker.size(), breaker) == 0 && at + breaker.size() > before) return true;
    return false;
  };
  std::map<Token, double> out;
  const std::size_t n = history.size();
  for (std::size_t i = 0; i < n; ++i) {
    std::int64_t length = 0;
    for (std::size_t l = 0; l < i; ++l) {
      if (history[i - 1 - l] != history[n - 1 - l] || broken(n - 1 - l, history[n - 1 - l])) break;
      ++length;
    }
    if (length < o.dry_allowed_length || broken(n, history[i])) continue;
    double& penalty = out[history[i]];
    penalty = std::max(penalty, o.dry_multiplier * std::pow(static_cast<double>(o.dry_base),
                                                            static_cast<double>(length - o.dry_allowed_length)));
  }
  return out;
}

}  // namespace

TEST_CASE("DRY equals its definition on random texts") {
  const Tokenizer tokenizer = letters();
  std::mt19937 random(11);
  int penalised = 0;
  for (int round = 0; round < 300; ++round) {
    SamplingOptions o;
    o.dry_multiplier = 0.7f, o.dry_base = 1.5f;
    o.dry_allowed_length = static_cast<std::int32_t>(random() % 4);
    o.dry_window = round % 3 == 0 ? static_cast<std::int32_t>(random() % 12) + 1 : -1;
    o.dry_breakers.clear();
    if (round % 2) o.dry_breakers = {",", "ab"};  // "ab" lies across two tokens
    std::vector<Token> history(random() % 40);
    for (Token& t : history) t = std::array<Token, 5>{0, 1, 2, 26, 27}[random() % (round % 4 ? 3 : 5)];
    const auto expected = dry_penalties(tokenizer, history, o);
    // Lift one token by just more and just less than its penalty over a bystander.
    for (const Token t : {0, 1, 2, 26, 27}) {
      const auto it = expected.find(t);
      const double penalty = it == expected.end() ? 0.0 : it->second;
      penalised += penalty > 0;
      for (const bool more : {true, false}) {
        std::vector<float> logits(32, -1000.0f);
        logits[20] = 0.0f;
        logits[static_cast<std::size_t>(t)] =
            static_cast<float>(penalty * (more ? 1.001 : 0.999) + (more ? 0.001 : -0.001));
        auto sampler = Sampler::create(o, tokenizer).value();
        sampler.accept(history);
        CAPTURE(round, t, penalty, o.dry_allowed_length, o.dry_window, history);
        if (penalty < 900) CHECK(sampler.sample(logits).value().token == (more ? t : 20));
      }
    }
  }
  CHECK(penalised > 300);
}

TEST_CASE("DRY of a long repetition is finite and quick") {
  SamplingOptions o;
  o.dry_multiplier = 1.0f;
  Sampler sampler = make(o);
  sampler.accept(std::vector<Token>(200000, 4));
  std::vector<float> logits(32, 0.0f);
  logits[4] = 3.0e38f, logits[6] = 1.0f;
  CHECK(sampler.sample(logits).value().token == 4);  // the penalty has an upper bound
  logits[4] = 1e20f;
  CHECK(sampler.sample(logits).value().token == 6);
}

TEST_CASE("the order of the chain matters, and steps left out are off") {
  std::vector<float> logits(32, -1000.0f);
  logits[0] = 3.0f, logits[1] = 2.0f, logits[2] = 1.0f, logits[3] = 0.0f;
  const auto drawn = [&](std::vector<Step> chain, const std::function<void(SamplingOptions&)>& set) {
    SamplingOptions o = warm();
    set(o);
    o.chain = std::move(chain);
    Sampler sampler = make(o);
    std::set<Token> seen;
    for (int i = 0; i < 3000; ++i) {
      seen.insert(sampler.sample(logits).value().token);
      sampler.accept(std::vector<Token>{0});
    }
    return seen;
  };
  using Set = std::set<Token>;
  const auto hot = [](SamplingOptions& o) { o.temperature = 4.0f, o.min_p = 0.2f; };
  CHECK(drawn({Step::min_p, Step::temperature}, hot) == Set{0, 1});
  CHECK(drawn({Step::temperature, Step::min_p}, hot) == Set{0, 1, 2, 3});
  const auto penalty = [](SamplingOptions& o) { o.presence_penalty = 100.0f, o.top_k = 2; };
  // The first choice has no history yet, so 0 appears once in both.
  CHECK(drawn({Step::penalties, Step::top_k}, penalty).count(2) == 1);
  CHECK(drawn({Step::top_k, Step::penalties}, penalty).count(2) == 0);
  CHECK(drawn({Step::top_k, Step::penalties}, penalty).count(1) == 1);
  const auto single = [](SamplingOptions& o) { o.top_k = 1; };
  CHECK(drawn({Step::top_k}, single) == Set{0});
  CHECK(drawn({}, single).size() > 2);
}

TEST_CASE("XTC with one top choice, or a threshold above 0.5, does nothing") {
  SamplingOptions o = warm();
  o.xtc_probability = 1.0f, o.xtc_threshold = 0.6f;
  const auto logits = random_logits(32, 9);
  check_distribution(o, logits, softmax(as_map(logits)));
  o.xtc_threshold = 0.0f;  // all but the least probable
  const auto least = std::min_element(logits.begin(), logits.end()) - logits.begin();
  CHECK(make(o).sample(logits).value().token == least);
}

TEST_CASE("Mirostat 2 follows its recurrence and holds its surprise") {
  SamplingOptions o = warm();
  o.mirostat_tau = 3.0f, o.mirostat_eta = 0.2f;
  o.top_k = 1;  // replaced
  Sampler sampler = make(o, 400);
  double mu = 2.0 * o.mirostat_tau, surprises = 0;
  std::vector<Token> chosen;
  const int rounds = 2000;
  for (int i = 0; i < rounds; ++i) {
    const auto logits = random_logits(400, static_cast<unsigned>(i), 4.0f);
    const Distribution p = softmax(as_map(logits));
    std::vector<Token> kept;
    for (const auto& [t, q] : p)
      if (-std::log2(q) <= mu) kept.push_back(t);
    if (kept.empty()) kept = {ranked(p, [&](Token t) { return -p.at(t); })[0]};
    const Token token = sampler.sample(logits).value().token;
    REQUIRE(sampler.sample(logits).value().token == token);  // a choice changes nothing until it is accepted
    REQUIRE(std::count(kept.begin(), kept.end(), token) == 1);
    const double surprise = -std::log2(renormalized(p, kept).at(token));
    mu -= o.mirostat_eta * (surprise - o.mirostat_tau);
    surprises += surprise;
    chosen.push_back(token);
    sampler.accept(std::span(&token, 1));
  }
  CHECK(surprises / rounds == Approx(o.mirostat_tau).margin(0.05));
  sampler.truncate(1000);
  for (int i = 1000; i < 1100; ++i) {
    const Token token = sampler.sample(random_logits(400, static_cast<unsigned>(i), 4.0f)).value().token;
    REQUIRE(token == chosen[static_cast<std::size_t>(i)]);
    sampler.accept(std::span(&token, 1));
  }
}

TEST_CASE("the same seed gives the same text, also after truncate and a prompt in pieces") {
  const auto logits = random_logits(32, 21);
  const auto run = [&](Sampler& sampler, int n) {
    std::vector<Token> out;
    for (int i = 0; i < n; ++i) {
      out.push_back(sampler.sample(logits).value().token);
      sampler.accept(std::span(&out.back(), 1));
    }
    return out;
  };
  SamplingOptions o = warm();
  o.top_p = 0.95f, o.repetition_penalty = 1.1f, o.xtc_probability = 0.5f, o.dry_multiplier = 0.5f;
  Sampler a = make(o), b = make(o);
  a.accept(std::vector<Token>{1, 2, 3});
  b.accept(std::vector<Token>{1});
  b.accept(std::vector<Token>{2, 3});
  const auto text = run(a, 60);
  CHECK(run(b, 60) == text);
  CHECK(a.history().size() == 63);
  a.truncate(100);
  CHECK(a.history().size() == 63);
  a.truncate(13);
  CHECK(std::vector<Token>(a.history().begin() + 3, a.history().end()) ==
        std::vector<Token>(text.begin(), text.begin() + 10));
  CHECK(run(a, 50) == std::vector<Token>(text.begin() + 10, text.end()));
  o.seed = 8;
  Sampler c = make(o);
  c.accept(std::vector<Token>{1, 2, 3});
  CHECK(run(c, 60) != text);
}

TEST_CASE("log probabilities are of the raw logits, ties by lower id") {
  SamplingOptions o = warm();
  o.logprobs = 5, o.temperature = 0.3f, o.logit_bias = {{7, 100.0f}};
  auto logits = random_logits(32, 33);
  logits[12] = logits[20] = logits[4] = 2.5f;
  logits[30] = kNan, logits[31] = -kInf;
  auto valid = as_map(logits);
  valid.erase(30), valid.erase(31);
  const Distribution p = softmax(valid);
  const Sample sample = make(o).sample(logits).value();
  CHECK(sample.token == 7);
  CHECK(sample.logprob == Approx(std::log(p.at(7))).margin(1e-6));
  REQUIRE(sample.top.size() == 5);
  const auto order = ranked(p, [&](Token t) { return -valid.at(t); });
  for (std::size_t i = 0; i < 5; ++i) {
    CHECK(sample.top[i].token == order[i]);
    CHECK(sample.top[i].logprob == Approx(std::log(p.at(order[i]))).margin(1e-6));
  }
  CHECK(order[0] == 4);
  o.logprobs = 100;
  CHECK(make(o).sample(logits).value().top.size() == 30);
  o.logprobs = 0;
  CHECK(make(o).sample(logits).value().top.empty());
}

TEST_CASE("legal extremes give a token") {
  const float most = std::numeric_limits<float>::max(), least = std::numeric_limits<float>::denorm_min();
  const std::vector<float> logits = {most, -most, 1.0f, -1.0f, 0.0f, kInf, kNan, -kInf};
  std::vector<float> all(32, -kInf);
  std::copy(logits.begin(), logits.end(), all.begin());
  for (const float temperature : {least, most}) {
    for (const float penalty : {least, most}) {
      SamplingOptions o = warm();
      o.temperature = temperature, o.repetition_penalty = penalty, o.dry_multiplier = most, o.dry_base = most;
      o.top_p = least, o.typical_p = least, o.min_p = least, o.dry_allowed_length = 0, o.logprobs = 100;
      for (const float tau : {0.0f, least, most}) {
        o.mirostat_tau = tau;
        Sampler sampler = make(o);
        for (int i = 0; i < 20; ++i) {
          const auto sample = sampler.sample(all);
          REQUIRE(sample.has_value());
          CHECK((sample->token >= 0 && sample->token < 6));
          sampler.accept(std::span(&sample->token, 1));
        }
      }
    }
  }
}

TEST_CASE("every option out of its range is invalid_argument and named") {
  const auto refused = [](const std::string& name, const std::function<void(SamplingOptions&)>& change) {
    SamplingOptions options;
    change(options);
    CAPTURE(name);
    const auto made = Sampler::create(options, letters());
    REQUIRE_FALSE(made.has_value());
    CHECK(made.error().code == ErrorCode::invalid_argument);
    CHECK(made.error().message.starts_with("SamplingOptions::" + name));
    CHECK(made.error().message.find("expected") != std::string::npos);
    CHECK_FALSE(engine::check_sampling(options, 32).has_value());
  };
  const auto floats = [&](const char* name, float SamplingOptions::*member, std::vector<float> bad,
                          std::vector<float> good) {
    bad.insert(bad.end(), {kNan, kInf, -kInf});
    for (const float value : bad) refused(name, [&](SamplingOptions& o) { o.*member = value; });
    for (const float value : good) {
      SamplingOptions options;
      options.*member = value;
      CAPTURE(name, value);
      CHECK(engine::check_sampling(options, 32).has_value());
    }
  };
  const auto ints = [&](const char* name, std::int32_t SamplingOptions::*member, std::vector<std::int32_t> bad,
                        std::vector<std::int32_t> good) {
    bad.push_back(INT32_MIN);
    for (const auto value : bad) refused(name, [&](SamplingOptions& o) { o.*member = value; });
    for (const auto value : good) {
      SamplingOptions options;
      options.*member = value;
      CAPTURE(name, value);
      CHECK(engine::check_sampling(options, 32).has_value());
    }
  };
  using O = SamplingOptions;
  floats("temperature", &O::temperature, {-0.1f}, {0.0f, 2.0f});
  floats("top_p", &O::top_p, {0.0f, -1.0f, 1.01f}, {1e-6f, 1.0f});
  floats("min_p", &O::min_p, {-0.1f, 1.01f}, {0.0f, 1.0f});
  floats("typical_p", &O::typical_p, {0.0f, 1.01f}, {1e-6f, 1.0f});
  floats("xtc_probability", &O::xtc_probability, {-0.1f, 1.01f}, {0.0f, 1.0f});
  floats("xtc_threshold", &O::xtc_threshold, {-0.1f, 1.01f}, {0.0f, 1.0f});
  floats("repetition_penalty", &O::repetition_penalty, {0.0f, -1.0f}, {0.5f, 2.0f});
  floats("presence_penalty", &O::presence_penalty, {-101.0f, 101.0f}, {-100.0f, 100.0f});
  floats("frequency_penalty", &O::frequency_penalty, {-101.0f, 101.0f}, {-100.0f, 100.0f});
  floats("dry_multiplier", &O::dry_multiplier, {-0.1f}, {0.0f, 5.0f});
  floats("dry_base", &O::dry_base, {0.9f}, {1.0f, 4.0f});
  floats("mirostat_tau", &O::mirostat_tau, {-0.1f}, {0.0f, 5.0f});
  floats("mirostat_eta", &O::mirostat_eta, {0.0f, 1.01f}, {0.1f, 1.0f});
  ints("top_k", &O::top_k, {-1}, {0, INT32_MAX});
  ints("penalty_window", &O::penalty_window, {-2}, {-1, 0, INT32_MAX});
  ints("dry_allowed_length", &O::dry_allowed_length, {-1}, {0, INT32_MAX});
  ints("dry_window", &O::dry_window, {-2}, {-1, 0, INT32_MAX});
  ints("logprobs", &O::logprobs, {-1, 101}, {0, 100});
  refused("dry_breakers[1]", [](O& o) { o.dry_breakers = {"a", ""}; });
  refused("logit_bias[0].token", [](O& o) { o.logit_bias = {{32, 1.0f}}; });
  refused("logit_bias[1].token", [](O& o) { o.logit_bias = {{0, 1.0f}, {-1, 1.0f}}; });
  refused("logit_bias[0].bias", [](O& o) { o.logit_bias = {{0, kNan}}; });
  refused("logit_bias[0].bias", [](O& o) { o.logit_bias = {{0, kInf}}; });
  refused("chain[1]", [](O& o) { o.chain = {Step::top_k, Step::top_k}; });
  refused("chain[0]", [](O& o) { o.chain = {static_cast<Step>(8)}; });
}
