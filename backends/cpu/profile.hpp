// Profiler: times the steps of a plan's passes and says what each of them had to move and compute. A plan without one
// pays a test of a pointer per step.
#pragma once

#include <atomic>
#include <chrono>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include <llminfer/backend.hpp>

#include "backends/common/steps.hpp"
#include "backends/cpu/cache.hpp"

namespace llminfer::cpu {

using namespace backend;  // steps and checks, which all backends of this tree share

class Profiler {
 public:
  /// `program` and `steps` live as long as the profiler. `weights` as in Backend::compile. Throws std::bad_alloc.
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
  void count_experts(std::size_t step, std::int32_t experts) noexcept { infos_[step].experts_read = experts; }
  /// After the pass. `selected` are the rows that go on past the last attention.
  void report(const Batch& batch, std::span<const std::int32_t> selected, std::span<CpuCache* const> caches,
              int threads) const;

 private:
  using Clock = std::chrono::steady_clock;

  struct StepInfo {
    std::string name;
    StepKind kind = StepKind::other;
    std::int64_t weight_bytes = 0;
    std::int64_t row_bytes = 0;       ///< activations of one row
    std::int64_t row_operations = 0;  ///< of one row
    const AttentionStep* attention = nullptr;
    bool after_selection = false;  ///< works on the selected rows alone
    bool logits = false;           ///< works on the rows whose logits are wanted
    std::int64_t expert_bytes = 0;  ///< prepared, of the weights of one expert of a mixture
    std::int64_t experts_read = 0;  ///< in this pass
  };
  void describe(const EmbedStep& step, StepInfo& info) const;
  void describe(const NormStep& step, StepInfo& info) const;
  void describe(const LinearStep& step, StepInfo& info) const;
  void describe(const RopeStep& step, StepInfo& info) const;
  void describe(const AttentionStep& step, StepInfo& info) const;
  void describe(const GluStep& step, StepInfo& info) const;
  void describe(const AddStep& step, StepInfo& info) const;
  void describe(const ReduceStep& step, StepInfo& info) const;
  void describe(const MoeStep& step, StepInfo& info) const;
  void describe(const SelectStep& step, StepInfo& info) const;
  /// Name of a weight and the bits that a value of it takes, e.g. "ffn_up (4.5)".
  std::string label(WeightId id) const;
  std::int64_t value_bytes(ValueId id) const;
  void count_attention(const StepInfo& info, const Batch& batch, std::span<const std::int32_t> selected,
                       std::span<CpuCache* const> caches, StepProfile& profile) const;

  const ProfileCallback callback_;
  const Program& program_;
  const Steps& steps_;
  const std::string level_;
  std::vector<std::int64_t> weight_bytes_;  ///< per weight of the program
  std::vector<StepInfo> infos_;             ///< per step
  Clock::time_point begin_{};
  std::vector<std::atomic<Clock::rep>> ends_;  ///< per step; 0: it had nothing to do
  std::size_t done_ = 0;                       ///< steps of this pass
};

}  // namespace llminfer::cpu
