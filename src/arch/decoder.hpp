// Decoder: the vocabulary in which decoder-only transformers are described. It knows how checkpoints name the tensors
// of such a model and which sizes they have; what is done with them, and in which order, is in the architecture's own
// file.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <llminfer/program.hpp>
#include <llminfer/result.hpp>

#include "load/checkpoint.hpp"

namespace llminfer::arch {

/// A tensor's role. Those of a layer have one tensor in each layer.
enum class Part : std::uint8_t {
  embedding,
  final_norm,
  output,  // of the model
  attention_norm,
  q,
  k,
  v,
  attention_out,
  ffn_norm,
  gate,
  up,
  down,  // of a layer
  q_norm,
  k_norm,
  router,
  shared_gate,  ///< the router of the expert that all tokens have
  shared_expert_gate,
  shared_expert_up,
  shared_expert_down,
  expert_gate,  ///< the matrices of expert E: its number is a part of the name
  expert_up,
  expert_down,
  mixtral_router,  ///< the names of Mixtral in Hugging Face checkpoints; in GGUF files they are the same
  mixtral_gate,
  mixtral_up,
  mixtral_down,
  gpt_oss_router,
  post_attention_norm,  ///< the name of a feed-forward block's norm in GGUF files of gpt-oss
  sinks,                ///< of a layer's attention
};

enum class Bias : std::uint8_t {
  none,
  required,
  if_stored,  ///< as layer 0 has it: all layers have the bias, or none
};

/// The name that a tensor of a GGUF file has in a Hugging Face checkpoint (`to_hf`), or the reverse; nothing if it is
/// none of a decoder's. Experts are single matrices on both sides (docs/adr/0019); Mixtral's have the names that its
/// checkpoints are published with.
std::optional<std::string> translated_name(std::string_view name, bool to_hf, std::string_view architecture);

class Decoder {
 public:
  /// `checkpoint`, whose config is checked, outlives the Decoder.
  Decoder(std::string architecture, const load::Checkpoint& checkpoint);

  const load::ModelConfig& config() const noexcept { return config_; }
  /// The output matrix is the embedding table. Says the config of Hugging Face checkpoints; GGUF files just leave it
  /// out.
  bool tied() const noexcept { return tied_; }

  /// The names and cache slots from now on are those of layer `index`.
  void enter_layer(std::int64_t index);
  void leave_layers();

  std::int32_t rope_table(bool interleaved);
  ValueId embed();
  ValueId norm(ValueId in, Part part);
  /// Of each `size` elements of `in`.
  ValueId norm(ValueId in, Part part, std::int64_t size);
  /// in [.., width of in] -> [.., rows]
  ValueId linear(ValueId in, Part part, std::int64_t rows, Bias bias = Bias::none);
  ValueId rope(ValueId in, std::int32_t table, std::string_view name);
  /// Grouped-query attention (Ainslie et al. 2023) with this layer's cache, scaled by 1 / sqrt(head_dim).
  ValueId attention(ValueId q, ValueId k, ValueId v, WeightId sinks = WeightId::none);
  /// The layer's attention sinks [heads].
  WeightId sinks();
  ValueId glu(ValueId gate, ValueId up);
  ValueId add(ValueId a, ValueId b, std::string_view name);
  /// Whether this layer has a mixture of experts.
  bool has_experts() const;
  struct Mixture {
    bool normalize = false;                     ///< where the checkpoint does not say
    Part router = Part::router;                 ///< but that of Mixtral is found
    bool biases = false;                        ///< of the router and of all experts
    std::optional<Activation> activation = {};  ///< empty: as config says
  };
  /// The mixture of this layer, of `config().experts` experts; if config says so with one that all tokens have.
  ValueId experts(ValueId in, const Mixture& mixture);
  /// The usual feed-forward block, normed: a gated unit, or in layers that have one the mixture of experts.
  ValueId feed_forward(ValueId x, bool normalize_experts, Bias bias = Bias::none);
  ValueId logits(ValueId hidden);

  using AttentionBlock = ValueId (*)(Decoder& d, ValueId x, std::int32_t rope_table);
  using FeedForwardBlock = ValueId (*)(Decoder& d, ValueId x);
  /// A model whose layers each add the output of an attention block to the hidden state, and then that of a
  /// feed-forward block.
  Result<Program> residual_layers(bool interleaved_rope, AttentionBlock attention, FeedForwardBlock feed_forward) &&;

 private:
  /// Where the keys and values of a layer go.
  struct CacheSlot {
    std::int32_t group, layer;
  };

  void make_cache_groups();
  std::string tensor(Part part, const char* suffix, std::int64_t layer) const;
  std::string expert_tensor(Part part, const char* suffix, std::int64_t expert) const;
  std::string value_name(std::string_view name) const;
  Activation activation();
  Result<Program> finish(ValueId hidden, ValueId logits) &&;
  void mistake(Error error);

  const load::Checkpoint& checkpoint_;
  const load::ModelConfig& config_;
  Builder builder_;
  bool tied_;
  std::int64_t layer_ = -1;             ///< -1 outside of the layers
  std::vector<CacheSlot> cache_slots_;  ///< [layers]
  Result<void> first_mistake_;
};

}  // namespace llminfer::arch
