// The highest logits of rows on the device: the kernels against a sort, what plans give of them and of the rows later,
// and engines that fetch no rows.
#include <catch2/catch.hpp>

#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <tuple>
#include <utility>

#include "tests/cpu/model.hpp"
#include "tests/engine/candidates.hpp"
#include "tests/engine/split_models.hpp"
#include "tests/gpu/machines.hpp"
#include "tests/gpu/plain_plans.hpp"

using namespace llminfer;
using namespace llminfer::test;

namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

/// Normal, in few steps, all the same, mostly forbidden, and with what is no number, row by row.
std::vector<float> some_rows(int rows, int width, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0.0f, 4.0f);
  std::vector<float> logits(static_cast<std::size_t>(rows * width));
  for (int row = 0; row < rows; ++row) {
    for (int i = 0; i < width; ++i) {
      float x = normal(random);
      if (row % 5 == 1) x = std::round(x);
      if (row % 5 == 2) x = -0.0f;
      if (row % 5 == 3 && random() % 64 != 0) x = random() % 2 ? -kInf : kNan;
      if (row % 5 == 4 && random() % 8 == 0) x = random() % 2 ? 0.0f : -0.0f;
      logits[static_cast<std::size_t>(row * width + i)] = x;
    }
  }
  return logits;
}

struct Given {
  std::vector<TokenLogit> candidates;
  std::vector<double> sums;
  std::vector<DrawnToken> draws;
};

/// What row `row` of a kernel's test wishes to be drawn.
CandidateWish draw_of(std::size_t row) {
  const double places[] = {0.0, 0.3, 0.999999, 0.5, 0.07}, temperatures[] = {1.0, 0.7, 3.0};
  return {.count = 1, .temperature = temperatures[row % 3], .place = places[row % 5]};
}

/// Of each row's first `tokens` logits so many; of every second row with candidates the sum, and of every one that is
/// no multiple of 3 a token.
Given run_kernel(gpu::Device& device_ref, std::shared_ptr<gpu::Device> device, const std::vector<float>& logits,
                 int width, int tokens, const std::vector<int>& counts) {
  const int rows = static_cast<int>(counts.size());
  std::vector<gpu::CandidateTask> tasks;
  int all = 0;
  for (int row = 0; row < rows; ++row) {
    const int count = counts[static_cast<std::size_t>(row)];
    gpu::CandidateTask& task = tasks.emplace_back();
    task = {count, all, row % 2 && count ? row : -1, row % 3 && count ? row : -1, {}, {}};
    const CandidateWish draw = draw_of(static_cast<std::size_t>(row));
    std::memcpy(task.temperature, &draw.temperature, sizeof draw.temperature);
    std::memcpy(task.place, &draw.place, sizeof draw.place);
    all += count;
  }
  const auto buffer = [&](std::size_t bytes, bool host = false) {
    return gpu::Buffer::make(device, static_cast<std::int64_t>(bytes + 8), host).value();
  };
  const auto up = [&](const void* from, std::size_t bytes) {
    const gpu::Buffer host = buffer(bytes, true);
    gpu::Buffer to = buffer(bytes);
    std::memcpy(host.at(), from, bytes);
    device_ref.copy(to.at(), host.at(), static_cast<std::int64_t>(bytes)).value();
    device_ref.wait().value();
    return to;
  };
  const std::size_t slices =
      static_cast<std::size_t>((tokens + gpu::kCandidateSlice - 1) / gpu::kCandidateSlice * rows);
  const gpu::Buffer in = up(logits.data(), logits.size() * 4), words = up(tasks.data(), tasks.size() * sizeof tasks[0]),
                    parts = buffer(slices * gpu::kMaxCandidates * 8), part_sums = buffer(slices * 24);
  Given given;
  given.candidates.resize(static_cast<std::size_t>(all));
  given.sums.resize(counts.size());
  given.draws.resize(counts.size());
  const auto candidate_bytes = static_cast<std::int64_t>(given.candidates.size() * sizeof(TokenLogit)),
             sum_bytes = static_cast<std::int64_t>(given.sums.size() * sizeof(double)),
             draw_bytes = static_cast<std::int64_t>(given.draws.size() * sizeof(DrawnToken));
  const gpu::Buffer out = buffer(static_cast<std::size_t>(candidate_bytes)),
                    sums = buffer(static_cast<std::size_t>(sum_bytes)),
                    draws = buffer(static_cast<std::size_t>(draw_bytes)),
                    host = buffer(static_cast<std::size_t>(candidate_bytes + sum_bytes + draw_bytes), true);
  const gpu::CandidatesArgs args{{in.at<float>(), width},
                                 words.at<gpu::CandidateTask>(),
                                 rows,
                                 tokens,
                                 parts.at<std::uint64_t>(),
                                 part_sums.at<double>(),
                                 out.at<gpu::CandidateOut>(),
                                 sums.at<double>(),
                                 draws.at<gpu::DrawOut>()};
  {
    const gpu::Current current(device_ref);
    device_ref.check(device_ref.kernels().candidates(device_ref.stream(), args), "candidates").value();
  }
  device_ref.copy(host.at(), out.at(), candidate_bytes).value();
  device_ref.copy(host.at(candidate_bytes), sums.at(), sum_bytes).value();
  device_ref.copy(host.at(candidate_bytes + sum_bytes), draws.at(), draw_bytes).value();
  device_ref.wait().value();
  std::memcpy(given.candidates.data(), host.at(), static_cast<std::size_t>(candidate_bytes));
  std::memcpy(given.sums.data(), host.at(candidate_bytes), static_cast<std::size_t>(sum_bytes));
  std::memcpy(static_cast<void*>(given.draws.data()), host.at(candidate_bytes + sum_bytes),
              static_cast<std::size_t>(draw_bytes));
  return given;
}

