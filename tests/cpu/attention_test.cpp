// The attention kernels of every level against a double-precision reference on what the cache holds, and against each
// other bit for bit.
#include <algorithm>
#include <catch2/catch.hpp>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <numeric>
#include <random>
#include <span>

#include "backends/cpu/attention_tasks.hpp"
#include "backends/cpu/cache.hpp"
#include "backends/cpu/elementwise.hpp"
#include "backends/cpu/level.hpp"
#include "tests/cpu/model.hpp"

using namespace llminfer;
using namespace llminfer::test;

namespace {

constexpr CacheType kTypes[] = {CacheType::f32, CacheType::f16, CacheType::bf16, CacheType::int8, CacheType::int4};

/// `tokens` queries of `ratio` heads at the end of a cache of `length` tokens, in shuffled pages, of one KV head among
/// others.
struct Problem {
  std::int32_t head_dim, ratio, length, tokens, window;
  std::vector<float> q, k, v;  // [tokens * ratio, head_dim], [length, head_dim]
  std::vector<std::int32_t> table, first, last;

  Problem(std::int32_t dim, std::int32_t heads, std::int32_t n, std::int32_t queries, std::int32_t w = 0)
      : head_dim(dim), ratio(heads), length(n), tokens(queries), window(w) {
    std::mt19937 random(static_cast<std::uint32_t>(dim * 1000 + n));
    std::normal_distribution<float> normal;
    const auto fill = [&](std::vector<float>& x, std::int32_t rows, float size) {
      x.resize(static_cast<std::size_t>(rows * dim));
      for (float& value : x) value = normal(random) * size;
    };
    fill(q, tokens * ratio, 2.0f / std::sqrt(static_cast<float>(dim)));
    fill(k, length, 1.0f);
    fill(v, length, 3.0f);
    for (std::int32_t i = 0; i * kPageTokens < length; ++i) table.push_back(i);
    std::shuffle(table.begin(), table.end(), random);
    for (std::int32_t r = 0; r < tokens * ratio; ++r) {
      last.push_back(length - tokens + r / ratio);
      first.push_back(window > 0 ? std::max(0, last.back() - window + 1) : 0);
    }
  }

  std::unique_ptr<cpu::CpuCache> cache(const cpu::Level& level, CacheType type) const {
    auto cache = cpu::CpuCache::make({2, 2, head_dim, window}, type, static_cast<std::int32_t>(table.size())).value();
    if (type == CacheType::int4) {
      for (std::int32_t begin = 0; begin < length; begin += kPageTokens) pack(level, *cache, begin);
      return cache;
    }
    for (std::int32_t t = 0; t < length; ++t) {
      const auto at = static_cast<std::size_t>(t) * static_cast<std::size_t>(head_dim);
      level.attention->write(cache->head(1, 1), table[static_cast<std::size_t>(t / kPageTokens)], t % kPageTokens,
                             k.data() + at, v.data() + at);
    }
    return cache;
  }

  /// Packs the page of tokens [begin, begin + 64), the last of which may be missing.
  void pack(const cpu::Level& level, cpu::CpuCache& cache, std::int32_t begin) const {
    const cpu::Int4Layout layout(head_dim);
    std::vector<float> page(static_cast<std::size_t>(layout.floats()));
    for (std::int32_t t = begin; t < std::min(length, begin + kPageTokens); ++t) {
      for (std::int32_t i = 0; i < head_dim; ++i) {
        const auto from = static_cast<std::size_t>(t * head_dim + i);
        page[static_cast<std::size_t>(i * kPageTokens + t - begin)] = k[from];
        page[static_cast<std::size_t>(layout.float_keys() + (t - begin) * layout.padded_dim + i)] = v[from];
      }
    }
    level.elementwise->pack_int4(layout, page.data(), page.data() + layout.float_keys(),
                                 cache.sealed_head(table[static_cast<std::size_t>(begin / kPageTokens)], 1, 1));
  }

