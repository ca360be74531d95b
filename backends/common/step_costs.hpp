// StepCosts: what each step of a plan's passes has to move and compute at the least, for the profiles of all backends.
// Knows nothing of time.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <vector>

#include <llminfer/backend.hpp>

#include "backends/common/steps.hpp"

namespace llminfer::backend {

class StepCosts {
 public:
  /// `program` and `steps` live as long as this. `weights` as in Backend::compile. Throws std::bad_alloc.
  StepCosts(const Program& program, const Steps& steps, std::span<const std::shared_ptr<const PreparedWeight>> weights);

  /// Of all steps of a pass, without their seconds; names live as long as this. `selected` are the rows that go on past
  /// the last attention; `page_bytes` are those of each cache group. A mixture reads as many of its experts as the rows
  /// can choose.
  std::vector<StepProfile> of(const Batch& batch, std::span<const std::int32_t> selected,
                              std::span<const std::int64_t> page_bytes) const;
  /// What of(...)[step] counts for one expert of a mixture.
  std::int64_t expert_bytes(std::size_t step) const noexcept { return costs_[step].expert_bytes; }

 private:
  struct Cost {
    std::string name;
    StepKind kind = StepKind::other;
    std::int64_t weight_bytes = 0;
    std::int64_t row_bytes = 0;       ///< activations of one row
    std::int64_t row_operations = 0;  ///< of one row
    const AttentionStep* attention = nullptr;
    bool after_selection = false;                ///< works on the selected rows alone
    bool logits = false;                         ///< works on the rows whose logits are wanted
    std::int64_t expert_bytes = 0;               ///< prepared, of the weights of one expert of a mixture
    std::int64_t experts = 0, experts_used = 0;  ///< of a mixture; by one row
  };
  void describe(const EmbedStep& step, Cost& cost) const;
  void describe(const NormStep& step, Cost& cost) const;
  void describe(const LinearStep& step, Cost& cost) const;
  void describe(const RopeStep& step, Cost& cost) const;
  void describe(const AttentionStep& step, Cost& cost) const;
  void describe(const GluStep& step, Cost& cost) const;
  void describe(const AddStep& step, Cost& cost) const;
  void describe(const ReduceStep& step, Cost& cost) const;
  void describe(const MoeStep& step, Cost& cost) const;
  void describe(const SelectStep& step, Cost& cost) const;
  /// Name of a weight and the bits that a value of it takes, e.g. "ffn_up (4.5)".
  std::string label(WeightId id) const;
  std::int64_t value_bytes(ValueId id) const;
  void count_attention(const AttentionStep& step, const Batch& batch, std::span<const std::int32_t> selected,
                       std::span<const std::int64_t> page_bytes, StepProfile& profile) const;

  const Program& program_;
  const Steps& steps_;
  std::vector<std::int64_t> weight_bytes_;  ///< per weight of the program
  std::vector<Cost> costs_;                 ///< per step
};

}  // namespace llminfer::backend
