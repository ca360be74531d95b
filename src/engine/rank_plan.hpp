// RankPlan and RankCache: on rank 0, the Plan and the cache pages of a model whose other layers lie on other ranks. To
// the engine they look like those of one backend.
#pragma once

#include <memory>
#include <vector>

#include "engine/ranks.hpp"
#include "engine/staged_plan.hpp"

namespace llminfer::inline v0::engine {

class RankCache final : public CacheStorage {
 public:
  /// The others' parts.
  struct Elsewhere {
    std::int64_t bytes = 0;
    bool seals = false;
    PassPages limit{};  ///< that all of them keep
  };
  /// `own`: rank 0's part, or null.
  RankCache(std::shared_ptr<Leader> leader, std::size_t group, CacheStorage* own, const Elsewhere& elsewhere)
      : leader_(std::move(leader)), group_(group), own_(own), elsewhere_(elsewhere) {}

  std::int64_t bytes() const noexcept override { return elsewhere_.bytes + (own_ ? own_->bytes() : 0); }
  Result<void> copy_page(std::int32_t from, std::int32_t to, std::int32_t tokens) override;
  // Pages of other ranks stay there: unsupported.
  std::int64_t canonical_page_bytes() const noexcept override { return 0; }
  Result<void> export_page(std::int32_t page, std::span<std::byte> out) override;
  Result<void> import_page(std::int32_t page, std::span<const std::byte> in) override;
  bool seals_pages() const noexcept override { return elsewhere_.seals || (own_ && own_->seals_pages()); }
  // Other ranks keep what they have for a full page until its sequence goes on.
  void finish_page(std::int32_t page) noexcept override {
    if (own_) own_->finish_page(page);
  }
  void forget_page(std::int32_t page) noexcept override {
    if (own_) own_->forget_page(page);
    leader_->forgotten().add(group_, page);
  }
  PassPages pass_pages() const noexcept override {
    return own_ ? least_of(elsewhere_.limit, own_->pass_pages()) : elsewhere_.limit;
  }
  std::int64_t moved_bytes() const noexcept override { return own_ ? own_->moved_bytes() : 0; }

 private:
  const std::shared_ptr<Leader> leader_;
  const std::size_t group_;
  CacheStorage* const own_;
  const Elsewhere elsewhere_;
};

/// Rank 0's stage, then those of the others. Where stages have several shards, the embedding comes first by itself, and
/// its rows go to all shards of the first stage.
class RankPlan final : public Plan {
 public:
  /// `embedding`: has no plan unless there are several shards. `vocab_size`: of the whole. Throws std::bad_alloc.
  RankPlan(std::shared_ptr<Leader> leader, RankStage embedding, RankStage stage, std::int64_t vocab_size);
  ~RankPlan() override { leader_->release(); }

  const RankStage& stage() const noexcept { return stage_; }
  std::int64_t bytes() const noexcept override;
  Result<void> submit(const Batch& batch, std::span<CacheStorage* const> caches) override;
  Result<void> wait() override;

 private:
  Result<void> run_stage(const Batch& batch);
  Result<void> run_shard(const Batch& batch);
  std::span<float> rows_of(std::vector<float>& rows, const Batch& batch) const {
    return std::span(rows).first(batch.positions.size() * static_cast<std::size_t>(stage_.hidden_size));
  }

  const std::shared_ptr<Leader> leader_;
  RankStage embedding_, stage_;
  const std::int64_t vocab_size_;
  StageBatch stage_batch_;
  std::vector<float> rows_;       ///< that the first plan gives
  std::vector<float> out_;        ///< of a shard: what it hands on, if there are more stages
  std::vector<float> logits_;     ///< of a shard, if there are none
  const Batch* batch_ = nullptr;  ///< in flight
};

}  // namespace llminfer::inline v0::engine
