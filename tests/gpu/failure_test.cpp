// What a GPU's failures leave behind, on an emulated one that fails when it is told to.
#include <catch2/catch.hpp>

#include "tests/cpu/model.hpp"
#include "tests/gpu/machines.hpp"

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
