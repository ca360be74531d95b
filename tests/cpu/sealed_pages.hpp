// What holds for an int4 cache on every backend. `make()` gives a Driver with one of 40 pages.
#pragma once

#include <catch2/catch.hpp>

#include "tests/cpu/model.hpp"

namespace llminfer::test {

/// Chunks, and runs of one sequence in one batch, do not change a bit. At least 150 tokens.
template <class Make>
void check_chunks(const std::vector<std::int32_t>& tokens, const std::vector<std::vector<std::int32_t>>& lists,
                  const Make& make) {
  const auto count = static_cast<std::int32_t>(tokens.size());
  const std::vector<float> expected = make().feed(tokens, {count});
  for (const auto& chunks : lists) {
    CAPTURE(chunks.size());
    CHECK(same_bits(make().feed(tokens, chunks), expected));
  }
  // Two runs of a batch that write to the same page, which the second one fills.
  Driver driver = make();
  Sequence s;
  s.tables.resize(1);
  for (std::int32_t i = 0; i < 6; ++i) s.tables[0].push_back(i);
  const auto some = [&](std::ptrdiff_t begin, std::ptrdiff_t end) {
    return std::vector<std::int32_t>(tokens.begin() + begin, tokens.begin() + end);
  };
  CHECK(same_bits(driver.forward({{&s, some(0, 30)}, {&s, some(30, 140)}, {&s, some(140, count)}}), expected));
}

/// What a full page does not allow, of the first cache of a model with one.
template <class Make>
void check_full_pages(const Model& model, const Make& make) {
  const auto tokens = random_tokens(70, model.program.vocab_size);
  Driver driver = make();
  Sequence s;
  driver.forward({{&s, tokens}});
  driver.forward({{&s, {1}}});  // from here on the first page is sealed
  CacheStorage& cache = *driver.caches[0];
  REQUIRE(cache.seals_pages());
  CHECK(cache.copy_page(s.tables[0][0], 9, 40).error().code == ErrorCode::invalid_state);
  CHECK(cache.copy_page(s.tables[0][0], 9, 64));
  Parts parts(model, 8);
  parts.table = s.tables[0];
  parts.runs[0].first_position = 40;
  parts.runs[0].block_tables[0] = parts.table;
  for (std::int32_t i = 0; i < 8; ++i) parts.positions[static_cast<std::size_t>(i)] = 40 + i;
  const auto refused = pass(driver, parts.batch);
  REQUIRE_FALSE(refused);
  CHECK(to_string(refused.error().code) == to_string(ErrorCode::invalid_state));
  s.position = 0;  // all of it again
  CHECK(same_bits(driver.forward({{&s, tokens}}), driver.feed(tokens, {70})));
  CHECK(cache.bytes() > 40 * driver.backend->page_bytes(model.program.cache_groups[0], CacheType::int4));
}

}  // namespace llminfer::test
