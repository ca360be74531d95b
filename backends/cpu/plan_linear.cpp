// Linear steps of a plan: how their input rows are prepared, and the products. No row's bits depend on the others.
#include <algorithm>
#include <cstring>

#include "backends/cpu/plan.hpp"
#include "core/error.hpp"

namespace llminfer::cpu {
namespace {

std::size_t float_bytes(std::int64_t floats) { return static_cast<std::size_t>(floats) * sizeof(float); }

}  // namespace

/// Finds how the weights read their inputs, and takes memory for what they need.
void CpuPlan::bind_inputs(ActivationCodes codes) {
  codes_ = codes.shift > 0 && level_.linear->byte_rows == 0 ? kBytes8 : codes;
  std::vector<WeightInput> weights;
  for (const Matrix& weight : matrices_) {
    weights.push_back({weight.form(codes), weight.order(), weight.input(), weight.wide_codes()});
  }
  inputs_ = PlanInputs::make(steps_, weights, codes);
  input_layout_ = InputRowsLayout(inputs_, layout_.widest_input, layout_.quantized_stride, max_rows_, layout_.threads);
  if (input_layout_.bytes == 0) return;
  input_rows_ = AlignedBytes(input_layout_.bytes);
  for (std::size_t i = 0; i < threads_.size(); ++i) {
    const auto t = static_cast<std::int64_t>(i);
    if (inputs_.rounds) threads_[i].rounded = rounded_row(max_rows_ + t);
    if (inputs_.orders) {
      threads_[i].ordered = input_rows_.at<float>(input_layout_.ordered) + t * input_layout_.ordered_stride;
    }
  }
}

/// Where rows of the index-th form of an input lie; `own`: the thread's only one.
QuantizedGroup* CpuPlan::quantized_rows(int form, bool own, const Thread& thread) const noexcept {
  if (form == 0) {
    return own ? thread.at<QuantizedGroup>(layout_.own_quantized) : memory_.at<QuantizedGroup>(layout_.quantized);
  }
  const std::int64_t row = own ? max_rows_ + (&thread - threads_.data()) : 0;
  const std::int64_t rows = std::int64_t{max_rows_} + layout_.threads;
  return input_rows_.at<QuantizedGroup>(input_layout_.forms) + ((form - 1) * rows + row) * layout_.quantized_stride;
}

CpuPlan::LinearInput CpuPlan::linear_input(const Step& step, std::int32_t rows) const noexcept {
  LinearInput input;
  input.input = &inputs_.of_step[index_of(step)];
  input.codes = input.input->codes;
  const std::int32_t byte_rows = level_.linear->byte_rows;
  if (input.codes.shift > 0 && rows >= byte_rows && (byte_rows == 0 || !input.input->wide)) input.codes = kBytes8;
  input.direct = steps_.logits_direct && &step == &steps_.steps.back();
  input.gather = input.direct && pass_.logit_index.size() != pass_.selected.size();
  input.copy = std::get<LinearStep>(step).norm != WeightId::none || input.gather;
  return input;
}

/// Norms rows that the step multiplies, rounds and quantizes them. `own`: to the thread's own memory, as its only row.
void CpuPlan::prepare_rows(const LinearStep& step, const LinearInput& input, std::int32_t first, std::int32_t last,
                           bool own, Thread& thread) noexcept {
  const std::int64_t k = width(step.in);
  const StepInput& common = *input.input;
  for (std::int32_t r = first; r < last; ++r) {
    // Floats that only the quantizer reads stay in the thread's own memory.
    float* const normed = own || !common.floats ? thread.at<float>(layout_.own_normed)
                                                : memory_.at<float>(layout_.normed) + r * layout_.normed_stride;
    const float* x = row(step.in, input.gather ? pass_.logit_index[static_cast<std::size_t>(r)] : r);
    if (step.norm != WeightId::none) {
      level_.elementwise->rms_norm(x, vector(step.norm), step.epsilon, k, normed);
      x = normed;
    } else if (input.gather && common.floats) {
      std::memcpy(normed, x, float_bytes(k));
    }
    const float* const unrounded = x;
    if (common.rounds) {
      float* const to = own ? thread.rounded : rounded_row(r);
      level_.linear->round_row(rounding_of(common.rounding), x, k, to);
      x = to;
    }
    for (std::size_t f = 0; f < common.forms.size(); ++f) {
      QuantizedGroup* const rows = quantized_rows(static_cast<int>(f), own, thread);
      QuantizedGroup* const to = own ? rows : rows + r * layout_.quantized_stride;
      quantize_row(common.forms[f], common.rounding, input.codes, unrounded, x, k, to, thread);
    }
  }
}

/// A row in one of its quantized forms; x: the row after the rounding that the checkpoint declares, if it does.
void CpuPlan::quantize_row(const RowForm& form, const InputQuantization& rounding, ActivationCodes codes,
                           const float* unrounded, const float* x, std::int64_t k, QuantizedGroup* to,
                           Thread& thread) noexcept {
  const InputRounding how = rounding_of(rounding);
  if (form.form == InputForm::bytes) return level_.linear->quantize_bytes(how, unrounded, k, to);
  if (form.form == InputForm::bfloats) {
    const bool declared = rounding.kind != InputQuantization::Kind::none;
    return level_.linear->quantize_bfloats(declared ? &how : nullptr, unrounded, k, to);
  }
  if (form.order) {
    const std::int32_t* const order = form.order->data();
    for (std::int64_t i = 0; i < k; ++i) thread.ordered[i] = x[order[i]];
    x = thread.ordered;
  }
  level_.linear->quantize_row(x, k, codes, to);
}

/// Where the step's prepared rows lie.
ActivationView CpuPlan::view_input(const LinearStep& step, const LinearInput& input, int form, bool own,
                                   Thread& thread) noexcept {
  ActivationView view{};
  view.group_stride = layout_.quantized_stride;
  view.high_only = input.codes.bytes;
  if (input.input->rounds) {
    view.f32 = own ? thread.rounded : rounded_row(0);
    view.stride = input_layout_.rounded_stride;
  } else if (input.copy) {
    view.f32 = own ? thread.at<float>(layout_.own_normed) : memory_.at<float>(layout_.normed);
    view.stride = layout_.normed_stride;
  } else {
    view.f32 = row(step.in, 0);
    view.stride = stride(step.in);
  }
  if (form >= 0) {
    view.groups = quantized_rows(form, own, thread);
    view.bfloats = input.input->forms[static_cast<std::size_t>(form)].form == InputForm::bfloats;
  }
  return view;
}

/// Items are units of all parts in a row, once for each block of rows.
void CpuPlan::run(const LinearStep& step, const Phase& phase, int first, int last, Thread& thread) noexcept {
  const LinearInput input = linear_input(*phase.step, phase.rows);
  if (phase.kind == Phase::Kind::prepare) return prepare_rows(step, input, first, last, false, thread);
  const bool own = phase.rows == 1;
  if (own && input.prepares() && thread.prepared != &phase) {
    prepare_rows(step, input, 0, 1, true, thread);
    thread.prepared = &phase;
  }
  const std::int32_t units = phase.items / phase.blocks;
  while (first < last) {
    const std::int32_t block = first / units;
    const auto row_begin = static_cast<std::int32_t>(std::int64_t{phase.rows} * block / phase.blocks);
    const auto row_end = static_cast<std::int32_t>(std::int64_t{phase.rows} * (block + 1) / phase.blocks);
    std::int32_t unit = first % units;
    const std::int32_t end = std::min(units, unit + (last - first));
    first += end - unit;
    std::int32_t part_begin = 0;
    for (std::size_t i = 0; i < step.parts.size(); ++i) {
      const LinearPart& part = step.parts[i];
      const std::int32_t part_end = part_begin + matrix(part.weight).units();
      if (unit < part_end && unit < end) {
        const std::int32_t stop = std::min(end, part_end);
        const auto [form, up_form] = input.input->of_part[i];
        run_part(part, unit - part_begin, stop - part_begin, view_input(step, input, form, own, thread),
                 view_input(step, input, up_form, own, thread), row_begin, row_end, input.direct, thread);
        unit = stop;
      }
      part_begin = part_end;
    }
  }
}

/// Units [first, last) of one linear layer, and its tail while the outputs are in the cache.
void CpuPlan::run_part(const LinearPart& part, std::int32_t first, std::int32_t last, const ActivationView& x,
                       const ActivationView& up_x, std::int32_t row_begin, std::int32_t row_end, bool direct,
                       Thread& thread) noexcept {
  const Matrix& weight = matrix(part.weight);
  const ElementwiseKernels& elementwise = *level_.elementwise;
  const std::int64_t begin = std::int64_t{first} * kUnitFeatures;
  const std::int64_t count = std::min(std::int64_t{last} * kUnitFeatures, weight.rows()) - begin;
  float* const out = direct ? pass_.batch->logits.data() : row(part.out, 0);
  const std::int64_t out_stride = direct ? program_.vocab_size : stride(part.out);
  const auto add_bias = [&](WeightId bias, float* to, std::int64_t to_stride) {
    if (bias == WeightId::none) return;
    for (std::int32_t r = row_begin; r < row_end; ++r) {
      float* const y = to + r * to_stride + begin;
      elementwise.add(y, vector(bias) + begin, count, y);
    }
  };
  void* const scratch = thread.at<std::byte>(layout_.linear);
  weight.multiply(*level_.linear, first, last, x, row_begin, row_end, out, out_stride, scratch, thread.panels);
  add_bias(part.bias, out, out_stride);
  if (part.tail == LinearPart::Tail::add) {
    for (std::int32_t r = row_begin; r < row_end; ++r) {
      float* const y = out + r * out_stride + begin;
      elementwise.add(row(part.residual, r) + begin, y, count, y);
    }
  } else if (part.tail == LinearPart::Tail::glu) {
    float* const up = row(part.up, 0);
    const std::int64_t up_stride = stride(part.up);
    matrix(part.up_weight)
        .multiply(*level_.linear, first, last, up_x, row_begin, row_end, up, up_stride, scratch, thread.panels);
    add_bias(part.up_bias, up, up_stride);
    const auto glu = elementwise.glu[static_cast<int>(part.activation)];
    for (std::int32_t r = row_begin; r < row_end; ++r) {
      float* const y = out + r * out_stride + begin;
      glu(y, up + r * up_stride + begin, count, y);
    }
  }
}

}  // namespace llminfer::cpu
