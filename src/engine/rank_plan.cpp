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

RankPlan::RankPlan(std::shared_ptr<Leader> leader, RankStage embedding, RankStage stage, std::int64_t vocab_size)
    : leader_(std::move(leader)),
      embedding_(std::move(embedding)),
      stage_(std::move(stage)),
      vocab_size_(vocab_size),
      stage_batch_(stage_.max_batch_rows),
      rows_(static_cast<std::size_t>(stage_.max_batch_rows * stage_.hidden_size)) {
  if (embedding_.plan && stage_.group->count() < leader_->ranks()) out_.resize(rows_.size());
}

std::int64_t RankPlan::bytes() const noexcept {
  return stage_.plan->bytes() + (embedding_.plan ? embedding_.plan->bytes() : 0) +
         static_cast<std::int64_t>((rows_.size() + out_.size() + logits_.size()) * sizeof(float));
}

Result<void> RankPlan::submit(const Batch& batch, std::span<CacheStorage* const>) {
  return core::guarded([&]() -> Result<void> {
    if (batch_) return fail(ErrorCode::invalid_state, "a batch is in flight; call wait() first");
    const RankStage& first = embedding_.plan ? embedding_ : stage_;
    LLMINFER_TRY(
        first.plan->submit(stage_batch_.make(batch, first.groups, {}, rows_of(rows_, batch)), first.all_caches()));
    batch_ = &batch;
    return {};
  });
}

Result<void> RankPlan::wait() {
  return core::guarded([&]() -> Result<void> {
    if (!batch_) return fail(ErrorCode::invalid_state, "no batch is in flight; call submit() first");
    const Batch& batch = *std::exchange(batch_, nullptr);
    return embedding_.plan ? run_shard(batch) : run_stage(batch);
  });
}

/// The others learn of a pass once rank 0's own stage has done its part, so that one that fails there costs them
/// nothing.
Result<void> RankPlan::run_stage(const Batch& batch) {
  LLMINFER_TRY(stage_.plan->wait());
  LLMINFER_TRY(leader_->announce(batch));
  LLMINFER_TRY(leader_->give(1, {}, rows_of(rows_, batch)));
  return leader_->collect(batch, vocab_size_, {});
}

/// From where the others learn of the pass they compute with rank 0, so whatever goes wrong here goes through finish().
Result<void> RankPlan::run_shard(const Batch& batch) {
  LLMINFER_TRY(embedding_.plan->wait());
  ShardGroup& group = *stage_.group;
  const auto in = rows_of(rows_, batch);
  const bool last = out_.empty();
  const std::span<float> out = last ? std::span<float>() : rows_of(out_, batch);
  if (last) logits_.resize(batch.logit_rows.size() * static_cast<std::size_t>(stage_.vocab_size));
  LLMINFER_TRY(leader_->announce(batch));
  for (int rank = 1; rank < group.count(); ++rank) LLMINFER_TRY(leader_->give(rank, {}, in));
  auto outcome = group.finish(core::guarded([&]() -> Result<void> {
    Batch own = stage_batch_.make(batch, stage_.groups, in, out);
    if (last) own.logits = logits_;
    return group.compute(*stage_.plan, own, stage_.all_caches());
  }));
  if (group.broken()) return leader_->lost(*group.broken());
  if (!last) LLMINFER_TRY(leader_->give(group.count(), outcome, out));
  auto collected = leader_->collect(batch, vocab_size_, logits_);
  return outcome ? std::move(collected) : std::move(outcome);
}

}  // namespace llminfer::inline v0::engine