/// Whether a drawn token is what the row's weights make it, as far as sums of double precision say.
bool right_draw(const DrawnToken& drawn, std::span<const float> logits, const CandidateWish& wish) {
  const DrawnToken expected = drawn_token(logits, wish.temperature, wish.place);
  if (expected.token < 0) return drawn.token < 0;
  const auto near = [&](double a, double b) { return std::fabs(a - b) <= kCandidateSumError * expected.sum; };
  return drawn.token == expected.token && std::memcmp(&drawn.logit, &expected.logit, 4) == 0 &&
         near(drawn.below, expected.below) && near(drawn.weight, expected.weight) && near(drawn.sum, expected.sum);
}

void check_kernel(const Machine& machine, int width, int tokens, const std::vector<int>& counts) {
  const auto device = make_machine(machine.options);
  const auto logits = some_rows(static_cast<int>(counts.size()), width, static_cast<unsigned>(width + tokens));
  CAPTURE(machine.name, width, tokens);
  const Given given = run_kernel(*device, device, logits, width, tokens, counts);
  auto next = given.candidates.begin();
  for (std::size_t row = 0; row < counts.size(); ++row) {
    const std::span<const float> of_row(logits.data() + row * static_cast<std::size_t>(width),
                                        static_cast<std::size_t>(tokens));
    CAPTURE(row, counts[row]);
    bool right = true;
    for (const TokenLogit& expected : best_candidates(of_row, counts[row])) {
      right = right && next->token == expected.token && std::memcmp(&next->logit, &expected.logit, 4) == 0;
      ++next;
    }
    CHECK(right);
    if (row % 3 != 0 && counts[row] > 0) CHECK(right_draw(given.draws[row], of_row, draw_of(row)));
    if (row % 2 == 0 || counts[row] == 0) continue;
    const double sum = candidate_sum(of_row);
    CHECK(std::fabs(given.sums[row] - sum) <= kCandidateSumError * sum);
  }
}

}  // namespace

TEST_CASE("The highest logits of rows, whatever is in them, on every machine") {
  const auto all = machines(3);
  check_kernel(all[0], 700, 690, {1, 40, 128, 0, 7, 1, 128, 2, 40, 3});
  check_kernel(all[all.size() - 1], 4100, 4097, {40, 1, 0, 64, 5});
  check_kernel(all[0], 3, 3, {1, 128, 3, 2});
}