  /// What the kernels give for rows [begin, end), chunk by chunk.
  std::vector<float> run(const cpu::Level& level, const cpu::CpuCache& cache, std::int32_t begin,
                         std::int32_t end) const {
    const cpu::AttentionPages pages = cache.head(1, 1);
    const std::int32_t rows = end - begin, padded = pages.padded_dim;
    const auto at = static_cast<std::size_t>(begin);
    std::vector<float> memory(
        static_cast<std::size_t>(cpu::attend_scratch_floats(rows, padded) + 2 * cpu::state_floats(rows, padded) + 16));
    float* scratch = memory.data();
    while (reinterpret_cast<std::uintptr_t>(scratch) % 64) ++scratch;
    const auto state_at = [&](std::int64_t i) {
      float* const p = scratch + cpu::attend_scratch_floats(rows, padded) + i * cpu::state_floats(rows, padded);
      return cpu::AttentionState{p, p + rows, p + 2 * rows};
    };
    std::vector<std::int16_t> words(static_cast<std::size_t>(rows * cpu::query_words(head_dim)));
    std::vector<float> scales(static_cast<std::size_t>(rows * cpu::query_runs(head_dim)));
    level.attention->round_queries(rows, head_dim, q.data() + begin * head_dim, words.data(), scales.data());
    const cpu::AttentionTile tile{q.data() + begin * head_dim, words.data(),     scales.data(),
                                  first.data() + at,           last.data() + at, rows};
    const std::int32_t page_begin = first[at] / kPageTokens,
                       page_end = last[at + static_cast<std::size_t>(rows) - 1] / kPageTokens + 1;
    for (std::int32_t page = page_begin; page < page_end;) {
      const std::int32_t stop = std::min(page_end, (page / cpu::kChunkPages + 1) * cpu::kChunkPages);
      const std::int64_t i = page == page_begin ? 0 : 1;
      const std::byte* const after =
          stop < page_end ? cpu::keys_of_page(pages, table[static_cast<std::size_t>(stop)]) : nullptr;
      level.attention->attend(pages, tile, {table.data(), page, stop, after}, state_at(i), scratch);
      if (i) level.attention->merge(rows, padded, state_at(0), state_at(1));
      page = stop;
    }
    std::vector<float> out(static_cast<std::size_t>(rows * head_dim));
    for (std::int32_t r = 0; r < rows; ++r) {
      level.attention->finish(state_at(0).out + r * padded, state_at(0).sum[r], head_dim, out.data() + r * head_dim);
    }
    return out;
  }
  std::vector<float> run(const cpu::Level& level, const cpu::CpuCache& cache) const {
    return run(level, cache, 0, tokens * ratio);
  }

  /// Keys and values as the cache holds them, [length, head_dim].
  std::pair<std::vector<float>, std::vector<float>> held(cpu::CpuCache& cache) const {
    std::vector<float> page(static_cast<std::size_t>(cache.canonical_page_bytes()) / sizeof(float));
    std::vector<float> keys, values;
    const std::size_t dim = static_cast<std::size_t>(head_dim), matrix = 64 * 2 * dim;
    for (std::int32_t t = 0; t < length; ++t) {
      if (t % kPageTokens == 0) {
        cache.export_page(table[static_cast<std::size_t>(t / kPageTokens)], std::as_writable_bytes(std::span(page)))
            .value();
      }
      const float* const key = page.data() + 2 * matrix + (static_cast<std::size_t>(t % kPageTokens) * 2 + 1) * dim;
      keys.insert(keys.end(), key, key + dim);
      values.insert(values.end(), key + matrix, key + matrix + dim);
    }
    return {keys, values};
  }

