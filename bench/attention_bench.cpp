// Attention kernels alone: one tile of queries over the pages of one KV head, per element type, level, head size and
// rows. Operations are those of both products, bytes those of keys, values and scales. "decode" reads 128 MiB of
// pages, which no cache of a core holds; "short" reads 512 tokens; "prompt" is a full tile over 1024 tokens.
#include <benchmark/benchmark.h>

#include <cmath>
#include <cstdlib>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "backends/cpu/attention_tasks.hpp"
#include "backends/cpu/cache.hpp"
#include "backends/cpu/elementwise.hpp"
#include "backends/cpu/level.hpp"
#include "bench/counters.hpp"

namespace cpu = llminfer::cpu;
using llminfer::CacheType;

namespace {

struct Case {
  const char* name;
  std::int32_t rows, head_dim, pages;
};

void attention(benchmark::State& state, const cpu::Level& level, CacheType type, const Case& c) {
  static std::unique_ptr<cpu::CpuCache> cache;
  const auto dim = static_cast<std::size_t>(c.head_dim), row_count = static_cast<std::size_t>(c.rows);
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  std::vector<float> q(row_count * dim), k(dim), v(dim);
  std::vector<float> scales(row_count * static_cast<std::size_t>(cpu::query_runs(c.head_dim)));
  std::vector<std::int16_t> words(row_count * static_cast<std::size_t>(cpu::query_words(c.head_dim)));
  for (float& x : q) x = normal(random) / std::sqrt(static_cast<float>(c.head_dim));
  if (state.thread_index() == 0) {
    cache = cpu::CpuCache::make({1, 1, c.head_dim, 0}, type, c.pages).value();
    if (type == CacheType::int4) {
      const cpu::Int4Layout layout(c.head_dim);
      std::vector<float> page(static_cast<std::size_t>(layout.floats()));
      for (float& x : page) x = normal(random);
      for (std::int32_t p = 0; p < c.pages; ++p) {
        level.elementwise->pack_int4(layout, page.data(), page.data() + layout.float_keys(),
                                     cache->sealed_head(p, 0, 0));
      }
    }
    for (std::int32_t slot = 0; slot < c.pages * cpu::kPageSlots && type != CacheType::int4; ++slot) {
      if (slot < 256) {
        for (float& x : k) x = normal(random);
        for (float& x : v) x = normal(random);
      }
      level.attention->write(cache->head(0, 0), slot / cpu::kPageSlots, slot % cpu::kPageSlots, k.data(), v.data());
    }
  }
  const std::int32_t padded = (c.head_dim + 15) / 16 * 16;
  const auto floats =
      static_cast<std::size_t>(cpu::attend_scratch_floats(c.rows, padded) + 2 * cpu::state_floats(c.rows, padded) + 32);
  const std::unique_ptr<float, decltype(&std::free)> memory(
      static_cast<float*>(std::aligned_alloc(64, (floats * sizeof(float) + 63) / 64 * 64)), std::free);
  const std::vector<std::int32_t> first(row_count, 0), last(row_count, c.pages * cpu::kPageSlots - 1);
  std::vector<std::int32_t> table(static_cast<std::size_t>(c.pages));
  for (std::int32_t i = 0; i < c.pages; ++i) table[static_cast<std::size_t>(i)] = i;
  const auto state_at = [&](float* p) { return cpu::AttentionState{p, p + c.rows, p + 2 * c.rows}; };
  float* const first_state = memory.get() + cpu::attend_scratch_floats(c.rows, padded);
  const cpu::AttentionState total = state_at(first_state),
                            part = state_at(first_state + cpu::state_floats(c.rows, padded));
  const std::int32_t threads = state.threads(), thread = state.thread_index();
  level.attention->round_queries(c.rows, c.head_dim, q.data(), words.data(), scales.data());
  const cpu::AttentionTile tile{q.data(), words.data(), scales.data(), first.data(), last.data(), c.rows};
  for (auto _ : state) {
    const std::int32_t begin = c.pages / cpu::kChunkPages * thread / threads * cpu::kChunkPages;
    const std::int32_t end = c.pages / cpu::kChunkPages * (thread + 1) / threads * cpu::kChunkPages;
    for (std::int32_t page = begin; page < end; page += cpu::kChunkPages) {
      const std::int32_t next = page + cpu::kChunkPages;
      const cpu::AttentionPages pages = cache->head(0, 0);
      const cpu::PageRange range{table.data(), page, next, next < end ? cpu::keys_of_page(pages, next) : nullptr};
      level.attention->attend(pages, tile, range, page == begin ? total : part, memory.get());
      if (page != begin) level.attention->merge(c.rows, padded, total, part);
    }
    benchmark::ClobberMemory();
  }
  bench::count(state, static_cast<double>(cache->bytes()), 4.0 * c.rows * c.pages * cpu::kPageSlots * c.head_dim);
}

/// Keys and values of tokens into pages. Bytes are those of the page's elements.
void write(benchmark::State& state, const cpu::Level& level, CacheType type, std::int32_t dim) {
  const auto cache = cpu::CpuCache::make({1, 1, dim, 0}, type, 1).value();
  std::vector<float> k(static_cast<std::size_t>(dim));
  for (std::size_t i = 0; i < k.size(); ++i) k[i] = 0.1f * static_cast<float>(i % 17) - 0.8f;
  for (auto _ : state) {
    for (std::int32_t t = 0; t < cpu::kPageSlots; ++t) {
      level.attention->write(cache->head(0, 0), 0, t, k.data(), k.data());
    }
    benchmark::ClobberMemory();
  }
  bench::count(state, static_cast<double>(cache->bytes()));
}

}  // namespace

int main(int argc, char** argv) {
  static const std::pair<const char*, CacheType> kTypes[] = {{"f16", CacheType::f16},
                                                             {"bf16", CacheType::bf16},
                                                             {"f32", CacheType::f32},
                                                             {"int8", CacheType::int8},
                                                             {"int4", CacheType::int4}};
  for (const cpu::Level& level : cpu::runnable_levels()) {
    for (const auto& [type_name, type] : kTypes) {
      for (const std::int32_t dim : {64, 128}) {
        const std::int64_t page = cpu::cache_page_bytes({1, 1, dim, 0}, type);
        const auto many = static_cast<std::int32_t>((std::int64_t{128} << 20) / page / 4 * 4);
        for (const Case& c : {Case{"decode/rows:1", 1, dim, many}, Case{"decode/rows:4", 4, dim, many},
                              Case{"decode/rows:8", 8, dim, many}, Case{"short/rows:4", 4, dim, 8},
                              Case{"prompt/rows:48", 48, dim, 16}}) {
          const std::string name = std::string(level.name) + "/" + type_name + "/" + std::to_string(dim) + "/" + c.name;
          auto* const bench = benchmark::RegisterBenchmark(
              name.c_str(), [&level, type = type, c](benchmark::State& state) { attention(state, level, type, c); });
          bench->UseRealTime()->Threads(1);
          if (c.pages == many) bench->Threads(2);
        }
        if (type == CacheType::int4) continue;  // packed when pages are full
        const std::string name = std::string(level.name) + "/" + type_name + "/" + std::to_string(dim) + "/write";
        benchmark::RegisterBenchmark(
            name.c_str(), [&level, type = type, dim](benchmark::State& state) { write(state, level, type, dim); });
      }
    }
  }
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
