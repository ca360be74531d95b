// Attention of a plan: writes the new tokens' keys and values, then runs the tasks that the batch was cut into.
#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "backends/cpu/plan.hpp"
#include "core/error.hpp"

namespace llminfer::cpu {

AttentionTasks& CpuPlan::tasks_of(const AttentionStep& step) noexcept {
  return *std::find_if(pass_.attention.begin(), pass_.attention.end(), [&](const AttentionTasks& tasks) {
    return tasks.group == step.op.group && tasks.heads == step.op.heads;
  });
}

/// Opens and closes pages, and sorts the pass's rows by the page that they write to.
Result<void> CpuPlan::open_pages() {
  pass_.writes.resize(pass_.caches.size());
  for (std::size_t g = 0; g < pass_.caches.size(); ++g) {
    PageWrites& writes = pass_.writes[g];
    writes.rows.clear();
    writes.begins.clear();
    CpuCache& cache = *pass_.caches[g];
    if (!cache.seals_pages()) continue;
    const std::vector<std::int32_t> page_of_row = LLMINFER_TRY(cache.open_pages().begin_pass(pass_.batch->runs, g));
    writes.rows.resize(page_of_row.size());
    std::iota(writes.rows.begin(), writes.rows.end(), 0);
    const auto page = [&](std::int32_t row) { return page_of_row[static_cast<std::size_t>(row)]; };
    std::stable_sort(writes.rows.begin(), writes.rows.end(), [&](auto a, auto b) { return page(a) < page(b); });
    for (std::size_t i = 0; i < writes.rows.size(); ++i) {
      if (i > 0 && page(writes.rows[i]) == page(writes.rows[i - 1])) continue;
      writes.begins.push_back(static_cast<std::int32_t>(i));
    }
    writes.begins.push_back(static_cast<std::int32_t>(writes.rows.size()));
  }
  return {};
}

void CpuPlan::write_key_value(const AttentionStep& step, std::int32_t batch_row, std::int32_t kv_head,
                              Thread& thread) noexcept {
  const auto g = static_cast<std::size_t>(step.op.group);
  const Run& run = pass_.batch->runs[static_cast<std::size_t>(pass_.run_of_row[static_cast<std::size_t>(batch_row)])];
  const std::int32_t position = run.first_position + (batch_row - run.first_row);
  const std::int32_t page = run.block_tables[g][static_cast<std::size_t>(position / kPageTokens)];
  const CpuCache& cache = *pass_.caches[g];
  const AttentionPages pages =
      cache.seals_pages() ? cache.open_head(page, step.op.layer, kv_head) : cache.head(step.op.layer, kv_head);
  const float* key = row(step.op.k, batch_row) + std::int64_t{kv_head} * pages.head_dim;
  if (step.k_rope >= 0) {
    const RopeTable& table = program_.rope_tables[static_cast<std::size_t>(step.k_rope)];
    float* const rotated = thread.at<float>(layout_.head);
    level_.elementwise->rope(key, cosines(step.k_rope, batch_row), sines(step.k_rope, batch_row),
                             static_cast<std::int32_t>(table.inverse_frequency.size()), table.interleaved,
                             pages.head_dim, 1.0f, rotated);
    key = rotated;
  }
  level_.attention->write(pages, page, position % kPageTokens, key,
                          row(step.op.v, batch_row) + std::int64_t{kv_head} * pages.head_dim);
}

/// Packs the page of this row, if the row fills it and all before it are written.
void CpuPlan::seal(const AttentionStep& step, std::int32_t batch_row, std::int32_t kv_head) noexcept {
  const auto g = static_cast<std::size_t>(step.op.group);
  const Run& run = pass_.batch->runs[static_cast<std::size_t>(pass_.run_of_row[static_cast<std::size_t>(batch_row)])];
  const std::int32_t position = run.first_position + (batch_row - run.first_row);
  if (position % kPageTokens != kPageTokens - 1) return;
  const std::int32_t page = run.block_tables[g][static_cast<std::size_t>(position / kPageTokens)];
  const CpuCache& cache = *pass_.caches[g];
  const Int4Layout layout(cache.group().head_dim);
  const auto* const keys = reinterpret_cast<const float*>(cache.open_head(page, step.op.layer, kv_head).data);
  level_.elementwise->pack_int4(layout, keys, keys + layout.float_keys(),
                                cache.sealed_head(page, step.op.layer, kv_head));
}

void CpuPlan::run(const AttentionStep& step, const Phase& phase, int first, int last, Thread& thread) noexcept {
  AttentionTasks& tasks = tasks_of(step);
  const std::int32_t kv_heads = program_.cache_groups[static_cast<std::size_t>(step.op.group)].kv_heads;
  const PageWrites& writes = pass_.writes[static_cast<std::size_t>(step.op.group)];
  if (phase.kind == Phase::Kind::main) {
    const auto end = static_cast<std::size_t>(last);
    for (auto begin = static_cast<std::size_t>(first); begin < end;) {  // tasks of the same tile together
      std::size_t next = begin + 1;
      const std::int32_t tile = tasks.tasks[begin].tile;
      while (tile >= 0 && next < end && tasks.tasks[next].tile == tile) ++next;
      attend(step, tasks, begin, next, thread);
      begin = next;
    }
    return;
  }
  for (int i = first; i < last; ++i) {
    if (!writes.rows.empty()) {
      const auto unit = static_cast<std::size_t>(i / kv_heads);
      const auto begin = static_cast<std::size_t>(writes.begins[unit]);
      const auto count = static_cast<std::size_t>(writes.begins[unit + 1]) - begin;
      const auto rows = std::span(writes.rows).subspan(begin, count);
      for (const std::int32_t row : rows) write_key_value(step, row, i % kv_heads, thread);
      for (const std::int32_t row : rows) seal(step, row, i % kv_heads);
    } else {
      write_key_value(step, i / kv_heads, i % kv_heads, thread);
    }
  }
}

/// `state` = attention over `range`, pages of one chunk. In a cache that seals pages the one that the tile's tokens are
/// in is open, and those before it are sealed; `more` is room for a second state.
void CpuPlan::attend_chunk(const AttentionStep& step, std::int32_t kv_head, const AttentionTile& tile,
                           const PageRange& range, const AttentionState& state, const AttentionState& more,
                           float* scratch) noexcept {
  const CpuCache& cache = *pass_.caches[static_cast<std::size_t>(step.op.group)];
  const AttentionKernels& kernels = *level_.attention;
  if (!cache.seals_pages()) {
    return kernels.attend(cache.head(step.op.layer, kv_head), tile, range, state, scratch);
  }
  const std::int32_t own = tile.last[tile.rows - 1] / kPageTokens, sealed_end = std::min(range.end, own);
  if (range.begin < sealed_end) {
    kernels.attend(cache.head(step.op.layer, kv_head), tile,
                   {range.table, range.begin, sealed_end, own < range.end ? nullptr : range.after}, state, scratch);
  }
  if (own < range.end) {
    const AttentionState& last = range.begin < sealed_end ? more : state;
    // Of one page only: its number does not matter.
    kernels.attend(cache.open_head(range.table[own], step.op.layer, kv_head), tile,
                   {range.table, own, own + 1, range.after}, last, scratch);
    if (range.begin < sealed_end) kernels.merge(tile.rows, Int4Layout(cache.group().head_dim).padded_dim, state, more);
  }
}

namespace {

/// What a tile of attention needs of a thread's memory.
struct TileMemory {
  float* queries;       ///< [rows, head_dim]
  float* scales;        ///< of `words`
  std::int16_t* words;  ///< the queries, rounded
  float* scratch;
  float* states[3];
  std::int32_t *first, *last;  ///< [rows]

