// Ranks on GPUs which have too little memory for their part of the cache, and keep it in host memory.
#include <catch2/catch.hpp>
#include <filesystem>

#include "tests/gpu/collectives.hpp"

using namespace llminfer;
using namespace llminfer::test;

namespace {

EngineOptions swapping_options(std::int64_t device_tokens) {
  EngineOptions options = summing_options(DeviceSums::never);
  options.cache_tokens = 512;
  options.device_cache_tokens = device_tokens;
  return options;
}

/// What sessions that take turns give, one of them forked, and requests that run together, with more pages than a pass
/// may use.
std::vector<float> conversations(const Engine& engine) {
  std::vector<float> all;
  std::vector<Session> sessions;
  for (unsigned i = 0; i < 2; ++i) {
    sessions.push_back(engine.new_session().value());
    sessions.back().prefill(some_tokens(3 + i, i)).value();
  }
  sessions.push_back(sessions[0].fork().value());
  for (const std::size_t i : {2, 1, 0}) {
    sessions[i].prefill(some_tokens(1, 9)).value();
    all.insert(all.end(), sessions[i].logits().begin(), sessions[i].logits().end());
  }
  std::vector<Completion> running;
  for (unsigned i = 0; i < 5; ++i) {
    CompletionRequest request;
    request.tokens = some_tokens(2, 20 + i);
    request.options.max_tokens = 2;
    request.options.ignore_end = true;
    running.push_back(engine.submit(std::move(request)).value());
  }
  for (Completion& completion : running) {
    for (const Token token : completion.wait().value().tokens) all.push_back(static_cast<float>(token));
  }
  return all;
}

}  // namespace

TEST_CASE("Ranks whose cache is larger than their device memory for it give what they give without") {
  const FourHeadsModel model(4);
  for (const int shards : {1, 2}) {
    const auto run = [&](std::int64_t device_tokens, Backends backends) {
      const EngineOptions options = swapping_options(device_tokens);
      const auto communicators = make_thread_communicators(2).value();
      EngineOptions planned = of_rank(communicators[0], shards, options);
      planned.custom_backend = backends.at(1);
      const MemoryPlan plan = Engine::plan(model.path(), planned).value();
      Ranks ranks(model.path(), make_thread_communicators(2).value(), shards, options, backends);
      if (!ranks.engine()) FAIL(ranks.engine().error().message);
      const Engine& engine = *ranks.engine();
      CHECK((plan.host_cache > 0) == (device_tokens > 0));
      std::int64_t swapped = 0;
      for (const auto& [rank, backend] : backends) swapped += plan.shares[rank].host_cache;
      CHECK(gpu::emulated_pinned_memory_in_use() == swapped);
      auto found = conversations(engine);
      CHECK((engine.stats().moved_cache_bytes > 0) == (device_tokens > 0 && backends.contains(0)));
      CHECK(engine.stats().preemptions == 0);
      CHECK(engine.stats().pages_used == 0);
      for (const auto& outcome : ranks.end()) CHECK(outcome);
      return found;
    };
    CAPTURE(shards);
    const Backends gpus = summing_backends(2), second{{1, gpus.at(1)}};
    CHECK(run(64, gpus) == run(0, gpus));
    // Rank 0's own memory limits nothing: it is the host's.
    if (shards == 1) CHECK(run(64, second) == run(0, second));
  }
}

TEST_CASE("Ranks whose pages lie in files do not sum on their devices") {
  const FourHeadsModel model(4);
  for (const DeviceSums sums : {DeviceSums::automatic, DeviceSums::required}) {
    EngineOptions options = swapping_options(64);
    options.device_sums = sums;
    options.cache_folder = std::filesystem::temp_directory_path();
    Ranks ranks(model.path(), make_thread_communicators(2).value(), 2, options, summing_backends(2));
    if (sums == DeviceSums::required) {
      REQUIRE_FALSE(ranks.engine());
      CHECK(ranks.engine().error().code == ErrorCode::unsupported);
      CHECK_THAT(ranks.engine().error().message, Catch::Contains("cache_folder"));
    } else {
      if (!ranks.engine()) FAIL(ranks.engine().error().message);
      CHECK_FALSE(conversations(*ranks.engine()).empty());
      CHECK_THAT(ranks.engine()->info().backend, !Catch::Contains("sums by"));
    }
  }
}

TEST_CASE("A context that has no room on one rank's device") {
  const FourHeadsModel model(4);
  EngineOptions options = swapping_options(64);
  options.context_length = 192;
  const auto communicators = make_thread_communicators(2).value();
  options = of_rank(communicators[0], 1, options);
  options.custom_backend = summing_backends(1)[0];
  const auto plan = Engine::plan(model.path(), options);  // two of two layers
  REQUIRE_FALSE(plan);
  CHECK(plan.error().code == ErrorCode::invalid_argument);
  CHECK_THAT(plan.error().message, Catch::Contains("at least 192"));
  options.tensor_parallel = 2;  // two of four
  options.device_cache_tokens = 128;
  CHECK(Engine::plan(model.path(), options));
}
