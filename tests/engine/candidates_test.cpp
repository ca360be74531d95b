// Choices from candidates: whatever the options, the candidates and the sum that a backend may give, they are those of
// the whole row or none.
#include <algorithm>
#include <catch2/catch.hpp>
#include <cmath>
#include <functional>
#include <limits>
#include <random>

#include "engine/row_candidates.hpp"
#include "engine/sampler.hpp"
#include "engine/sampler_steps.hpp"
#include "tests/engine/candidates.hpp"
#include "tests/engine/letters.hpp"

using namespace llminfer;
using namespace llminfer::test;
using engine::CandidateSampler;

namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr std::int32_t kMost = 128;
using Step = SamplerStep;

const Tokenizer& vocabulary(std::int32_t size) {
  static const Tokenizer small = letters(40), middle = letters(700), large = letters(5000);
  return size == 40 ? small : size == 700 ? middle : large;
}

class Random {
 public:
  explicit Random(unsigned seed) : engine_(seed) {}
  std::size_t below(std::size_t n) { return engine_() % n; }
  bool once_in(std::size_t n) { return below(n) == 0; }
  float uniform(float low, float high) { return std::uniform_real_distribution<float>(low, high)(engine_); }
  float normal() { return std::normal_distribution<float>()(engine_); }
  template <class List>
  auto one_of(const List& list) {
    return list[below(list.size())];
  }
  std::mt19937& engine() { return engine_; }

 private:
  std::mt19937 engine_;
};

/// Flat, peaked, with ties, and with what is no number.
std::vector<float> some_logits(Random& random, std::int32_t size) {
  std::vector<float> logits(static_cast<std::size_t>(size));
  const float spread = random.one_of(std::vector<float>{0.1f, 1.0f, 3.0f, 6.0f});
  for (float& x : logits) x = spread * random.normal();
  if (random.once_in(3)) {
    for (float& x : logits) x = std::round(x);
  }
  for (std::size_t peaks = random.below(4); peaks > 0; --peaks) {
    logits[random.below(logits.size())] += random.uniform(0.0f, 20.0f);
  }
  if (random.once_in(4)) {
    for (std::size_t i = random.below(2 * logits.size()); i > 0; --i) {
      logits[random.below(logits.size())] = random.once_in(2) ? -kInf : kNan;
    }
  }
  if (random.once_in(30)) logits[random.below(logits.size())] = kInf;
  if (random.once_in(30)) logits[random.below(logits.size())] = std::numeric_limits<float>::max();
  if (random.once_in(10)) logits[random.below(logits.size())] = -0.0f;
  return logits;
}

/// Any options that a sampler takes, most of them off.
SamplingOptions some_options(Random& random, std::int32_t size) {
  SamplingOptions o;
  const auto on = [&] { return random.once_in(3); };
  if (!random.once_in(4)) o.temperature = on() ? random.uniform(0.05f, 3.0f) : 1.0f;
  o.seed = random.below(1000);
  if (on()) o.top_k = static_cast<std::int32_t>(1 + random.below(on() ? 200 : 40));
  if (on()) o.top_p = random.uniform(0.05f, 0.999f);
  if (on()) o.min_p = random.uniform(0.001f, 0.5f);
  if (random.once_in(8)) o.typical_p = random.uniform(0.1f, 0.99f);
  if (random.once_in(5)) o.xtc_probability = 0.5f, o.xtc_threshold = random.uniform(0.0f, 0.4f);
  if (on()) o.repetition_penalty = random.uniform(on() ? 0.7f : 1.0f, 1.5f);
  if (on()) o.presence_penalty = random.uniform(on() ? -1.0f : 0.0f, 2.0f);
  if (on()) o.frequency_penalty = random.uniform(on() ? -0.5f : 0.0f, 1.0f);
  o.penalty_window = random.one_of(std::vector<std::int32_t>{-1, 0, 5, 64});
  if (random.once_in(5)) o.dry_multiplier = random.uniform(0.1f, 2.0f);
  if (random.once_in(8)) o.mirostat_tau = random.uniform(0.5f, 6.0f);
  for (std::size_t n = random.once_in(4) ? random.below(6) : 0; n > 0; --n) {
    const float bias = random.once_in(3) ? -kInf : random.uniform(-10.0f, random.once_in(8) ? 5.0f : 0.0f);
    o.logit_bias.push_back({static_cast<Token>(random.below(static_cast<std::size_t>(size))), bias});
  }
  if (on()) o.logprobs = static_cast<std::int32_t>(random.below(8));
  if (random.once_in(3)) std::shuffle(o.chain.begin(), o.chain.end(), random.engine());
  if (random.once_in(5)) o.chain.resize(random.below(o.chain.size() + 1));
  return o;
}

