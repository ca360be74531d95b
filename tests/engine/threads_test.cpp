// The engine's threads: idleness, threads that cannot be made, lent ones, engines and busy neighbours side by side.
#include <llminfer/llminfer.hpp>

#include <algorithm>
#include <atomic>
#include <catch2/catch.hpp>
#include <chrono>
#include <cstdlib>
#include <ctime>
#include <thread>

#include "tests/failing_threads.hpp"

using namespace llminfer;
using namespace std::chrono_literals;

namespace {

const std::string kModel = std::string(LLMINFER_TEST_DATA) + "/models/tiny-bf16";

CompletionRequest request(std::int32_t tokens) {
  CompletionRequest request;
  for (Token t = 1; t <= 20; ++t) request.tokens.push_back(t);
  request.options.max_tokens = tokens;
  request.options.ignore_end = true;
  request.options.sampling.temperature = 0.0f;
  return request;
}

std::vector<Token> generate(const Engine& engine, std::int32_t tokens) {
  return engine.complete(request(tokens)).value().tokens;
}

/// Tokens per second of decoding, the best of three.
double decode_rate(const Engine& engine, std::int32_t tokens) {
  double best = 0;
  for (int i = 0; i < 3; ++i) {
    const CompletionResult result = engine.complete(request(tokens)).value();
    best = std::max(best, (tokens - 1) / result.timings.decode_seconds);
  }
  return best;
}

}  // namespace

TEST_CASE("an engine that has nothing to do uses no processor") {
  const Engine engine = Engine::load(kModel, {.threads = 4}).value();
  CHECK(generate(engine, 8).size() == 8);
  const std::clock_t before = std::clock();
  std::this_thread::sleep_for(400ms);
  CHECK(static_cast<double>(std::clock() - before) / CLOCKS_PER_SEC < 0.02);
}

TEST_CASE("an engine whose threads cannot be made is an error") {
  int allowed = 0;
  for (;; ++allowed) {  // three of the team, the tokenizer's for a while, which is not needed, and the engine's
    test::allow_threads(allowed);
    const auto engine = Engine::load(kModel, {.threads = 4});
    test::allow_threads(-1);
    if (engine) break;
    CHECK(to_string(engine.error().code) == to_string(ErrorCode::out_of_memory));
    REQUIRE(allowed < 10);
  }
  CHECK(allowed == 5);
}

TEST_CASE("threads that the host lends, in whatever number, give the same tokens") {
  const std::vector<Token> expected = generate(Engine::load(kModel, {.threads = 1}).value(), 12);
  const Executor in_turn = [](int count, const std::function<void(int, int)>& body) {
    for (int i = 0; i < count; ++i) body(i, count);
  };
  const Executor pool = [](int count, const std::function<void(int, int)>& body) {
    std::vector<std::thread> threads;
    for (int i = 0; i < count; ++i) threads.emplace_back([&body, i, count] { body(i, count); });
    for (std::thread& thread : threads) thread.join();
  };
  for (const Executor& executor : {in_turn, pool}) {
    EngineOptions options{.threads = 3};
    options.executor = executor;
    CHECK(generate(Engine::load(kModel, options).value(), 12) == expected);
  }
}

TEST_CASE("two engines at once give what each gives alone") {
  const Engine one = Engine::load(kModel, {.threads = 3}).value(), two = Engine::load(kModel, {.threads = 2}).value();
  const std::vector<Token> expected = generate(one, 30);
  std::vector<Token> beside;
  std::thread other([&] { beside = generate(two, 30); });
  CHECK(generate(one, 30) == expected);
  other.join();
  CHECK(beside == expected);
}

// For a quiet machine: test_engine "[.timing]" with LLMINFER_TEST_MODEL.
TEST_CASE("beside busy neighbours and another engine the speed is shared", "[.timing]") {
  const char* const model = std::getenv("LLMINFER_TEST_MODEL");
  REQUIRE(model);
  const EngineOptions options{.threads = 0, .context_length = 512};
  const Engine engine = Engine::load(model, options).value();
  const double alone = decode_rate(engine, 64);

  std::atomic<bool> stop{false};
  std::vector<std::thread> busy;
  for (unsigned i = 0; i < std::thread::hardware_concurrency(); ++i) {
    busy.emplace_back([&] {
      while (!stop.load(std::memory_order_relaxed)) {
      }
    });
  }
  const double beside_busy = decode_rate(engine, 64);
  stop = true;
  for (std::thread& thread : busy) thread.join();

  const Engine second = Engine::load(model, options).value();
  double rates[2] = {};
  std::thread other([&] { rates[1] = decode_rate(second, 128); });
  rates[0] = decode_rate(engine, 128);
  other.join();
  WARN("tokens per second: alone " << alone << ", busy neighbours " << beside_busy << ", two engines " << rates[0]
                                   << " and " << rates[1]);
  CHECK(beside_busy > 0.4 * alone);
  CHECK(std::min(rates[0], rates[1]) > 0.4 * alone);
}
