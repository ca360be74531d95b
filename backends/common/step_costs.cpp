#include "backends/common/step_costs.hpp"

#include <algorithm>
#include <cstdio>
#include <utility>

namespace llminfer::backend {
namespace {

constexpr auto kFloat = static_cast<std::int64_t>(sizeof(float));

/// A tensor's name without its layer: "ffn_up" of "blk.3.ffn_up.weight".
std::string_view short_name(std::string_view name) {
  constexpr std::string_view kSuffix = ".weight";
  if (name.ends_with(kSuffix)) name.remove_suffix(kSuffix.size());
  if (const auto begin = name.rfind('.'); begin != std::string_view::npos) name = name.substr(begin + 1);
  return name;
}

/// The bits that a value takes, e.g. " (4.5)".
std::string bits_text(std::int64_t bytes, std::int64_t values) {
  char bits[32];
  std::snprintf(bits, sizeof bits, " (%.1f)", 8.0 * static_cast<double>(bytes) / static_cast<double>(values));
  return bits;
}

}  // namespace

StepCosts::StepCosts(const Program& program, const Steps& steps,
                     std::span<const std::shared_ptr<const PreparedWeight>> weights)
    : program_(program), steps_(steps) {
  for (std::size_t i = 0; i < program.weights.size(); ++i) weight_bytes_.push_back(weights[i]->bytes());
  bool selected = false;
  for (const Step& step : steps.steps) {
    Cost& cost = costs_.emplace_back();
    std::visit([&](const auto& s) { describe(s, cost); }, step);
    cost.after_selection = selected;
    selected = selected || std::holds_alternative<SelectStep>(step);
    cost.logits = steps.logits_direct && &step == &steps.steps.back();
  }
}

std::int64_t StepCosts::value_bytes(ValueId id) const {
  return program_.values[static_cast<std::size_t>(id)].width * kFloat;
}

std::string StepCosts::label(WeightId id) const {
  const auto i = static_cast<std::size_t>(id);
  const WeightSpec& spec = program_.weights[i];
  std::string text(short_name(spec.name));
  if (weight_bytes_[i] > 0) text += bits_text(weight_bytes_[i], spec.rows * spec.cols);
  return text;
}

void StepCosts::describe(const EmbedStep& step, Cost& cost) const {
  cost.name = step.table == WeightId::none ? "rows of the stage before" : "embed " + label(step.table);
  cost.row_bytes = value_bytes(step.out);
}

void StepCosts::describe(const NormStep& step, Cost& cost) const {
  cost.name = "norm";
  cost.row_bytes = value_bytes(step.in) + value_bytes(step.out);
  cost.row_operations = 4 * value_bytes(step.in) / kFloat;
}

void StepCosts::describe(const LinearStep& step, Cost& cost) const {
  cost.kind = StepKind::linear;
  cost.row_bytes = value_bytes(step.in);
  if (step.norm != WeightId::none) cost.name = "norm + ";
  const auto add = [&](WeightId id) {
    const auto i = static_cast<std::size_t>(id);
    cost.weight_bytes += weight_bytes_[i];
    cost.row_operations += 2 * program_.weights[i].rows * program_.weights[i].cols;
    cost.name += label(id);
  };
  for (const LinearPart& part : step.parts) {
    if (&part != &step.parts.front()) cost.name += ", ";
    add(part.weight);
    cost.row_bytes += value_bytes(part.out);
    if (part.tail == LinearPart::Tail::add) {
      cost.name += " + sum";
      cost.row_bytes += value_bytes(part.residual);
    } else if (part.tail == LinearPart::Tail::glu) {
      cost.name += ", ";
      add(part.up_weight);
      cost.name += " + activation";
    }
  }
}

void StepCosts::describe(const RopeStep& step, Cost& cost) const {
  cost.name = "rope";
  cost.row_bytes = value_bytes(step.in) + value_bytes(step.out);
  cost.row_operations = 3 * value_bytes(step.in) / kFloat;
}

void StepCosts::describe(const AttentionStep& step, Cost& cost) const {
  cost.kind = StepKind::attention;
  cost.name = step.q_rope >= 0 || step.k_rope >= 0 ? "rope + attention" : "attention";
  if (program_.cache_groups[static_cast<std::size_t>(step.op.group)].window > 0) cost.name += " (window)";
  cost.attention = &step;
  cost.row_bytes = value_bytes(step.op.q) + value_bytes(step.op.k) + value_bytes(step.op.v) + value_bytes(step.op.out);
}

void StepCosts::describe(const GluStep& step, Cost& cost) const {
  cost.name = "activation";
  cost.row_bytes = value_bytes(step.op.gate) + value_bytes(step.op.up) + value_bytes(step.op.out);
  cost.row_operations = 2 * value_bytes(step.op.out) / kFloat;
}

void StepCosts::describe(const AddStep& step, Cost& cost) const {
  cost.name = "sum";
  cost.row_bytes = value_bytes(step.op.a) + value_bytes(step.op.b) + value_bytes(step.op.out);
  cost.row_operations = value_bytes(step.op.out) / kFloat;
}

void StepCosts::describe(const ReduceStep& step, Cost& cost) const {
  cost.name = "sum over ranks";
  cost.row_bytes = value_bytes(step.op.in) + value_bytes(step.op.out);
  cost.row_operations = value_bytes(step.op.out) / kFloat;
}

void StepCosts::describe(const MoeStep& step, Cost& cost) const {
  const op::Moe& o = step.op;
  cost.kind = StepKind::linear;
  std::int64_t bytes = 0, elements = 0;
  for (const auto* weights : {&o.gate, &o.up, &o.down}) {
    for (const WeightId id : *weights) {
      const auto i = static_cast<std::size_t>(id);
      bytes += weight_bytes_[i];
      elements += program_.weights[i].rows * program_.weights[i].cols;
    }
  }
  const auto experts = static_cast<std::int64_t>(o.gate.size());
  cost.expert_bytes = bytes / experts;
  cost.experts = experts;
  cost.experts_used = o.used;
  cost.name = "experts";
  if (bytes > 0) cost.name += bits_text(bytes, elements);
  cost.row_operations = 2 * o.used * (elements / experts);
  cost.row_bytes = value_bytes(o.router) + value_bytes(o.in) * o.used + value_bytes(o.out);
  if (o.shared != ValueId::none) cost.row_bytes += value_bytes(o.shared);
}

void StepCosts::describe(const SelectStep& step, Cost& cost) const {
  cost.name = "select rows";
  for (const ValueId id : step.values) cost.row_bytes += 2 * value_bytes(id);
  cost.after_selection = true;
}

/// A query at position p sees p + 1 keys or its window: 2 operations per element for the score, 2 for the values.
void StepCosts::count_attention(const AttentionStep& step, const Batch& batch, std::span<const std::int32_t> selected,
                                std::span<const std::int64_t> page_bytes, StepProfile& profile) const {
  const auto g = static_cast<std::size_t>(step.op.group);
  const CacheGroup& group = program_.cache_groups[g];
  const auto visible = [&](std::int64_t position) {
    return group.window > 0 ? std::min<std::int64_t>(position + 1, group.window) : position + 1;
  };
  std::int64_t keys = 0;
  const Step& last = steps_.steps[static_cast<std::size_t>(steps_.last_attention)];
  if (&step == std::get_if<AttentionStep>(&last)) {  // nothing reads the other rows
    for (const std::int32_t row : selected) keys += visible(batch.positions[static_cast<std::size_t>(row)]);
  } else {
    for (const std::int32_t position : batch.positions) keys += visible(position);
  }
  profile.operations = 4 * keys * step.op.heads * group.head_dim;
  std::int64_t tokens = 0;  // read or written
  for (const Run& run : batch.runs) {
    const std::int64_t end = run.first_position + run.rows;
    tokens += run.rows + (group.window > 0 ? std::min<std::int64_t>(end, group.window - 1 + run.rows) : end);
  }
  profile.cache_bytes = tokens * (page_bytes[g] / (std::int64_t{kPageTokens} * group.layers));
}

std::vector<StepProfile> StepCosts::of(const Batch& batch, std::span<const std::int32_t> selected,
                                       std::span<const std::int64_t> page_bytes) const {
  std::vector<StepProfile> profiles;
  profiles.reserve(costs_.size());
  for (const Cost& cost : costs_) {
    const std::size_t count = cost.logits            ? batch.logit_rows.size()
                              : cost.after_selection ? selected.size()
                                                     : batch.positions.size();
    const auto rows = static_cast<std::int64_t>(count);
    StepProfile& profile = profiles.emplace_back();
    profile.name = cost.name;
    profile.kind = cost.kind;
    profile.weight_bytes = cost.weight_bytes + std::min(rows * cost.experts_used, cost.experts) * cost.expert_bytes;
    profile.activation_bytes = rows * cost.row_bytes;
    profile.operations = rows * cost.row_operations;
    if (cost.attention) count_attention(*cost.attention, batch, selected, page_bytes, profile);
  }
  return profiles;
}

}  // namespace llminfer::backend