  TileMemory(float* memory, std::int32_t rows, const AttentionPages& pages) {
    const auto take = [&](std::int64_t floats) { return std::exchange(memory, memory + (floats + 15) / 16 * 16); };
    queries = take(std::int64_t{rows} * pages.head_dim);
    scales = take(std::int64_t{rows} * query_runs(pages.head_dim));
    words = reinterpret_cast<std::int16_t*>(take(std::int64_t{rows} * query_words(pages.head_dim) / 2));
    scratch = take(attend_scratch_floats(rows, pages.padded_dim));
    for (float*& state : states) state = take(state_floats(rows, pages.padded_dim));
    first = reinterpret_cast<std::int32_t*>(take(rows));
    last = reinterpret_cast<std::int32_t*>(take(rows));
  }
};

}  // namespace

/// Row r of `out` = head r % sharing of token r / sharing of the tile, rotated and scaled.
void CpuPlan::rotate_queries(const AttentionStep& step, const AttentionTask& task, std::int32_t sharing,
                             float* out) noexcept {
  const Run& run = pass_.batch->runs[static_cast<std::size_t>(task.run)];
  const std::int32_t head_dim = program_.cache_groups[static_cast<std::size_t>(step.op.group)].head_dim;
  for (std::int32_t r = 0; r < (task.token_end - task.token_begin) * sharing; ++r, out += head_dim) {
    const std::int32_t batch_row = run.first_row + task.token_begin + r / sharing;
    const std::int32_t head = task.kv_head * sharing + r % sharing;
    const float* const in = row(step.op.q, batch_row) + std::int64_t{head} * head_dim;
    if (step.q_rope >= 0) {
      const RopeTable& table = program_.rope_tables[static_cast<std::size_t>(step.q_rope)];
      level_.elementwise->rope(in, cosines(step.q_rope, batch_row), sines(step.q_rope, batch_row),
                               static_cast<std::int32_t>(table.inverse_frequency.size()), table.interleaved, head_dim,
                               step.op.scale, out);
    } else {
      for (std::int32_t i = 0; i < head_dim; ++i) out[i] = in[i] * step.op.scale;
    }
  }
}

/// The outputs of a tile whose keys have all been attended to.
void CpuPlan::finish_tile(const AttentionStep& step, const AttentionTask& task, std::int32_t sharing,
                          std::int32_t padded_dim, const AttentionState& total) noexcept {
  const std::int32_t first_row = pass_.batch->runs[static_cast<std::size_t>(task.run)].first_row + task.token_begin;
  const std::int32_t head_dim = program_.cache_groups[static_cast<std::size_t>(step.op.group)].head_dim;
  for (std::int32_t r = 0; r < (task.token_end - task.token_begin) * sharing; ++r) {
    const std::int32_t head = task.kv_head * sharing + r % sharing;
    float sum = total.sum[r];
    if (step.op.sinks != WeightId::none) {  // as one more key, whose value is zero
      const auto above = static_cast<double>(vector(step.op.sinks)[head]) - static_cast<double>(total.max[r]);
      sum = static_cast<float>(static_cast<double>(sum) + std::exp(std::min(above, 80.0)));
    }
    level_.attention->finish(total.out + std::int64_t{r} * padded_dim, sum, head_dim,
                             row(step.op.out, first_row + r / sharing) + std::int64_t{head} * head_dim);
  }
}

/// Computes tasks [first_task, last_task), which are one, or of one tile.
void CpuPlan::attend(const AttentionStep& step, AttentionTasks& tasks, std::size_t first_task, std::size_t last_task,
                     Thread& thread) noexcept {
  const AttentionTask& task = tasks.tasks[first_task];
  const std::int32_t page_end = tasks.tasks[last_task - 1].page_end;
  const auto g = static_cast<std::size_t>(step.op.group);
  const CacheGroup& group = program_.cache_groups[g];
  const Run& run = pass_.batch->runs[static_cast<std::size_t>(task.run)];
  const AttentionPages pages = pass_.caches[g]->head(step.op.layer, task.kv_head);
  const AttentionKernels& kernels = *level_.attention;
  const std::int32_t sharing = step.op.heads / group.kv_heads;
  const std::int32_t rows = (task.token_end - task.token_begin) * sharing;
  const std::int32_t first_batch_row = run.first_row + task.token_begin;
  const std::int32_t end_position = run.first_position + task.token_end;

  const bool last_pages = page_end == (end_position - 1) / kPageTokens + 1;
  if (pass_.write_in_attention && last_pages) {
    write_key_value(step, first_batch_row, task.kv_head, thread);
    if (pass_.caches[g]->seals_pages()) seal(step, first_batch_row, task.kv_head);
  }
  if (&step == std::get_if<AttentionStep>(&steps_.steps[static_cast<std::size_t>(steps_.last_attention)])) {
    // Nothing reads the other rows.
    const auto wanted = std::lower_bound(pass_.selected.begin(), pass_.selected.end(), first_batch_row);
    if (wanted == pass_.selected.end() || *wanted >= run.first_row + task.token_end) return;
  }

  const TileMemory memory(thread.at<float>(layout_.tile), rows, pages);
  rotate_queries(step, task, sharing, memory.queries);
  for (std::int32_t r = 0; r < rows; ++r) {
    const std::int32_t last = run.first_position + task.token_begin + r / sharing;
    memory.last[r] = last;
    memory.first[r] = group.window > 0 ? std::max(0, last - group.window + 1) : 0;
  }
  if (pages.element == CacheElement::int16 || pages.element == CacheElement::int8) {
    kernels.round_queries(rows, pages.head_dim, memory.queries, memory.words, memory.scales);
  }
  const AttentionTile tile{memory.queries, memory.words, memory.scales, memory.first, memory.last, rows};
  const auto keys_of = [&](const AttentionTask& of, std::int32_t page) -> const std::byte* {
    const std::int32_t in_table = pass_.batch->runs[static_cast<std::size_t>(of.run)].block_tables[g][page];
    return keys_of_page(pass_.caches[g]->head(step.op.layer, of.kv_head), in_table);
  };
  const std::byte* const after =
      last_task < tasks.tasks.size() ? keys_of(tasks.tasks[last_task], tasks.tasks[last_task].page_begin) : nullptr;
  const auto state_at = [&](float* p) { return AttentionState{p, p + rows, p + 2 * rows}; };
  float* const partials = task.tile < 0 ? nullptr : tasks.partials.data() + tasks.tiles[task.tile].partials;
  const std::int64_t floats = state_floats(rows, pages.padded_dim);
  const AttentionState total = state_at(task.tile < 0 ? memory.states[0] : partials);
  for (std::int32_t page = task.page_begin, chunk = task.chunk; page < page_end; ++chunk) {
    const std::int32_t end = std::min(page_end, (page / kChunkPages + 1) * kChunkPages);
    const bool folds = task.tile < 0 && page > task.page_begin;
    AttentionState part = folds ? state_at(memory.states[1]) : total;
    if (task.tile >= 0) part = state_at(partials + chunk * floats);
    attend_chunk(step, task.kv_head, tile,
                 {run.block_tables[g].data(), page, end, end < page_end ? keys_of(task, end) : after}, part,
                 state_at(memory.states[2]), memory.scratch);
    if (folds) kernels.merge(rows, pages.padded_dim, total, part);
    page = end;
  }
  if (task.tile >= 0) {
    const auto t = static_cast<std::size_t>(task.tile);
    const auto done = static_cast<std::int32_t>(last_task - first_task);
    if (tasks.missing[t].fetch_sub(done, std::memory_order_acq_rel) != done) return;
    tasks.missing[t].store(tasks.tiles[t].chunks, std::memory_order_relaxed);  // for the next layer
    for (std::int32_t c = 1; c < tasks.tiles[t].chunks; ++c) {
      kernels.merge(rows, pages.padded_dim, total, state_at(partials + c * floats));
    }
  }
  finish_tile(step, task, sharing, pages.padded_dim, total);
}

}  // namespace llminfer::cpu
