// What a GPU's failures leave behind, on an emulated one that fails when it is told to.
#include <catch2/catch.hpp>

#include <functional>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "tests/cpu/model.hpp"
#include "tests/engine/split_models.hpp"
#include "tests/gpu/machines.hpp"
#include "tests/gpu/requests.hpp"

using namespace llminfer;
using namespace llminfer::test;

TEST_CASE("A launch that fails is an error of its pass alone") {
  const Model model = make_model(make_program({.layers = 2, .heads = 2, .kv_heads = 1, .ffn = 32}), WeightType::f32);
  gpu::EmulatorOptions options;
  options.fail_launch = 7;
  Driver driver(model, make_machine_backend(options), CacheType::f16);
  Parts parts(model, 17), again(model, 17);
  CHECK(pass(driver, parts.batch).error().code == ErrorCode::device_error);
  CHECK(pass(driver, again.batch));
}

TEST_CASE("Device memory that runs out is an error, and nothing of it is lost") {
  const Model model = make_model(make_program({.layers = 1, .ffn = 128}), WeightType::q4_0);
  const std::int64_t before = gpu::emulated_memory_in_use();
  int failures = 0;
  for (std::int64_t memory = 1000;; memory += memory / 4) {
    gpu::EmulatorOptions options;
    options.memory = memory;
    const auto backend = make_machine_backend(options);
    const auto attempt = [&]() -> Result<void> {
      std::vector<std::shared_ptr<const PreparedWeight>> weights;
      for (std::size_t i = 0; i < model.types.size(); ++i) {
        auto weight = backend->prepare(model.view(i));
        if (!weight) return std::move(weight).error();
        weights.push_back(std::move(*weight));
      }
      auto plan = backend->compile(model.program, weights, {64});
      if (!plan) return std::move(plan).error();
      auto cache = backend->make_cache(model.program.cache_groups[0], CacheType::f16, 3);
      if (!cache) return std::move(cache).error();
      Parts parts(model, 17);
      CacheStorage* pointer = cache->get();
      auto submitted = (*plan)->submit(parts.batch, {&pointer, 1});
      return submitted ? (*plan)->wait() : submitted;
    };
    const auto result = attempt();
    CHECK(gpu::emulated_memory_in_use() == before);
    if (result) break;
    CHECK(result.error().code == ErrorCode::out_of_memory);
    ++failures;
  }
  CHECK(failures > 5);
}

namespace {

/// Has the GPU break `parts` times, the earlier the sooner: in loads, in requests and in sessions of an engine whose
/// options `set` changes.
void break_everywhere(int parts, const std::function<void(EngineOptions&)>& set) {
  const Engine beside = tiny::load();
  const std::vector<Token> of_beside = beside.complete(request_of(2)).value().tokens;
  std::vector<Token> expected;  // of the first run
  struct Outcome {
    std::optional<ErrorCode> load, prefill, request;
    std::int64_t loaded = 0, all = 0;  ///< pieces of work
  };
  const auto run = [&](std::int64_t at) {
    Outcome outcome;
    gpu::EmulatorOptions machine;
    machine.break_at = at;
    const auto device = gpu::make_emulated_device(machine);
    {
      EngineOptions options = options_of({});
      options.custom_backend = gpu::make_backend(device, {});
      set(options);
      const auto engine = Engine::load(tiny::kModel, options);
      if (!engine) {
        outcome.load = engine.error().code;
      } else {
        outcome.loaded = gpu::emulated_counts(*device).enqueued;
        Session session = engine->new_session().value();
        if (const auto done = session.prefill(some_tokens(9, 1)); !done) outcome.prefill = done.error().code;
        for (int turn = 0; turn < 2; ++turn) {  // the second finds it broken, if it is
          const auto done = engine->complete(request_of(2));
          if (!done) outcome.request = done.error().code;
          if (done && outcome.prefill) outcome.request = ErrorCode::internal;
          if (done && expected.empty()) expected = done->tokens;
          if (done) CHECK(done->tokens == expected);
        }
        if (outcome.request) CHECK(session.prefill(some_tokens(5, 1)).error().code == ErrorCode::device_error);
      }
    }
    outcome.all = gpu::emulated_counts(*device).enqueued;
    CHECK(gpu::emulated_memory_in_use() == 0);
    CHECK(gpu::emulated_pinned_memory_in_use() == 0);
    CHECK(gpu::emulated_counts(*device).events == 0);
    return outcome;
  };
  const Outcome whole = run(-1);
  REQUIRE((!whole.load && !whole.prefill && !whole.request));
  int loads = 0, prefills = 0, requests = 0;
  for (int part = 0; part < parts; ++part) {
    const std::int64_t at =
        part % 2 == 0 ? whole.loaded * part / parts : whole.loaded + (whole.all - whole.loaded) * part / parts;
    CAPTURE(at, whole.loaded, whole.all);
    const Outcome outcome = run(at);
    const auto broke = [](std::optional<ErrorCode> code) { return code == ErrorCode::device_error; };
    CHECK((outcome.load ? broke(outcome.load) : broke(outcome.request)));
    CHECK((!outcome.prefill || broke(outcome.prefill)));
    loads += outcome.load.has_value();
    prefills += outcome.prefill.has_value();
    requests += !outcome.load && !outcome.prefill;
  }
  CHECK(loads > 0);
  CHECK(prefills > 0);
  CHECK(requests > 0);
  CHECK(beside.complete(request_of(2)).value().tokens == of_beside);
}

}  // namespace

TEST_CASE("A GPU that breaks fails its engine's requests from then on, and no other engine's") {
  break_everywhere(8, [](EngineOptions&) {});
}

TEST_CASE("A GPU that breaks anywhere, of engines that have one, split, stream and swap", "[.slow]") {
  SECTION("alone") {
    break_everywhere(60, [](EngineOptions&) {});
  }
  SECTION("beside the CPU") {
    break_everywhere(24, [](EngineOptions& options) {
      options.split = {{{}, 1}, {std::exchange(options.custom_backend, nullptr)}};
    });
  }
  SECTION("with streamed weights") {
    break_everywhere(24, [](EngineOptions& options) {
      options.split = {{std::exchange(options.custom_backend, nullptr)}};
      options.split[0].memory = Engine::plan(tiny::kModel, options).value().total() - 1;
      options.split[0].stream = true;
    });
  }
  SECTION("with caches in host memory") {
    break_everywhere(24, [](EngineOptions& options) { options.device_cache_tokens = 192; });
  }
}
