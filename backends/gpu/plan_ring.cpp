// Which step of a plan reads which of the weights that are streamed.
#include <algorithm>
#include <utility>

#include "backends/gpu/plan.hpp"
#include "core/error.hpp"

namespace llminfer::gpu {
namespace {

/// Calls f(weight) for each weight of a step that it has.
template <class F>
void for_each_weight(const Step& step, F f) {
  const auto all = [&](auto... ids) { (f(ids), ...); };
  if (const auto* embed = std::get_if<EmbedStep>(&step)) f(embed->table);
  if (const auto* norm = std::get_if<NormStep>(&step)) f(norm->weight);
  if (const auto* attention = std::get_if<AttentionStep>(&step)) f(attention->op.sinks);
  if (const auto* linear = std::get_if<LinearStep>(&step)) {
    f(linear->norm);
    for (const LinearPart& part : linear->parts) all(part.weight, part.bias, part.up_weight, part.up_bias);
  }
  if (const auto* moe = std::get_if<MoeStep>(&step)) {
    const op::Moe& op = moe->op;
    for (const auto* ids : {&op.gate, &op.up, &op.down, &op.gate_bias, &op.up_bias, &op.down_bias}) {
      std::for_each(ids->begin(), ids->end(), f);
    }
  }
}

}  // namespace

/// Errors: invalid_argument, naming a weight, if the groups are not what a pass could go through.
Result<void> GpuPlan::make_ring(const PlanOptions& options) {
  if (std::none_of(weights_.begin(), weights_.end(), [](const GpuWeight* w) { return w->streamed(); })) return {};
  std::vector<std::int64_t> bytes;
  for (const GpuWeight* weight : weights_) bytes.push_back(weight->bytes());
  RingLayout layout(options.streamed, bytes);
  std::int32_t current = -1;
  Result<void> fit;
  for (const Step& step : steps_.steps) {
    StepGroup of_step;
    for_each_weight(step, [&](WeightId id) {
      const std::int32_t group = id == WeightId::none ? -1 : layout.group[static_cast<std::size_t>(id)];
      if (group < 0) return;
      if (group < current || (of_step.group >= 0 && of_step.group != group)) {
        fit = core::fail(ErrorCode::invalid_argument,
                         "PlanOptions::streamed: ", program_.weights[static_cast<std::size_t>(id)].name,
                         " is read beside or after weights of a later group");
      }
      of_step.group = current = std::max(current, group);
    });
    step_groups_.push_back(of_step);
  }
  LLMINFER_TRY(std::move(fit));
  current = -1;
  for (std::size_t i = step_groups_.size(); i-- > 0;) {
    StepGroup& step = step_groups_[i];
    step.last = step.group >= 0 && step.group != current;
    if (step.last) current = step.group;
  }
  ring_ = LLMINFER_TRY(WeightRing::make(device_, std::move(layout), weights_));
  return {};
}

}  // namespace llminfer::gpu
