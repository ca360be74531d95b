// How the attention of a batch is cut into tasks, once per pass for all layers alike.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include <llminfer/backend.hpp>

namespace llminfer::cpu {

/// Query rows (tokens times query heads of one KV head) that a task computes together, unless one token has more.
inline constexpr std::int32_t kTileRows = 48;

/// Attention of some tokens of a run for one KV head over pages [page_begin, page_end) of the run's block table.
struct AttentionTask {
  std::int32_t run, kv_head;
  std::int32_t token_begin, token_end;  ///< of the run
  std::int32_t page_begin, page_end;
  std::int32_t tile;   ///< index of its SplitTile, or -1 where the task is the whole tile
  std::int32_t chunk;  ///< index of its chunk in the tile's
};

/// A tile whose chunks are tasks of their own. The task that ends last merges them.
struct SplitTile {
  std::int32_t chunks;
  std::int64_t partials;  ///< offset of chunk 0's state, in floats
};

class AttentionTasks {
 public:
  AttentionTasks(std::int32_t group, std::int32_t heads) : group(group), heads(heads) {}

  /// Cuts `batch` into tasks for `threads` threads; with `by_page` so that all tokens of a task are of one page. Throws
  /// std::bad_alloc.
  void build(const Batch& batch, const CacheGroup& cache, std::int32_t padded_dim, int threads, bool by_page);

  std::int32_t group, heads;  ///< whom the tasks are for
  std::vector<AttentionTask> tasks;
  std::vector<SplitTile> tiles;
  std::vector<float> partials;
  std::unique_ptr<std::atomic<std::int32_t>[]> missing;  ///< per tile: chunks not yet computed
  std::size_t missing_capacity = 0;
};

/// Floats of the state of `rows` rows: maxima, sums, outputs (see AttentionState).
constexpr std::int64_t state_floats(std::int64_t rows, std::int64_t padded_dim) { return rows * (2 + padded_dim); }

}  // namespace llminfer::cpu
