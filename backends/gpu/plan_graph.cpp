// Passes of few tokens as graphs (docs/adr/0029) or single kernels (docs/adr/0039): which have one, and what it depends
// on.
#include <algorithm>
#include <cstring>
#include <span>
#include <utility>
#include <variant>

#include "backends/gpu/plan.hpp"
#include "core/error.hpp"

namespace llminfer::gpu {
namespace {

/// 1, 2, 3, 4, 6, 8, 12, 16, …: linear layers take the same kernels as for the rows themselves.
std::int32_t bucket_of_rows(std::int32_t rows) {
  std::int32_t size = 1;
  while (size < rows) size *= 2;
  return rows <= size / 4 * 3 ? size / 4 * 3 : size;
}

/// Rounded up by an eighth at most where there are many, and by three where there are few, so that sequences seldom
/// leave their bucket, and attention is split over a GPU nearly as well as it could be. One page needs no splits.
std::int32_t bucket_of_pages(std::int32_t pages) {
  if (pages <= 1) return pages;
  std::int32_t step = 4;
  while (step * 16 <= pages) step *= 2;
  return (pages + step - 1) / step * step;
}

}  // namespace

/// Whether the host has nothing to do, nor to learn, between the first launch of a pass and the last.
bool GpuPlan::launches_alone(const Steps& steps) {
  return std::none_of(steps.steps.begin(), steps.steps.end(),
                      [](const Step& step) { return std::holds_alternative<ReduceStep>(step); });
}

/// Sizes that the pass's launches have, instead of those of the batch.
void GpuPlan::choose_bucket(const Batch& batch, std::int32_t selected) {
  Pass& p = pass_;
  const auto wanted = static_cast<std::int32_t>(batch.logit_rows.size());
  const bool fits =
      launches_alone_ && selected > 0 && p.rows <= kBucketRows &&
      std::all_of(batch.runs.begin(), batch.runs.end(), [](const Run& run) { return run.rows < kTileMinRows; });
  p.selects = selected > 0 && selected < p.rows;
  p.selected_rows = selected;
  p.launched_logits = wanted;
  if (!fits) return;
  const auto bucket = [&](std::int32_t rows) { return rows == 0 ? 0 : std::min(bucket_of_rows(rows), max_rows_); };
  p.bucket = true;
  p.rows = bucket(p.rows);
  p.selected_rows = p.selects ? bucket(selected) : p.rows;
  p.launched_logits = bucket(wanted);
}

/// How attention to a group is split, as far as the parts of all rows fit.
GpuPlan::Splits GpuPlan::splits_of(std::size_t group, const RowRange& range) const {
  const CacheGroup& g = program_.cache_groups[group];
  // A window may begin in the middle of a page.
  const std::int32_t seen = g.window > 0 ? std::min(range.longest, g.window + kPageTokens) : range.longest;
  std::int32_t pages = (seen + kPageTokens - 1) / kPageTokens;
  if (pass_.bucket) pages = bucket_of_pages(pages);
  Splits splits;
  if (options_.batch_invariant) {
    splits.pages = kInvariantSplitPages;
  } else {
    const std::int64_t blocks = std::int64_t{range.count} * g.kv_heads;
    const std::int64_t wanted = std::clamp<std::int64_t>(kBlocksPerUnit * device_->info().units / blocks, 1, pages);
    splits.pages = static_cast<std::int32_t>((pages + wanted - 1) / wanted);
  }
  splits.count = (pages + splits.pages - 1) / splits.pages;
  if (splits.count == 1) splits.pages = kAllPages;
  return splits;
}

/// All that the arguments of the pass's launches depend on, beside what is the same in all passes of the plan.
std::vector<std::int64_t> GpuPlan::graph_key() const {
  const auto address = [](const void* data) {
    return static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(data));
  };
  std::vector<std::int64_t> key = {pass_.rows, pass_.selects ? pass_.selected_rows : 0, pass_.launched_logits,
                                   address(words_.at()), pass_.has_embeddings ? address(embeddings_.at()) : 0};
  for (std::size_t g = 0; g < pass_.caches.size(); ++g) {
    const Splits splits = splits_of(g, pass_.all_rows);
    key.insert(key.end(), {address(pass_.caches[g]->layer(0).data), static_cast<std::int64_t>(pass_.caches[g]->type()),
                           pass_.open[g].seal_count, splits.count, splits.pages});
  }
  return key;
}

