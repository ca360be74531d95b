// Passes of one row as one kernel: the bits that they have as graphs.
#include <algorithm>

#include <catch2/catch.hpp>

#include "tests/engine/program_runner.hpp"
#include "tests/engine/split_models.hpp"
#include "tests/gpu/graph_script.hpp"

using namespace llminfer;
using namespace llminfer::test;

namespace {

/// Prompts, and tokens one by one, into the next page; of two sequences, so that each kind of pass comes twice.
std::vector<float> decode(Decoder& decoder, int prompt) {
  std::vector<float> all;
  for (Sequence sequence : std::vector<Sequence>(2)) {
    const auto pass = [&](int rows) {
      const std::vector<float> some = decoder.pass({{&sequence, rows}}, true);
      all.insert(all.end(), some.begin(), some.end());
    };
    while (sequence.position < prompt) pass(std::min(prompt - sequence.position, 100));
    for (int i = 0; i < 4; ++i) pass(1);
  }
  return all;
}

bool same_as_graphs(const Model& model, CacheType cache, const gpu::EmulatorOptions& machine = {}, int prompt = 62) {
  Decoder by_kernel(model, {.persistent = true}, cache, machine), by_graphs(model, {}, cache, machine);
  const std::vector<float> expected = decode(by_graphs, prompt), found = decode(by_kernel, prompt);
#ifndef LLMINFER_TEST_GPU
  CHECK(gpu::emulated_counts(*by_kernel.device).graphs_made == 0);
#endif
  return same_bits(found, expected);
}

}  // namespace

TEST_CASE("One kernel per token gives the bits of graphs, on all machines") {
  const Model model = decoded_model(2);
  for (const CacheType cache : {CacheType::f16, CacheType::int4}) {  // the latter seals pages
    for (const Machine& machine : machines(static_cast<std::uint64_t>(cache) + 1)) {
      CAPTURE(machine.name, static_cast<int>(cache));
      CHECK(same_as_graphs(model, cache, machine.options));
    }
  }
}

TEST_CASE("One kernel per token: norms, roundings and rotations of their own, biases, windows, sinks") {
  Model model = decoded_model(2, 20);
  model.round_inputs("wo", {InputQuantization::Kind::int8, true, 0, 0.0f, 0});
  model.round_inputs("wd", {InputQuantization::Kind::fp8, true, 32, 0.0f, 0});
  CHECK(same_as_graphs(model, CacheType::f16));
  model.order_columns();
  CHECK(same_as_graphs(model, CacheType::f16));
  CHECK(same_as_graphs(make_model(make_program({.layers = 1,
                                                .heads = 6,
                                                .kv_heads = 1,
                                                .head_dim = 264,  // more than a block's heads
                                                .ffn = 96,
                                                .rotary_dim = 40,
                                                .interleaved = true,
                                                .bias = true}),
                                  WeightType::f32),
                       CacheType::bf16));
}

TEST_CASE("One kernel per token gives what checkpoints' own graphs give") {
  for (const char* name : {"tiny-bf16", "qwen3"}) {  // the latter norms heads
    CAPTURE(name);
    const auto device = make_machine();
    ProgramRunner one(path_of(name), gpu::make_backend(device, {.persistent = true})),
        other(path_of(name), make_machine_backend());
    one.forward({3, 5, 7});
    other.forward({3, 5, 7});
    for (std::int32_t token = 10; token < 14; ++token) CHECK(same_bits(one.forward({token}), other.forward({token})));
#ifndef LLMINFER_TEST_GPU
    CHECK(gpu::emulated_counts(*device).graphs_made == 0);
#endif
  }
}

TEST_CASE("One kernel per token gives the bits of graphs: all caches, long contexts", "[.slow]") {
  std::uint64_t turn = 0;
  for (const CacheType cache :
       {CacheType::f16, CacheType::f32, CacheType::bf16, CacheType::int8, CacheType::int4, CacheType::fp8}) {
    for (const int window : {0, 70}) {
      const Machine machine = machines(turn + 3)[turn % machines().size()];
      CAPTURE(static_cast<int>(cache), window, machine.name);
      CHECK(same_as_graphs(decoded_model(2, window), cache, machine.options, 254));
      ++turn;
    }
  }
}
