#include "engine/staged_plan.hpp"

#include <algorithm>
#include <numeric>

#include "core/error.hpp"

namespace llminfer::inline v0::engine {

using core::fail;

CacheStorage* StagedCache::of_stage(std::size_t stage) const noexcept {
  const auto part = std::find_if(parts_.begin(), parts_.end(), [&](const Part& p) { return p.stage == stage; });
  return part == parts_.end() ? nullptr : part->storage.get();
}

std::int64_t StagedCache::bytes() const noexcept {
  std::int64_t bytes = 0;
  for (const Part& part : parts_) bytes += part.storage->bytes();
  return bytes;
}

Result<void> StagedCache::copy_page(std::int32_t from, std::int32_t to, std::int32_t tokens) {
  for (const Part& part : parts_) LLMINFER_TRY(part.storage->copy_page(from, to, tokens));
  return {};
}

std::int64_t StagedCache::canonical_page_bytes() const noexcept {
  std::int64_t bytes = 0;
  for (const Part& part : parts_) bytes += part.storage->canonical_page_bytes();
  return bytes;
}

Result<void> StagedCache::export_page(std::int32_t page, std::span<std::byte> out) {
  if (out.size() != static_cast<std::size_t>(canonical_page_bytes())) {
    return fail(ErrorCode::invalid_argument, "export_page: ", out.size(), " bytes; expected ", canonical_page_bytes());
  }
  for (const Part& part : parts_) {
    const auto bytes = static_cast<std::size_t>(part.storage->canonical_page_bytes());
    LLMINFER_TRY(part.storage->export_page(page, out.first(bytes)));
    out = out.subspan(bytes);
  }
  return {};
}

Result<void> StagedCache::import_page(std::int32_t page, std::span<const std::byte> in) {
  if (in.size() != static_cast<std::size_t>(canonical_page_bytes())) {
    return fail(ErrorCode::invalid_argument, "import_page: ", in.size(), " bytes; expected ", canonical_page_bytes());
  }
  for (const Part& part : parts_) {
    const auto bytes = static_cast<std::size_t>(part.storage->canonical_page_bytes());
    LLMINFER_TRY(part.storage->import_page(page, in.first(bytes)));
    in = in.subspan(bytes);
  }
  return {};
}

bool StagedCache::seals_pages() const noexcept {
  return std::any_of(parts_.begin(), parts_.end(), [](const Part& part) { return part.storage->seals_pages(); });
}

void StagedCache::finish_page(std::int32_t page) noexcept {
  for (const Part& part : parts_) part.storage->finish_page(page);
}

void StagedCache::forget_page(std::int32_t page) noexcept {
  for (const Part& part : parts_) part.storage->forget_page(page);
}

PassPages StagedCache::pass_pages() const noexcept {
  PassPages least;
  for (const Part& part : parts_) least = least_of(least, part.storage->pass_pages());
  return least;
}

std::int64_t StagedCache::moved_bytes() const noexcept {
  std::int64_t bytes = 0;
  for (const Part& part : parts_) bytes += part.storage->moved_bytes();
  return bytes;
}

StageBatch::StageBatch(std::int32_t max_rows)
    : no_token_(static_cast<std::size_t>(max_rows), -1), all_rows_(static_cast<std::size_t>(max_rows)) {
  std::iota(all_rows_.begin(), all_rows_.end(), 0);
}

const Batch& StageBatch::make(const Batch& whole, std::span<const std::size_t> groups, std::span<const float> in,
                              std::span<float> out) {
  const std::size_t rows = whole.positions.size();
  batch_ = whole;
  if (!in.empty()) {
    batch_.tokens = std::span(no_token_).first(rows);
    batch_.embeddings = in;
  }
  if (!out.empty()) {
    batch_.logit_rows = {};
    batch_.logits = {};
    batch_.candidate_wishes = {};
    batch_.candidates = {};
    batch_.candidate_sums = {};
    batch_.draws = {};
    batch_.hidden_rows = std::span(all_rows_).first(rows);
    batch_.hidden = out;
  }
  runs_.resize(whole.runs.size());
  for (std::size_t r = 0; r < runs_.size(); ++r) {
    const Run& from = whole.runs[r];
    Run& run = runs_[r];
    run.first_row = from.first_row;
    run.rows = from.rows;
    run.first_position = from.first_position;
    run.block_tables.clear();
    for (const std::size_t group : groups) run.block_tables.push_back(from.block_tables[group]);
  }
  batch_.runs = runs_;
  return batch_;
}

StagedPlan::StagedPlan(std::vector<Stage> stages, std::int64_t hidden_size, std::int32_t max_batch_rows)
    : stages_(std::move(stages)), hidden_size_(hidden_size), stage_batch_(max_batch_rows) {
  for (auto& rows : carried_) rows.resize(static_cast<std::size_t>(hidden_size * max_batch_rows));
}

std::int64_t StagedPlan::carried_bytes(std::int64_t hidden_size, std::int32_t max_batch_rows) noexcept {
  return 2 * max_batch_rows * (hidden_size * static_cast<std::int64_t>(sizeof(float)) + 4);
}

std::int64_t StagedPlan::bytes() const noexcept {
  std::int64_t bytes = carried_bytes(hidden_size_, stage_batch_.max_rows());
  for (const Stage& stage : stages_) bytes += stage.plan->bytes();
  return bytes;
}

Result<void> StagedPlan::submit(const Batch& batch, std::span<CacheStorage* const> caches) {
  return core::guarded([&]() -> Result<void> {
    if (batch_) return fail(ErrorCode::invalid_state, "a batch is in flight; call wait() first");
    caches_.clear();
    for (CacheStorage* cache : caches) caches_.push_back(static_cast<StagedCache*>(cache));
    batch_ = &batch;
    stage_ = 0;
    done_ = false;
    auto submitted = submit_stage();
    if (!submitted) batch_ = nullptr;
    return submitted;
  });
}

Result<void> StagedPlan::wait() {
  if (!batch_) return fail(ErrorCode::invalid_state, "no batch is in flight; call submit() first");
  auto outcome = core::guarded([&]() -> Result<void> {
    LLMINFER_TRY(stages_[0].plan->wait());
    while (++stage_ < stages_.size()) {
      LLMINFER_TRY(submit_stage());
      LLMINFER_TRY(stages_[stage_].plan->wait());
    }
    return {};
  });
  batch_ = nullptr;
  done_ = outcome.has_value();
  return outcome;
}

Result<void> StagedPlan::fetch_logits(std::size_t index, std::span<float> logits) {
  if (!done_) return fail(ErrorCode::invalid_state, "no pass has ended");
  return stages_.back().plan->fetch_logits(index, logits);
}

/// Hands the batch to the stage whose turn it is.
Result<void> StagedPlan::submit_stage() {
  const Stage& stage = stages_[stage_];
  const std::size_t floats = batch_->positions.size() * static_cast<std::size_t>(hidden_size_);
  std::span<float> in, out;
  if (stage_ > 0) in = std::span(carried_[(stage_ - 1) % 2]).first(floats);
  if (stage_ + 1 < stages_.size()) out = std::span(carried_[stage_ % 2]).first(floats);
  std::vector<CacheStorage*> caches;
  for (const std::size_t group : stage.groups) caches.push_back(caches_[group]->of_stage(stage_));
  return stage.plan->submit(stage_batch_.make(*batch_, stage.groups, in, out), caches);
}

}  // namespace llminfer::inline v0::engine
