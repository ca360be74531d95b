#include "backends/gpu/profiler.hpp"

#include <algorithm>
#include <iterator>
#include <utility>

#include "core/error.hpp"

namespace llminfer::gpu {

Profiler::Profiler(ProfileCallback callback, std::shared_ptr<Device> device, const Program& program,
                   const backend::Steps& steps, std::span<const std::shared_ptr<const PreparedWeight>> weights)
    : callback_(std::move(callback)), device_(std::move(device)), costs_(program, steps, weights) {}

Result<std::unique_ptr<Profiler>> Profiler::make(ProfileCallback callback, std::shared_ptr<Device> device,
                                                 const Program& program, const backend::Steps& steps,
                                                 std::span<const std::shared_ptr<const PreparedWeight>> weights) {
  std::unique_ptr<Profiler> made(new Profiler(std::move(callback), std::move(device), program, steps, weights));
  for (std::size_t i = 0; i <= steps.steps.size(); ++i) {
    made->events_.push_back(LLMINFER_TRY(Event::make(made->device_, true)));
  }
  return made;
}

Result<void> Profiler::begin(const Batch& batch, std::span<const std::int64_t> page_bytes) {
  std::vector<std::int32_t> selected;
  std::set_union(batch.logit_rows.begin(), batch.logit_rows.end(), batch.hidden_rows.begin(), batch.hidden_rows.end(),
                 std::back_inserter(selected));
  steps_ = costs_.of(batch, selected, page_bytes);
  rows_ = static_cast<std::int32_t>(batch.positions.size());
  done_ = 0;
  return events_[0].record(Stream::work);
}

Result<void> Profiler::end_step() { return events_[++done_].record(Stream::work); }

Result<void> Profiler::report() {
  for (std::size_t i = 0; i < done_; ++i) steps_[i].seconds = LLMINFER_TRY(events_[i + 1].seconds_since(events_[i]));
  callback_({rows_, device_->info().architecture, 0, std::span(steps_).first(done_)});
  return {};
}

}  // namespace llminfer::gpu
