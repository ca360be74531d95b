// Graphs on emulated devices: that they are launched, when they are made and given back, schedules, what a lost copy
// does, and machines that can make none.
#include <catch2/catch.hpp>

#include <llminfer/llminfer.hpp>

#include "backends/gpu/graphs.hpp"
#include "tests/cpu/mixture.hpp"
#include "tests/engine/split_models.hpp"
#include "tests/gpu/graph_script.hpp"

using namespace llminfer;
using namespace llminfer::test;

namespace {

const gpu::EmulatedCounts& counts_of(const Decoder& decoder) { return gpu::emulated_counts(*decoder.device); }

std::vector<float> expected_of(const Model& model, CacheType cache = CacheType::f16) {
  Decoder decoder(model, {0, false, false}, cache);
  const std::vector<float> all = decode_all(decoder);
  CHECK(counts_of(decoder).graphs_made == 0);
  return all;
}

}  // namespace

TEST_CASE("Decoding is launched as graphs, and none is left when the plan is gone") {
  const Model model = decoded_model();
  Decoder decoder(model, {});
  (void)decode_all(decoder);
  const gpu::EmulatedCounts& counts = counts_of(decoder);
  CAPTURE(counts.graphs, counts.graphs_made, counts.graph_launches, decoder.passes);
  CHECK(counts.graph_launches > decoder.passes / 2);
  CHECK(counts.graphs > 4);
  CHECK(counts.graphs <= counts.graphs_made);
  decoder.driver.plan = nullptr;
  CHECK(counts.graphs == 0);
}

TEST_CASE("A graph is made when a pass like an earlier one comes, and serves all that are like it") {
  const Model model = decoded_model();
  Decoder decoder(model, {});
  const gpu::EmulatedCounts& counts = counts_of(decoder);
  Sequence a, b;
  decoder.pass({{&a, 1}});
  CHECK(counts.graphs_made == 0);
  for (int i = 0; i < 40; ++i) decoder.pass({{&a, 1}});
  CHECK(counts.graphs_made == 1);
  CHECK(counts.graph_launches == 40);
  for (int i = 0; i < 3; ++i) decoder.pass({{&b, 4}});  // another bucket
  CHECK(counts.graphs_made == 2);
  for (int i = 0; i < 3; ++i) decoder.pass({{&b, 1}});  // another sequence
  CHECK(counts.graphs_made == 2);
  CHECK(counts.graph_launches == 45);
  decoder.pass({{&a, 20}});  // tiles
  CHECK(counts.graph_launches == 45);
}

TEST_CASE("Graphs that were used long ago are given back") {
  const Model model = decoded_model();
  Decoder decoder(model, {});
  const gpu::EmulatedCounts& counts = counts_of(decoder);
  using Feeds = std::vector<std::pair<Sequence*, int>>;
  Sequence a, b;
  for (const int rows : {1, 2, 3, 4, 6, 8, 12, 15, 24}) {
    for (int wanted = 0; wanted < 2; ++wanted) {
      for (int i = 0; i < 2; ++i) {
        decoder.pass(rows < 16 ? Feeds{{&a, rows}} : Feeds{{&a, 12}, {&b, 12}}, wanted == 1);
      }
    }
  }
  CHECK(counts.graphs_made > static_cast<std::int64_t>(gpu::GraphTable::kMost));
  CHECK(counts.graphs <= static_cast<std::int64_t>(gpu::GraphTable::kMost));
}

TEST_CASE("Machines that make or launch only some graphs give the same") {
  const Model model = decoded_model();
  const std::vector<float> expected = expected_of(model);
  gpu::EmulatorOptions options;
  const auto check = [&](std::int64_t gpu::EmulatedCounts::*count, std::int64_t at_most) {
    Decoder decoder(model, {}, CacheType::f16, options);
    CHECK(same_bits(decode_all(decoder), expected));
    CHECK(counts_of(decoder).*count == at_most);
  };
  options.graphs = 2;
  check(&gpu::EmulatedCounts::graphs_made, 2);
  options.graph_launches = 5;
  check(&gpu::EmulatedCounts::graph_launches, 5);
}

TEST_CASE("A kernel that does not fit into a graph leaves the pass to single launches") {
  const Model model = decoded_model();
  Decoder plain(model, {0, false, false});
  Sequence a;
  const std::vector<float> first = plain.pass({{&a, 1}});
  const std::int64_t begin = counts_of(plain).launches;
  const std::vector<float> second = plain.pass({{&a, 1}});
  for (std::int64_t launch = begin; launch < (begin + counts_of(plain).launches) / 2; ++launch) {
    gpu::EmulatorOptions options;
    options.fail_launch = launch;
    Decoder decoder(model, {}, CacheType::f16, options);
    Sequence b;
    CHECK(same_bits(decoder.pass({{&b, 1}}), first));
    CHECK(same_bits(decoder.pass({{&b, 1}}), second));
    CHECK(counts_of(decoder).graphs_made == 0);
  }
}

