// What a pass gives of its logits: whole rows, or candidates; and whole rows later.
#include <algorithm>
#include <bit>
#include <utility>

#include "backends/common/check.hpp"
#include "backends/gpu/plan.hpp"
#include "core/error.hpp"

namespace llminfer::gpu {
namespace {

using core::fail;

constexpr std::int64_t kTaskWords = sizeof(CandidateTask) / sizeof(std::int32_t);
static_assert(sizeof(CandidateOut) == sizeof(TokenLogit) && sizeof(DrawOut) == sizeof(DrawnToken));

std::int32_t half_of(double x, int half) {
  return static_cast<std::int32_t>(std::bit_cast<std::uint64_t>(x) >> (32 * half));
}

}  // namespace

/// A last layer that is streamed could not be run again (fetch_logits).
std::int32_t GpuPlan::max_candidates() const noexcept {
  const bool streamed = ring_ && step_groups_.back().group >= 0;
  return program_.logits == ValueId::none || (steps_.logits_direct && streamed) ? 0 : kMaxCandidates;
}

void GpuPlan::lay_out_candidates(const Batch& batch) {
  if (wanted_logits(batch).candidates == 0) return;
  Pass& p = pass_;
  p.wishes = batch.candidate_wishes;
  p.candidates = batch.candidates;
  p.sums = batch.candidate_sums;
  p.draws = batch.draws;
  p.candidate_tokens = batch.candidate_tokens;
  p.candidate_tasks = static_cast<std::int64_t>(p.words.size());
  std::int32_t first = 0, row = 0;
  for (const CandidateWish& wish : p.wishes) {
    p.words.insert(p.words.end(), {wish.count, first, wish.sum ? row : -1, wish.temperature > 0 ? row : -1,
                                   half_of(wish.temperature, 0), half_of(wish.temperature, 1), half_of(wish.place, 0),
                                   half_of(wish.place, 1)});
    first += wish.count;
    ++row;
  }
}

Result<void> GpuPlan::give_logits(const RowsArgs& rows, std::int64_t first, std::int64_t count) {
  const std::int64_t row_bytes = program_.vocab_size * std::int64_t{sizeof(float)};
  pass_.piece = first;
  if (pass_.wishes.empty()) return device_->copy(host_out_.at(first * row_bytes), rows.data, count * row_bytes);
  const auto is_whole = [](const CandidateWish& wish) { return wish.count == 0; };
  std::int64_t before = std::count_if(pass_.wishes.begin(), pass_.wishes.begin() + first, is_whole), wishing = 0;
  for (std::int64_t row = 0; row < count; ++row) {
    if (!is_whole(pass_.wishes[static_cast<std::size_t>(first + row)])) {
      ++wishing;
      continue;
    }
    LLMINFER_TRY(device_->copy(host_out_.at(before++ * row_bytes), rows.data + row * rows.stride, row_bytes));
  }
  if (wishing == 0) return {};
  CandidatesArgs args{};
  args.in = rows;
  args.tasks = reinterpret_cast<const CandidateTask*>(words(pass_.candidate_tasks + first * kTaskWords));
  args.rows = static_cast<int>(count);
  args.tokens = pass_.candidate_tokens;
  args.parts = memory_.at<std::uint64_t>(layout_.candidates.parts);
  args.part_sums = memory_.at<double>(layout_.candidates.part_sums);
  args.out = memory_.at<CandidateOut>(layout_.candidates.out);
  args.sums = memory_.at<double>(layout_.candidates.sums);
  args.draws = memory_.at<DrawOut>(layout_.candidates.draws);
  return device_->check(kernels().candidates(stream(), args), "candidates");
}

std::int64_t GpuPlan::candidates_at() const noexcept {
  const auto floats = static_cast<std::int64_t>(pass_.logits.size() + pass_.hidden.size());
  return (floats + 1) / 2 * 2 * std::int64_t{sizeof(float)};  // on a multiple of 8 bytes
}

Result<void> GpuPlan::fetch_candidates() {
  const auto bytes = [](const auto& span) { return static_cast<std::int64_t>(span.size_bytes()); };
  if (pass_.candidates.empty()) return {};
  std::int64_t at = candidates_at();
  const auto fetch = [&](std::int64_t from, std::int64_t size) -> Result<void> {
    if (size == 0) return {};
    return device_->copy(host_out_.at(std::exchange(at, at + size)), memory_.at(from), size);
  };
  LLMINFER_TRY(fetch(layout_.candidates.out, bytes(pass_.candidates)));
  LLMINFER_TRY(fetch(layout_.candidates.sums, bytes(pass_.sums)));
  return fetch(layout_.candidates.draws, bytes(pass_.draws));
}

void GpuPlan::give_candidates() const noexcept {
  const auto* from = host_out_.at<CandidateOut>(candidates_at());
  const auto* sums = reinterpret_cast<const double*>(from + pass_.candidates.size());
  for (TokenLogit& to : pass_.candidates) {
    to = {from->token, from->logit};
    ++from;
  }
  std::copy_n(sums, pass_.sums.size(), pass_.sums.data());
  const auto* draws = reinterpret_cast<const DrawOut*>(sums + pass_.sums.size());
  for (DrawnToken& to : pass_.draws) {
    to = {draws->token, draws->logit, draws->below, draws->weight, draws->sum};
    ++draws;
  }
}

/// The row is in device memory still, or what it is computed of: as many rows as before make it the same bits.
Result<void> GpuPlan::fetch_logits(std::size_t index, std::span<float> logits) {
  return core::guarded([&]() -> Result<void> {
    if (!pass_.done || max_candidates() == 0) {
      return fail(ErrorCode::invalid_state, "fetch_logits: no pass has succeeded since submit()");
    }
    const auto row = static_cast<std::int64_t>(index);
    if (row >= pass_.logit_rows || static_cast<std::int64_t>(logits.size()) != program_.vocab_size) {
      return fail(ErrorCode::invalid_argument, "fetch_logits: row ", index, " into ", logits.size(),
                  " floats; the pass had ", pass_.logit_rows, " rows of ", program_.vocab_size);
    }
    const std::int64_t bytes = static_cast<std::int64_t>(logits.size_bytes());
    LLMINFER_TRY(grow(host_out_, bytes, true));
    RowsArgs rows{};
    std::int64_t at = 0;
    if (steps_.logits_direct) {
      const std::int64_t first = row / kLogitRows * kLogitRows;
      rows = this->logits();
      at = row - first;
      if (pass_.piece != first) {
        const Current current(*device_);
        pass_.piece = -1;
        LLMINFER_TRY(compute_logits(std::get<LinearStep>(steps_.steps.back()), first));
        pass_.piece = first;
      }
    } else {
      rows = value(program_.logits);
      at = pass_.words[static_cast<std::size_t>(pass_.logit_index + row)];
    }
    LLMINFER_TRY(device_->copy(host_out_.at(), rows.data + at * rows.stride, bytes));
    LLMINFER_TRY(device_->wait());
    std::copy_n(host_out_.at<float>(), logits.size(), logits.data());
    return {};
  });
}

}  // namespace llminfer::gpu
