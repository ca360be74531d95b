// Program: a model architecture as a list of operations on named, shaped values. Knows nothing of SIMD, devices,
// quantization or batching. Builder makes one; a Backend compiles it.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <variant>
#include <vector>

#include <llminfer/config.hpp>
#include <llminfer/result.hpp>

namespace llminfer::inline v0 {

/// Index of a value: a matrix [tokens, width] of floats.
enum class ValueId : std::int32_t { none = -1 };
/// Index of a weight of the program.
enum class WeightId : std::int32_t { none = -1 };

/// A weight that the program needs. The checkpoint must have it with exactly this shape.
struct WeightSpec {
  std::string name;       ///< the tensor's name in the checkpoint
  std::int64_t rows = 1;  ///< output features; 1 for vectors
  std::int64_t cols = 0;  ///< input features
};

struct ValueSpec {
  std::string name;  ///< for people and error messages, e.g. "blk.3.q"
  std::int64_t width = 0;
};

/// The cached keys and values of some layers, kept in pages of kPageTokens tokens.
struct CacheGroup {
  std::int32_t layers = 0;
  std::int32_t kv_heads = 0;
  std::int32_t head_dim = 0;
  std::int32_t window = 0;  ///< a query sees itself and window - 1 tokens before it; 0: all
};
inline constexpr std::int32_t kPageTokens = 64;

/// Rotary embedding (Su et al. 2021): pair i of a head is rotated by position * inverse_frequency[i].
struct RopeTable {
  std::vector<float> inverse_frequency;  ///< [rotary_dim / 2], all scaling rules applied
  float magnitude = 1.0f;                ///< multiplies sine and cosine (YaRN's attention factor)
  bool interleaved = false;              ///< pairs are (2i, 2i+1); otherwise (i, i + rotary_dim / 2)
};

/// Of a gated unit: activation(gate) * up, but for the last one, which is
/// g * sigmoid(1.702 g) * (u + 1) with g = min(gate, 7) and u = up within [-7, 7] (gpt-oss, arXiv:2508.10925).
enum class Activation : std::uint8_t { silu, gelu, gelu_tanh, clamped_swiglu };
/// What a router's outputs become before experts are chosen by them: softmax over all experts, or sigmoid of each.
enum class Scoring : std::uint8_t { softmax, sigmoid };

namespace op {
/// out = table[token id]; rows of the batch that carry an embedding take that instead. Without a table (`none`) all
/// rows do: such is the beginning of a stage that goes on where another one ended.
struct Embed {
  WeightId table;
  ValueId out;
};
/// out = in * weight^T + bias
struct Linear {
  ValueId in;
  WeightId weight;
  WeightId bias;
  ValueId out;
};
/// Root-mean-square norm (Zhang and Sennrich 2019): out = in / sqrt(mean(in^2) + epsilon) * weight, for each `cols` of
/// the weight consecutive elements of `in` (the whole row, or its heads one by one).
struct RmsNorm {
  ValueId in;
  WeightId weight;
  float epsilon;
  ValueId out;
};
/// Rotates each of the width / head_dim heads of `in` by `rope_tables[table]` at the token's position.
struct Rope {
  ValueId in;
  std::int32_t head_dim;
  std::int32_t table;
  ValueId out;
};
/// Appends k and v to the cache, then out = softmax(q k^T * scale + mask) v. Query head h reads KV head h * kv_heads /
/// heads. With `sinks` e^sinks[h] joins the sum that softmax divides by, so that a head may look at nothing
/// (Xiao et al. 2024, arXiv:2309.17453).
struct Attention {
  ValueId q, k, v;
  std::int32_t group;  ///< index of the cache group
  std::int32_t layer;  ///< index of the layer inside the group
  std::int32_t heads;
  float scale;
  ValueId out;
  WeightId sinks = WeightId::none;  ///< [heads]
};
/// out = activation(gate) * up; see Activation
struct Glu {
  ValueId gate, up;
  Activation activation;
  ValueId out;
};
struct Add {
  ValueId a, b, out;
};
/// out = the sum of `in` over all shards of the program, which other ranks compute at the same time: what
/// PlanOptions::reduce does. No description of an architecture has it; the engine puts it where it cuts weights.
struct Reduce {
  ValueId in, out;
};
/// Mixture of experts (Shazeer et al. 2017, arXiv:1701.06538). Of each token, the `used` experts with the highest
/// scores (of equal ones those of lower index) compute expert(x) = down(activation(gate x) * up x), each product with
/// its bias if there are any, and
///   out = scale * sum of score * expert(in), in ascending order of the experts' index, + sigmoid(shared_gate) *
///   shared.
struct Moe {
  ValueId in;
  ValueId router;                            ///< [experts]; scored by `scoring`
  std::vector<WeightId> gate, up, down;      ///< [experts] each: [ffn, width], [ffn, width], [width, ffn]
  std::vector<WeightId> gate_bias, up_bias;  ///< [experts] each: [ffn]; or both empty
  std::vector<WeightId> down_bias;           ///< [experts]: [width]; or empty
  std::int32_t used = 1;
  Scoring scoring = Scoring::softmax;
  bool normalize = false;  ///< the scores of the chosen experts are divided by their sum
  float scale = 1.0f;
  Activation activation = Activation::silu;
  ValueId shared = ValueId::none;       ///< the output of an expert that all tokens have; none: there is none
  ValueId shared_gate = ValueId::none;  ///< [1]
  ValueId out = ValueId::none;
};
}  // namespace op

using Op =
    std::variant<op::Embed, op::Linear, op::RmsNorm, op::Rope, op::Attention, op::Glu, op::Add, op::Reduce, op::Moe>;

struct Program {
  std::string architecture;
  std::vector<WeightSpec> weights;
  std::vector<ValueSpec> values;
  std::vector<CacheGroup> cache_groups;
  std::vector<RopeTable> rope_tables;
  std::vector<Op> ops;  ///< in an order in which every value is written before it is read, and once
  std::int64_t vocab_size = 0;
  std::int64_t hidden_size = 0;
  ValueId hidden = ValueId::none;  ///< the last hidden state, after the final norm [tokens, hidden_size]
  ValueId logits = ValueId::none;  ///< [tokens, vocab_size]

