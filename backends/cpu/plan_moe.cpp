// Mixtures of experts of a plan. Tokens are gathered by expert, so that each expert's matrices are multiplied with all
// of its rows by the kernels of linear layers, and matrices of experts that no token chose are not touched. What a
// token gets depends on that token alone: its choice, its products, and a sum in the order of the experts' index.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "backends/common/experts.hpp"
#include "backends/cpu/plan.hpp"

namespace llminfer::cpu {
namespace {

std::size_t float_bytes(std::int64_t floats) { return static_cast<std::size_t>(floats) * sizeof(float); }

/// What a unit of output features costs beside its rows, in rows: reading and unpacking the weights.
constexpr std::int64_t kUnitCost = 4;

}  // namespace

void CpuPlan::add_expert_phases(const Step& step, bool selected, std::int32_t rows) {
  using Stage = ExpertStage;
  const std::int32_t places = rows * std::get<MoeStep>(step).op.used;
  const int shares = team_->threads() == 1 ? 1 : 8 * team_->threads();
  const bool twice = inputs_.of_experts[index_of(step)].up_differs;
  const auto add = [&](Stage stage, int items, int grain) {
    Phase phase{Phase::Kind::main, &step, selected, rows, items};
    phase.stage = stage;
    add_phase(phase, grain);
  };
  add(Stage::route, rows, 0);
  add(Stage::sort, 1, 0);
  add(Stage::gather, rows, 0);
  add(Stage::gate, shares, 1);
  if (twice) add(Stage::regather, rows, 0);
  if (twice) add(Stage::up, shares, 1);
  add(Stage::narrow, places, 0);
  add(Stage::down, shares, 1);
  add(Stage::combine, rows, 0);
}

void CpuPlan::run(const MoeStep& step, const Phase& phase, int first, int last, Thread& thread) noexcept {
  const op::Moe& op = step.op;
  const PlanLayout::Experts& m = layout_.experts;
  const auto* const experts = memory_.at<std::int32_t>(m.experts);
  const ExpertInputs& inputs = inputs_.of_experts[index_of(*phase.step)];
  for (int i = first; i < last; ++i) {
    switch (phase.stage) {
      case ExpertStage::route:
        route(op, i);
        break;
      case ExpertStage::sort:
        sort_places(*phase.step, phase.rows);
        break;
      case ExpertStage::gather:
        gather(op, op.gate, !inputs.gates_differ, i, thread);
        break;
      case ExpertStage::regather:
        gather(op, op.up, !inputs.ups_differ, i, thread);
        break;
      case ExpertStage::narrow:
        read_row(matrix(op.down[static_cast<std::size_t>(experts[i])]),
                 memory_.at<float>(m.hidden) + i * m.hidden_stride, i, thread);
        break;
      case ExpertStage::gate:
      case ExpertStage::up:
      case ExpertStage::down:
        run_experts(op, phase, i, thread);
        break;
      case ExpertStage::combine:
        combine(op, i);
        break;
    }
  }
}

/// Chooses the token's experts and their factors.
void CpuPlan::route(const op::Moe& op, std::int32_t token) noexcept {
  const std::int64_t first = std::int64_t{token} * op.used;
  backend::choose_experts(op, row(op.router, token), memory_.at<std::int32_t>(layout_.experts.chosen) + first,
                          memory_.at<float>(layout_.experts.factors) + first);
}

/// Gives each pair of a token and an expert its place: by expert, then by token.
void CpuPlan::sort_places(const Step& step, std::int32_t rows) noexcept {
  const op::Moe& op = std::get<MoeStep>(step).op;
  const PlanLayout::Experts& m = layout_.experts;
  const std::size_t count = op.gate.size();
  const std::int32_t pairs = rows * op.used;
  const auto* const chosen = memory_.at<std::int32_t>(m.chosen);
  auto* const places = memory_.at<std::int32_t>(m.places);
  auto* const begins = memory_.at<std::int32_t>(m.begins);
  std::fill(begins, begins + count + 1, 0);
  for (std::int32_t i = 0; i < pairs; ++i) ++begins[chosen[i]];
  // begins[e] becomes where e ends; then it goes down to where e begins as places are taken from the end.
  for (std::size_t e = 0, end = 0; e <= count; ++e) {
    end += static_cast<std::size_t>(begins[e]);
    begins[e] = static_cast<std::int32_t>(end);
  }
  for (std::int32_t i = pairs - 1; i >= 0; --i) {
    const std::int32_t place = --begins[chosen[i]];
    places[i] = place;
    memory_.at<std::int32_t>(m.experts)[place] = chosen[i];
  }
  if (!profiler_) return;
  std::int32_t used = 0;
  for (std::size_t e = 0; e < count; ++e) used += begins[e + 1] > begins[e];
  profiler_->count_experts(index_of(step), used);
}

/// A token's row at its places, as the experts that these belong to read it.
void CpuPlan::gather(const op::Moe& op, const std::vector<WeightId>& weights, bool alike, std::int32_t token,
                     Thread& thread) noexcept {
  const PlanLayout::Experts& m = layout_.experts;
  const std::int64_t pair = std::int64_t{token} * op.used;
  const auto* const places = memory_.at<std::int32_t>(m.places) + pair;
  const auto* const chosen = memory_.at<std::int32_t>(m.chosen) + pair;
  const auto row_at = [&](std::int32_t place) { return memory_.at<QuantizedGroup>(m.inputs) + place * m.input_stride; };
  for (std::int32_t j = 0; j < op.used; ++j) {
    const Matrix& weight = matrix(weights[static_cast<std::size_t>(chosen[j])]);
    if (j == 0 || !alike) {
      read_row(weight, row(op.in, token), places[j], thread);
    } else {
      const std::int64_t k = weight.cols();
      const bool floats = form_of(weight) == InputForm::floats;
      std::memcpy(row_at(places[j]), row_at(places[0]), floats ? float_bytes(k) : quantized_row_bytes(k));
    }
  }
}

/// The row of a place, as the weight reads it.
void CpuPlan::read_row(const Matrix& weight, const float* x, std::int32_t place, Thread& thread) noexcept {
  const PlanLayout::Experts& m = layout_.experts;
  QuantizedGroup* const to = memory_.at<QuantizedGroup>(m.inputs) + place * m.input_stride;
  const std::int64_t k = weight.cols();
  const InputQuantization& rounding = weight.input();
  const InputForm form = form_of(weight);
  const bool floats = form == InputForm::floats;
  const float* const unrounded = x;
  if (rounding.kind != InputQuantization::Kind::none && (floats || form == InputForm::groups)) {
    float* const rounded = floats ? reinterpret_cast<float*>(to) : thread.rounded;
    level_.linear->round_row(rounding_of(rounding), x, k, rounded);
    x = rounded;
  } else if (floats) {
    std::memcpy(to, x, float_bytes(k));
  }
  if (!floats) quantize_row({form, weight.order()}, rounding, codes_of(weight), unrounded, x, k, to, thread);
}

/// Calls f(expert, first unit, last unit, first place, last place) for a share of the work on the experts' matrices.
template <class F>
void CpuPlan::for_share(const std::vector<WeightId>& weights, int share, int shares, const F& f) noexcept {
  const auto* const begins = memory_.at<std::int32_t>(layout_.experts.begins);
  const std::int64_t units = matrix(weights.front()).units();
  const auto unit_cost = [&](std::size_t e) {
    const std::int64_t rows = begins[e + 1] - begins[e];
    return rows > 0 ? rows + kUnitCost : 0;
  };
  std::int64_t all = 0;
  for (std::size_t e = 0; e < weights.size(); ++e) all += units * unit_cost(e);
  const std::int64_t begin = all * share / shares, end = all * (share + 1) / shares;
  std::int64_t before = 0;  // the cost of experts before e
  for (std::size_t e = 0; e < weights.size() && before < end; ++e) {
    const std::int64_t cost = unit_cost(e);
    if (cost == 0) continue;
    // A unit belongs to the share that its beginning lies in.
    const auto unit_at = [&](std::int64_t at) {
      return std::clamp((at - before + cost - 1) / cost, std::int64_t{0}, units);
    };
    const std::int64_t first = unit_at(std::max(begin, before)), last = unit_at(end);
    if (first < last) f(e, static_cast<std::int32_t>(first), static_cast<std::int32_t>(last), begins[e], begins[e + 1]);
    before += units * cost;
  }
}

/// A share of the products of one stage.
void CpuPlan::run_experts(const op::Moe& op, const Phase& phase, int share, Thread& thread) noexcept {
  const PlanLayout::Experts& m = layout_.experts;
  ActivationView x{};
  x.f32 = memory_.at<float>(m.inputs);
  x.stride = m.input_stride * std::int64_t{sizeof(QuantizedGroup) / sizeof(float)};
  x.groups = memory_.at<QuantizedGroup>(m.inputs);
  x.group_stride = m.input_stride;
  float* const hidden = memory_.at<float>(m.hidden);
  float* const up = hidden + m.rows * m.hidden_stride;
  const auto multiply = [&](WeightId id, auto first, auto last, auto begin, auto end, float* out, std::int64_t stride) {
    x.high_only = codes_of(matrix(id)).bytes;
    x.bfloats = form_of(matrix(id)) == InputForm::bfloats;
    void* const scratch = thread.at<std::byte>(layout_.linear);
    matrix(id).multiply(*level_.linear, first, last, x, begin, end, out, stride, scratch, thread.panels);
  };
  if (phase.stage == ExpertStage::down) {
    return for_share(op.down, share, phase.items, [&](std::size_t e, auto first, auto last, auto begin, auto end) {
      multiply(op.down[e], first, last, begin, end, hidden, m.output_stride);
    });
  }
  const bool twice = inputs_.of_experts[index_of(*phase.step)].up_differs;
  const auto glu = level_.elementwise->glu[static_cast<int>(op.activation)];
  for_share(op.gate, share, phase.items, [&](std::size_t e, auto first, auto last, auto begin, auto end) {
    if (phase.stage == ExpertStage::gate) {
      multiply(op.gate[e], first, last, begin, end, hidden, m.hidden_stride);
      if (twice) return;
    }
    multiply(op.up[e], first, last, begin, end, up, m.hidden_stride);
    const std::int64_t feature = std::int64_t{first} * kUnitFeatures;
    const std::int64_t count = std::min(std::int64_t{last} * kUnitFeatures, matrix(op.gate[e]).rows()) - feature;
    for (std::int32_t place = begin; place < end; ++place) {
      float* const y = hidden + place * m.hidden_stride + feature;
      float* const u = up + place * m.hidden_stride + feature;
      if (!op.gate_bias.empty()) {
        level_.elementwise->add(y, vector(op.gate_bias[e]) + feature, count, y);
        level_.elementwise->add(u, vector(op.up_bias[e]) + feature, count, u);
      }
      glu(y, u, count, y);
    }
  });
}

void CpuPlan::combine(const op::Moe& op, std::int32_t token) noexcept {
  const PlanLayout::Experts& m = layout_.experts;
  const std::int64_t n = width(op.out);
  float* const out = row(op.out, token);
  std::memset(out, 0, float_bytes(n));
  for (std::int64_t j = std::int64_t{token} * op.used; j < (std::int64_t{token} + 1) * op.used; ++j) {
    float* const y = memory_.at<float>(m.hidden) + memory_.at<std::int32_t>(m.places)[j] * m.output_stride;
    if (!op.down_bias.empty()) {
      const auto e = static_cast<std::size_t>(memory_.at<std::int32_t>(m.chosen)[j]);
      level_.elementwise->add(y, vector(op.down_bias[e]), n, y);
    }
    level_.elementwise->add_scaled(out, memory_.at<float>(m.factors)[j], y, n, out);
  }
  if (op.shared == ValueId::none) return;
  const auto gate = static_cast<float>(backend::sigmoid(static_cast<double>(*row(op.shared_gate, token))));
  level_.elementwise->add_scaled(out, gate, row(op.shared, token), n, out);
}

}  // namespace llminfer::cpu
