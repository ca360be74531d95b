// Profiler: times the steps of a plan's passes. A plan without one pays a test of a pointer per step.
#pragma once

#include <atomic>
#include <chrono>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include <llminfer/backend.hpp>

#include "backends/common/step_costs.hpp"
#include "backends/cpu/cache.hpp"

namespace llminfer::cpu {

using namespace backend;  // steps and checks, which all backends of this tree share

class Profiler {
 public:
  /// As StepCosts.
  Profiler(ProfileCallback callback, const Program& program, const Steps& steps,
           std::span<const std::shared_ptr<const PreparedWeight>> weights, std::string_view level);

  /// Before a pass of so many steps.
  void start(std::size_t steps) noexcept;
  /// After each chunk of a step, on any thread: the last to end is the step's end.
  void finish_chunk(std::size_t step) noexcept {
    const Clock::rep now = Clock::now().time_since_epoch().count();
    Clock::rep end = ends_[step].load(std::memory_order_relaxed);
    while (end < now && !ends_[step].compare_exchange_weak(end, now, std::memory_order_relaxed)) {
    }
  }
  /// In the step's turn, on one thread: so many experts have rows.
  void count_experts(std::size_t step, std::int32_t experts) noexcept { experts_read_[step] = experts; }
  /// After the pass. `selected` are the rows that go on past the last attention.
  void report(const Batch& batch, std::span<const std::int32_t> selected, std::span<CpuCache* const> caches,
              int threads) const;

 private:
  using Clock = std::chrono::steady_clock;

  const ProfileCallback callback_;
  const StepCosts costs_;
  const std::string level_;
  Clock::time_point begin_{};
  std::vector<std::atomic<Clock::rep>> ends_;  ///< per step; 0: it had nothing to do
  std::vector<std::int64_t> experts_read_;     ///< per step, by this pass
  std::size_t done_ = 0;                       ///< steps of this pass
};

}  // namespace llminfer::cpu
