// Profiler: times the steps of a plan's passes by events in the stream of work. They keep kernels of one step from
// beginning before those of the step before have ended, and there are none in graphs: a profiled pass is launched step
// by step.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <vector>

#include <llminfer/profile.hpp>

#include "backends/common/step_costs.hpp"
#include "backends/gpu/device.hpp"

namespace llminfer::gpu {

class Profiler {
 public:
  /// `program`, `steps` and `weights` as StepCosts. Errors: out_of_memory, device_error.
  static Result<std::unique_ptr<Profiler>> make(ProfileCallback callback, std::shared_ptr<Device> device,
                                                const Program& program, const backend::Steps& steps,
                                                std::span<const std::shared_ptr<const PreparedWeight>> weights);

  /// Before a pass's first step. `page_bytes` are those of each cache group.
  Result<void> begin(const Batch& batch, std::span<const std::int64_t> page_bytes);
  /// After each step that was enqueued, in turn.
  Result<void> end_step();
  /// After the pass has ended on the device.
  Result<void> report();

 private:
  Profiler(ProfileCallback callback, std::shared_ptr<Device> device, const Program& program,
           const backend::Steps& steps, std::span<const std::shared_ptr<const PreparedWeight>> weights);

  const ProfileCallback callback_;
  const std::shared_ptr<Device> device_;
  const backend::StepCosts costs_;
  std::vector<Event> events_;  ///< the begin, and the end of each step
  std::vector<StepProfile> steps_;
  std::int32_t rows_ = 0;
  std::size_t done_ = 0;
};

}  // namespace llminfer::gpu