TEST_CASE("The highest logits of all sizes of rows, on every machine, with every schedule", "[.slow]") {
  const std::vector<int> counts = {1, 2, 40, 0, 127, 128, 1, 128, 128, 128};
  for (const std::uint64_t seed : {1, 2}) {
    for (const Machine& machine : machines(seed)) {
      for (const int tokens : {1, 2, 127, 128, 129, 4095, 4096, 4097, 9000}) {
        check_kernel(machine, tokens + 5, tokens, counts);
      }
    }
  }
  check_kernel(machines(1)[0], 140000, 140000, {128, 128, 1, 50});  // more than a block merges at once
}

TEST_CASE("A plan gives candidates of some rows, logits of others, and any row's logits afterwards") {
  for (const bool direct : {true, false}) {
    Shape shape{.layers = 1, .heads = 2, .kv_heads = 1, .ffn = 32, .hidden = 32};
    Program program = make_program(shape);
    if (!direct) {  // logits that something else reads are an ordinary value
      Builder b("double");
      const WeightId embedding = b.weight("embed", shape.vocab, shape.hidden);
      const ValueId x = b.rms_norm(b.embed(embedding, "x"), b.vector("norm", shape.hidden), 1e-5f, "hidden");
      const ValueId once = b.linear(x, b.weight("head", shape.vocab, shape.hidden), "once");
      program = std::move(b).finish(x, b.add(once, once, "logits")).value();
    }
    const Model model = make_model(std::move(program), WeightType::f32);
    const std::int32_t count = 70, vocab = shape.vocab, tokens = vocab - 3;
    Driver driver(model, make_machine_backend(), CacheType::f16);
    REQUIRE(driver.plan->max_candidates() == gpu::kMaxCandidates);
    std::vector<float> fetched(static_cast<std::size_t>(vocab));
    CHECK(driver.plan->fetch_logits(0, fetched).error().code == ErrorCode::invalid_state);
    Parts whole(model, count), some(model, count);
    for (Parts* parts : {&whole, &some}) parts->runs[0].block_tables.resize(model.program.cache_groups.size());
    REQUIRE(pass(driver, whole.batch));
    std::vector<CandidateWish> wishes;
    std::size_t candidates = 0;
    for (std::int32_t row = 0; row < count; ++row) {
      wishes.push_back({row % 3 == 0 ? 0 : row % 7, row % 3 != 0 && row % 7 > 3});
      if (row % 4 == 1 && wishes.back().count > 0) wishes.back().temperature = 0.9, wishes.back().place = row / 80.0;
      candidates += static_cast<std::size_t>(wishes.back().count);
    }
    std::vector<TokenLogit> given(candidates);
    std::vector<double> sums(wishes.size());
    const auto rows = std::count_if(wishes.begin(), wishes.end(), [](const auto& wish) { return wish.count == 0; });
    some.batch.logits = some.batch.logits.first(static_cast<std::size_t>(rows * vocab));
    some.batch.candidate_wishes = wishes;
    some.batch.candidates = given;
    some.batch.candidate_sums = sums;
    std::vector<DrawnToken> draws(wishes.size());
    some.batch.draws = draws;
    CHECK(pass(driver, some.batch).error().message.find("candidate_tokens") != std::string::npos);
    some.batch.candidate_tokens = tokens;
    REQUIRE(pass(driver, some.batch));
    CHECK(same_bits(some.hidden, whole.hidden));
    auto next = given.begin();
    const float* next_row = some.logits.data();
    for (std::size_t row = 0; row < wishes.size(); ++row) {
      CAPTURE(direct, row);
      const std::span<const float> all(whole.logits.data() + row * fetched.size(), fetched.size());
      driver.plan->fetch_logits(row, fetched).value();
      bool right = std::equal(all.begin(), all.end(), fetched.begin());
      if (wishes[row].count == 0) {
        right = right && std::equal(all.begin(), all.end(), next_row);
        next_row += vocab;
      }
      const auto below = all.first(static_cast<std::size_t>(tokens));
      for (const TokenLogit& expected : best_candidates(below, wishes[row].count)) {
        right = right && next->token == expected.token && next->logit == expected.logit;
        ++next;
      }
      if (wishes[row].sum) right = right && std::fabs(sums[row] / candidate_sum(below) - 1) <= kCandidateSumError;
      if (wishes[row].temperature > 0) right = right && right_draw(draws[row], below, wishes[row]);
      CHECK(right);
    }
    CHECK(driver.plan->fetch_logits(wishes.size(), fetched).error().code == ErrorCode::invalid_argument);
    CHECK(driver.plan->fetch_logits(0, std::span(fetched).first(5)).error().code == ErrorCode::invalid_argument);

    // What a batch may not wish.
    const auto refused = [&](const char* what) {
      CHECK_THAT(pass(driver, some.batch).error().message, Catch::Contains(what));
      CHECK(driver.plan->fetch_logits(0, fetched).error().code == ErrorCode::invalid_state);
    };
    some.batch.candidate_sums = {};
    refused("candidate_sums");
    some.batch.candidate_sums = sums;
    some.batch.candidates = std::span(given).first(5);
    refused("candidates has 5");
    some.batch.candidates = given;
    wishes[1].count = gpu::kMaxCandidates + 1;
    refused("129 candidates");
    wishes[1] = {0, true};
    refused("a sum without candidates");
    wishes[1] = {0, false, 1.0, 0.5};
    refused("a draw without candidates");
    wishes[1] = {1, false, 1.0, 1.0};
    refused("a draw at 1 and temperature 1");
    wishes[1] = {1, false, -1.0, 0.0};
    refused("a draw at 0 and temperature -1");
    wishes[1] = {1, false, 1.0, 0.0};
    some.batch.draws = std::span(draws).first(3);
    refused("draws has 3");
    some.batch.candidate_wishes = std::span(wishes).first(9);
    refused("candidate_wishes has 9");
  }
}

