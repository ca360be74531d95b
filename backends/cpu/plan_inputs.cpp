#include "backends/cpu/plan_inputs.hpp"

#include <algorithm>

namespace llminfer::cpu {

using namespace backend;  // steps

namespace {

bool same_order(const std::vector<std::int32_t>* a, const std::vector<std::int32_t>* b) {
  return a == b || (a && b && *a == *b);
}

bool read_alike(const WeightInput& a, const WeightInput& b) {
  return a.form == b.form && a.rounding == b.rounding && same_order(a.order, b.order);
}

/// Finds the forms in which the step's weights read their input; they share those that are equal.
StepInput bind(const LinearStep& step, std::span<const WeightInput> weights) {
  StepInput input;
  const auto of = [&](WeightId id) -> const WeightInput& { return weights[static_cast<std::size_t>(id)]; };
  input.rounding = of(step.parts.front().weight).rounding;
  const auto form_of = [&](WeightId id) {
    if (id == WeightId::none) return -1;
    input.wide = input.wide || of(id).wide;
    const RowForm wanted{of(id).form, of(id).order};
    if (wanted.form == InputForm::floats) {
      input.floats = true;
      return -1;
    }
    const auto same = [&](const RowForm& f) { return f.form == wanted.form && same_order(f.order, wanted.order); };
    const auto found = std::find_if(input.forms.begin(), input.forms.end(), same);
    const auto index = static_cast<int>(found - input.forms.begin());
    if (found == input.forms.end()) input.forms.push_back(wanted);
    return index;
  };
  for (const LinearPart& part : step.parts) {
    const int form = form_of(part.weight);
    input.of_part.emplace_back(form, form_of(part.up_weight));
  }
  const auto reads_floats = [](const RowForm& form) { return form.form == InputForm::groups; };
  input.rounds = input.rounding.kind != InputQuantization::Kind::none &&
                 (input.floats || std::any_of(input.forms.begin(), input.forms.end(), reads_floats));
  return input;
}

}  // namespace

PlanInputs PlanInputs::make(backend::Steps& steps, std::span<const WeightInput> weights, ActivationCodes codes) {
  const auto of = [&](WeightId id) -> const WeightInput& { return weights[static_cast<std::size_t>(id)]; };
  separate_inputs(steps, [&](WeightId a, WeightId b) { return of(a).rounding == of(b).rounding; });
  PlanInputs inputs;
  inputs.of_step.resize(steps.steps.size());
  inputs.of_experts.resize(steps.steps.size());
  for (std::size_t i = 0; i < steps.steps.size(); ++i) {
    if (const auto* moe = std::get_if<MoeStep>(&steps.steps[i])) {
      for (std::size_t e = 0; e < moe->op.gate.size(); ++e) {
        const WeightInput &gate = of(moe->op.gate[e]), &up = of(moe->op.up[e]), &down = of(moe->op.down[e]);
        for (const WeightInput* weight : {&gate, &up, &down}) {
          inputs.rounds = inputs.rounds || weight->rounding.kind != InputQuantization::Kind::none;
          inputs.orders = inputs.orders || weight->order;
        }
        ExpertInputs& experts = inputs.of_experts[i];
        experts.up_differs |= !read_alike(gate, up);
        experts.gates_differ |= !read_alike(gate, of(moe->op.gate.front()));
        experts.ups_differ |= !read_alike(up, of(moe->op.up.front()));
      }
    }
    const auto* linear = std::get_if<LinearStep>(&steps.steps[i]);
    if (!linear) continue;
    StepInput& input = inputs.of_step[i];
    input = bind(*linear, weights);
    input.codes = codes_for(input.rounding, codes);
    inputs.rounds = inputs.rounds || input.rounds;
    for (const RowForm& form : input.forms) inputs.orders = inputs.orders || form.order;
    inputs.more_forms = std::max(inputs.more_forms, static_cast<std::int64_t>(input.forms.size()) - 1);
  }
  return inputs;
}

InputRowsLayout::InputRowsLayout(const PlanInputs& inputs, std::int64_t widest_input, std::int64_t quantized_stride,
                                 std::int32_t max_rows, int threads) {
  const std::int64_t rows = std::int64_t{max_rows} + threads;
  const std::int64_t stride = (widest_input + 15) / 16 * 16 + 16, row_bytes = stride * std::int64_t{sizeof(float)};
  if (inputs.rounds) rounded_stride = stride;
  if (inputs.orders) ordered_stride = stride;
  ordered = inputs.rounds ? rows * row_bytes : 0;
  forms = ordered + (inputs.orders ? threads * row_bytes : 0);
  bytes = forms + inputs.more_forms * rows * quantized_stride * std::int64_t{sizeof(QuantizedGroup)};
}

}  // namespace llminfer::cpu
