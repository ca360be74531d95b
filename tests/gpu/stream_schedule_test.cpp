// Streams of the emulated device: their order, what a forgotten wait does to streamed weights, and what memory that
// runs out leaves behind.
#include <catch2/catch.hpp>

#include <set>

#include "backends/gpu/emulator/emulator.hpp"
#include "backends/gpu/emulator/streams.hpp"
#include "backends/gpu/weight.hpp"
#include "tests/gpu/streamed.hpp"

using namespace llminfer;
using namespace llminfer::test;
using gpu::emulator::Streams;

namespace {

Model streamed_model() {
  return make_model(make_program({.layers = 3, .heads = 2, .kv_heads = 1, .ffn = 32, .vocab = 48, .hidden = 32}),
                    WeightType::q4_0);
}
std::vector<std::int32_t> all_layers(const Model& model) {
  return groups_of(model.program, [](std::int32_t) { return true; });
}

}  // namespace

TEST_CASE("Streams run in order, and among each other in one of the seed") {
  std::set<std::vector<int>> orders;
  for (std::uint64_t seed = 1; seed <= 20; ++seed) {
    Streams streams(seed);
    std::vector<int> order;
    for (int i = 0; i < 10; ++i) {
      for (const int stream : {0, 1}) {
        streams.add(stream, [&order, i, stream] {
          order.push_back(2 * i + stream);
          return 0;
        });
      }
    }
    CHECK(streams.wait(0) == 0);
    CHECK(streams.wait(1) == 0);
    CHECK(order.size() == 20);
    for (const int stream : {0, 1}) {
      std::vector<int> of_stream;
      for (const int i : order) {
        if (i % 2 == stream) of_stream.push_back(i);
      }
      CHECK(of_stream.size() == 10);
      CHECK(std::is_sorted(of_stream.begin(), of_stream.end()));
    }
    orders.insert(order);
  }
  CHECK(orders.size() > 5);
}

TEST_CASE("Events order streams, and what waits for ever is reported") {
  for (std::uint64_t seed = 1; seed <= 20; ++seed) {
    Streams streams(seed);
    const auto event = std::make_shared<Streams::Event>();
    int value = 0, seen = -1;
    streams.follow(1, event);  // never recorded so far: nothing to wait for
    streams.add(0, [&] { return value = 7, 0; });
    streams.record(0, event);
    streams.add(0, [&] { return value = 8, 5; });
    streams.follow(1, event);
    streams.add(1, [&] { return seen = value, 0; });
    CHECK(streams.wait(*event) % 5 == 0);
    CHECK(value >= 7);
    CHECK(streams.wait(1) % 5 == 0);
    CHECK(seen >= 7);
    streams.wait(0);
    CHECK(value == 8);
    ++event->recorded;  // by whom?
    streams.follow(0, event);
    CHECK(streams.wait(0) == gpu::emulator::deadlock);
  }
}

/// Of `seeds` runs, how many give other bits than resident weights do.
int wrong_runs(std::optional<gpu::Stream> deaf, int seeds, bool stored = false) {
  const Model model = streamed_model();
  const auto tokens = random_tokens(3, model.program.vocab_size);
  const std::vector<float> expected = Driver(model, make_machine_backend(), CacheType::f16).feed(tokens, {2, 1});
  int count = 0;
  for (int seed = 1; seed <= seeds; ++seed) {
    gpu::EmulatorOptions options;
    options.seed = static_cast<std::uint64_t>(seed);
    options.deaf = deaf;
    const Stored in{stored ? std::make_shared<MemoryStorage>() : nullptr};
    Driver driver = streamed_driver(model, make_machine_backend(options), all_layers(model), in);
    count += !same_bits(driver.feed(tokens, {2, 1}), expected);
  }
  return count;
}

TEST_CASE("A forgotten wait of either stream shows in what streamed weights give") {
  CHECK(wrong_runs({}, 4) == 0);
  CHECK(wrong_runs({}, 4, true) == 0);
  CHECK(wrong_runs(gpu::Stream::work, 4) >= 2);    // reads a slot before it is filled
  CHECK(wrong_runs(gpu::Stream::copies, 4) >= 2);  // fills a slot that is still read
}

TEST_CASE("No schedule of streams changes a bit", "[.slow]") {
  CHECK(wrong_runs({}, 100) + wrong_runs({}, 100, true) == 0);
}

TEST_CASE("A launch that fails between streamed layers is an error of its pass alone") {
  const Model model = streamed_model();
  Parts expected(model, 5);
  Driver whole(model, make_machine_backend(), CacheType::f16);
  REQUIRE(pass(whole, expected.batch));
  for (const std::int64_t launch : {3, 17}) {
    gpu::EmulatorOptions options;
    options.fail_launch = launch;
    Driver driver = streamed_driver(model, make_machine_backend(options), all_layers(model));
    Parts parts(model, 5), again(model, 5);
    CHECK(pass(driver, parts.batch).error().code == ErrorCode::device_error);
    REQUIRE(pass(driver, again.batch));
    CHECK(same_bits(again.logits, expected.logits));
  }
}

TEST_CASE("Memory of the device that runs out for streamed weights is an error, pinned memory that runs out is none") {
  const Model model = streamed_model();
  const auto tokens = random_tokens(9, model.program.vocab_size);
  const auto in_use = [] { return std::pair(gpu::emulated_memory_in_use(), gpu::emulated_pinned_memory_in_use()); };
  const auto attempt = [&](const gpu::EmulatorOptions& options) -> Result<std::vector<float>> {
    const auto backend = make_machine_backend(options);
    auto plan = compile_streamed(model, *backend, all_layers(model), 16);
    if (!plan) return std::move(plan).error();
    auto cache = backend->make_cache(model.program.cache_groups[0], CacheType::f16, 3);
    if (!cache) return std::move(cache).error();
    Parts parts(model, 9);
    CacheStorage* pointer = cache->get();
    if (auto submitted = (*plan)->submit(parts.batch, {&pointer, 1}); !submitted) return std::move(submitted).error();
    if (auto waited = (*plan)->wait(); !waited) return std::move(waited).error();
    return parts.logits;
  };
  const std::vector<float> expected = attempt({}).value();
  CHECK(in_use() == std::pair<std::int64_t, std::int64_t>());
  int failures = 0;
  for (std::int64_t memory = 1000;; memory += memory / 4) {
    gpu::EmulatorOptions options;
    options.memory = memory;
    const auto result = attempt(options);
    CHECK(in_use() == std::pair<std::int64_t, std::int64_t>());
    if (result) break;
    CHECK(result.error().code == ErrorCode::out_of_memory);
    ++failures;
  }
  CHECK(failures > 5);
  // Room for what packs the weights and for the pass, not for all weights.
  int pageable = 0;
  for (std::int64_t extra = 0; extra < 200000; extra += 40000) {
    gpu::EmulatorOptions options;
    options.pinned_memory = gpu::kStagingBytes + extra;
    const auto result = attempt(options);
    CHECK(in_use() == std::pair<std::int64_t, std::int64_t>());
    if (!result) {
      CHECK(result.error().code == ErrorCode::out_of_memory);
      continue;
    }
    ++pageable;
    CHECK(same_bits(*result, expected));
  }
  CHECK(pageable > 1);
}
