// Engines whose GPU has too little memory and streams the layers that it does not hold: tokens, plans, errors, and what
// is left when they are gone.
#include <catch2/catch.hpp>

#include <thread>

#include "tests/gpu/deep_model.hpp"
#include "tests/gpu/machines.hpp"

using namespace llminfer;
using namespace llminfer::test;

TEST_CASE("An engine that streams gives the tokens of one that does not, and holds what was planned") {
  const DeepModel model;
  const auto gpu = make_machine_backend();
  EngineOptions options = options_for({{gpu}});
  const MemoryPlan whole = Engine::plan(model.path(), options).value();
  CHECK(whole.streamed == 0);
  const std::vector<Token> expected = some_answers(Engine::load(model.path(), options_for({})).value());  // the CPU's

  const std::int64_t layer = Engine::plan(model.path(), options_for({{{}, 1}, {gpu, 1}, {}})).value().shares[1].weights;
  std::int64_t last = 0;
  for (const int fewer : {1, 5}) {
    CAPTURE(fewer);
    options.split = {{gpu, {}, whole.total() - fewer * layer, true}};
    const auto plan = Engine::plan(model.path(), options);
    REQUIRE(plan);
    const MemoryShare& share = plan->shares.at(0);
    CHECK(share.layers == DeepModel::kLayers);
    CHECK(share.total() <= options.split[0].memory);
    CHECK(share.streamed > last);
    CHECK(share.weights + share.streamed == whole.weights);
    CHECK(plan->streamed == share.streamed);
    CHECK(plan->total() == share.total() + share.streamed);
    last = share.streamed;
    const Engine engine = Engine::load(model.path(), options).value();
    CHECK(holds(share.total(), share.streamed));
    CHECK(engine.stats().weight_bytes == whole.weights);
    if (fewer > 1) CHECK(some_answers(engine) == expected);
  }
  options.split[0].memory = whole.total();  // room enough
  CHECK(Engine::plan(model.path(), options).value().streamed == 0);
}

TEST_CASE("Several GPUs that each stream their layers, in one process or as ranks", "[.slow]") {
  const DeepModel model;
  const auto first = make_machine_backend(), second = make_machine_backend();
  const std::vector<Token> expected = some_answers(Engine::load(model.path(), options_for({})).value());
  const auto halves = Engine::plan(model.path(), options_for({{first, 4}, {second, 4}})).value().shares;
  const auto limit = [&](std::size_t share) { return halves[share].total() - halves[share].weights / 16; };
  const std::vector<LayerShare> split = {{first, 4, limit(0), true}, {second, {}, limit(1), true}};
  {
    const MemoryPlan plan = Engine::plan(model.path(), options_for(split)).value();
    for (const MemoryShare& share : plan.shares) {
      CHECK(share.layers == 4);
      CHECK(share.streamed > 0);
    }
    CHECK(some_answers(Engine::load(model.path(), options_for(split)).value()) == expected);
  }
  {  // One of three streams.
    std::vector<LayerShare> beside = {{{}, 2}, {first, 4}, {second, 2}};
    const std::int64_t fits = Engine::plan(model.path(), options_for(beside)).value().shares[1].total();
    beside[1] = {first, {}, fits - 1, true};
    const MemoryPlan plan = Engine::plan(model.path(), options_for(beside)).value();
    CHECK(plan.streamed > 0);
    CHECK(plan.shares[1].streamed == plan.streamed);
  }
  auto ranks = make_thread_communicators(2).value();
  Result<void> served;
  std::thread other([&] {
    EngineOptions options = options_for(split);
    options.communicator = std::move(ranks[1]);
    served = Engine::serve(model.path(), options);
  });
  {
    EngineOptions options = options_for(split);
    options.communicator = std::move(ranks[0]);
    CHECK(some_answers(Engine::load(model.path(), options).value()) == expected);
  }
  other.join();
  CHECK(served);
}

TEST_CASE("Loads and unloads of engines that stream leave nothing behind") {
  const auto gpu = make_machine_backend();
  EngineOptions options = options_for({{gpu}});
  const MemoryPlan whole = Engine::plan(path_of("tiny-bf16"), options).value();
  options.split = {{gpu, {}, whole.total() - 1, true}};
  CompletionRequest request;
  request.tokens = some_tokens(5, 1);
  request.options.max_tokens = 1;
  for (int turn = 0; turn < 6; ++turn) {
    const Engine engine = Engine::load(path_of("tiny-bf16"), options).value();
    if (turn == 0) CHECK(engine.complete(request));
  }
  CHECK(holds(0, 0));
}

TEST_CASE("Shares that cannot stream") {
  const std::string model = path_of("tiny-bf16");
  const auto gpu = make_machine_backend();
  const auto error = [&](std::vector<LayerShare> split) { return refusal(model, options_for(std::move(split))); };
  CHECK_THAT(error({{gpu, {}, 0, true}}),
             Catch::Contains("invalid_argument") && Catch::Contains("split[0]: stream without a memory limit"));
  CHECK_THAT(error({{gpu, {}, 1000, true}, {}}), Catch::Contains("invalid_argument") && Catch::Contains("split[1]"));
  CHECK_THAT(error({{gpu, {}, 1000, true}}),
             Catch::Contains("out_of_memory") && Catch::Contains("split[0]") && Catch::Contains("more than its limit"));
  const std::int64_t all = Engine::plan(model, options_for({{}})).value().total();
  CHECK_THAT(error({{{}, {}, all - 1, true}}), Catch::Contains("unsupported") && Catch::Contains("split[0]") &&
                                                   Catch::Contains("does not stream weights"));
  CHECK_THAT(error({{gpu, 1, 1 << 20}, {{}, {}, 1000, true}}), Catch::Contains("split[1]"));
}
