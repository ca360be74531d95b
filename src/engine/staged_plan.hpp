// StagedPlan and StagedCache: the Plan and the cache pages of a model whose layers are split between backends. To the
// engine they look like those of one backend.
#pragma once

#include <algorithm>
#include <memory>
#include <vector>

#include <llminfer/backend.hpp>

namespace llminfer::inline v0::engine {

/// What both keep.
inline PassPages least_of(const PassPages& a, const PassPages& b) noexcept {
  return {std::min(a.resident, b.resident), std::min(a.most, b.most)};
}

/// The pages of one cache group: each page has a part in every stage that has layers of the group.
class StagedCache final : public CacheStorage {
 public:
  struct Part {
    std::size_t stage;
    std::unique_ptr<CacheStorage> storage;
  };
  /// `parts` in the order of layers.
  explicit StagedCache(std::vector<Part> parts) : parts_(std::move(parts)) {}

  CacheStorage* of_stage(std::size_t stage) const noexcept;

  std::int64_t bytes() const noexcept override;
  Result<void> copy_page(std::int32_t from, std::int32_t to, std::int32_t tokens) override;
  std::int64_t canonical_page_bytes() const noexcept override;
  Result<void> export_page(std::int32_t page, std::span<std::byte> out) override;
  Result<void> import_page(std::int32_t page, std::span<const std::byte> in) override;
  bool seals_pages() const noexcept override;
  void finish_page(std::int32_t page) noexcept override;
  void forget_page(std::int32_t page) noexcept override;
  PassPages pass_pages() const noexcept override;
  std::int64_t moved_bytes() const noexcept override;

 private:
  std::vector<Part> parts_;
};

/// The batch of one stage, made of the batch of the whole model.
class StageBatch {
 public:
  /// Throws std::bad_alloc.
  explicit StageBatch(std::int32_t max_rows);
  /// `groups`: per cache group of the stage its index in the whole program. `in` [rows, hidden_size]: what the stage
  /// before gave out; empty for the first stage. `out` likewise: for the stage after; empty for the last stage, which
  /// has the batch's outputs. The batch is valid until the next call. Throws std::bad_alloc.
  const Batch& make(const Batch& whole, std::span<const std::size_t> groups, std::span<const float> in,
                    std::span<float> out);
  std::int32_t max_rows() const noexcept { return static_cast<std::int32_t>(all_rows_.size()); }

 private:
  std::vector<std::int32_t> no_token_;  ///< [rows] of -1
  std::vector<std::int32_t> all_rows_;  ///< 0, 1, …
  Batch batch_;
  std::vector<Run> runs_;
};

/// Runs the plans of the stages one after the other. Rows go from stage to stage through host memory.
class StagedPlan final : public Plan {
 public:
  struct Stage {
    std::unique_ptr<Plan> plan;
    std::vector<std::size_t> groups;  ///< per cache group of the stage its index in the whole program
  };
  /// `stages`: two or more. Throws std::bad_alloc.
  StagedPlan(std::vector<Stage> stages, std::int64_t hidden_size, std::int32_t max_batch_rows);

  /// Of what goes from stage to stage.
  static std::int64_t carried_bytes(std::int64_t hidden_size, std::int32_t max_batch_rows) noexcept;

  std::int64_t bytes() const noexcept override;
  /// `caches` are StagedCaches.
  Result<void> submit(const Batch& batch, std::span<CacheStorage* const> caches) override;
  Result<void> wait() override;
  std::int32_t max_candidates() const noexcept override { return stages_.back().plan->max_candidates(); }
  Result<void> fetch_logits(std::size_t index, std::span<float> logits) override;

 private:
  Result<void> submit_stage();

  std::vector<Stage> stages_;
  const std::int64_t hidden_size_;
  std::vector<float> carried_[2];  ///< [rows, hidden_size]: what stages of even and of odd number give out
  StageBatch stage_batch_;

  // The pass in flight.
  const Batch* batch_ = nullptr;
  std::vector<StagedCache*> caches_;
  std::size_t stage_ = 0;
  bool done_ = false;  ///< the last one has ended well
};

}  // namespace llminfer::inline v0::engine