TEST_CASE("Layers of a single row take few launches") {
  const auto launches_of = [](const Model& model, int rows) {
    Decoder decoder(model, {0, false, false});
    Sequence sequence;
    decoder.pass({{&sequence, rows}});
    const std::int64_t before = counts_of(decoder).launches;
    decoder.pass({{&sequence, rows}});
    return counts_of(decoder).launches - before;
  };
  const auto of_a_layer = [&](const auto& model_of, int rows) {
    return launches_of(model_of(2), rows) - launches_of(model_of(1), rows);
  };
  const auto dense = [](int layers) { return decoded_model(layers); };
  const auto mixture = [](int layers) { return make_model(make_mixture({.layers = layers}), WeightType::q4_0); };
  CHECK(of_a_layer(dense, 1) == 6);      // q, k and v; store; attend; output; gate and up; down
  CHECK(of_a_layer(dense, 3) == 6 + 4);  // rows are prepared first
  // The norms of two heads of q, one of k and the mixture's, its router and its sum with the residual, too.
  CHECK(of_a_layer(mixture, 1) == 4 + 6 + 4);      // route; gate and up; down; combine
  CHECK(of_a_layer(mixture, 3) == 4 + 9 + 4 + 3);  // sorted and prepared, too
}

TEST_CASE("What changes between passes goes up before each: a graph that misses it gives something else") {
  const Model model = decoded_model();
  for (const bool lost : {false, true}) {
    gpu::EmulatorOptions options;
    options.lose_uploads = lost;
    Decoder decoder(model, {}, CacheType::f16, options), plain(model, {0, false, false});
    Sequence a, b;
    int same = 0;
    for (int i = 0; i < 8; ++i) same += same_bits(decoder.pass({{&a, 1}}), plain.pass({{&b, 1}}));
    CHECK(counts_of(decoder).graph_launches == 7);
    CHECK(same == (lost ? 2 : 8));  // the first is none, and before the second was launched nothing was lost
  }
}

TEST_CASE("An interrupted pass launches no graph") {
  const Model model = decoded_model();
  Driver driver(model, make_machine_backend(), CacheType::f16);
  for (const bool interrupted : {false, false, true, false}) {
    Parts parts(model, 3);
    parts.batch.interrupted = [&] { return interrupted; };
    const auto outcome = pass(driver, parts.batch);
    CHECK((outcome ? ErrorCode{} : outcome.error().code) == (interrupted ? ErrorCode::cancelled : ErrorCode{}));
  }
}

TEST_CASE("Mixtures of experts are launched as graphs") {
  const Model model = make_model(make_mixture({.experts = 6, .layers = 1}), WeightType::q4_0);
  Decoder decoder(model, {});
  decode_all(decoder);
  CHECK(counts_of(decoder).graph_launches > decoder.passes / 2);
}

TEST_CASE("An engine decodes by graphs") {
  const auto device = gpu::make_emulated_device();
  EngineOptions options = options_of({});
  options.custom_backend = gpu::make_backend(device, {});
  {
    const Engine engine = Engine::load(path_of("tiny-bf16"), options).value();
    CompletionRequest request;
    request.tokens = some_tokens(5, 1);
    request.options.max_tokens = 8;
    request.options.ignore_end = true;
    CHECK(engine.complete(std::move(request)).value().tokens.size() == 8);
    CHECK(gpu::emulated_counts(*device).graph_launches >= 5);
  }
  CHECK(gpu::emulated_counts(*device).graphs == 0);
}

TEST_CASE("Graphs on all machines, each with another schedule", "[.slow]") {
  const Model model = decoded_model(2, 70);
  const std::vector<Machine> all = machines(21);
  for (std::size_t i = 0; i < all.size(); ++i) {
    CAPTURE(all[i].name);
    const CacheType cache = i % 2 == 0 ? CacheType::f16 : CacheType::int4;
    gpu::EmulatorOptions plain = all[i].options;
    plain.seed = 1;
    Decoder with(model, {}, cache, all[i].options), without(model, {0, false, false}, cache, plain);
    CHECK(same_bits(decode_all(with, true), decode_all(without, true)));
    CHECK(counts_of(with).graph_launches > with.passes / 2);
  }
}