bool same_float(float a, float b) { return a == b && std::signbit(a) == std::signbit(b); }

bool same(const Sample& a, const Sample& b) {
  return a.token == b.token && same_float(a.logprob, b.logprob) &&
         std::equal(a.top.begin(), a.top.end(), b.top.begin(), b.top.end(), [](const auto& x, const auto& y) {
           return x.token == y.token && same_float(x.logprob, y.logprob);
         });
}

struct Counts {
  int rows = 0;    ///< whole rows were wanted
  int doubts = 0;  ///< the candidates did not suffice
  int same = 0;
  int drawn = 0;
};

/// Three samplers side by side: one with whole rows, one with candidates where it wants them, and one that looks for
/// them in the row.
void compare(const SamplingOptions& options, Random& random, std::int32_t size, Counts& counts) {
  Sampler with_rows = Sampler::create(options, vocabulary(size)).value();
  Sampler with_candidates = Sampler::create(options, vocabulary(size)).value();
  Sampler looking = Sampler::create(options, vocabulary(size)).value();
  std::vector<Token> history(random.below(100));
  for (Token& token : history) token = static_cast<Token>(random.below(26));
  with_rows.accept(history);
  with_candidates.accept(history);
  looking.accept(history);
  for (int i = 0; i < 3; ++i) {
    const std::vector<float> logits = some_logits(random, size);
    const auto expected = CandidateSampler::sample_whole(with_rows, logits);
    const auto found = looking.sample(logits);
    REQUIRE(found.has_value() == expected.has_value());
    if (found) REQUIRE(same(*found, *expected));
    if (!found) CHECK(found.error().message == expected.error().message);
    const CandidateWish wish = CandidateSampler::wish(with_candidates, kMost);
    REQUIRE((wish.count >= 0 && wish.count <= kMost));
    Result<Sample> got = Error{ErrorCode::internal, "none"};
    if (wish.count == 0) {
      ++counts.rows;
      got = CandidateSampler::sample_whole(with_candidates, logits);
    } else {
      const auto best = best_candidates(logits, wish.count);
      std::optional<double> sum;
      if (wish.sum) sum = candidate_sum(logits) * (1.0 + random.uniform(-1.0f, 1.0f) * kCandidateSumError);
      std::optional<DrawnToken> drawn;
      if (wish.temperature > 0) {
        ++counts.drawn;
        drawn = drawn_token(logits, wish.temperature, wish.place);
        for (double DrawnToken::*part : {&DrawnToken::below, &DrawnToken::weight, &DrawnToken::sum}) {
          *drawn.*part += random.uniform(-1.0f, 1.0f) * kCandidateSumError * drawn->sum;
        }
      }
      auto chosen = CandidateSampler::sample(with_candidates, {best, sum, drawn});
      if (!chosen) {
        got = std::move(chosen).error();
      } else if (*chosen) {
        ++counts.same;
        got = **std::move(chosen);
      } else {
        ++counts.doubts;
        got = CandidateSampler::sample_whole(with_candidates, logits);
      }
    }
    REQUIRE(got.has_value() == expected.has_value());
    if (!expected) {
      CHECK(got.error().message == expected.error().message);
      return;
    }
    REQUIRE(same(*got, *expected));
    const Token token = expected->token;
    with_rows.accept(std::span(&token, 1));
    with_candidates.accept(std::span(&token, 1));
    looking.accept(std::span(&token, 1));
  }
}

}  // namespace

TEST_CASE("A choice from candidates is that of the whole row, with any options") {
  Random random(1);
  Counts counts;
  for (int i = 0; i < 2500; ++i) {
    const std::int32_t size = i % 20 == 0 ? 5000 : i % 3 == 0 ? 40 : 700;
    CAPTURE(i, size);
    compare(some_options(random, size), random, size, counts);
  }
  CAPTURE(counts.rows, counts.doubts, counts.same, counts.drawn);
  CHECK(counts.same > 1000);
  CHECK(counts.doubts > 50);
  CHECK(counts.rows > 500);
  CHECK(counts.drawn > 200);
}