  std::vector<double> expected(const std::vector<float>& keys, const std::vector<float>& values) const {
    const auto dim = static_cast<std::size_t>(head_dim);
    std::vector<double> out(q.size(), 0.0);
    for (std::size_t r = 0; r < first.size(); ++r) {
      std::vector<double> p;
      double highest = -1e300, total = 0;
      for (auto t = static_cast<std::size_t>(first[r]); t <= static_cast<std::size_t>(last[r]); ++t) {
        double dot = 0;
        for (std::size_t i = 0; i < dim; ++i) dot += double{q[r * dim + i]} * keys[t * dim + i];
        p.push_back(dot);
        highest = std::max(highest, dot);
      }
      for (double& x : p) total += x = std::exp(x - highest);
      for (std::size_t j = 0; j < p.size(); ++j) {
        const std::size_t t = static_cast<std::size_t>(first[r]) + j;
        for (std::size_t i = 0; i < dim; ++i) out[r * dim + i] += p[j] / total * values[t * dim + i];
      }
    }
    return out;
  }
};

double error(const std::vector<float>& found, const std::vector<float>& expected) {
  return nmse(found, std::vector<double>(expected.begin(), expected.end()));
}

}  // namespace

TEST_CASE("attention equals the reference and has the same bits on every level, for all element types and head sizes") {
  std::vector<Problem> problems;
  for (const std::int32_t dim : {64, 80, 96, 128, 256, 20, 33}) {
    problems.emplace_back(dim, 3, 331, 5);
    problems.emplace_back(dim, 1, 77, 1);
  }
  for (const std::int32_t ratio : {1, 3, 4, 8}) {
    problems.emplace_back(64, ratio, 200, 48 / ratio);
    problems.emplace_back(64, ratio, 700, 1, 150);
  }
  problems.emplace_back(32, 2, 1, 1);
  problems.emplace_back(32, 2, 64, 7);
  problems.emplace_back(32, 1, 513, 40, 3);
  for (const Problem& problem : problems) {
    for (const CacheType type : kTypes) {
      const std::span<const cpu::Level> levels = cpu::runnable_levels();
      CAPTURE(problem.head_dim, problem.ratio, problem.length, problem.window, static_cast<int>(type));
      auto cache = problem.cache(levels.front(), type);
      const auto [keys, values] = problem.held(*cache);
      const double bound = type == CacheType::f32    ? 0
                           : type == CacheType::int4 ? 2e-2
                           : type == CacheType::int8 ? 1e-4
                                                     : 1e-8;
      CHECK(error(keys, problem.k) <= bound);
      CHECK(error(values, problem.v) <= bound);
      const std::vector<float> found = problem.run(levels.front(), *cache);
      const double rounding = type == CacheType::f32 ? 1e-11 : type == CacheType::int4 ? 1e-6 : 2e-7;
      CHECK(nmse(found, problem.expected(keys, values)) < rounding);
      for (const cpu::Level& level : levels.subspan(1)) {
        CAPTURE(level.name);
        CHECK(same_bits(problem.run(level, *problem.cache(level, type)), found));
      }
    }
  }
}

TEST_CASE("a row of attention does not depend on the rows beside it") {
  const Problem problem(64, 4, 450, 12, 300);
  for (const cpu::Level& level : cpu::runnable_levels()) {
    for (const CacheType type : kTypes) {
      CAPTURE(level.name, static_cast<int>(type));
      const auto cache = problem.cache(level, type);
      const std::vector<float> whole = problem.run(level, *cache);
      for (const std::int32_t step : {4, 12, 28}) {  // tokens have 4 rows; their first page is the tile's
        std::vector<float> parts;
        for (std::int32_t r = 0; r < 48; r += step) {
          const auto part = problem.run(level, *cache, r, std::min(48, r + step));
          parts.insert(parts.end(), part.begin(), part.end());
        }
        CHECK(same_bits(parts, whole));
      }
    }
  }
}

