#include "backends/cpu/profile.hpp"

#include <algorithm>
#include <cstdio>
#include <utility>

namespace llminfer::cpu {
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

Profiler::Profiler(ProfileCallback callback, const Program& program, const Steps& steps,
                   std::span<const std::shared_ptr<const PreparedWeight>> weights, std::string_view level)
    : callback_(std::move(callback)), program_(program), steps_(steps), level_(level), ends_(steps.steps.size()) {
  for (std::size_t i = 0; i < program.weights.size(); ++i) weight_bytes_.push_back(weights[i]->bytes());
  bool selected = false;
  for (const Step& step : steps.steps) {
    StepInfo& info = infos_.emplace_back();
    std::visit([&](const auto& s) { describe(s, info); }, step);
    info.after_selection = selected;
    selected = selected || std::holds_alternative<SelectStep>(step);
    info.logits = steps.logits_direct && &step == &steps.steps.back();
  }
}

std::int64_t Profiler::value_bytes(ValueId id) const {
  return program_.values[static_cast<std::size_t>(id)].width * kFloat;
}

std::string Profiler::label(WeightId id) const {
  const auto i = static_cast<std::size_t>(id);
  const WeightSpec& spec = program_.weights[i];
  std::string text(short_name(spec.name));
  if (weight_bytes_[i] > 0) text += bits_text(weight_bytes_[i], spec.rows * spec.cols);
  return text;
}

void Profiler::describe(const EmbedStep& step, StepInfo& info) const {
  info.name = step.table == WeightId::none ? "rows of the stage before" : "embed " + label(step.table);
  info.row_bytes = value_bytes(step.out);
}

void Profiler::describe(const NormStep& step, StepInfo& info) const {
  info.name = "norm";
  info.row_bytes = value_bytes(step.in) + value_bytes(step.out);
  info.row_operations = 4 * value_bytes(step.in) / kFloat;
}

void Profiler::describe(const LinearStep& step, StepInfo& info) const {
  info.kind = StepKind::linear;
  info.row_bytes = value_bytes(step.in);
  if (step.norm != WeightId::none) info.name = "norm + ";
  const auto add = [&](WeightId id) {
    const auto i = static_cast<std::size_t>(id);
    info.weight_bytes += weight_bytes_[i];
    info.row_operations += 2 * program_.weights[i].rows * program_.weights[i].cols;
    info.name += label(id);
  };
  for (const LinearPart& part : step.parts) {
    if (&part != &step.parts.front()) info.name += ", ";
    add(part.weight);
    info.row_bytes += value_bytes(part.out);
    if (part.tail == LinearPart::Tail::add) {
      info.name += " + sum";
      info.row_bytes += value_bytes(part.residual);
    } else if (part.tail == LinearPart::Tail::glu) {
      info.name += ", ";
      add(part.up_weight);
      info.name += " + activation";
    }
  }
}

void Profiler::describe(const RopeStep& step, StepInfo& info) const {
  info.name = "rope";
  info.row_bytes = value_bytes(step.in) + value_bytes(step.out);
  info.row_operations = 3 * value_bytes(step.in) / kFloat;
}

void Profiler::describe(const AttentionStep& step, StepInfo& info) const {
  info.kind = StepKind::attention;
  info.name = step.q_rope >= 0 || step.k_rope >= 0 ? "rope + attention" : "attention";
  if (program_.cache_groups[static_cast<std::size_t>(step.op.group)].window > 0) info.name += " (window)";
  info.attention = &step;
  info.row_bytes = value_bytes(step.op.q) + value_bytes(step.op.k) + value_bytes(step.op.v) + value_bytes(step.op.out);
}

void Profiler::describe(const GluStep& step, StepInfo& info) const {
  info.name = "activation";
  info.row_bytes = value_bytes(step.op.gate) + value_bytes(step.op.up) + value_bytes(step.op.out);
  info.row_operations = 2 * value_bytes(step.op.out) / kFloat;
}

void Profiler::describe(const AddStep& step, StepInfo& info) const {
  info.name = "sum";
  info.row_bytes = value_bytes(step.op.a) + value_bytes(step.op.b) + value_bytes(step.op.out);
  info.row_operations = value_bytes(step.op.out) / kFloat;
}

void Profiler::describe(const ReduceStep& step, StepInfo& info) const {
  info.name = "sum over ranks";
  info.row_bytes = value_bytes(step.op.in) + value_bytes(step.op.out);
  info.row_operations = value_bytes(step.op.out) / kFloat;
}

void Profiler::describe(const MoeStep& step, StepInfo& info) const {
  const op::Moe& o = step.op;
  info.kind = StepKind::linear;
  std::int64_t bytes = 0, elements = 0;
  for (const auto* weights : {&o.gate, &o.up, &o.down}) {
    for (const WeightId id : *weights) {
      const auto i = static_cast<std::size_t>(id);
      bytes += weight_bytes_[i];
      elements += program_.weights[i].rows * program_.weights[i].cols;
    }
  }
  const auto experts = static_cast<std::int64_t>(o.gate.size());
  info.expert_bytes = bytes / experts;
  info.name = "experts";
  if (bytes > 0) info.name += bits_text(bytes, elements);
  info.row_operations = 2 * o.used * (elements / experts);
  info.row_bytes = value_bytes(o.router) + value_bytes(o.in) * o.used + value_bytes(o.out);
  if (o.shared != ValueId::none) info.row_bytes += value_bytes(o.shared);
}

void Profiler::describe(const SelectStep& step, StepInfo& info) const {
  info.name = "select rows";
  for (const ValueId id : step.values) info.row_bytes += 2 * value_bytes(id);
  info.after_selection = true;
}

void Profiler::start(std::size_t steps) noexcept {
  done_ = steps;
  for (auto& end : ends_) end = 0;
  begin_ = Clock::now();
}

/// A query at position p sees p + 1 keys or its window: 2 operations per element for the score, 2 for the values.
void Profiler::count_attention(const StepInfo& info, const Batch& batch, std::span<const std::int32_t> selected,
                               std::span<CpuCache* const> caches, StepProfile& profile) const {
  const AttentionStep& step = *info.attention;
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
  profile.cache_bytes = tokens * (caches[g]->page_bytes() / (std::int64_t{kPageTokens} * group.layers));
}

void Profiler::report(const Batch& batch, std::span<const std::int32_t> selected, std::span<CpuCache* const> caches,
                      int threads) const {
  std::vector<StepProfile> profiles;
  profiles.reserve(done_);
  Clock::time_point begin = begin_;
  for (std::size_t i = 0; i < done_; ++i) {
    const StepInfo& info = infos_[i];
    const std::size_t count = info.logits            ? batch.logit_rows.size()
                              : info.after_selection ? selected.size()
                                                     : batch.positions.size();
    const auto rows = static_cast<std::int64_t>(count);
    StepProfile& profile = profiles.emplace_back();
    profile.name = info.name;
    profile.kind = info.kind;
    const Clock::time_point end = std::max(begin, Clock::time_point(Clock::duration(ends_[i].load())));
    profile.seconds = std::chrono::duration<double>(end - begin).count();
    profile.weight_bytes = info.weight_bytes + info.experts_read * info.expert_bytes;
    profile.activation_bytes = rows * info.row_bytes;
    profile.operations = rows * info.row_operations;
    if (info.attention) count_attention(info, batch, selected, caches, profile);
    begin = end;
  }
  callback_({static_cast<std::int32_t>(batch.positions.size()), level_, threads, profiles});
}

}  // namespace llminfer::cpu