TEST_CASE("Candidates that are looked for in a row are those of the definition") {
  Random random(2);
  engine::RowScan scan;
  for (const std::int32_t size : {1, 2, 511, 512, 513, 5000, 200000}) {
    for (int i = 0; i < (size > 5000 ? 4 : 40); ++i) {
      const std::vector<float> logits = some_logits(random, size);
      CandidateWish wish{static_cast<std::int32_t>(1 + random.below(300)), random.once_in(2)};
      if (random.once_in(2)) {
        wish.temperature = random.uniform(0.05f, 3.0f);
        wish.place = random.uniform(0.0f, 0.9999f);
      }
      CAPTURE(size, i, wish.count, wish.temperature, wish.place);
      const engine::RowCandidates row = scan.find(logits, wish);
      const auto best = best_candidates(logits, wish.count);
      CHECK(std::equal(best.begin(), best.end(), row.best.begin(), row.best.end(), [](const auto& a, const auto& b) {
        return a.token == b.token && (a.token < 0 || same_float(a.logit, b.logit));
      }));
      if (!(best.front().logit < std::numeric_limits<float>::max()) || best.front().token < 0) continue;
      REQUIRE(row.sum.has_value() == wish.sum);
      if (wish.sum) CHECK(std::fabs(*row.sum / candidate_sum(logits) - 1) <= kCandidateSumError);
      REQUIRE(row.drawn.has_value() == (wish.temperature > 0));
      if (!row.drawn) continue;
      const DrawnToken drawn = drawn_token(logits, wish.temperature, wish.place);
      const auto near = [&](double a, double b) { return std::fabs(a - b) <= kCandidateSumError * drawn.sum; };
      CHECK(row.drawn->token == drawn.token);
      CHECK((near(row.drawn->below, drawn.below) && near(row.drawn->weight, drawn.weight)));
      CHECK(near(row.drawn->sum, drawn.sum));
    }
  }
}

TEST_CASE("What usual options want, and that it suffices") {
  const std::int32_t size = 5000;
  struct Case {
    const char* name;
    SamplingOptions options;
    CandidateWish wish;
  };
  std::vector<Case> cases;
  const auto add = [&](const char* name, CandidateWish wish, auto set) {
    SamplingOptions options;
    options.temperature = 0.8f;
    options.seed = 3;
    set(options);
    cases.push_back({name, options, wish});
  };
  using O = SamplingOptions;
  add("greedy", {1, false}, [](O& o) { o.temperature = 0; });
  add("greedy with penalties", {21, false}, [](O& o) { o.temperature = 0, o.presence_penalty = 1; });
  add("greedy with a ban", {2, false}, [](O& o) { o.temperature = 0, o.logit_bias = {{7, -kInf}}; });
  add("greedy with log probabilities", {5, true}, [](O& o) { o.temperature = 0, o.logprobs = 5; });
  add("top-k", {41, false}, [](O& o) { o.top_k = 40; });
  add("top-k and top-p", {41, false}, [](O& o) { o.top_k = 40, o.top_p = 0.9f; });
  add("top-k and penalties", {61, false}, [](O& o) { o.top_k = 40, o.repetition_penalty = 1.1f; });
  add("top-p", {kMost, true}, [](O& o) { o.top_p = 0.9f; });
  add("temperature, then top-p", {kMost, false}, [](O& o) {
    o.top_p = 0.9f, o.chain = {Step::temperature, Step::top_p};
  });
  add("min-p", {kMost / 2, false}, [](O& o) { o.min_p = 0.05f; });
  add("temperature, then min-p", {kMost / 2, false}, [](O& o) {
    o.min_p = 0.05f, o.chain = {Step::temperature, Step::min_p};
  });
  add("temperature alone", {1, false, static_cast<double>(0.8f)}, [](O&) {});
  add("temperature with log probabilities", {3, true, static_cast<double>(0.8f)}, [](O& o) { o.logprobs = 3; });
  add("no temperature in the chain", {1, false, 1.0}, [](O& o) { o.chain = {Step::top_k}; });
  add("Mirostat", {kMost, true}, [](O& o) { o.mirostat_tau = 3; });
  for (const Case& c : cases) {
    CAPTURE(c.name);
    Sampler sampler = Sampler::create(c.options, vocabulary(size)).value();
    const std::vector<Token> history(20, 3);
    sampler.accept(history);
    const CandidateWish wish = CandidateSampler::wish(sampler, kMost);
    CHECK(wish.count == c.wish.count);
    CHECK(wish.sum == c.wish.sum);
    CHECK(wish.temperature == c.wish.temperature);
    // Like a language model: a hundred likely tokens above noise.
    Random random(5);
    int certain = 0;
    for (int i = 0; i < 20; ++i) {
      std::vector<float> logits(static_cast<std::size_t>(size));
      for (float& x : logits) x = random.normal();
      for (int likely = 0; likely < 20; ++likely) logits[random.below(logits.size())] = random.uniform(8.0f, 18.0f);
      const auto best = best_candidates(logits, wish.count);
      const auto sum = wish.sum ? std::optional(candidate_sum(logits)) : std::nullopt;
      const auto drawn =
          wish.temperature > 0 ? std::optional(drawn_token(logits, wish.temperature, wish.place)) : std::nullopt;
      const auto chosen = CandidateSampler::sample(sampler, {best, sum, drawn}).value();
      if (!chosen) continue;
      ++certain;
      CHECK(same(*chosen, CandidateSampler::sample_whole(sampler, logits).value()));
    }
    CHECK(certain >= 18);
  }
}

