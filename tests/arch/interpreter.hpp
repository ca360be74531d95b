// Runs a Program on one prompt in double precision, an operation at a time: the meaning of the operations without any
// backend.
#pragma once

#include <cmath>
#include <limits>
#include <map>
#include <vector>

#include <llminfer/program.hpp>
#include <llminfer/weight.hpp>

#include "load/checkpoint.hpp"
#include "tests/arch/mixture.hpp"

namespace llminfer::test {

class Interpreter {
 public:
  Interpreter(const Program& program, const load::Checkpoint& checkpoint) : program_(program) {
    for (const WeightSpec& spec : program.weights) {
      const WeightView view = checkpoint.read(*checkpoint.find(spec.name)).value();
      std::vector<float> elements(static_cast<std::size_t>(spec.rows * spec.cols));
      unpack_rows(view, 0, spec.rows, elements).value();
      weights_.emplace_back(elements.begin(), elements.end());
    }
  }

  /// Logits [tokens, vocab_size] of a prompt that begins at position 0.
  std::vector<double> run(const std::vector<std::int32_t>& tokens) {
    tokens_ = &tokens;
    values_.clear();
    for (const ValueSpec& value : program_.values) {
      values_.emplace_back(tokens.size() * static_cast<std::size_t>(value.width));
    }
    for (const Op& op : program_.ops) std::visit([&](const auto& o) { apply(o); }, op);
    return values_[index(program_.logits)];
  }

 private:
  template <class Id>
  static std::size_t index(Id id) {
    return static_cast<std::size_t>(id);
  }
  std::size_t width(ValueId id) const { return static_cast<std::size_t>(program_.values[index(id)].width); }
  /// Row t of a value.
  double* row(ValueId id, std::size_t t) { return &values_[index(id)][t * width(id)]; }
  const double* weight(WeightId id) const { return weights_[index(id)].data(); }

  void apply(const op::Embed& o) {
    for (std::size_t t = 0; t < tokens_->size(); ++t) {
      const double* from = weight(o.table) + static_cast<std::size_t>((*tokens_)[t]) * width(o.out);
      std::copy(from, from + width(o.out), row(o.out, t));
    }
  }
  void apply(const op::Linear& o) {
    for (std::size_t t = 0; t < tokens_->size(); ++t) {
      for (std::size_t n = 0; n < width(o.out); ++n) {
        double sum = o.bias == WeightId::none ? 0 : weight(o.bias)[n];
        for (std::size_t k = 0; k < width(o.in); ++k) sum += row(o.in, t)[k] * weight(o.weight)[n * width(o.in) + k];
        row(o.out, t)[n] = sum;
      }
    }
  }
  void apply(const op::RmsNorm& o) {
    const auto size = static_cast<std::size_t>(program_.weights[index(o.weight)].cols);
    for (std::size_t at = 0; at < values_[index(o.in)].size(); at += size) {
      const double* const in = &values_[index(o.in)][at];
      double squares = 0;
      for (std::size_t i = 0; i < size; ++i) squares += in[i] * in[i];
      const double scale = 1 / std::sqrt(squares / static_cast<double>(size) + static_cast<double>(o.epsilon));
      for (std::size_t i = 0; i < size; ++i) values_[index(o.out)][at + i] = in[i] * scale * weight(o.weight)[i];
    }
  }
  void apply(const op::Rope& o) {
    const RopeTable& table = program_.rope_tables[index(o.table)];
    const std::size_t pairs = table.inverse_frequency.size();
    for (std::size_t t = 0; t < tokens_->size(); ++t) {
      std::copy(row(o.in, t), row(o.in, t) + width(o.in), row(o.out, t));
      for (std::size_t head = 0; head < width(o.in); head += index(o.head_dim)) {
        for (std::size_t i = 0; i < pairs; ++i) {
          const std::size_t first = head + (table.interleaved ? 2 * i : i);
          const std::size_t second = head + (table.interleaved ? 2 * i + 1 : i + pairs);
          const double angle = static_cast<double>(t) * static_cast<double>(table.inverse_frequency[i]);
          const double sine = std::sin(angle) * static_cast<double>(table.magnitude);
          const double cosine = std::cos(angle) * static_cast<double>(table.magnitude);
          row(o.out, t)[first] = row(o.in, t)[first] * cosine - row(o.in, t)[second] * sine;
          row(o.out, t)[second] = row(o.in, t)[second] * cosine + row(o.in, t)[first] * sine;
        }
      }
    }
  }
  void apply(const op::Attention& o) {
    const CacheGroup& group = program_.cache_groups[index(o.group)];
    const std::size_t dim = index(group.head_dim);
    const std::size_t window = group.window == 0 ? tokens_->size() : index(group.window);
    for (std::size_t t = 0; t < tokens_->size(); ++t) {
      const std::size_t begin = t + 1 > window ? t + 1 - window : 0;
      for (std::size_t head = 0; head < index(o.heads); ++head) {
        const std::size_t kv = head * index(group.kv_heads) / index(o.heads) * dim;
        std::vector<double> scores;
        double best = -std::numeric_limits<double>::infinity();
        for (std::size_t s = begin; s <= t; ++s) {
          double dot = 0;
          for (std::size_t i = 0; i < dim; ++i) dot += row(o.q, t)[head * dim + i] * row(o.k, s)[kv + i];
          scores.push_back(dot * static_cast<double>(o.scale));
          best = std::max(best, scores.back());
        }
        double total = o.sinks == WeightId::none ? 0 : std::exp(weight(o.sinks)[head] - best);
        for (double& score : scores) total += score = std::exp(score - best);
        for (std::size_t s = begin; s <= t; ++s) {
          for (std::size_t i = 0; i < dim; ++i) {
            row(o.out, t)[head * dim + i] += scores[s - begin] / total * row(o.v, s)[kv + i];
          }
        }
      }
    }
  }
  void apply(const op::Glu& o) {
    for (std::size_t i = 0; i < values_[index(o.out)].size(); ++i) {
      values_[index(o.out)][i] = gated(o.activation, values_[index(o.gate)][i], values_[index(o.up)][i]);
    }
  }
  void apply(const op::Add& o) {
    for (std::size_t i = 0; i < values_[index(o.out)].size(); ++i) {
      values_[index(o.out)][i] = values_[index(o.a)][i] + values_[index(o.b)][i];
    }
  }
  void apply(const op::Reduce& o) { values_[index(o.out)] = values_[index(o.in)]; }  // one shard
  void apply(const op::Moe& o) {
    for (std::size_t t = 0; t < tokens_->size(); ++t) {
      add_mixture(
          o, program_, [&](WeightId id) { return weight(id); }, row(o.in, t), row(o.router, t), row(o.out, t));
      for (std::size_t i = 0; o.shared != ValueId::none && i < width(o.out); ++i) {
        row(o.out, t)[i] += row(o.shared, t)[i] / (1 + std::exp(-*row(o.shared_gate, t)));
      }
    }
  }

  const Program& program_;
  const std::vector<std::int32_t>* tokens_ = nullptr;
  std::vector<std::vector<double>> weights_;
  std::vector<std::vector<double>> values_;
};

}  // namespace llminfer::test