TEST_CASE("keys and values in integers: the error is at most half a step, and a second rounding changes nothing") {
  std::mt19937 random(3);
  const CacheType type = GENERATE(CacheType::int8, CacheType::f16);
  const float steps = type == CacheType::int8 ? 127.0f : 16383.0f;
  for (const cpu::Level& level : cpu::runnable_levels()) {
    CAPTURE(level.name, static_cast<int>(type));
    constexpr std::size_t dim = 47;
    auto cache = cpu::CpuCache::make({1, 1, dim, 0}, type, 2).value();
    std::vector<float> k(dim), v(dim), page(2 * 64 * dim), again(page.size());
    std::vector<std::vector<float>> written;
    for (std::int32_t t = 0; t < 64; ++t) {
      const float size = std::ldexp(1.0f + static_cast<float>(random() % 1000) * 1e-3f, static_cast<int>(t) - 32);
      for (float& x : k) x = size * (static_cast<float>(random() % 2001) - 1000.0f);
      for (float& x : v) x = t == 5 ? 0.0f : size * static_cast<float>(random() % 7);
      if (t == 6) k.assign(dim, 1e-42f);
      level.attention->write(cache->head(0, 0), 0, t, k.data(), v.data());
      written.push_back(k);
    }
    REQUIRE(cache->export_page(0, std::as_writable_bytes(std::span(page))));
    for (std::size_t t = 0; t < 64; ++t) {
      float most = 0.0f;
      for (const float x : written[t]) most = std::max(most, std::abs(x));
      for (std::size_t i = 0; i < dim; ++i) {
        REQUIRE(std::abs(page[t * dim + i] - written[t][i]) <= std::max(most / steps * 0.502f, 1e-30f));
      }
    }
    for (std::size_t i = 0; i < dim; ++i) CHECK(page[64 * dim + 5 * dim + i] == 0.0f);
    REQUIRE(cache->import_page(1, std::as_bytes(std::span(page))));
    REQUIRE(cache->export_page(1, std::as_writable_bytes(std::span(again))));
    CHECK(same_bits(page, again));
  }
}

TEST_CASE("what is written of a token is the same at all levels, numbers or not") {
  constexpr float kInfinity = std::numeric_limits<float>::infinity(), kNaN = std::numeric_limits<float>::quiet_NaN();
  for (const CacheType type : {CacheType::f32, CacheType::f16, CacheType::int8}) {
    for (const std::int32_t dim : {1, 20, 47, 64, 80, 130}) {
      std::mt19937 random(11);
      std::normal_distribution<float> normal;
      std::vector<float> k(static_cast<std::size_t>(dim)), v(k.size());
      std::vector<std::byte> expected;
      std::vector<std::unique_ptr<cpu::CpuCache>> caches;
      for (std::size_t i = 0; i < cpu::runnable_levels().size(); ++i) {
        caches.push_back(cpu::CpuCache::make({1, 1, dim, 0}, type, 1).value());
      }
      for (std::int32_t t = 0; t < kPageTokens; ++t) {
        for (float& x : k) x = normal(random);
        for (float& x : v) x = normal(random);
        const auto at = static_cast<std::size_t>(t % dim);
        if (t % 8 == 1) k[at] = kNaN;
        if (t % 8 == 2) v[at] = -kInfinity;
        if (t % 8 == 3) k[at] = 0.0f, v[at] = -0.0f;
        for (std::size_t i = 0; i < caches.size(); ++i) {
          cpu::runnable_levels()[i].attention->write(caches[i]->head(0, 0), 0, t, k.data(), v.data());
        }
      }
      for (std::size_t i = 0; i < caches.size(); ++i) {
        CAPTURE(cpu::runnable_levels()[i].name, static_cast<int>(type), dim);
        std::vector<std::byte> page(static_cast<std::size_t>(caches[i]->canonical_page_bytes()));
        REQUIRE(caches[i]->export_page(0, page));
        if (expected.empty()) expected = page;
        CHECK(page == expected);
      }
    }
  }
}

