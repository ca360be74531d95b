// The profile of a pass: the steps that ran, and bytes and operations that follow from the program's shapes.
#include <catch2/catch.hpp>
#include <string>
#include <vector>

#include "tests/cpu/model.hpp"
#include "tests/cpu/saved_profiles.hpp"

using namespace llminfer;
using namespace llminfer::test;

namespace {

std::int64_t operations(const SavedProfile& pass, StepKind kind) {
  std::int64_t sum = 0;
  for (const StepProfile& step : pass.steps) sum += step.kind == kind ? step.operations : 0;
  return sum;
}

std::int64_t matrix_values(const Program& program, bool head) {
  std::int64_t sum = 0;
  for (const WeightSpec& spec : program.weights) {
    if (spec.rows > 1 && spec.name != "embed" && (spec.name == "head") == head) sum += spec.rows * spec.cols;
  }
  return sum;
}

}  // namespace

TEST_CASE("a profile counts what the shapes say") {
  const int window = GENERATE(0, 3);
  const Shape shape{.layers = 2, .heads = 4, .kv_heads = 2, .head_dim = 32, .ffn = 96, .window = window};
  const Model model = make_model(make_program(shape), WeightType::q8_0);
  std::vector<SavedProfile> passes;
  BackendOptions options;
  options.threads = 2;
  options.cpu_level = "scalar";
  options.on_profile = save_to(passes);
  Driver driver(model, options, CacheType::f16);
  const auto tokens = random_tokens(6, shape.vocab);
  driver.feed(tokens, {5, 1});

  REQUIRE(passes.size() == 2);
  CHECK(passes[0].rows == 5);
  CHECK(passes[1].rows == 1);
  for (const SavedProfile& pass : passes) {
    CHECK(pass.level == "scalar");
    CHECK(pass.threads == 2);
    // embed, 2 * (qkv, attention, o, gate and up, down), selection, last norm, head
    CHECK(pass.steps.size() == 14);
    double seconds = 0;
    std::int64_t weights = 0, cache = 0;
    for (const StepProfile& step : pass.steps) {
      CHECK(step.seconds >= 0);
      seconds += step.seconds;
      weights += step.weight_bytes;
      cache += step.cache_bytes;
    }
    CHECK(seconds > 0);
    // Every row's logits were asked for.
    const std::int64_t values = matrix_values(model.program, false) + matrix_values(model.program, true);
    CHECK(operations(pass, StepKind::linear) == 2 * pass.rows * values);
    CHECK(weights >= values);         // q8_0 takes 8 bits and a scale per 32 values
    CHECK(weights < values * 5 / 4);  // the last panel of the head is filled up
    // Five positions see 1 + 2 + 3 + 4 + 5 keys, the next one six; a window of three 1 + 2 + 3 + 3 + 3, and three.
    const bool first = pass.rows == 5;
    const std::int64_t keys = window == 0 ? (first ? 15 : 6) : (first ? 12 : 3);
    CHECK(operations(pass, StepKind::attention) == shape.layers * keys * 4 * shape.heads * shape.head_dim);
    const std::int64_t read = window == 0 ? (first ? 5 : 6) : (first ? 5 : 3);
    const std::int64_t token = 2 * shape.kv_heads * (shape.head_dim * 2 + 4);  // integers of 16 bits, and a scale
    CHECK(cache == shape.layers * (read + pass.rows) * token);
  }
  CHECK(passes[0].names[1] == "norm + wq (8.5), wk (8.5), wv (8.5)");
  CHECK(passes[0].names[1] == passes[0].names[6]);
}

TEST_CASE("profiling changes no bits") {
  const Model model = make_model(make_program({}), WeightType::q4_0);
  const auto tokens = random_tokens(40, 101);
  BackendOptions options;
  options.threads = 2;
  Driver plain(model, options, CacheType::f16);
  int calls = 0;
  options.on_profile = [&](const PassProfile&) { ++calls; };
  Driver profiled(model, options, CacheType::f16);
  CHECK(same_bits(plain.feed(tokens, {32, 1}), profiled.feed(tokens, {32, 1})));
  CHECK(calls == 3);
}