TEST_CASE("What candidates cannot decide wants whole rows") {
  const auto wish = [](const std::function<void(SamplingOptions&)>& set, std::int32_t most = kMost) {
    SamplingOptions options;
    options.temperature = 1.0f;
    set(options);
    return CandidateSampler::wish(Sampler::create(options, vocabulary(700)).value(), most).count;
  };
  using O = SamplingOptions;
  CHECK(wish([](O& o) { o.presence_penalty = 0.5f, o.dry_multiplier = 1.0f; }) == 0);
  CHECK(wish([](O& o) { o.logit_bias = {{1, -0.5f}}; }) == 0);
  CHECK(wish([](O& o) { o.typical_p = 0.5f; }) == 0);
  CHECK(wish([](O& o) { o.top_k = kMost; }) == 0);
  CHECK(wish([](O& o) { o.top_k = kMost - 1; }) == kMost);
  CHECK(wish([](O& o) { o.top_k = 5, o.processor = [](auto, auto) {}; }) == 0);
  CHECK(wish([](O& o) { o.top_k = 5, o.logit_bias = {{1, 0.5f}}; }) == 0);
  CHECK(wish([](O& o) { o.top_k = 5, o.presence_penalty = -0.5f; }) == 0);
  CHECK(wish([](O& o) { o.temperature = 0; }, 0) == 0);
}

TEST_CASE("A drawn token is certain where rounding cannot lead to another one") {
  const std::int32_t tokens = 1000;
  const DrawnToken drawn{7, 1.0f, 0.25, 0.5, 1.0};
  const auto is_certain = [&](double place, float best = 2.0f, double temperature = 1.0) {
    return engine::certain(drawn, {.count = 1, .temperature = temperature, .place = place}, best, tokens);
  };
  const double off = 1e-11;
  CHECK(is_certain(0.5));
  CHECK(is_certain(0.25 + off));
  CHECK(is_certain(0.75 - off));
  for (const double place : {0.25 - off, 0.25, 0.25 + off / 100, 0.75 - off / 100, 0.75, 0.75 + off}) {
    CHECK_FALSE(is_certain(place));
  }
  CHECK_FALSE(is_certain(0.25 + off, 30.0f, 1e-5));  // logits are rounded when they are divided
  CHECK_FALSE(is_certain(0.5, kInf));
  CHECK_FALSE(is_certain(0.5, std::numeric_limits<float>::max()));
  CHECK_FALSE(engine::certain({}, {.count = 1, .temperature = 1.0, .place = 0.5}, 2.0f, tokens));
  CHECK_FALSE(
      engine::certain({7, 1.0f, kNan, kNan, kNan}, {.count = 1, .temperature = 1.0, .place = 0.5}, 2.0f, tokens));
}

TEST_CASE("Candidates of a row whose tokens are all forbidden") {
  SamplingOptions options;
  Sampler sampler = Sampler::create(options, vocabulary(40)).value();
  const std::vector<TokenLogit> none(1);
  CHECK(CandidateSampler::sample(sampler, {none}).error().message ==
        sampler.sample(std::vector<float>(40, kNan)).error().message);
  options.logit_bias = {{2, -kInf}};
  Sampler forbids = Sampler::create(options, vocabulary(40)).value();
  std::vector<float> one(40, -kInf);
  one[2] = 1.0f;
  CHECK(CandidateSampler::sample(forbids, {best_candidates(one, 2)}).error().code == ErrorCode::invalid_state);
}
