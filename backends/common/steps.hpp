// The fused steps that a Program is turned into, for any backend. Between two steps all workers meet, so fewer are
// faster:
//   norm + linear layers of one input + (gated activation | residual sum) · rotation + cache write + attention
// Whatever fits no pattern becomes a step of its own. Knows nothing of weights' types, threads or batches.
#pragma once

#include <cstdint>
#include <functional>
#include <variant>
#include <vector>

#include <llminfer/program.hpp>

namespace llminfer::backend {

struct EmbedStep {
  WeightId table;
  ValueId out;
};
struct NormStep {
  ValueId in;
  WeightId weight;
  float epsilon;
  ValueId out;
};
/// One linear layer and what is done to its output while that is in the cache.
struct LinearPart {
  enum class Tail : std::uint8_t { none, add, glu };
  WeightId weight, bias;
  ValueId out;  ///< after the tail
  Tail tail = Tail::none;
  ValueId residual = ValueId::none;  ///< add: out = linear + residual
  WeightId up_weight = WeightId::none, up_bias = WeightId::none;
  ValueId up = ValueId::none;  ///< glu: out = activation(linear) * up, up = in * up_weight^T + up_bias
  Activation activation = Activation::silu;
};
/// Linear layers that read the same input, after its norm if there is one.
struct LinearStep {
  ValueId in;
  WeightId norm = WeightId::none;
  float epsilon = 0.0f;
  std::vector<LinearPart> parts;
};
struct RopeStep {
  ValueId in;
  std::int32_t head_dim;
  std::int32_t table;
  ValueId out;
};
struct AttentionStep {
  op::Attention op;          ///< with q and k before their rotation
  std::int32_t q_rope = -1;  ///< table that rotates them, or -1
  std::int32_t k_rope = -1;
};
struct GluStep {
  op::Glu op;
};
struct AddStep {
  op::Add op;
};
struct ReduceStep {
  op::Reduce op;
};
struct MoeStep {
  op::Moe op;
};
/// Past the last attention only the rows that the batch asks for go on: they move to the front of each of these values.
struct SelectStep {
  std::vector<ValueId> values;
};

using Step = std::variant<EmbedStep, NormStep, LinearStep, RopeStep, AttentionStep, GluStep, AddStep, ReduceStep,
                          MoeStep, SelectStep>;

/// Where a value lives: floats [offset, offset + stride) of each row's part of the arena; see Steps::buffers.
struct Steps {
  std::vector<Step> steps;
  std::int32_t last_attention = -1;  ///< index of the last AttentionStep
  /// Per value the index of its buffer, or -1 for values that no step writes (fused away, or logits).
  std::vector<std::int32_t> buffer_of;
  std::vector<std::int64_t> buffer_strides;  ///< floats per row of each buffer
  bool logits_direct = false;                ///< the last linear layer writes Batch::logits itself
};

/// Errors: invalid_argument or shape_mismatch if the program contradicts itself.
Result<Steps> make_steps(const Program& program);

/// Linear layers of one input that do not take it alike become steps of their own; the buffers stay.
void separate_inputs(Steps& steps, const std::function<bool(WeightId, WeightId)>& alike);

}  // namespace llminfer::backend