  /// The number of elements of all weights; tied weights count once.
  LLMINFER_API std::int64_t parameter_count() const noexcept;
};

/// Makes a Program operation by operation and checks the shapes. A mistake is remembered and given by finish(), so that
/// a description reads without error handling; the call that made it returns `none` (or -1), which may be passed on.
class LLMINFER_API Builder {
 public:
  explicit Builder(std::string architecture);

  /// A matrix [rows, cols], or the same id again if the name is known already (tied weights).
  WeightId weight(std::string name, std::int64_t rows, std::int64_t cols);
  WeightId vector(std::string name, std::int64_t size) { return weight(std::move(name), 1, size); }
  std::int32_t cache_group(CacheGroup group);
  std::int32_t rope_table(RopeTable table);

  ValueId embed(WeightId table, std::string name);
  ValueId linear(ValueId in, WeightId weight, std::string name, WeightId bias = WeightId::none);
  ValueId rms_norm(ValueId in, WeightId weight, float epsilon, std::string name);
  ValueId rope(ValueId in, std::int32_t head_dim, std::int32_t table, std::string name);
  ValueId attention(ValueId q, ValueId k, ValueId v, std::int32_t group, std::int32_t layer, std::int32_t heads,
                    float scale, std::string name, WeightId sinks = WeightId::none);
  ValueId glu(ValueId gate, ValueId up, Activation activation, std::string name);
  ValueId add(ValueId a, ValueId b, std::string name);
  ValueId moe(op::Moe op, std::string name);  ///< op.out is ignored

  /// The width of a value; 0 for `none`.
  std::int64_t width(ValueId id) const noexcept;

  /// Ends the description. Errors: shape_mismatch or invalid_argument of the first mistake, naming the value.
  Result<Program> finish(ValueId hidden, ValueId logits) &&;

 private:
  Program program_;
  std::unordered_map<std::string, WeightId> weight_ids_;
  Result<void> first_mistake_;
};

}  // namespace llminfer::inline v0