namespace {

constexpr std::int32_t kAnswer = 2;

/// 0 on a GPU, whose copies nobody counts.
std::int64_t fetched_bytes() {
#ifdef LLMINFER_TEST_GPU
  return 0;
#else
  return gpu::emulated_bytes_fetched();
#endif
}

/// Tokens and log probabilities of requests that run together. The first four want candidates that suffice.
std::vector<float> answers(const Engine& engine, unsigned first, unsigned last) {
  std::vector<float> all;
  std::vector<Completion> running;
  for (unsigned i = first; i < last; ++i) {
    CompletionRequest request;
    request.tokens = some_tokens(2, i);
    request.options.max_tokens = kAnswer;
    request.options.ignore_end = true;
    SamplingOptions& o = request.options.sampling;
    o.seed = i;
    if (i > 0) o.temperature = 1.0f;
    if (i == 1) o.top_k = 20;
    if (i == 2) o.top_k = 5, o.repetition_penalty = 1.2f, o.logit_bias = {{3, -kInf}};
    if (i == 4) o.top_p = 0.3f;
    if (i == 5) o.min_p = 0.2f, o.logprobs = 2;
    if (i == 6) o.mirostat_tau = 2.0f;
    if (i == 7) o.typical_p = 0.5f;
    if (i == 8) o.processor = [](auto, std::span<float> logits) { logits[7] = 50.0f; };
    running.push_back(engine.submit(std::move(request)).value());
  }
  for (Completion& completion : running) {
    const CompletionResult result = completion.wait().value();
    for (const Token token : result.tokens) all.push_back(static_cast<float>(token));
    for (const Sample& sample : result.samples) {
      all.push_back(sample.logprob);
      for (const TokenLogprob& top : sample.top) all.insert(all.end(), {static_cast<float>(top.token), top.logprob});
    }
  }
  return all;
}

/// Whatever ends an answer, a session has its logits, and goes on.
std::vector<float> session_answers(const Engine& engine) {
  std::vector<float> all;
  Session session = engine.new_session().value();
  session.prefill(some_tokens(2, 9)).value();
  GenerateOptions options;
  options.max_tokens = kAnswer;
  options.ignore_end = true;
  const auto second = session.fork().value().generate(options).value().tokens.back();
  for (const bool stops : {true, false}) {
    if (stops) options.stop_tokens = {second};
    const auto result = session.generate(options).value();
    CHECK(result.reason == (stops ? FinishReason::stop : FinishReason::length));
    options.stop_tokens.clear();
    for (const Token token : result.tokens) all.push_back(static_cast<float>(token));
    REQUIRE_FALSE(session.logits().empty());
    all.insert(all.end(), session.logits().begin(), session.logits().end());
  }
  return all;
}

EngineOptions options_on(std::shared_ptr<Backend> backend) {
  EngineOptions options = options_of({});
  options.custom_backend = std::move(backend);
  options.max_batch_tokens = 32;
  return options;
}

}  // namespace

