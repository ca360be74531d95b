// The steps of a plan except attention and linear layers. Each computes its rows one by one or kernels do so that no
// row's bits depend on the others.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "backends/cpu/plan.hpp"
#include "core/error.hpp"

namespace llminfer::cpu {
namespace {

std::size_t float_bytes(std::int64_t floats) { return static_cast<std::size_t>(floats) * sizeof(float); }

}  // namespace

/// Sines and cosines of every row's position, in double: positions times frequencies lose what floats can't hold.
void CpuPlan::compute_angles(int first, int last) noexcept {
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
}

void CpuPlan::run(const EmbedStep& step, const Phase&, int first, int last, Thread& thread) noexcept {
  const Batch& batch = *pass_.batch;
  for (std::int32_t r = first; r < last; ++r) {
    const auto b = static_cast<std::size_t>(r);
    if (batch.tokens[b] >= 0) {
      matrix(step.table).read_row(batch.tokens[b], row(step.out, r), thread.panels);
    } else {
      const auto hidden = static_cast<std::size_t>(program_.hidden_size);
      std::memcpy(row(step.out, r), batch.embeddings.data() + b * hidden, hidden * sizeof(float));
    }
  }
}

void CpuPlan::run(const NormStep& step, const Phase&, int first, int last, Thread&) noexcept {
  const std::int64_t size = program_.weights[static_cast<std::size_t>(step.weight)].cols;
  for (std::int32_t r = first; r < last; ++r) {
    for (std::int64_t i = 0; i < width(step.in); i += size) {
      level_.elementwise->rms_norm(row(step.in, r) + i, vector(step.weight), step.epsilon, size, row(step.out, r) + i);
    }
  }
}

void CpuPlan::run(const RopeStep& step, const Phase& phase, int first, int last, Thread&) noexcept {
  const RopeTable& table = program_.rope_tables[static_cast<std::size_t>(step.table)];
  const auto pairs = static_cast<std::int32_t>(table.inverse_frequency.size());
  for (std::int32_t r = first; r < last; ++r) {
    const std::int32_t b = phase.selected ? pass_.selected[static_cast<std::size_t>(r)] : r;
    for (std::int64_t i = 0; i < width(step.in); i += step.head_dim) {
      level_.elementwise->rope(row(step.in, r) + i, cosines(step.table, b), sines(step.table, b), pairs,
                               table.interleaved, step.head_dim, 1.0f, row(step.out, r) + i);
    }
  }
}

void CpuPlan::run(const GluStep& step, const Phase&, int first, int last, Thread&) noexcept {
  const auto glu = level_.elementwise->glu[static_cast<int>(step.op.activation)];
  for (std::int32_t r = first; r < last; ++r) {
    glu(row(step.op.gate, r), row(step.op.up, r), width(step.op.gate), row(step.op.out, r));
  }
}

void CpuPlan::run(const AddStep& step, const Phase&, int first, int last, Thread&) noexcept {
  for (std::int32_t r = first; r < last; ++r) {
    level_.elementwise->add(row(step.op.a, r), row(step.op.b, r), width(step.op.a), row(step.op.out, r));
  }
}

/// One item, since the other shards expect one call.
void CpuPlan::run(const ReduceStep& step, const Phase& phase, int, int, Thread&) noexcept {
  const auto bytes = float_bytes(width(step.op.in));
  float* const rows = memory_.at<float>(layout_.reduced);
  const auto at = [&](std::int32_t r) { return rows + r * width(step.op.in); };
  for (std::int32_t r = 0; r < phase.rows; ++r) std::memcpy(at(r), row(step.op.in, r), bytes);
  const auto floats = static_cast<std::size_t>(phase.rows * width(step.op.in));
  pass_.reduced = core::guarded([&] { return reduce_({rows, floats}); });
  if (!pass_.reduced) pass_.stop.store(true, std::memory_order_relaxed);
  for (std::int32_t r = 0; r < phase.rows; ++r) std::memcpy(row(step.op.out, r), at(r), bytes);
}

/// Items are values. A value is moved by one thread, row by row to the front; rows ascend, so no row is overwritten
/// before it moves.
void CpuPlan::run(const SelectStep& step, const Phase&, int first, int last, Thread&) noexcept {
  for (int v = first; v < last; ++v) {
    const ValueId id = step.values[static_cast<std::size_t>(v)];
    for (std::size_t i = 0; i < pass_.selected.size(); ++i) {
      const auto to = static_cast<std::int32_t>(i);
      if (pass_.selected[i] != to) std::memcpy(row(id, to), row(id, pass_.selected[i]), float_bytes(width(id)));
    }
  }
}

/// Copies what the batch asked for, unless the last step wrote it there.
void CpuPlan::give_out() noexcept {
  const Batch& batch = *pass_.batch;
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
