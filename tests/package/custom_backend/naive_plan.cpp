// The naive backend's plan: each operation of a Program, over all rows of a batch, as program.hpp defines it.
#include <algorithm>
#include <cmath>
#include <new>

#include "naive_backend.hpp"

using namespace llminfer;

namespace naive {
namespace {

template <class Id>
std::size_t index(Id id) {
  return static_cast<std::size_t>(id);
}

double gated(Activation activation, double x, double up) {
  switch (activation) {
    case Activation::silu: return x / (1 + std::exp(-x)) * up;
    case Activation::gelu: return 0.5 * x * (1 + std::erf(x / std::sqrt(2.0))) * up;
    case Activation::gelu_tanh: return 0.5 * x * (1 + std::tanh(0.7978845608028654 * (x + 0.044715 * x * x * x))) * up;
    case Activation::clamped_swiglu: {
      const double gate = std::min(x, 7.0);
      return gate / (1 + std::exp(-1.702 * gate)) * (std::clamp(up, -7.0, 7.0) + 1);
    }
  }
  return 0;
}

class NaivePlan final : public Plan {
 public:
  NaivePlan(const Program& program, std::vector<std::shared_ptr<const PreparedWeight>> weights, const PlanOptions& options)
      : program_(program),
        weights_(std::move(weights)),
        max_rows_(index(options.max_batch_rows)),
        reduce_(options.reduce) {
    for (const ValueSpec& value : program_.values) values_.emplace_back(max_rows_ * index(value.width));
  }

  std::int64_t bytes() const noexcept override {
    std::size_t size = 0;
    for (const auto& value : values_) size += value.size() * sizeof(float);
    return static_cast<std::int64_t>(size);
  }

  /// All is done here; wait() has nothing to wait for.
  Result<void> submit(const Batch& batch, std::span<CacheStorage* const> caches) override try {
    rows_ = batch.positions.size();
    if (rows_ == 0 || rows_ > max_rows_ || caches.size() != program_.cache_groups.size()) {
      return Error{ErrorCode::invalid_argument, "naive backend: a batch that the plan has no room for"};
    }
    outcome_ = {};
    for (const Op& op : program_.ops) {
      if (std::holds_alternative<op::Attention>(op) && batch.interrupted && batch.interrupted()) {
        outcome_ = Error{ErrorCode::cancelled, "the pass was interrupted"};
        return {};
      }
      std::visit([&](const auto& o) { apply(o, batch, caches); }, op);
    }
    give(program_.logits, batch.logit_rows, batch.logits);
    give(program_.hidden, batch.hidden_rows, batch.hidden);
    return {};
  } catch (const std::bad_alloc&) {
    return Error{ErrorCode::out_of_memory, "naive backend: no memory for attention scores"};
  }

  Result<void> wait() override { return std::move(outcome_); }

 private:
  std::size_t width(ValueId id) const { return index(program_.values[index(id)].width); }
  float* row(ValueId id, std::size_t r) { return &values_[index(id)][r * width(id)]; }
  const float* weight(WeightId id) const { return static_cast<const Weight&>(*weights_[index(id)]).values.data(); }

  void give(ValueId id, std::span<const std::int32_t> rows, std::span<float> out) {
    for (std::size_t i = 0; i < rows.size(); ++i) std::copy_n(row(id, index(rows[i])), width(id), &out[i * width(id)]);
  }

  using Caches = std::span<CacheStorage* const>;

  void apply(const op::Embed& o, const Batch& batch, Caches) {
    for (std::size_t r = 0; r < rows_; ++r) {
      const bool is_token = batch.embeddings.empty() || batch.tokens[r] >= 0;
      const float* from = is_token ? weight(o.table) + index(batch.tokens[r]) * width(o.out)
                                   : &batch.embeddings[r * width(o.out)];
      std::copy_n(from, width(o.out), row(o.out, r));
    }
  }

