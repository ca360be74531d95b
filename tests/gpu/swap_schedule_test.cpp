// Caches in host memory on the emulated device: what a forgotten wait does, passes that fail, memory that runs out.
#include <catch2/catch.hpp>

#include "backends/gpu/weight.hpp"
#include "tests/gpu/swapped.hpp"

using namespace llminfer;
using namespace llminfer::test;

namespace {

/// Of `seeds` runs, how many give other bits than a cache on the device does.
int wrong_runs(std::optional<gpu::Stream> deaf, int seeds, std::int32_t resident, int layers = 3) {
  const Model model = swapped_model(layers);
  const Turns turns{.most = static_cast<std::size_t>(resident * layers) / 2};
  const std::vector<float> expected = take_turns(swapped_driver(model, make_machine_backend(), 0), turns);
  int count = 0;
  for (int seed = 1; seed <= seeds; ++seed) {
    gpu::EmulatorOptions options;
    options.seed = static_cast<std::uint64_t>(seed);
    options.deaf = deaf;
    count += !same_bits(take_turns(swapped_driver(model, make_machine_backend(options), resident), turns), expected);
  }
  return count;
}

}  // namespace

TEST_CASE("A forgotten wait of either stream shows in what swapped caches give") {
  CHECK(wrong_runs(gpu::Stream::work, 2, 2) >= 1);    // reads blocks before they are filled
  CHECK(wrong_runs(gpu::Stream::copies, 2, 2) >= 1);  // fills blocks that are still read, saves what is not written yet
}

TEST_CASE("No schedule of streams changes a bit of swapped caches", "[.slow]") {
  for (const std::int32_t resident : {1, 2, 3}) CHECK(wrong_runs({}, 30, resident, 6 - resident) == 0);
}

TEST_CASE("A pass that fails or is interrupted loses no page of a swapped cache") {
  const Model model = swapped_model();
  // Logits of passes of one token of each of these sequences; those that fail are tried again and join `failed`.
  const std::vector<std::vector<std::size_t>> passes = {{0}, {1}, {2}, {0}, {0, 1, 2}, {1}};
  std::vector<std::int64_t> begins;  // launches before each pass
  const auto run = [&](std::int32_t resident, const gpu::EmulatorOptions& options, int interrupted,
                       std::vector<std::size_t>& failed) {
    const auto device = make_machine(options);
    Driver driver = swapped_driver(model, gpu::make_backend(device, {}), resident);
    Sequence sequences[3];
    begins.clear();
    std::vector<float> all;
    for (std::size_t p = 0; p < passes.size(); ++p) {
      begins.push_back(gpu::emulated_counts(*device).launches);
      const std::size_t count = passes[p].size();
      const auto tokens = random_tokens(count, model.program.vocab_size, static_cast<std::uint32_t>(p));
      std::vector<std::int32_t> positions, rows;
      std::vector<Run> runs;
      for (const std::size_t s : passes[p]) {
        driver.grow(sequences[s], 1);
        const auto row = static_cast<std::int32_t>(rows.size());
        runs.push_back({row, 1, sequences[s].position, {std::span<const std::int32_t>(sequences[s].tables[0])}});
        rows.push_back(row);
        positions.push_back(sequences[s].position++);
      }
      std::vector<float> logits(count * static_cast<std::size_t>(model.program.vocab_size));
      Batch batch;
      batch.tokens = tokens;
      batch.positions = positions;
      batch.runs = runs;
      batch.logit_rows = rows;
      batch.logits = logits;
      int calls = 0;
      if (interrupted > 0) batch.interrupted = [&] { return ++calls == interrupted; };
      if (const auto outcome = pass(driver, batch); !outcome) {
        CHECK(outcome.error().code == (interrupted > 0 ? ErrorCode::cancelled : ErrorCode::device_error));
        failed.push_back(p);
        batch.interrupted = {};
        REQUIRE(pass(driver, batch));
      }
      all.insert(all.end(), logits.begin(), logits.end());
    }
    return all;
  };
  std::vector<std::size_t> failed;
  const std::vector<float> expected = run(0, {}, 0, failed);
  CHECK(failed.empty());
  CHECK(same_bits(run(2, {}, 2, failed), expected));
  CHECK(failed.size() == passes.size());
  failed.clear();
  CHECK(same_bits(run(2, {}, 0, failed), expected));
  // In the middle of a pass that brings pages, and of one that they pass through.
  for (const std::int64_t launch : {(begins[3] + begins[4]) / 2, (begins[4] + begins[5]) / 2}) {
    gpu::EmulatorOptions options;
    options.fail_launch = launch;
    CHECK(same_bits(run(2, options, 0, failed), expected));
  }
  CHECK(failed == std::vector<std::size_t>{3, 4});
}

TEST_CASE("Swapped caches take the memory that they say, on both sides, or none") {
  const CacheGroup group{4, 2, 16, 0};
  const std::int64_t page = make_machine_backend()->page_bytes(group, CacheType::int8);
  {
    const auto cache = make_machine_backend()->make_swapped_cache(group, CacheType::int8, 10, 3).value();
    CHECK(gpu::emulated_memory_in_use() == 3 * page);
    CHECK(gpu::emulated_pinned_memory_in_use() == 10 * page);
    CHECK(cache->bytes() == 13 * page);
  }
  CHECK(gpu::emulated_memory_in_use() == 0);
  CHECK(gpu::emulated_pinned_memory_in_use() == 0);
  gpu::EmulatorOptions options;
  options.memory = 3 * page - 1;
  const auto none = make_machine_backend(options)->make_swapped_cache(group, CacheType::int8, 10, 3);
  CHECK(none.error().code == ErrorCode::out_of_memory);

  // Memory that cannot be pinned serves, too.
  const Model model = swapped_model();
  options = {};
  options.pinned_memory = gpu::kStagingBytes + (8 << 10);
  const auto some = random_tokens(2, model.program.vocab_size);
  const auto answer = [&](const gpu::EmulatorOptions& machine, std::int32_t resident) {
    Driver driver = swapped_driver(model, make_machine_backend(machine), resident);
    Sequence a, b;
    std::vector<float> last;
    for (Sequence* s : {&a, &b, &a}) last = driver.forward({{s, some}});
    return last;
  };
  CHECK(same_bits(answer(options, 1), answer({}, 0)));
}
