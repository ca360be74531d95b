// Passes that are launched as graphs give the bits that they give without.
#include <algorithm>
#include <numeric>

#include <catch2/catch.hpp>

#include <llminfer/llminfer.hpp>

#include "tests/cpu/mixture.hpp"
#include "tests/engine/split_models.hpp"
#include "tests/gpu/graph_script.hpp"

using namespace llminfer;
using namespace llminfer::test;

namespace {

bool same_with_graphs(const Model& model, CacheType cache, bool longer = false, bool batch_invariant = false) {
  Decoder with(model, {0, batch_invariant, true}, cache), without(model, {0, batch_invariant, false}, cache);
  const std::vector<float> expected = decode_all(without, longer);
  return same_bits(decode_all(with, longer), expected);
}

}  // namespace

TEST_CASE("Graphs give the bits of single launches: a cache that is sealed page by page") {
  CHECK(same_with_graphs(decoded_model(), CacheType::int4));
}

TEST_CASE("Graphs give the bits of single launches: all caches, windows, sinks, batch-invariant or not", "[.slow]") {
  bool batch_invariant = false;
  for (const CacheType cache :
       {CacheType::f16, CacheType::f32, CacheType::bf16, CacheType::int8, CacheType::int4, CacheType::fp8}) {
    for (const int window : {0, 70}) {
      CAPTURE(static_cast<int>(cache), batch_invariant, window);
      CHECK(same_with_graphs(decoded_model(2, window), cache, true, batch_invariant));
      batch_invariant = !batch_invariant;
    }
    batch_invariant = !batch_invariant;
  }
}

TEST_CASE("Mixtures of experts decode by graphs, which give the bits of single launches") {
  const Model model =
      make_model(make_mixture({.experts = 6, .layers = 1, .shared = true, .biases = true}), WeightType::q4_0);
  Decoder with(model, {}), without(model, {0, false, false});
  CHECK(same_bits(decode_all(with), decode_all(without)));
}

TEST_CASE("A graph of two kernels, launched again with other inputs") {
  const auto device = make_machine();
  constexpr std::int64_t kWidth = 96, kBytes = kWidth * sizeof(float);
  const gpu::Buffer memory = gpu::Buffer::make(device, 3 * kBytes).value();
  const gpu::Buffer host = gpu::Buffer::make(device, kBytes, true).value();
  const auto row = [&](std::int64_t i) { return gpu::RowsArgs{memory.at<float>(i * kBytes), kWidth}; };
  const auto graph = gpu::Graph::make(device, [&](void* queue) -> Result<void> {
                       for (std::int64_t i : {0, 1}) {
                         const gpu::GatherArgs args{row(i), nullptr, 1, kWidth, row(i + 1)};
                         auto launched = device->check(device->kernels().gather(queue, args), "gather");
                         if (!launched) return launched;
                       }
                       return {};
                     }).value();
  for (const float first : {1.0f, 500.0f}) {
    std::iota(host.at<float>(), host.at<float>() + kWidth, first);
    device->copy(memory.at(), host.at(), kBytes).value();
    const gpu::Current current(*device);
    graph.launch().value();
    device->wait().value();
    std::fill_n(host.at<float>(), kWidth, 0.0f);
    device->copy(host.at(), memory.at(2 * kBytes), kBytes).value();
    device->wait().value();
    for (std::int64_t i = 0; i < kWidth; ++i) CHECK(host.at<float>()[i] == first + static_cast<float>(i));
  }
}

TEST_CASE("Graphs of two plans on one device") {
  const Model model = decoded_model();
  const auto device = make_machine();
  Decoder one(model, {}, CacheType::f16, device), two(model, {}, CacheType::int8, device);
  Decoder lone_one(model, {0, false, false}), lone_two(model, {0, false, false}, CacheType::int8);
  Sequence s1, s2, t1, t2;
  for (int i = 0; i < 6; ++i) {
    CHECK(same_bits(one.pass({{&s1, 1}}), lone_one.pass({{&t1, 1}})));
    CHECK(same_bits(two.pass({{&s2, i % 2 + 1}}), lone_two.pass({{&t2, i % 2 + 1}})));
  }
}

TEST_CASE("An engine with graphs gives what one without gives", "[.slow]") {
  for (const CacheType cache : {CacheType::f16, CacheType::int4}) {
    CAPTURE(static_cast<int>(cache));
    const auto of = [&](bool graphs) {
      EngineOptions options = options_of({});
      options.cache_type = cache;
      options.custom_backend = make_machine_backend({}, true, graphs);
      return everything(Engine::load(path_of("tiny-bf16"), options).value());
    };
    CHECK(same_bits(of(true), of(false)));
  }
}