  void apply(const op::Linear& o, const Batch&, Caches) {
    const std::size_t cols = width(o.in);
    for (std::size_t r = 0; r < rows_; ++r) {
      for (std::size_t n = 0; n < width(o.out); ++n) {
        double sum = o.bias == WeightId::none ? 0 : weight(o.bias)[n];
        for (std::size_t k = 0; k < cols; ++k) sum += double{row(o.in, r)[k]} * weight(o.weight)[n * cols + k];
        row(o.out, r)[n] = static_cast<float>(sum);
      }
    }
  }

  void apply(const op::RmsNorm& o, const Batch&, Caches) {
    const std::size_t size = index(program_.weights[index(o.weight)].cols);
    for (std::size_t at = 0; at < rows_ * width(o.in); at += size) {
      const float* in = row(o.in, 0) + at;
      double squares = 0;
      for (std::size_t i = 0; i < size; ++i) squares += double{in[i]} * in[i];
      const double scale = 1 / std::sqrt(squares / static_cast<double>(size) + o.epsilon);
      for (std::size_t i = 0; i < size; ++i) {
        (row(o.out, 0) + at)[i] = static_cast<float>(in[i] * scale * weight(o.weight)[i]);
      }
    }
  }

  void apply(const op::Rope& o, const Batch& batch, Caches) {
    const RopeTable& table = program_.rope_tables[index(o.table)];
    const std::size_t pairs = table.inverse_frequency.size();
    for (std::size_t r = 0; r < rows_; ++r) {
      const float* in = row(o.in, r);
      float* out = row(o.out, r);
      std::copy_n(in, width(o.in), out);
      for (std::size_t head = 0; head < width(o.in); head += index(o.head_dim)) {
        for (std::size_t i = 0; i < pairs; ++i) {
          const std::size_t a = head + (table.interleaved ? 2 * i : i);
          const std::size_t b = table.interleaved ? a + 1 : a + pairs;
          const double angle = double(batch.positions[r]) * table.inverse_frequency[i];
          const double sine = std::sin(angle) * table.magnitude, cosine = std::cos(angle) * table.magnitude;
          out[a] = static_cast<float>(in[a] * cosine - in[b] * sine);
          out[b] = static_cast<float>(in[b] * cosine + in[a] * sine);
        }
      }
    }
  }

  void apply(const op::Attention& o, const Batch& batch, Caches caches) {
    const CacheGroup& group = program_.cache_groups[index(o.group)];
    Cache& cache = static_cast<Cache&>(*caches[index(o.group)]);
    const std::size_t dim = index(group.head_dim);
    std::vector<double> scores, sums(dim);
    for (const Run& run : batch.runs) {
      const std::span<const std::int32_t> pages = run.block_tables[index(o.group)];
      const auto cached = [&](int which, std::int32_t token) {
        return cache.row(pages[index(token / kPageTokens)], o.layer, which, token % kPageTokens);
      };
      for (std::int32_t i = 0; i < run.rows; ++i) {
        const std::size_t r = index(run.first_row + i);
        std::copy_n(row(o.k, r), width(o.k), cached(0, run.first_position + i));
        std::copy_n(row(o.v, r), width(o.v), cached(1, run.first_position + i));
      }
      for (std::int32_t i = 0; i < run.rows; ++i) {
        const std::size_t r = index(run.first_row + i);
        const std::int32_t last = run.first_position + i;
        const std::int32_t first = group.window > 0 ? std::max(0, last - group.window + 1) : 0;
        for (std::int32_t head = 0; head < o.heads; ++head) {
          const std::size_t kv = index(head * group.kv_heads / o.heads) * dim;
          const float* q = row(o.q, r) + index(head) * dim;
          scores.clear();
          for (std::int32_t token = first; token <= last; ++token) {
            double dot = 0;
            for (std::size_t d = 0; d < dim; ++d) dot += double{q[d]} * cached(0, token)[kv + d];
            scores.push_back(dot * o.scale);
          }
          const double best = *std::max_element(scores.begin(), scores.end());
          double total = o.sinks == WeightId::none ? 0 : std::exp(weight(o.sinks)[head] - best);
          std::fill(sums.begin(), sums.end(), 0.0);
          for (std::int32_t token = first; token <= last; ++token) {
            const double share = std::exp(scores[index(token - first)] - best);
            total += share;
            for (std::size_t d = 0; d < dim; ++d) sums[d] += share * cached(1, token)[kv + d];
          }
          for (std::size_t d = 0; d < dim; ++d) row(o.out, r)[index(head) * dim + d] = static_cast<float>(sums[d] / total);
        }
      }
    }
  }

