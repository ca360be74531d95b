// Mixtures of experts on a device. The host learns of each layer's routing, which is a stop per layer, and launches the
// linear kernels once for each expert that has rows.
#include <numeric>
#include <vector>

#include "backends/common/experts.hpp"
#include "backends/gpu/plan.hpp"
#include "core/error.hpp"

namespace llminfer::gpu {

Result<std::vector<std::int32_t>> GpuPlan::route(const op::Moe& op) {
  const std::size_t rows = static_cast<std::size_t>(pass_.current_rows), experts = op.gate.size();
  const auto used = static_cast<std::size_t>(op.used), pairs = rows * used;
  const std::size_t logit_bytes = rows * experts * sizeof(float), word_bytes = 3 * pairs * sizeof(std::int32_t);
  const auto bytes = static_cast<std::int64_t>(logit_bytes + word_bytes);
  LLMINFER_TRY(grow(host_experts_, bytes, true));
  const RowsArgs packed{memory_.at<float>(layout_.gathered), static_cast<std::int64_t>(experts)};
  const GatherArgs gather{value(op.router), nullptr, pass_.current_rows, static_cast<int>(experts), packed};
  LLMINFER_TRY(device_->check(kernels().gather(device_->stream(), gather), "gather"));
  LLMINFER_TRY(device_->copy(host_experts_.at(), packed.data, static_cast<std::int64_t>(logit_bytes)));
  LLMINFER_TRY(settle());

  const auto* const logits = host_experts_.at<float>();
  auto* const tokens = host_experts_.at<std::int32_t>(static_cast<std::int64_t>(logit_bytes));
  std::int32_t* const places = tokens + pairs;
  auto* const factors = host_experts_.at<float>(static_cast<std::int64_t>(logit_bytes + 2 * pairs * sizeof(float)));
  std::vector<std::int32_t> chosen(pairs), begins(experts + 1, 0);
  for (std::size_t r = 0; r < rows; ++r) {
    backend::choose_experts(op, logits + r * experts, &chosen[r * used], factors + r * used);
  }
  for (const std::int32_t e : chosen) ++begins[static_cast<std::size_t>(e) + 1];
  std::partial_sum(begins.begin(), begins.end(), begins.begin());
  std::vector<std::int32_t> next(begins.begin(), begins.end() - 1);
  for (std::size_t pair = 0; pair < pairs; ++pair) {
    places[pair] = next[static_cast<std::size_t>(chosen[pair])]++;
    tokens[places[pair]] = static_cast<std::int32_t>(pair / used);
  }
  LLMINFER_TRY(device_->copy(memory_.at(layout_.experts.words), tokens, static_cast<std::int64_t>(word_bytes)));
  return begins;
}

/// Rows as halves: what the experts' layers read.
Result<void> GpuPlan::prepare_places(const RowsArgs& in, const GpuWeight& weight, std::int32_t places) {
  PrepareArgs args{};
  args.in = in;
  args.rows = places;
  args.width = static_cast<int>(weight.cols());
  args.padded = weight.matrix().cols;
  args.halves = memory_.at<std::uint16_t>(layout_.experts.halves);
  args.scales = memory_.at<float>(layout_.experts.scales);
  return device_->check(kernels().prepare(device_->stream(), args), "prepare");
}

/// Its gated unit, or `down`, for its places.
Result<void> GpuPlan::run_expert(const op::Moe& op, std::size_t expert, std::int32_t first, std::int32_t count,
                                 bool down) {
  const PlanLayout::Experts& m = layout_.experts;
  const auto bias = [&](const std::vector<WeightId>& biases) {
    return biases.empty() ? WeightId::none : biases[expert];
  };
  const auto rows_at = [&](std::int64_t offset, std::int64_t stride) {
    return RowsArgs{memory_.at<float>(offset) + first * stride, stride};
  };
  const WeightId first_weight = down ? op.down[expert] : op.gate[expert];
  LinearArgs args{};
  args.rows = count;
  args.in = memory_.at<std::uint16_t>(m.halves) + std::int64_t{first} * matrix(first_weight).cols;
  args.in_scales = memory_.at<float>(m.scales) + first;
  if (down) {
    args.out = rows_at(m.rows, m.width);
    return linear(args, first_weight, bias(op.down_bias));
  }
  args.out = rows_at(m.hidden, m.ffn);
  LinearPart part;
  part.weight = first_weight;
  part.bias = bias(op.gate_bias);
  part.up_weight = op.up[expert];
  part.up_bias = bias(op.up_bias);
  part.activation = op.activation;
  return gated_unit(args, part, rows_at(m.hidden + m.places * m.ffn * std::int64_t{sizeof(float)}, m.ffn));
}

Result<void> GpuPlan::run(const MoeStep& step) {
  const op::Moe& op = step.op;
  const PlanLayout::Experts& m = layout_.experts;
  const std::int32_t places = pass_.current_rows * op.used;
  const std::vector<std::int32_t> begins = LLMINFER_TRY(route(op));
  const auto each = [&](bool down) -> Result<void> {
    for (std::size_t e = 0; e < op.gate.size(); ++e) {
      const std::int32_t count = begins[e + 1] - begins[e];
      if (count > 0) LLMINFER_TRY(run_expert(op, e, begins[e], count, down));
    }
    return {};
  };
  const auto* const words = memory_.at<std::int32_t>(m.words);
  const RowsArgs rows{memory_.at<float>(m.rows), m.width};
  const auto n = static_cast<int>(width(op.in));
  LLMINFER_TRY(device_->check(kernels().gather(device_->stream(), {value(op.in), words, places, n, rows}), "gather"));
  LLMINFER_TRY(prepare_places(rows, weight(op.gate.front()), places));
  LLMINFER_TRY(each(false));
  LLMINFER_TRY(prepare_places({memory_.at<float>(m.hidden), m.ffn}, weight(op.down.front()), places));
  LLMINFER_TRY(each(true));

  CombineArgs args{};
  args.in = rows;
  args.places = words + places;
  args.factors = reinterpret_cast<const float*>(words + 2 * std::int64_t{places});
  args.used = op.used;
  if (op.shared != ValueId::none) {
    args.shared = value(op.shared);
    args.shared_gate = value(op.shared_gate);
  }
  args.rows = pass_.current_rows;
  args.width = n;
  args.out = value(op.out);
  return device_->check(kernels().combine(device_->stream(), args), "combine");
}

}  // namespace llminfer::gpu
