#include "backends/cpu/attention_tasks.hpp"

#include <algorithm>

#include "backends/cpu/attention.hpp"

namespace llminfer::cpu {

void AttentionTasks::build(const Batch& batch, const CacheGroup& cache, std::int32_t padded_dim, int threads,
                           bool by_page) {
  tasks.clear();
  tiles.clear();
  const std::int32_t sharing = heads / cache.kv_heads;
  const std::int32_t tile_tokens = std::max(1, kTileRows / sharing);
  for (std::size_t r = 0; r < batch.runs.size(); ++r) {
    const Run& run = batch.runs[r];
    // Later tokens see more keys: they go first, so that the last tasks to end are short ones.
    for (std::int32_t end = run.rows; end > 0;) {
      std::int32_t begin = (end - 1) / tile_tokens * tile_tokens;
      if (by_page) {
        begin = std::max(begin, (run.first_position + end - 1) / kPageTokens * kPageTokens - run.first_position);
      }
      const std::int32_t first = cache.window > 0 ? std::max(0, run.first_position + begin - cache.window + 1) : 0;
      for (std::int32_t h = 0; h < cache.kv_heads; ++h) {
        tasks.push_back({static_cast<std::int32_t>(r), h, begin, end, first / kPageTokens,
                         (run.first_position + end - 1) / kPageTokens + 1, -1, 0});
      }
      end = begin;
    }
  }
  if (threads == 1) return;

  // Tiles that are more than their part of what keeps all threads busy: their chunks become tasks. The bits stay the
  // same.
  const auto cost = [](const AttentionTask& task) {
    return std::int64_t{task.page_end - task.page_begin} * (task.token_end - task.token_begin);
  };
  std::int64_t all = 0;
  for (const AttentionTask& task : tasks) all += cost(task);
  std::vector<AttentionTask> split;
  std::int64_t floats = 0;
  for (const AttentionTask& whole : tasks) {
    const std::int32_t first_chunk = whole.page_begin / kChunkPages, end_chunk = (whole.page_end - 1) / kChunkPages + 1;
    if (end_chunk - first_chunk < 2 || 4 * threads * cost(whole) <= all) {
      split.push_back(whole);
      continue;
    }
    for (std::int32_t c = first_chunk; c < end_chunk; ++c) {
      AttentionTask part = whole;
      part.page_begin = std::max(whole.page_begin, c * kChunkPages);
      part.page_end = std::min(whole.page_end, (c + 1) * kChunkPages);
      part.tile = static_cast<std::int32_t>(tiles.size());
      part.chunk = c - first_chunk;
      split.push_back(part);
    }
    tiles.push_back({end_chunk - first_chunk, floats});
    floats += (end_chunk - first_chunk) *
              state_floats(std::int64_t{whole.token_end - whole.token_begin} * sharing, padded_dim);
  }
  tasks = std::move(split);
  if (partials.size() < static_cast<std::size_t>(floats)) partials.resize(static_cast<std::size_t>(floats));
  if (missing_capacity < tiles.size()) {
    missing = std::make_unique<std::atomic<std::int32_t>[]>(tiles.size());
    missing_capacity = tiles.size();
  }
  for (std::size_t i = 0; i < tiles.size(); ++i) missing[i].store(tiles[i].chunks, std::memory_order_relaxed);
}

}  // namespace llminfer::cpu
