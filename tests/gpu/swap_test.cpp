// Caches whose pages lie in host memory: the bits of those that lie on the device.
#include <catch2/catch.hpp>

#include <numeric>

#include "tests/gpu/swapped.hpp"

using namespace llminfer;
using namespace llminfer::test;

TEST_CASE("A cache with little device memory gives the bits of one that has it all") {
  const Model model = swapped_model();
  const std::vector<float> expected = take_turns(swapped_driver(model, make_machine_backend(), 0));
  CHECK(same_bits(take_turns(swapped_driver(model, make_machine_backend(), 2)), expected));
  const Model shallow = swapped_model(1);  // nothing passes through
  const Turns alone{.most = 1};
  CHECK(same_bits(take_turns(swapped_driver(shallow, make_machine_backend(), 1), alone),
                  take_turns(swapped_driver(shallow, make_machine_backend(), 0), alone)));
}

TEST_CASE("An int4 cache with little device memory: pages are sealed where they are") {
  const Model model = swapped_model();
  const auto answer = [&](std::int32_t resident) {
    Driver driver = swapped_driver(model, make_machine_backend(), resident, CacheType::int4);
    Sequence a, b;
    std::vector<float> all;
    const auto pass = [&](const std::vector<Feed>& feeds) {
      const std::vector<float> logits = driver.forward(feeds);
      all.insert(all.end(), logits.begin(), logits.end());
    };
    const auto some = [&](std::size_t count, std::uint32_t seed) {
      return random_tokens(count, model.program.vocab_size, seed);
    };
    pass({{&a, some(63, 1)}});
    pass({{&b, some(3, 2)}});
    for (std::uint32_t i = 3; i < 6; ++i) pass({{&a, some(1, i)}});
    pass({{&b, some(2, 7)}, {&a, some(1, 8)}});
    return all;
  };
  const auto expected = answer(0);
  CHECK(same_bits(answer(2), expected));
}

TEST_CASE("Caches with little device memory: types, sizes, windows, machines", "[.slow]") {
  std::size_t turn = 0;
  for (const CacheType type :
       {CacheType::f16, CacheType::f32, CacheType::bf16, CacheType::int8, CacheType::int4, CacheType::fp8}) {
    for (const std::int32_t resident : {3, 4}) {
      const auto options = machines(turn + 5)[turn % machines().size()].options;
      CAPTURE(static_cast<int>(type), resident);
      ++turn;
      const Model model = swapped_model(resident + 1, turn % 2 == 0 ? 40 : 0);
      // Two pages each, of which some are full.
      const auto give = [&](std::int32_t r, std::size_t tokens) {
        const Turns turns{.sequences = 5, .tokens = tokens, .most = 6, .together = 3};
        return take_turns(swapped_driver(model, make_machine_backend(options), r, type), turns);
      };
      CHECK(same_bits(give(resident, 66), give(0, 66)));
      CHECK(same_bits(give(resident, 2), give(0, 2)));
    }
  }
}

TEST_CASE("Pages of a swapped cache go out and in as others do") {
  const CacheGroup group{3, 2, 20, 0};
  for (const CacheType type : {CacheType::f32, CacheType::int8, CacheType::int4}) {
    const auto backend = make_machine_backend();
    const auto whole = backend->make_cache(group, type, 6).value();
    const auto swapped = backend->make_swapped_cache(group, type, 6, 2).value();
    std::vector<float> page(static_cast<std::size_t>(whole->canonical_page_bytes()) / sizeof(float));
    std::mt19937 random(3);
    for (float& x : page) x = std::normal_distribution<float>()(random);
    std::vector<float> out[2];
    for (CacheStorage* cache : {whole.get(), swapped.get()}) {
      cache->import_page(4, std::as_bytes(std::span(page))).value();
      cache->finish_page(4);
      cache->copy_page(4, 1, kPageTokens).value();
      auto& of_cache = out[cache == swapped.get()];
      of_cache.resize(page.size());
      cache->export_page(1, std::as_writable_bytes(std::span(of_cache))).value();
    }
    CHECK(same_bits(out[0], out[1]));
  }
}

TEST_CASE("Swapped caches that cannot be, and passes with too many pages") {
  const auto backend = make_machine_backend();
  const CacheGroup group{4, 1, 16, 0};
  for (const std::int32_t resident : {0, -3}) {
    CHECK(backend->make_swapped_cache(group, CacheType::f16, 6, resident).error().code == ErrorCode::invalid_argument);
  }
  const auto cpu = make_cpu_backend({}).value();
  CHECK_FALSE(cpu->swaps());
  CHECK(cpu->make_swapped_cache(group, CacheType::f16, 6, 2).error().code == ErrorCode::unsupported);

  const Model model = swapped_model(4);
  Driver driver = swapped_driver(model, backend, 2);
  CHECK(driver.caches[0]->pass_pages().resident == 2);
  CHECK(driver.caches[0]->pass_pages().most == 4);
  std::vector<std::int32_t> tokens(5, 1), positions(5, 0), rows(5), pages(5);
  std::iota(rows.begin(), rows.end(), 0);
  std::iota(pages.begin(), pages.end(), 0);
  std::vector<float> logits(5 * static_cast<std::size_t>(model.program.vocab_size));
  std::vector<Run> runs;
  for (std::int32_t i = 0; i < 5; ++i)
    runs.push_back({i, 1, 0, {std::span(pages).subspan(static_cast<std::size_t>(i), 1)}});
  Batch batch;
  batch.tokens = tokens;
  batch.positions = positions;
  batch.runs = runs;
  batch.logit_rows = rows;
  batch.logits = logits;
  const auto refused = pass(driver, batch);
  REQUIRE_FALSE(refused);
  CHECK(refused.error().code == ErrorCode::invalid_argument);
  CHECK_THAT(refused.error().message, Catch::Contains("5 cache pages") && Catch::Contains("4 at most"));
  runs[4].block_tables = runs[0].block_tables;  // counted once
  CHECK(pass(driver, batch));
}