  void apply(const op::Glu& o, const Batch&, Caches) {
    for (std::size_t i = 0; i < rows_ * width(o.out); ++i) {
      values_[index(o.out)][i] =
          static_cast<float>(gated(o.activation, values_[index(o.gate)][i], values_[index(o.up)][i]));
    }
  }

  void apply(const op::Add& o, const Batch&, Caches) {
    for (std::size_t i = 0; i < rows_ * width(o.out); ++i) {
      values_[index(o.out)][i] = values_[index(o.a)][i] + values_[index(o.b)][i];
    }
  }

  void apply(const op::Reduce& o, const Batch&, Caches) {
    std::copy_n(row(o.in, 0), rows_ * width(o.in), row(o.out, 0));
    if (outcome_) outcome_ = reduce_({row(o.out, 0), rows_ * width(o.out)});
  }

  void apply(const op::Moe& o, const Batch&, Caches) {
    const std::size_t experts = o.gate.size(), n = width(o.in), ffn = index(program_.weights[index(o.gate[0])].rows);
    std::vector<double> scores(experts), hidden(ffn), sum(n);
    std::vector<std::size_t> order(experts);
    const auto dot = [](const float* w, const auto* x, std::size_t count, double total) {
      for (std::size_t i = 0; i < count; ++i) total += double{w[i]} * x[i];
      return total;
    };
    const auto bias = [&](const std::vector<WeightId>& biases, std::size_t e, std::size_t i) {
      return biases.empty() ? 0.0 : double{weight(biases[e])[i]};
    };
    for (std::size_t r = 0; r < rows_; ++r) {
      double all = 0, chosen = 0;
      for (std::size_t e = 0; e < experts; ++e) {
        const double x = row(o.router, r)[e];
        all += scores[e] = o.scoring == Scoring::softmax ? std::exp(x) : 1 / (1 + std::exp(-x));
        order[e] = e;
      }
      std::stable_sort(order.begin(), order.end(), [&](auto a, auto b) { return scores[a] > scores[b]; });
      for (std::size_t j = 0; j < index(o.used); ++j) chosen += scores[order[j]];
      const double divisor = o.normalize ? chosen : o.scoring == Scoring::softmax ? all : 1;
      std::fill(sum.begin(), sum.end(), 0.0);
      for (std::size_t j = 0; j < index(o.used); ++j) {
        const std::size_t e = order[j];
        for (std::size_t i = 0; i < ffn; ++i) {
          hidden[i] = gated(o.activation, dot(weight(o.gate[e]) + i * n, row(o.in, r), n, bias(o.gate_bias, e, i)),
                            dot(weight(o.up[e]) + i * n, row(o.in, r), n, bias(o.up_bias, e, i)));
        }
        for (std::size_t i = 0; i < n; ++i) {
          sum[i] += scores[e] / divisor * o.scale *
                    dot(weight(o.down[e]) + i * ffn, hidden.data(), ffn, bias(o.down_bias, e, i));
        }
      }
      for (std::size_t i = 0; i < n; ++i) {
        if (o.shared != ValueId::none) sum[i] += row(o.shared, r)[i] / (1 + std::exp(-double{*row(o.shared_gate, r)}));
        row(o.out, r)[i] = static_cast<float>(sum[i]);
      }
    }
  }

  Program program_;
  std::vector<std::shared_ptr<const PreparedWeight>> weights_;
  std::size_t max_rows_;
  Reduction reduce_;
  std::size_t rows_ = 0;
  std::vector<std::vector<float>> values_;
  Result<void> outcome_;
};

}  // namespace

Result<std::unique_ptr<Plan>> make_plan(const Program& program,
                                        std::vector<std::shared_ptr<const PreparedWeight>> weights,
                                        const PlanOptions& options) {
  return std::unique_ptr<Plan>(std::make_unique<NaivePlan>(program, std::move(weights), options));
}

}  // namespace naive