TEST_CASE("Engines that take candidates give the tokens of engines that take rows") {
  const auto gpu = make_machine_backend();
  const auto given = [&](const std::shared_ptr<Backend>& backend) {
    return answers(Engine::load(path_of("tiny-bf16"), options_on(backend)).value(), 3, 9);
  };
  CHECK(given(gpu) == given(without_candidates(gpu)));
}

TEST_CASE("Sessions have their logits, and the last stage of a split model gives candidates", "[.slow]") {
  const auto gpu = make_machine_backend();
  const auto given = [&](const std::shared_ptr<Backend>& backend, std::vector<LayerShare> split) {
    EngineOptions options = options_on(backend);
    if (!split.empty()) options.custom_backend = nullptr;
    options.split = std::move(split);
    const Engine engine = Engine::load(path_of("tiny-bf16"), options).value();
    const std::int64_t before = fetched_bytes();
    const auto tokens = answers(engine, 0, 4);
    const std::int64_t bytes = fetched_bytes() - before;
    return std::tuple(tokens, session_answers(engine), bytes);
  };
  for (const bool split : {false, true}) {
    const auto shares = [&](const std::shared_ptr<Backend>& backend) {
      return split ? std::vector<LayerShare>{{{}, 1}, {backend, {}}} : std::vector<LayerShare>();
    };
    const auto plain = without_candidates(gpu);
    const auto [tokens, session, bytes] = given(gpu, shares(gpu));
    const auto [expected, expected_session, rows] = given(plain, shares(plain));
    CHECK(tokens == expected);
    CHECK(session == expected_session);
    CHECK((bytes < rows / 4 || rows == 0));
  }
}

#ifndef LLMINFER_TEST_GPU
TEST_CASE("Requests copy candidates and what is drawn to the host, and no row of logits") {
  const auto gpu = make_machine_backend();
  std::int64_t vocab = 0;
  const auto given = [&](const std::shared_ptr<Backend>& backend, unsigned first, unsigned last) {
    const Engine engine = Engine::load(path_of("tiny-bf16"), options_on(backend)).value();
    vocab = engine.info().vocab_size;
    const std::int64_t before = fetched_bytes();
    const auto tokens = answers(engine, first, last);
    return std::pair(tokens, fetched_bytes() - before);
  };
  // For each token: the best; the best 21; the best 6, one for the bias, and one for each token of the text.
  std::int64_t candidates = 0;
  for (std::int32_t token = 0; token < kAnswer; ++token) candidates += 1 + 21 + 6 + 1 + 2 + token;
  const auto [tokens, bytes] = given(gpu, 0, 3);
  const auto [expected, rows] = given(without_candidates(gpu), 0, 3);
  CHECK(tokens == expected);
  CHECK(bytes == candidates * static_cast<std::int64_t>(sizeof(TokenLogit)));
  CHECK(rows == 3 * kAnswer * vocab * static_cast<std::int64_t>(sizeof(float)));
  // One that draws from all tokens.
  const auto [drawn, drawn_bytes] = given(gpu, 3, 4);
  CHECK(drawn == given(without_candidates(gpu), 3, 4).first);
  CHECK(drawn_bytes == kAnswer * static_cast<std::int64_t>(sizeof(TokenLogit) + sizeof(DrawnToken)));
}
#endif
