// StepList: the launches of a pass of one row as steps of one kernel (docs/adr/0039), and which of them wait for those
// before. Knows nothing of devices.
#pragma once

#include <cstdint>
#include <vector>

#include "backends/gpu/args.hpp"

namespace llminfer::gpu {

class StepList {
 public:
  /// Launchers that append to the StepList which they get as the stream. What is no step of the kernel gives an error:
  /// other kernels than StepKind's, more than one row, halves of prepared rows.
  static const KernelTable& table();

  const std::vector<PersistentStep>& steps() const noexcept { return steps_; }

  /// Memory that a step reads or writes. Of memory that no kernel writes (weights, words) nothing is said.
  struct Span {
    const void* begin;
    std::int64_t bytes;
  };
  /// Appends a step, for its arguments.
  PersistentStep::Args& append(StepKind kind, const std::vector<Span>& reads, const std::vector<Span>& writes);

 private:
  std::vector<PersistentStep> steps_;
  std::vector<Span> read_, written_;  ///< by the last step that waits, and those since
};

}  // namespace llminfer::gpu
