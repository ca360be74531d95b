// The steps of a plan except attention. Each computes its rows one by one or kernels do so that no row's bits depend on
// the others, and ends with all threads meeting.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "backends/cpu/input_rounding.hpp"
#include "backends/cpu/plan.hpp"

namespace llminfer::cpu {
namespace {

std::size_t float_bytes(std::int64_t floats) { return static_cast<std::size_t>(floats) * sizeof(float); }

/// Items that a thread takes at a time: few enough that all end together, many enough that taking costs nothing.
int grain(int items, int threads) { return std::max(1, items / (8 * threads)); }

/// From this many rows on a linear layer with few output features is shared out over blocks of rows, too.
constexpr std::int32_t kRowBlock = 128;

}  // namespace

/// Sines and cosines of every row's position, in double: positions times frequencies lose what floats can't hold.
void CpuPlan::compute_angles(Thread& thread) noexcept {
  const int items = static_cast<int>(pass_.batch->positions.size());
  thread.worker.share(items, grain(items, thread.worker.count()), [&](int first, int last) {
    for (std::int32_t r = first; r < last; ++r) {
      const double position = pass_.batch->positions[static_cast<std::size_t>(r)];
      for (std::size_t t = 0; t < program_.rope_tables.size(); ++t) {
        const RopeTable& table = program_.rope_tables[t];
        const std::size_t pairs = table.inverse_frequency.size();
        float* const out = memory_.at<float>(layout_.angles[t]) + 2 * pairs * static_cast<std::size_t>(r);
        for (std::size_t i = 0; i < pairs; ++i) {
          const double angle = position * static_cast<double>(table.inverse_frequency[i]);
          out[i] = static_cast<float>(std::cos(angle) * table.magnitude);
          out[pairs + i] = static_cast<float>(std::sin(angle) * table.magnitude);
        }
      }
    }
  });
  thread.worker.barrier();
}

void CpuPlan::run(const EmbedStep& step, Thread& thread) noexcept {
  const Batch& batch = *pass_.batch;
  thread.worker.share(thread.rows, grain(thread.rows, thread.worker.count()), [&](int first, int last) {
    for (std::int32_t r = first; r < last; ++r) {
      const auto b = static_cast<std::size_t>(r);
      if (batch.tokens[b] >= 0) {
        matrix(step.table).read_row(batch.tokens[b], row(step.out, r));
      } else {
        const auto hidden = static_cast<std::size_t>(program_.hidden_size);
        std::memcpy(row(step.out, r), batch.embeddings.data() + b * hidden, hidden * sizeof(float));
      }
    }
  });
  thread.worker.barrier();
}

void CpuPlan::run(const NormStep& step, Thread& thread) noexcept {
  thread.worker.share(thread.rows, grain(thread.rows, thread.worker.count()), [&](int first, int last) {
    for (std::int32_t r = first; r < last; ++r) {
      level_.elementwise->rms_norm(row(step.in, r), vector(step.weight), step.epsilon, width(step.in),
                                   row(step.out, r));
    }
  });
  thread.worker.barrier();
}

void CpuPlan::run(const RopeStep& step, Thread& thread) noexcept {
  const RopeTable& table = program_.rope_tables[static_cast<std::size_t>(step.table)];
  const auto pairs = static_cast<std::int32_t>(table.inverse_frequency.size());
  thread.worker.share(thread.rows, grain(thread.rows, thread.worker.count()), [&](int first, int last) {
    for (std::int32_t r = first; r < last; ++r) {
      const std::int32_t b = thread.selected ? pass_.selected[static_cast<std::size_t>(r)] : r;
      for (std::int64_t i = 0; i < width(step.in); i += step.head_dim) {
        level_.elementwise->rope(row(step.in, r) + i, cosines(step.table, b), sines(step.table, b), pairs,
                                 table.interleaved, step.head_dim, 1.0f, row(step.out, r) + i);
      }
    }
  });
  thread.worker.barrier();
}

void CpuPlan::run(const GluStep& step, Thread& thread) noexcept {
  const auto glu = level_.elementwise->glu[static_cast<int>(step.op.activation)];
  thread.worker.share(thread.rows, grain(thread.rows, thread.worker.count()), [&](int first, int last) {
    for (std::int32_t r = first; r < last; ++r) {
      glu(row(step.op.gate, r), row(step.op.up, r), width(step.op.gate), row(step.op.out, r));
    }
  });
  thread.worker.barrier();
}

void CpuPlan::run(const AddStep& step, Thread& thread) noexcept {
  thread.worker.share(thread.rows, grain(thread.rows, thread.worker.count()), [&](int first, int last) {
    for (std::int32_t r = first; r < last; ++r) {
      level_.elementwise->add(row(step.op.a, r), row(step.op.b, r), width(step.op.a), row(step.op.out, r));
    }
  });
  thread.worker.barrier();
}

void CpuPlan::run(const SelectStep& step, Thread& thread) noexcept {
  // A value is moved by one thread, row by row to the front; rows ascend, so no row is overwritten before it moves.
  if (pass_.selected.size() != pass_.batch->positions.size()) {
    thread.worker.share(static_cast<int>(step.values.size()), 1, [&](int first, int last) {
      for (int v = first; v < last; ++v) {
        const ValueId id = step.values[static_cast<std::size_t>(v)];
        for (std::size_t i = 0; i < pass_.selected.size(); ++i) {
          const auto to = static_cast<std::int32_t>(i);
          if (pass_.selected[i] != to) std::memcpy(row(id, to), row(id, pass_.selected[i]), float_bytes(width(id)));
        }
      }
    });
  }
  thread.worker.barrier();
  thread.selected = true;
  thread.rows = static_cast<std::int32_t>(pass_.selected.size());
}

/// Norms the rows that the step multiplies and quantizes them. A single row is prepared by every thread for itself, which
/// is quicker than a barrier.
ActivationView CpuPlan::prepare_input(const LinearStep& step, std::int32_t rows, bool direct, Thread& thread) noexcept {
  bool quantized = false, floats = false;
  for (const LinearPart& part : step.parts) {
    for (const WeightId id : {part.weight, part.up_weight}) {
      if (id == WeightId::none) continue;
      (matrix(id).quantized() ? quantized : floats) = true;
    }
  }
  const bool gather = direct && pass_.logit_index.size() != pass_.selected.size();
  const bool copy = step.norm != WeightId::none || gather;
  const InputQuantization& input = matrix(step.parts.front().weight).input();  // bind_weights: that of all parts
  const bool rounds = input.kind != InputQuantization::Kind::none;
  const std::int64_t k = width(step.in);
  const auto prepare = [&](std::int32_t r, float* normed, QuantizedGroup* groups) {
    const float* x = row(step.in, gather ? pass_.logit_index[static_cast<std::size_t>(r)] : r);
    if (step.norm != WeightId::none) {
      level_.elementwise->rms_norm(x, vector(step.norm), step.epsilon, k, normed);
      x = normed;
    } else if (gather && floats) {
      std::memcpy(normed, x, float_bytes(k));
    }
    if (rounds) {
      float* const to = rounded_row(rows == 1 ? max_rows_ + thread.worker.index() : r);
      round_input(input, x, k, to);
      x = to;
    }
    if (quantized) level_.linear->quantize_row(x, k, groups);
  };

  ActivationView view{};
  view.f32 = copy ? nullptr : row(step.in, 0);
  view.stride = copy ? layout_.normed_stride : stride(step.in);
  view.group_stride = layout_.quantized_stride;
  if (!copy && !quantized && !rounds) return view;
  if (rounds) view.stride = rounded_stride_;
  if (rows == 1) {
    auto* const normed = thread.at<float>(layout_.own_normed);
    auto* const groups = thread.at<QuantizedGroup>(layout_.own_quantized);
    prepare(0, normed, groups);
    if (copy) view.f32 = normed;
    if (rounds) view.f32 = rounded_row(max_rows_ + thread.worker.index());
    view.groups = groups;
    return view;
  }
  auto* const normed = memory_.at<float>(layout_.normed);
  auto* const groups = memory_.at<QuantizedGroup>(layout_.quantized);
  thread.worker.share(rows, grain(rows, thread.worker.count()), [&](int first, int last) {
    for (std::int32_t r = first; r < last; ++r) {
      // Floats that only the quantizer reads stay in the thread's own memory.
      float* const own = floats ? normed + r * layout_.normed_stride : thread.at<float>(layout_.own_normed);
      prepare(r, own, groups + r * layout_.quantized_stride);
    }
  });
  thread.worker.barrier();
  if (copy) view.f32 = normed;
  if (rounds) view.f32 = rounded_row(0);
  view.groups = groups;
  return view;
}

void CpuPlan::run(const LinearStep& step, Thread& thread) noexcept {
  const bool direct = steps_.logits_direct && &step == std::get_if<LinearStep>(&steps_.steps.back());
  const std::int32_t rows = direct ? static_cast<std::int32_t>(pass_.logit_index.size()) : thread.rows;
  const ActivationView x = prepare_input(step, rows, direct, thread);
  std::int32_t units = 0;
  for (const LinearPart& part : step.parts) units += matrix(part.weight).units();
  const int threads = thread.worker.count();
  const std::int32_t blocks = units < 8 * threads ? std::max(1, rows / kRowBlock) : 1;
  const int items = rows > 0 ? blocks * units : 0;
  thread.worker.share(items, grain(items, threads), [&](int first, int last) {
    // Items are units of all parts in a row, once for each block of rows; this range may cross several.
    while (first < last) {
      const std::int32_t block = first / units;
      const auto row_begin = static_cast<std::int32_t>(std::int64_t{rows} * block / blocks);
      const auto row_end = static_cast<std::int32_t>(std::int64_t{rows} * (block + 1) / blocks);
      std::int32_t unit = first % units;
      const std::int32_t end = std::min(units, unit + (last - first));
      first += end - unit;
      std::int32_t part_begin = 0;
      for (const LinearPart& part : step.parts) {
        const std::int32_t part_end = part_begin + matrix(part.weight).units();
        if (unit < part_end && unit < end) {
          const std::int32_t stop = std::min(end, part_end);
          run_part(part, unit - part_begin, stop - part_begin, x, row_begin, row_end, direct, thread);
          unit = stop;
        }
        part_begin = part_end;
      }
    }
  });
  thread.worker.barrier();
}

/// Units [first, last) of one linear layer, and its tail while the outputs are in the cache.
void CpuPlan::run_part(const LinearPart& part, std::int32_t first, std::int32_t last, const ActivationView& x,
                       std::int32_t row_begin, std::int32_t row_end, bool direct, Thread& thread) noexcept {
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
  weight.multiply(*level_.linear, first, last, x, row_begin, row_end, out, out_stride, scratch);
  add_bias(part.bias, out, out_stride);
  if (part.tail == LinearPart::Tail::add) {
    for (std::int32_t r = row_begin; r < row_end; ++r) {
      float* const y = out + r * out_stride + begin;
      elementwise.add(row(part.residual, r) + begin, y, count, y);
    }
  } else if (part.tail == LinearPart::Tail::glu) {
    float* const up = row(part.up, 0);
    const std::int64_t up_stride = stride(part.up);
    matrix(part.up_weight).multiply(*level_.linear, first, last, x, row_begin, row_end, up, up_stride, scratch);
    add_bias(part.up_bias, up, up_stride);
    const auto glu = elementwise.glu[static_cast<int>(part.activation)];
    for (std::int32_t r = row_begin; r < row_end; ++r) {
      float* const y = out + r * out_stride + begin;
      glu(y, up + r * up_stride + begin, count, y);
    }
  }
}

/// Copies what the batch asked for, unless the last step wrote it there.
void CpuPlan::give_out(Thread& thread) noexcept {
  const Batch& batch = *pass_.batch;
  if (thread.worker.index() != 0) return;
  if (!steps_.logits_direct) {
    for (std::size_t i = 0; i < batch.logit_rows.size(); ++i) {
      const auto vocab = static_cast<std::size_t>(program_.vocab_size);
      std::memcpy(batch.logits.data() + i * vocab, row(program_.logits, pass_.logit_index[i]), vocab * sizeof(float));
    }
  }
  std::size_t at = 0;
  for (std::size_t i = 0; i < batch.hidden_rows.size(); ++i) {
    while (pass_.selected[at] != batch.hidden_rows[i]) ++at;
    const auto hidden = static_cast<std::size_t>(program_.hidden_size);
    std::memcpy(batch.hidden.data() + i * hidden, row(program_.hidden, static_cast<std::int32_t>(at)),
                hidden * sizeof(float));
  }
}

}  // namespace llminfer::cpu