TEST_CASE("keys and values of every page, layer and head have a place of their own, beside those of the next page") {
  constexpr std::int32_t kPages = 6;
  const CacheGroup group{2, 3, 20, 0};
  for (const CacheType type : kTypes) {
    CAPTURE(static_cast<int>(type));
    const std::int64_t bytes = kPages * cpu::cache_page_bytes(group, type), head_bytes = bytes / (kPages * 2 * 3);
    const std::shared_ptr<std::byte> memory(new std::byte[static_cast<std::size_t>(bytes) + 64],
                                            std::default_delete<std::byte[]>());
    for (const bool given : {false, true}) {
      const auto cache = cpu::CpuCache::make(group, type, kPages, given ? memory : nullptr).value();
      CHECK(cache->head(0, 0).block_pages == (given ? 1 : cpu::kBlockPages));
      std::vector<std::byte*> places;
      for (std::int32_t page = 0; page < kPages; ++page) {
        for (std::int32_t i = 0; i < 2 * 3; ++i) {
          const cpu::AttentionPages pages = cache->head(i / 3, i % 3);
          places.push_back(cpu::keys_of_page(pages, page));
          if (!given && page % cpu::kBlockPages > 0) {
            CHECK(places.back() == cpu::keys_of_page(pages, page - 1) + head_bytes);
          }
        }
      }
      std::sort(places.begin(), places.end());
      for (std::size_t i = 1; i < places.size(); ++i) CHECK(places[i] - places[i - 1] >= head_bytes);
      if (given) CHECK(places.back() + head_bytes <= memory.get() + bytes + 64);
    }
  }
}

TEST_CASE("a sliding window costs its pages only, however many tokens are before it") {
  const CacheGroup group{1, 3, 64, 1000}, whole{1, 3, 64, 0};
  const auto pages_of = [](const CacheGroup& g, std::int32_t position, std::int32_t rows, int threads) {
    std::vector<std::int32_t> positions(static_cast<std::size_t>(rows));
    std::iota(positions.begin(), positions.end(), position);
    Run run;
    run.rows = rows;
    run.first_position = position;
    Batch batch;
    batch.positions = positions;
    batch.runs = {&run, 1};
    cpu::AttentionTasks tasks(0, 9);
    tasks.build(batch, g, 64, threads, false);
    std::int64_t pages = 0;
    for (const cpu::AttentionTask& task : tasks.tasks) pages += task.page_end - task.page_begin;
    return pages;
  };
  for (const int threads : {1, 2}) {
    for (const std::int32_t rows : {1, 7, 512}) {
      CAPTURE(threads, rows);
      const std::int64_t pages = pages_of(group, 1024, rows, threads);
      CHECK(pages_of(group, 32768, rows, threads) == pages);
      CHECK(pages_of(group, 1 << 20, rows, threads) == pages);
      const std::int64_t tiles = 3 * ((rows + 15) / 16);  // tokens of 3 heads, 48 rows
      CHECK(pages <= tiles * ((1000 + 16 + 63) / 64 + 1));
      CHECK(pages_of(whole, 32768, rows, threads) >= tiles * 512);
    }
  }
}

TEST_CASE("threads share a long sequence, however many short ones are beside it") {
  const CacheGroup group{1, 1, 64, 0};
  for (const int threads : {2, 3, 8}) {
    for (const std::int32_t shorts : {0, 1, 12, 40}) {
      CAPTURE(threads, shorts);
      std::vector<Run> runs(static_cast<std::size_t>(shorts) + 1);
      for (std::size_t i = 0; i < runs.size(); ++i) {
        runs[i].first_row = static_cast<std::int32_t>(i);
        runs[i].rows = 1;
        runs[i].first_position = i == runs.size() / 2 ? 32767 : 70;
      }
      Batch batch;
      batch.runs = runs;
      cpu::AttentionTasks tasks(0, 4);
      tasks.build(batch, group, 64, threads, false);
      std::int64_t all = 0, most = 0;
      for (const cpu::AttentionTask& task : tasks.tasks) {
        all += task.page_end - task.page_begin;
        most = std::max(most, std::int64_t{task.page_end - task.page_begin});
      }
      CHECK(all == 512 + 2 * shorts);
      CHECK(most * 4 * threads <= all + 4 * threads * cpu::kChunkPages);
      CHECK(tasks.tiles.size() == 1);
    }
  }
}
