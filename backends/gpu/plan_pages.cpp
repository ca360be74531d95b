// What a pass has to do with caches whose pages lie in host memory: it gives their pagers its runs, and takes block
// tables of each layer from them.
#include <algorithm>

#include "backends/gpu/plan.hpp"
#include "core/error.hpp"

namespace llminfer::gpu {

/// Errors: those of CachePager::begin(). Whoever calls abandons the pass then.
Result<void> GpuPlan::begin_pages(const Batch& batch) {
  for (std::size_t g = 0; g < pass_.caches.size(); ++g) {
    if (CachePager* const pager = pass_.caches[g]->pager()) LLMINFER_TRY(pager->begin(batch.runs, g));
  }
  return {};
}

void GpuPlan::lay_out_blocks(const Batch& batch) {
  Pass& p = pass_;
  p.blocks.resize(p.caches.size());
  for (std::size_t g = 0; g < p.caches.size(); ++g) {
    const CachePager* const pager = p.caches[g]->pager();
    if (!pager) continue;
    for (std::int32_t layer = 0; layer < pager->size().layers; ++layer) {
      const std::size_t first = p.words.size();
      p.blocks[g].push_back(static_cast<std::int64_t>(first));
      for (const Run& run : batch.runs) {
        const auto begin = static_cast<std::int32_t>(p.words.size() - first);
        if (layer == 0) std::fill_n(p.words.begin() + p.begins[g] + run.first_row, run.rows, begin);
        for (std::int32_t at = 0; at < run.first_position + run.rows; at += kPageTokens) {
          const std::int32_t page = run.block_tables[g][static_cast<std::size_t>(at / kPageTokens)];
          p.words.push_back(page < 0 ? -1 : pager->block(layer, page));
        }
      }
    }
  }
}

Result<void> GpuPlan::finish_pages() {
  for (const GpuCache* cache : pass_.caches) {
    if (CachePager* const pager = cache->pager()) LLMINFER_TRY(pager->finish());
  }
  return {};
}

/// `waited`: how the work that was enqueued has ended.
void GpuPlan::abandon_pages(const Result<void>& waited) noexcept {
  for (const GpuCache* cache : pass_.caches) {
    if (CachePager* const pager = cache->pager()) pager->abandon(waited);
  }
}

}  // namespace llminfer::gpu
