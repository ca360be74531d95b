// Mixtures of experts on a device. The host learns of each layer's routing, which is a stop per layer, and launches the
// linear kernels once for each expert that has rows.
#include <numeric>
#include <utility>
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
  LLMINFER_TRY(device_->check(kernels().gather(stream(), gather), "gather"));
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

/// Rows rounded and as halves: what `matrices`, one per expert, read.
Result<void> GpuPlan::prepare_places(const RowsArgs& in, const std::vector<WeightId>& matrices,
                                     const std::vector<std::int32_t>& begins) {
  for (std::size_t e = 0, from = 0; e < matrices.size(); ++e) {
    const GpuWeight& w = weight(matrices[e]);
    if (e + 1 < matrices.size() && weight(matrices[e + 1]).input() == w.input()) continue;
    const std::int32_t first = begins[std::exchange(from, e + 1)], count = begins[e + 1] - first;
    if (count == 0) continue;
    PrepareArgs args{};
    args.in = {in.data + first * in.stride, in.stride};
    args.rounding = rounding_of(w.input());
    args.rows = count;
    args.width = static_cast<int>(w.cols());
    args.padded = w.matrix().cols;
    if (args.rounding.kind != 0) args.out = {rounded_.at<float>(), w.cols()};
    args.halves = memory_.at<std::uint16_t>(layout_.experts.halves) + std::int64_t{first} * args.padded;
    args.scales = memory_.at<float>(layout_.experts.scales) + first;
    LLMINFER_TRY(device_->check(kernels().prepare(stream(), args), "prepare"));
  }
  return {};
}

/// What a layer of an expert takes and gives, whose places are [first, first + count).
LinearArgs GpuPlan::expert_args(const RowsArgs& out, WeightId id, std::int32_t first, std::int32_t count) const {
  LinearArgs args{};
  args.rows = count;
  args.in = memory_.at<std::uint16_t>(layout_.experts.halves) + std::int64_t{first} * matrix(id).cols;
  args.in_scales = memory_.at<float>(layout_.experts.scales) + first;
  args.out = {out.data + first * out.stride, out.stride};
  return args;
}

Result<void> GpuPlan::run(const MoeStep& step) {
  const op::Moe& op = step.op;
  const PlanLayout::Experts& m = layout_.experts;
  const std::int32_t places = pass_.current_rows * op.used;
  const std::vector<std::int32_t> begins = LLMINFER_TRY(route(op));
  const auto each_expert = [&](auto run) -> Result<void> {
    for (std::size_t e = 0; e < op.gate.size(); ++e) {
      const std::int32_t count = begins[e + 1] - begins[e];
      if (count > 0) LLMINFER_TRY(run(e, begins[e], count));
    }
    return {};
  };
  const auto bias_of = [](const std::vector<WeightId>& biases, std::size_t expert) {
    return biases.empty() ? WeightId::none : biases[expert];
  };
  /// `out`, a row per place, of one layer of each expert.
  const auto layer = [&](const RowsArgs& in, const std::vector<WeightId>& matrices, const std::vector<WeightId>& biases,
                         const RowsArgs& out) -> Result<void> {
    LLMINFER_TRY(prepare_places(in, matrices, begins));
    return each_expert([&](std::size_t e, std::int32_t first, std::int32_t count) {
      LinearArgs args = expert_args(out, matrices[e], first, count);
      return linear(args, matrices[e], bias_of(biases, e));
    });
  };
  const auto* const words = memory_.at<std::int32_t>(m.words);
  const RowsArgs rows{memory_.at<float>(m.rows), m.width};
  const RowsArgs gates{memory_.at<float>(m.hidden), m.ffn}, ups{gates.data + m.places * m.ffn, m.ffn};
  const auto n = static_cast<int>(width(op.in));
  LLMINFER_TRY(device_->check(kernels().gather(stream(), {value(op.in), words, places, n, rows}), "gather"));
  bool alike = true;
  for (std::size_t e = 0; e < op.gate.size(); ++e) {
    alike = alike && weight(op.gate[e]).input() == weight(op.up[e]).input();
  }
  if (alike) {
    LLMINFER_TRY(prepare_places(rows, op.gate, begins));
    LLMINFER_TRY(each_expert([&](std::size_t e, std::int32_t first, std::int32_t count) {
      LinearArgs args = expert_args(gates, op.gate[e], first, count);
      LinearPart part;
      part.weight = op.gate[e];
      part.bias = bias_of(op.gate_bias, e);
      part.up_weight = op.up[e];
      part.up_bias = bias_of(op.up_bias, e);
      part.activation = op.activation;
      return gated_unit(args, part, {ups.data + first * ups.stride, ups.stride});
    }));
  } else {
    LLMINFER_TRY(layer(rows, op.gate, op.gate_bias, gates));
    LLMINFER_TRY(layer(rows, op.up, op.up_bias, ups));
    const auto ffn = static_cast<int>(weight(op.gate.front()).rows());
    const GluArgs glu{gates, ups, gates, places, ffn, static_cast<int>(op.activation)};
    LLMINFER_TRY(device_->check(kernels().glu(stream(), glu), "glu"));
  }
  LLMINFER_TRY(layer(gates, op.down, op.down_bias, rows));

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
  return device_->check(kernels().combine(stream(), args), "combine");
}

}  // namespace llminfer::gpu
