// LayerRun: runs the operations of a Program on calibration text in floats, for all tokens at once. The caller sees
// each linear layer's input before the product and may change the weights that are used. Knows no formats.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include <llminfer/program.hpp>
#include <llminfer/result.hpp>
#include <llminfer/tokenizer.hpp>

#include "core/parallel.hpp"
#include "load/checkpoint.hpp"

namespace llminfer::quantize {

/// A run of a Program's operations.
struct OpRange {
  std::size_t begin = 0, end = 0;
};

/// What precedes the layers, each layer, and what follows them: split by the names of values ("blk.3.…").
struct LayerRanges {
  OpRange before;
  std::vector<OpRange> layers;
  OpRange after;
};
LayerRanges split_layers(const Program& program);

/// Weights of the operations at hand, as floats.
using FloatWeights = std::unordered_map<std::int32_t, std::vector<float>>;  // by WeightId

/// One expert of a mixture as linear operations. What they give has no ValueId, nor has the input of `down`.
struct Expert {
  op::Linear gate, up, down;
  Activation activation;
};
Expert expert_of(const op::Moe& moe, std::size_t index);

/// Linear operations that have the same input.
struct LinearGroup {
  ValueId in = ValueId::none;
  std::int64_t width = 0;  ///< of the input
  std::vector<const op::Linear*> linears;
  const op::Moe* moe = nullptr;    ///< whose experts have this input, too
  const Expert* expert = nullptr;  ///< whose gate and up, or down, the group is
};

class LayerRun {
 public:
  /// `sequences` of equal length. All outlive this.
  LayerRun(const Program& program, const load::Checkpoint& checkpoint, std::vector<std::vector<Token>> sequences,
           core::Team& team);

  /// What a caller sees of a run. An expert's weights are in memory while it computes, and no longer; those of all
  /// other operations are the caller's.
  struct Hooks {
    /// Called before the first product with an input // (tokens, width), which it may change, as it may the weights.
    /// Of an expert the tokens are those that the router sends to it: perhaps none.
    std::function<Result<void>(const LinearGroup& group, std::span<float> input, FloatWeights& weights)> on_group;
    /// An expert's weights have just been read, or are about to go.
    using OnExpert = std::function<Result<void>(const Expert& expert, FloatWeights& weights)>;
    OnExpert on_expert, on_expert_end;
  };

  /// Runs the operations with these weights. Values are dropped after their last use.
  Result<void> run(const OpRange& range, FloatWeights& weights, const Hooks& hooks);
  /// The weights of the operations, from the checkpoint; of embedding tables and experts, nothing.
  Result<FloatWeights> load_weights(const OpRange& range) const;
  Result<std::vector<float>> load_weight(WeightId id) const;

  std::int64_t tokens() const noexcept { return tokens_; }
  std::int64_t width(ValueId id) const { return program_.values[static_cast<std::size_t>(id)].width; }
  std::vector<float>& value(ValueId id) { return values_[static_cast<std::size_t>(id)]; }

  /// The values that are alive, to go on from them another time.
  using Values = std::vector<std::vector<float>>;  ///< [values of the program], most of them empty
  const Values& values() const noexcept { return values_; }
  void set_values(Values values) { values_ = std::move(values); }

 private:
  Result<void> apply(const op::Embed& o, const FloatWeights& weights);
  Result<void> apply(const op::Linear& o, const FloatWeights& weights);
  Result<void> apply(const op::RmsNorm& o, const FloatWeights& weights);
  Result<void> apply(const op::Rope& o, const FloatWeights& weights);
  Result<void> apply(const op::Attention& o, const FloatWeights& weights);
  Result<void> apply(const op::Glu& o, const FloatWeights& weights);
  Result<void> apply(const op::Add& o, const FloatWeights& weights);
  Result<void> apply(const op::Reduce& o, const FloatWeights& weights);
  Result<void> apply(const op::Moe& o, const FloatWeights& weights);
  /// `sink`: added to the scores of the head, or -infinity.
  void attend(const op::Attention& o, std::int64_t sequence, std::int32_t head, float sink, std::vector<float>& scores);
  /// y = x * weight^T + bias for x // (tokens, weight's columns).
  Result<std::vector<float>> product(std::span<const float> x, const op::Linear& linear, const FloatWeights& weights);
  /// The tokens that choose an expert, and the factors of its output.
  struct Route {
    std::vector<std::int64_t> tokens;
    std::vector<float> factors;
  };
  std::vector<Route> routes(const op::Moe& o);
  Result<void> run_expert(const op::Moe& o, const Expert& expert, const Route& route);
  float* row(ValueId id, std::int64_t t) { return value(id).data() + t * width(id); }
  /// Room for a value.
  void make(ValueId id) { value(id).resize(static_cast<std::size_t>(tokens_ * width(id))); }
  /// Room for the output of an operation on each element, or each head: that of an input that is not needed any more.
  /// Gives where the input's elements are now.
  const float* make_over(ValueId id, ValueId input);

  const Program& program_;
  const load::Checkpoint& checkpoint_;
  const std::vector<std::vector<Token>> sequences_;
  core::Team& team_;
  const std::int64_t length_, tokens_;
  Values values_;
  std::vector<std::size_t> last_use_;  ///< [values] index of the operation
  std::size_t current_ = 0;            ///< operation
  const Hooks* hooks_ = nullptr;       ///< of the run
};

/// Calls f(value) for each value that an operation reads.
template <class F>
void for_inputs(const Op& op, const F& f) {
  std::visit(
      [&](const auto& o) {
        using T = std::decay_t<decltype(o)>;
        if constexpr (requires { o.in; }) f(o.in);
        if constexpr (std::is_same_v<T, op::Attention>) f(o.q), f(o.k), f(o.v);
        if constexpr (std::is_same_v<T, op::Glu>) f(o.gate), f(o.up);
        if constexpr (std::is_same_v<T, op::Add>) f(o.a), f(o.b);
        if constexpr (std::is_same_v<T, op::Moe>) {
          f(o.router);
          if (o.shared != ValueId::none) f(o.shared), f(o.shared_gate);
        }
      },
      op);
}

/// sum over tokens of x x^T, of an input // (tokens, width): [width, width].
Result<std::vector<float>> gram(core::Team& team, std::span<const float> input, std::int64_t width);

}  // namespace llminfer::quantize
