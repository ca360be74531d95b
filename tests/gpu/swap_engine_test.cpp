// Engines whose cache is larger than the device memory for it: answers, what is computed again (nothing), plans,
// errors.
#include <catch2/catch.hpp>

#include <chrono>
#include <cmath>
#include <filesystem>

#include "tests/engine/split_models.hpp"
#include "tests/gpu/machines.hpp"
#include "tests/load/temp_dir.hpp"

using namespace llminfer;
using namespace llminfer::test;

namespace {

/// Room for 16 pages, on the device for two.
EngineOptions options_for(std::shared_ptr<Backend> backend, std::int64_t device_tokens = 128) {
  EngineOptions options;
  options.threads = 1;
  options.custom_backend = std::move(backend);
  options.context_length = 128;
  options.cache_tokens = 1024;
  options.device_cache_tokens = device_tokens;
  options.max_batch_tokens = 16;
  return options;
}

GenerateOptions some(std::int32_t tokens) {
  GenerateOptions options;
  options.max_tokens = tokens;
  options.ignore_end = true;
  return options;
}

/// Sessions that take turns, one forked and one rewound, and requests that run together.
std::vector<float> conversations(const Engine& engine) {
  std::vector<float> all;
  const auto add = [&](const Session& session) {
    all.insert(all.end(), session.logits().begin(), session.logits().end());
  };
  std::vector<Session> sessions;
  for (unsigned i = 0; i < 3; ++i) {
    sessions.push_back(engine.new_session().value());
    sessions.back().prefill(some_tokens(2 + i, i)).value();
    add(sessions.back());
  }
  sessions.push_back(sessions[1].fork().value());
  sessions[2].truncate(2).value();
  for (const std::size_t i : {3, 1, 2}) {
    sessions[i].prefill(some_tokens(1, 9)).value();
    add(sessions[i]);
  }
  sessions.erase(sessions.begin());
  std::vector<Completion> running;
  for (unsigned i = 0; i < 2; ++i) {
    CompletionRequest request;
    request.tokens = some_tokens(1 + i, 20 + i);
    request.options = some(1);
    running.push_back(engine.submit(std::move(request)).value());
  }
  for (Completion& completion : running) {
    for (const Token token : completion.wait().value().tokens) all.push_back(static_cast<float>(token));
  }
  sessions[2].prefill(some_tokens(1, 30)).value();
  add(sessions[2]);
  return all;
}

}  // namespace

TEST_CASE(
    "An engine with little device memory for its cache answers as one that has all, computes nothing again, and "
    "holds what was planned") {
  const std::string model = path_of("tiny-bf16");
  const auto gpu = make_machine_backend();
  const MemoryPlan plan = Engine::plan(model, options_for(gpu)).value();
  const MemoryPlan whole = Engine::plan(model, options_for(gpu, 0)).value();
  CHECK(whole.host_cache == 0);
  CHECK(plan.host_cache == whole.cache);
  CHECK(plan.cache * 8 == whole.cache);
  CHECK(plan.total() == whole.total() + plan.cache);
  CHECK(plan.shares.at(0).host_cache == plan.host_cache);
  CHECK(plan.shares.at(0).total() == plan.total() - plan.host_cache);
  std::vector<float> expected;
  std::int64_t computed = 0;
  {
    const Engine engine = Engine::load(model, options_for(gpu, 0)).value();
    expected = conversations(engine);
    computed = engine.stats().prefill_tokens;
    CHECK(engine.stats().moved_cache_bytes == 0);
  }
  {
    const Engine engine = Engine::load(model, options_for(gpu)).value();
    CHECK(holds(plan.shares[0].total(), plan.host_cache));
    CHECK(engine.stats().cache_bytes == plan.cache + plan.host_cache);
    CHECK(engine.stats().pages_total == 16);
    CHECK(conversations(engine) == expected);
    CHECK(engine.stats().prefill_tokens == computed);
    CHECK(engine.stats().preemptions == 0);
    CHECK(engine.stats().pages_used == 0);
    CHECK(engine.stats().moved_cache_bytes > 0);
  }
  {
    const TempDir folder;
    EngineOptions options = options_for(gpu);
    options.cache_folder = folder.path();
    const MemoryPlan filed = Engine::plan(model, options).value();
    CHECK(filed.disk_cache == plan.host_cache);
    CHECK(filed.host_cache == 0);
    CHECK(filed.shares[0].total() == plan.shares[0].total());
    const Engine engine = Engine::load(model, options).value();
    CHECK(holds(plan.shares[0].total(), 0));
    CHECK(std::filesystem::is_empty(folder.path()));
    CHECK(conversations(engine) == expected);
    CHECK(engine.stats().moved_cache_bytes > 0);
    options.device_cache_tokens = 0;  // all pages lie in device memory
    CHECK(Engine::plan(model, options).value().disk_cache == 0);
  }
  CHECK(holds(0, 0));
}