/// All steps of the pass, to a graph's queue or a StepList.
Result<void> GpuPlan::launch_into(void* queue) {
  queue_ = queue;
  Result<void> launched = core::guarded([&]() -> Result<void> {
    LLMINFER_TRY(compute_angles(pass_.positions, pass_.rows));
    for (const Step& step : steps_.steps) LLMINFER_TRY(std::visit([&](const auto& s) { return run(s); }, step));
    return {};
  });
  queue_ = nullptr;
  pass_.current_rows = pass_.rows;
  pass_.current_positions = pass_.positions;
  return launched;
}

/// What KernelTable::persistent runs, in device memory. Errors: also that the pass has a step that it does not run.
Result<Buffer> GpuPlan::list_steps() {
  StepList list;
  lists_steps_ = true;
  Result<void> listed = launch_into(&list);
  lists_steps_ = false;
  LLMINFER_TRY(std::move(listed));
  const std::span<const PersistentStep> steps = list.steps();
  const auto bytes = static_cast<std::int64_t>(steps.size_bytes());
  Buffer on_device = LLMINFER_TRY(Buffer::make(device_, bytes));
  const Buffer host = LLMINFER_TRY(Buffer::make(device_, bytes, true));
  std::memcpy(host.at(), steps.data(), steps.size_bytes());
  LLMINFER_TRY(device_->copy(on_device.at(), host.at(), bytes));
  LLMINFER_TRY(device_->wait());
  return on_device;
}

/// Enqueues the steps as one graph or one kernel, or gives false. Either is made when it is needed for the second time:
/// what comes once is enqueued sooner than a graph is made.
bool GpuPlan::launch_graph() {
  const bool copies =
      ring_ || std::any_of(pass_.caches.begin(), pass_.caches.end(), [](auto* c) { return c->pager(); });
  if (!options_.graphs || !pass_.bucket || copies || profiler_) return false;
  GraphTable::Entry& entry = graphs_.of(graph_key());
  if (entry.failed || !std::exchange(entry.seen, true)) return false;
  const int blocks = device_->info().resident_blocks;
  if (!entry.graph && entry.steps.bytes() == 0 && options_.persistent && pass_.rows == 1 && blocks > 0) {
    Result<Buffer> steps = core::guarded([&] { return list_steps(); });
    if (steps) entry.steps = *std::move(steps);
  }
  if (!entry.graph && entry.steps.bytes() == 0) {
    Result<Graph> graph = core::guarded(
        [&] { return Graph::make(device_, [&](void* stream) -> Result<void> { return launch_into(stream); }); });
    if (graph) entry.graph = *std::move(graph);
  }
  const auto launch = [&]() -> Result<void> {
    if (entry.steps.bytes() == 0) return entry.graph.launch();
    const auto count = entry.steps.bytes() / std::int64_t{sizeof(PersistentStep)};
    const PersistentArgs args{entry.steps.at<PersistentStep>(), static_cast<int>(count), blocks,
                              memory_.at<std::uint32_t>(layout_.barrier)};
    return device_->check(kernels().persistent(stream(), args), "persistent");
  };
  const bool launched = (entry.graph || entry.steps.bytes() > 0) && launch();
  if (!launched) {
    entry.graph = {};
    entry.steps = {};
    entry.failed = true;
  }
  return launched;
}

}  // namespace llminfer::gpu
