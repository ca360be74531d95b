// Mixtures of experts on a device (docs/adr/0036): it chooses the experts, sorts pairs of a row and one of its experts
// by expert, and multiplies tiles of rows by matrices that it finds in a table. The host learns of nothing.
#include <algorithm>
#include <cstring>
#include <vector>

#include "backends/gpu/plan.hpp"
#include "core/error.hpp"

namespace llminfer::gpu {

ExpertMatrix GpuPlan::expert_matrix(WeightId id, WeightId bias, std::int64_t slot) const noexcept {
  const float* const vector = bias == WeightId::none ? nullptr : weight(bias).vector_at(data(bias, slot));
  return {weight(id).matrix_at(data(id, slot)), vector, rounding_of(weight(id).input())};
}

/// Where the experts' matrices lie, for each slot of the ring that those that are streamed may be in.
Result<void> GpuPlan::make_expert_tables() {
  for (const Step& step : steps_.steps) {
    const auto* moe = std::get_if<MoeStep>(&step);
    if (!moe) continue;
    const op::Moe& op = moe->op;
    std::vector<ExpertMatrix> table;
    const auto append = [&](const std::vector<WeightId>& ids, const std::vector<WeightId>& biases, std::int64_t slot) {
      for (std::size_t e = 0; e < ids.size(); ++e) {
        table.push_back(expert_matrix(ids[e], biases.empty() ? WeightId::none : biases[e], slot));
      }
    };
    for (std::int64_t slot = 0; slot < (ring_ ? ring_->slots() : 1); ++slot) {
      append(op.gate, op.gate_bias, slot);
      append(op.up, op.up_bias, slot);
      append(op.down, op.down_bias, slot);
    }
    const auto bytes = static_cast<std::int64_t>(table.size() * sizeof(ExpertMatrix));
    const Buffer host = LLMINFER_TRY(Buffer::make(device_, bytes, true));
    std::memcpy(host.at(), table.data(), static_cast<std::size_t>(bytes));
    std::byte* const to = memory_.at(layout_.experts.tables[static_cast<std::size_t>(op.out)]);
    LLMINFER_TRY(device_->copy(to, host.at(), bytes));
    LLMINFER_TRY(device_->wait());
  }
  return {};
}

Result<SortArgs> GpuPlan::route(const op::Moe& op, std::int32_t tile_rows) {
  const PlanLayout::Experts& m = layout_.experts;
  auto* const words = memory_.at<std::int32_t>(m.words);
  RouteArgs args{};
  args.logits = value(op.router);
  args.positions = words_.at<std::int32_t>(pass_.current_positions * 4);
  args.rows = pass_.current_rows;
  args.experts = static_cast<int>(op.gate.size());
  args.used = op.used;
  args.scoring = static_cast<int>(op.scoring);
  args.normalize = op.normalize;
  args.scale = op.scale;
  args.ranked = words;
  args.chosen = words + m.places;
  args.factors = reinterpret_cast<float*>(words + 2 * m.places);
  SortArgs& sort = args.sort;
  sort.chosen = args.chosen;
  sort.pairs = args.rows * args.used;
  sort.experts = args.experts;
  sort.used = args.used;
  sort.places = words + 3 * m.places;
  sort.rows = words + 4 * m.places;
  sort.expert_of = words + 5 * m.places;
  sort.tiles = memory_.at<ExpertTile>(m.tiles);
  sort.tile_rows = tile_rows;
  sort.tile_count = std::min(sort.pairs, sort.pairs / tile_rows + args.experts + 1);
  LLMINFER_TRY(device_->check(kernels().route(stream(), args), "route"));
  if (args.rows > 1) LLMINFER_TRY(device_->check(kernels().sort_pairs(stream(), sort), "sort_pairs"));
  return sort;
}

/// What the experts' layers read: rows of places, each rounded as its expert wants it, as halves. Tiles of one row are
/// read as floats, and if nothing is rounded as they are. `first`: of the experts' matrices.
Result<void> GpuPlan::prepare_places(const RowsArgs& in, const std::int32_t* indices, const SortArgs& sorted,
                                     const GpuWeight& first, ExpertsArgs& layer) {
  layer.width = static_cast<int>(first.cols());
  const bool one = sorted.tile_rows == 1, rounds = rounded_.bytes() > 0;
  layer.floats = one && !rounds ? RowsArgs{in.data, indices ? 0 : in.stride}
                                : RowsArgs{rounded_.at<float>(), layout_.experts.padded};
  layer.in_scales = one && !rounds ? nullptr : memory_.at<float>(layout_.experts.scales);
  if (one && !rounds) return {};
  PrepareArgs args{};
  args.in = in;
  args.indices = indices;
  args.expert_of = sorted.expert_of;
  args.experts = layer.experts;
  args.rows = sorted.pairs;
  args.width = layer.width;
  args.padded = first.padded_cols();
  if (rounds) args.out = layer.floats;
  if (!one) args.halves = memory_.at<std::uint16_t>(layout_.experts.halves);
  args.scales = memory_.at<float>(layout_.experts.scales);
  return device_->check(kernels().prepare(stream(), args), "prepare");
}

Result<void> GpuPlan::multiply_experts(ExpertsArgs args, const std::vector<WeightId>& matrices, bool few) {
  args.in = memory_.at<std::uint16_t>(layout_.experts.halves);
  args.features = static_cast<int>(weight(matrices.front()).rows());
  const auto form_of = [&](WeightId id) { return weight(id).form(); };
  for (int form = 0; form < kForms; ++form) {
    args.form = static_cast<Form>(form);
    if (std::none_of(matrices.begin(), matrices.end(), [&](WeightId id) { return form_of(id) == args.form; })) continue;
    LLMINFER_TRY(few ? device_->check(kernels().experts_few(stream(), args), "experts_few")
                     : device_->check(kernels().experts_many(stream(), args), "experts_many"));
  }
  return {};
}

Result<void> GpuPlan::run(const MoeStep& step) {
  const op::Moe& op = step.op;
  const PlanLayout::Experts& m = layout_.experts;
  const auto experts = static_cast<std::int32_t>(op.gate.size());
  const std::int32_t rows = pass_.current_rows, pairs = rows * op.used;
  // By the rows that experts have on average, so that most tiles of few rows are an expert's only ones.
  const bool few = !options_.batch_invariant && pairs <= std::int64_t{experts} * (kFewExpertRows / 2);
  const std::int32_t tile_rows = few ? std::min(rows, kFewExpertRows) : kBlockRows;
  const SortArgs sorted = LLMINFER_TRY(route(op, tile_rows));

  const auto* const gate = memory_.at<ExpertMatrix>(m.tables[static_cast<std::size_t>(op.out)]) + slot() * 3 * experts;
  const ExpertMatrix *const up = gate + experts, *const down = up + experts;
  const RowsArgs outputs{memory_.at<float>(m.rows), m.width};
  const RowsArgs gates{memory_.at<float>(m.hidden), m.ffn}, ups{gates.data + m.places * m.ffn, m.ffn};
  bool same_inputs = true, same_forms = true;
  for (std::size_t e = 0; e < op.gate.size(); ++e) {
    const GpuWeight &first = weight(op.gate[e]), &second = weight(op.up[e]);
    same_inputs = same_inputs && first.takes_inputs_like(second);
    same_forms = same_forms && first.decodes_as(second);
  }
  ExpertsArgs args{};
  args.tiles = sorted.tiles;
  args.tile_count = sorted.tile_count;
  args.tile_rows = tile_rows;
  args.activation = static_cast<int>(op.activation);
  args.experts = gate;
  args.out = gates;
  LLMINFER_TRY(prepare_places(value(op.in), sorted.rows, sorted, weight(op.gate.front()), args));
  if (few && same_inputs && same_forms) {
    args.ups = up;
    LLMINFER_TRY(multiply_experts(args, op.gate, few));
  } else {
    LLMINFER_TRY(multiply_experts(args, op.gate, few));
    args.experts = up;
    if (!same_inputs) LLMINFER_TRY(prepare_places(value(op.in), sorted.rows, sorted, weight(op.up.front()), args));
    args.out = ups;
    LLMINFER_TRY(multiply_experts(args, op.up, few));
    const auto ffn = static_cast<int>(weight(op.gate.front()).rows());
    LLMINFER_TRY(device_->check(kernels().glu(stream(), {gates, ups, gates, pairs, ffn, args.activation}), "glu"));
  }
  args.experts = down;
  args.ups = nullptr;
  LLMINFER_TRY(prepare_places(gates, nullptr, sorted, weight(op.down.front()), args));
  args.out = outputs;
  LLMINFER_TRY(multiply_experts(args, op.down, few));

  CombineArgs combine{};
  combine.in = outputs;
  combine.places = sorted.places;
  combine.factors = memory_.at<float>(m.words) + 2 * m.places;
  combine.used = op.used;
  if (op.shared != ValueId::none) {
    combine.shared = value(op.shared);
    combine.shared_gate = value(op.shared_gate);
  }
  combine.rows = rows;
  combine.width = static_cast<int>(width(op.in));
  combine.out = value(op.out);
  return device_->check(kernels().combine(stream(), combine), "combine");
}

}  // namespace llminfer::gpu
