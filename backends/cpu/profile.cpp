#include "backends/cpu/profile.hpp"

#include <algorithm>
#include <utility>

namespace llminfer::cpu {

Profiler::Profiler(ProfileCallback callback, const Program& program, const Steps& steps,
                   std::span<const std::shared_ptr<const PreparedWeight>> weights, std::string_view level)
    : callback_(std::move(callback)),
      costs_(program, steps, weights),
      level_(level),
      ends_(steps.steps.size()),
      experts_read_(steps.steps.size()) {}

void Profiler::start(std::size_t steps) noexcept {
  done_ = steps;
  for (auto& end : ends_) end = 0;
  begin_ = Clock::now();
}

void Profiler::report(const Batch& batch, std::span<const std::int32_t> selected, std::span<CpuCache* const> caches,
                      int threads) const {
  std::vector<std::int64_t> page_bytes;
  for (const CpuCache* cache : caches) page_bytes.push_back(cache->page_bytes());
  std::vector<StepProfile> profiles = costs_.of(batch, selected, page_bytes);
  profiles.resize(done_);
  Clock::time_point begin = begin_;
  for (std::size_t i = 0; i < done_; ++i) {
    const Clock::time_point end = std::max(begin, Clock::time_point(Clock::duration(ends_[i].load())));
    profiles[i].seconds = std::chrono::duration<double>(end - begin).count();
    if (costs_.expert_bytes(i) > 0) profiles[i].weight_bytes = experts_read_[i] * costs_.expert_bytes(i);
    begin = end;
  }
  callback_({static_cast<std::int32_t>(batch.positions.size()), level_, threads, profiles});
}

}  // namespace llminfer::cpu