TEST_CASE("A context that device memory has no room for passes through it", "[.slow]") {
  const std::string model = path_of("tiny-bf16");
  const auto gpu = make_machine_backend();
  for (const CacheType type : {CacheType::f16, CacheType::int4}) {
    std::vector<std::vector<float>> answers;
    for (const std::int64_t device_tokens : {0, 128}) {
      EngineOptions options = options_for(gpu, device_tokens);
      options.context_length = 192;
      options.cache_tokens = 640;
      options.max_batch_tokens = 48;
      options.cache_type = type;
      const Engine engine = Engine::load(model, options).value();
      auto& all = answers.emplace_back();
      Session long_one = engine.new_session().value(), other = engine.new_session().value();
      long_one.prefill(some_tokens(180, 1)).value();
      other.prefill(some_tokens(70, 2)).value();
      CompletionRequest beside;
      beside.tokens = some_tokens(5, 3);
      beside.options = some(4);
      auto running = engine.submit(std::move(beside)).value();
      for (Session* session : {&long_one, &other}) {
        const auto tokens = session->generate(some(5)).value().tokens;
        all.insert(all.end(), tokens.begin(), tokens.end());
        all.insert(all.end(), session->logits().begin(), session->logits().end());
      }
      for (const Token token : running.wait().value().tokens) all.push_back(static_cast<float>(token));
      CHECK((engine.stats().moved_cache_bytes > 0) == (device_tokens > 0));
    }
    // Which passes requests share is a matter of time, and tiles round by that: tokens are the same, logits nearly.
    REQUIRE(answers[0].size() == answers[1].size());
    for (std::size_t i = 0; i < answers[0].size(); ++i) {
      CHECK(std::abs(answers[0][i] - answers[1][i]) <= 1e-2f * (1 + std::abs(answers[0][i])));
    }
  }
}

TEST_CASE("Requests that have no room beside each other all come to their end", "[.slow]") {
  const std::string model = path_of("tiny-bf16");
  const auto gpu = make_machine_backend();
  const auto answers = [&](std::int64_t device_tokens) {
    EngineOptions options = options_for(gpu, device_tokens);
    options.context_length = 64;
    const Engine engine = Engine::load(model, options).value();
    std::vector<Completion> running;
    for (unsigned i = 0; i < 6; ++i) {
      CompletionRequest request;
      request.tokens = some_tokens(2, i);
      request.options = some(3);
      if (i == 3) request.options.deadline = std::chrono::milliseconds(0);
      running.push_back(engine.submit(std::move(request)).value());
    }
    running[1].cancel();
    std::vector<std::vector<Token>> all;
    for (std::size_t i = 0; i < running.size(); ++i) {
      const CompletionResult result = running[i].wait().value();
      if (i != 1) all.push_back(result.tokens);
      if (i == 3) CHECK(result.reason == FinishReason::deadline);
    }
    CHECK(engine.stats().pages_used == 0);
    CHECK(engine.stats().preemptions == 0);
    return all;
  };
  CHECK(answers(64) == answers(0));  // one page: one request at a time
}

TEST_CASE("What a closed session has computed is found, in pages that have left the device, too") {
  EngineOptions options = options_for(make_machine_backend({}, true));
  options.max_batch_tokens = 70;
  const Engine engine = Engine::load(path_of("tiny-bf16"), options).value();
  const auto logits_after = [&](unsigned seed) {
    Session session = engine.new_session().value();
    session.prefill(some_tokens(70, seed)).value();
    return std::vector<float>(session.logits().begin(), session.logits().end());
  };
  const std::vector<float> expected = logits_after(1);
  (void)logits_after(2);
  const EngineStats before = engine.stats();
  CHECK(before.pages_kept == 2);
  CHECK(before.cached_tokens == 0);
  CHECK(logits_after(1) == expected);
  CHECK(engine.stats().prefill_tokens - before.prefill_tokens == 6);
  CHECK(engine.stats().moved_cache_bytes > before.moved_cache_bytes);
}

TEST_CASE("Device memory for a cache that cannot be") {
  const std::string model = path_of("tiny-bf16");
  const auto gpu = make_machine_backend();
  const auto error = [&](std::int64_t device_tokens, std::int32_t context = 128) {
    EngineOptions options = options_for(gpu, device_tokens);
    options.context_length = context;
    return refusal(model, options);
  };
  for (const std::int64_t tokens : {std::int64_t{-1}, std::int64_t{1} << 40}) {
    CHECK_THAT(error(tokens), Catch::Contains("invalid_argument") && Catch::Contains("device_cache_tokens"));
  }
  // Two of three layers of 256 tokens: 2.67 pages.
  CHECK_THAT(error(128, 256), Catch::Contains("invalid_argument") && Catch::Contains("device_cache_tokens is 128") &&
                                  Catch::Contains("at least 192"));
  EngineOptions options = options_for(gpu, 192);
  options.context_length = 256;
  CHECK(Engine::plan(model, options));

  // The CPU's layers have no other memory.
  options = options_for(nullptr, 64);
  EngineOptions without = options_for(nullptr, 0);
  CHECK(Engine::plan(model, options).value().total() == Engine::plan(model, without).value().total());
  options = options_for(nullptr);
  options.split = {{{}, 1}, {gpu, 2}};
  const MemoryPlan plan = Engine::plan(model, options).value();
  CHECK(plan.shares[0].host_cache == 0);
  CHECK(plan.shares[1].host_cache == plan.host_cache);
  CHECK(plan.shares[1].cache * 8 == plan.host_cache);
  options.split = {{}, {gpu, {}, plan.shares[1].total()}};  // a limit is for what the device holds
  CHECK(Engine::plan(model, options).value().shares[1].layers == 2);
  options.device_cache_tokens = 0;
  CHECK(Engine::plan(model, options).value().shares[1].layers < 2);
}
