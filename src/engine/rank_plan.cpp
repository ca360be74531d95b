#include "engine/rank_plan.hpp"

#include "core/error.hpp"

namespace llminfer::inline v0::engine {

using core::fail;

Result<void> RankCache::copy_page(std::int32_t from, std::int32_t to, std::int32_t tokens) {
  if (own_) LLMINFER_TRY(own_->copy_page(from, to, tokens));
  return core::guarded([&] { return leader_->copy_page(group_, from, to, tokens); });
}

Result<void> RankCache::export_page(std::int32_t, std::span<std::byte>) {
  return Error{ErrorCode::unsupported, "export_page: the page's layers lie on several ranks"};
}

Result<void> RankCache::import_page(std::int32_t, std::span<const std::byte>) {
  return Error{ErrorCode::unsupported, "import_page: the page's layers lie on several ranks"};
}

RankPlan::RankPlan(std::shared_ptr<Leader> leader, RankStage stage)
    : leader_(std::move(leader)),
      stage_(std::move(stage)),
      stage_batch_(stage_.max_batch_rows),
      rows_(static_cast<std::size_t>(stage_.max_batch_rows * stage_.hidden_size)) {}

std::int64_t RankPlan::bytes() const noexcept {
  return stage_.plan->bytes() + static_cast<std::int64_t>(rows_.size() * sizeof(float));
}

Result<void> RankPlan::submit(const Batch& batch, std::span<CacheStorage* const>) {
  return core::guarded([&]() -> Result<void> {
    if (batch_) return fail(ErrorCode::invalid_state, "a batch is in flight; call wait() first");
    const std::size_t floats = batch.positions.size() * static_cast<std::size_t>(stage_.hidden_size);
    const auto rows = std::span(rows_).first(floats);
    LLMINFER_TRY(stage_.plan->submit(stage_batch_.make(batch, stage_.groups, {}, rows), stage_.all_caches()));
    batch_ = &batch;
    return {};
  });
}

/// The others learn of a pass once rank 0's own stage has done its part, so that one that fails there costs them
/// nothing.
Result<void> RankPlan::wait() {
  return core::guarded([&]() -> Result<void> {
    if (!batch_) return fail(ErrorCode::invalid_state, "no batch is in flight; call submit() first");
    const Batch& batch = *std::exchange(batch_, nullptr);
    LLMINFER_TRY(stage_.plan->wait());
    const std::size_t floats = batch.positions.size() * static_cast<std::size_t>(stage_.hidden_size);
    return leader_->pass(batch, std::span(rows_).first(floats));
  });
}

}  // namespace llminfer::inline v0::engine
