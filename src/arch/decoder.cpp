#include "arch/decoder.hpp"

#include <array>
#include <cmath>
#include <utility>

#include "arch/rope.hpp"
#include "core/error.hpp"

namespace llminfer::arch {
namespace {

using core::fail;

struct PartName {
  const char* gguf;  ///< inside "blk.N." for parts of a layer
  const char* hf;    ///< inside "model.layers.N." for parts of a layer
};

/// In the order of Part. '#' stands for the number of an expert.
constexpr std::array<PartName, 29> kPartNames = {{
    {"token_embd", "model.embed_tokens"},
    {"output_norm", "model.norm"},
    {"output", "lm_head"},
    {"attn_norm", "input_layernorm"},
    {"attn_q", "self_attn.q_proj"},
    {"attn_k", "self_attn.k_proj"},
    {"attn_v", "self_attn.v_proj"},
    {"attn_output", "self_attn.o_proj"},
    {"ffn_norm", "post_attention_layernorm"},
    {"ffn_gate", "mlp.gate_proj"},
    {"ffn_up", "mlp.up_proj"},
    {"ffn_down", "mlp.down_proj"},
    {"attn_q_norm", "self_attn.q_norm"},
    {"attn_k_norm", "self_attn.k_norm"},
    {"ffn_gate_inp", "mlp.gate"},
    {"ffn_gate_inp_shexp", "mlp.shared_expert_gate"},
    {"ffn_gate_shexp", "mlp.shared_expert.gate_proj"},
    {"ffn_up_shexp", "mlp.shared_expert.up_proj"},
    {"ffn_down_shexp", "mlp.shared_expert.down_proj"},
    {"ffn_gate.#", "mlp.experts.#.gate_proj"},
    {"ffn_up.#", "mlp.experts.#.up_proj"},
    {"ffn_down.#", "mlp.experts.#.down_proj"},
    {"ffn_gate_inp", "block_sparse_moe.gate"},
    {"ffn_gate.#", "block_sparse_moe.experts.#.w1"},
    {"ffn_up.#", "block_sparse_moe.experts.#.w3"},
    {"ffn_down.#", "block_sparse_moe.experts.#.w2"},
    {"ffn_gate_inp", "mlp.router"},
    {"post_attention_norm", "post_attention_layernorm"},
    {"attn_sinks", "self_attn.sinks"},
}};

const PartName& names_of(Part part) { return kPartNames[static_cast<std::size_t>(part)]; }

bool of_layer(Part part) { return part >= Part::attention_norm; }

Result<Activation> activation_of(const std::string& name) {
  if (name == "silu" || name == "swish") return Activation::silu;
  if (name == "gelu") return Activation::gelu;
  if (name == "gelu_tanh" || name == "gelu_pytorch_tanh" || name == "gelu_new") return Activation::gelu_tanh;
  return fail(ErrorCode::unsupported, "the activation \"", name, "\"; expected silu, gelu or gelu_pytorch_tanh");
}

/// Several parts have the same name in GGUF files, or in Hugging Face checkpoints: whether this one has it in the
/// architecture. Mixtral's experts may also have the names of the others in Hugging Face checkpoints.
bool name_is_of(Part part, std::string_view architecture, bool to_hf) {
  const bool gpt_oss = architecture == "gpt-oss", mixtral = architecture == "llama";
  switch (part) {
    case Part::ffn_norm:
      return !gpt_oss;
    case Part::post_attention_norm:
      return gpt_oss;
    case Part::router:
      return !to_hf || (!gpt_oss && !mixtral);
    case Part::expert_gate:
    case Part::expert_up:
    case Part::expert_down:
      return !to_hf || !mixtral;
    case Part::mixtral_router:
    case Part::mixtral_gate:
    case Part::mixtral_up:
    case Part::mixtral_down:
      return mixtral;
    case Part::gpt_oss_router:
      return gpt_oss;
    default:
      return true;
  }
}

/// What a name has in place of the pattern's '#', a number: empty where the pattern has none. Nothing if they differ.
std::optional<std::string_view> expert_of(std::string_view name, std::string_view pattern) {
  const std::size_t number = pattern.find('#');
  if (number == std::string_view::npos) return name == pattern ? std::optional(std::string_view()) : std::nullopt;
  const std::string_view before = pattern.substr(0, number), after = pattern.substr(number + 1);
  if (name.size() <= before.size() + after.size() || !name.starts_with(before) || !name.ends_with(after)) {
    return std::nullopt;
  }
  const std::string_view found = name.substr(number, name.size() - before.size() - after.size());
  return found.find_first_not_of("0123456789") == std::string_view::npos ? std::optional(found) : std::nullopt;
}

}  // namespace

std::optional<std::string> translated_name(std::string_view name, bool to_hf, std::string_view architecture) {
  constexpr std::string_view kLayers[] = {"model.layers.", "blk."};
  std::string prefix;
  bool in_layer = false;
  if (const std::string_view layers = kLayers[to_hf]; name.starts_with(layers)) {
    const std::size_t dot = name.find('.', layers.size());
    if (dot == std::string_view::npos) return std::nullopt;
    prefix.append(kLayers[!to_hf]).append(name.substr(layers.size(), dot + 1 - layers.size()));
    name.remove_prefix(dot + 1);
    in_layer = true;
  }
  const PartName& sinks = names_of(Part::sinks);  // in Hugging Face checkpoints without ".weight"
  if (in_layer && name == (to_hf ? std::string(sinks.gguf) + ".weight" : sinks.hf)) {
    return to_hf ? prefix + sinks.hf : prefix + sinks.gguf + ".weight";
  }
  const std::size_t end = name.rfind('.');
  if (end == std::string_view::npos) return std::nullopt;
  for (std::size_t i = 0; i < kPartNames.size(); ++i) {
    const PartName& names = kPartNames[i];
    const Part part = static_cast<Part>(i);
    if (of_layer(part) != in_layer || !name_is_of(part, architecture, to_hf)) continue;
    const auto expert = expert_of(name.substr(0, end), to_hf ? names.gguf : names.hf);
    if (!expert) continue;
    std::string translated = to_hf ? names.hf : names.gguf;
    if (!expert->empty()) translated.replace(translated.find('#'), 1, *expert);
    return prefix.append(translated).append(name.substr(end));
  }
  return std::nullopt;
}

Decoder::Decoder(std::string architecture, const load::Checkpoint& checkpoint)
    : checkpoint_(checkpoint),
      config_(checkpoint.config),
      builder_(std::move(architecture)),
      tied_(config_.hf_names ? config_.tied_embeddings
                             : !checkpoint.by_name.contains(tensor(Part::output, ".weight", -1))) {
  make_cache_groups();
}

/// Layers that see everything and layers that see a window free their pages at different times, so each kind is a
/// group.
void Decoder::make_cache_groups() {
  std::array<CacheGroup, 2> groups{};  // [0] full, [1] sliding window
  std::vector<std::pair<std::size_t, std::int32_t>> slots;
  for (std::int64_t i = 0; i < config_.layers; ++i) {
    const bool slides = config_.sliding_window > 0 &&
                        (config_.sliding_layers.empty() || config_.sliding_layers[static_cast<std::size_t>(i)] != 0);
    slots.emplace_back(slides, groups[slides].layers++);
  }
  std::array<std::int32_t, 2> ids{};
  for (std::size_t kind = 0; kind < groups.size(); ++kind) {
    if (groups[kind].layers == 0) continue;
    groups[kind].kv_heads = static_cast<std::int32_t>(config_.kv_heads);
    groups[kind].head_dim = static_cast<std::int32_t>(config_.head_dim);
    groups[kind].window = kind == 1 ? static_cast<std::int32_t>(config_.sliding_window) : 0;
    ids[kind] = builder_.cache_group(groups[kind]);
  }
  for (const auto& [kind, layer] : slots) cache_slots_.push_back({ids[kind], layer});
}

void Decoder::enter_layer(std::int64_t index) { layer_ = index; }
void Decoder::leave_layers() { layer_ = -1; }

std::string Decoder::tensor(Part part, const char* suffix, std::int64_t layer) const {
  std::string name;
  if (of_layer(part)) name = (config_.hf_names ? "model.layers." : "blk.") + std::to_string(layer) + ".";
  return name + (config_.hf_names ? names_of(part).hf : names_of(part).gguf) + suffix;
}

std::string Decoder::expert_tensor(Part part, const char* suffix, std::int64_t expert) const {
  std::string name = tensor(part, suffix, layer_);
  const std::size_t number = name.find('#');
  return name.replace(number, 1, std::to_string(expert));
}

std::string Decoder::value_name(std::string_view name) const {
  return layer_ < 0 ? std::string(name) : "blk." + std::to_string(layer_) + "." + std::string(name);
}

void Decoder::mistake(Error error) {
  if (first_mistake_) first_mistake_ = std::move(error);
}

std::int32_t Decoder::rope_table(bool interleaved) {
  Result<RopeTable> table = make_rope_table(config_, interleaved);
  if (table) return builder_.rope_table(std::move(*table));
  mistake(std::move(table).error());
  return -1;
}

ValueId Decoder::embed() {
  return builder_.embed(
      builder_.weight(tensor(Part::embedding, ".weight", layer_), config_.vocab_size, config_.hidden_size),
      value_name(names_of(Part::embedding).gguf));
}

ValueId Decoder::norm(ValueId in, Part part) { return norm(in, part, builder_.width(in)); }

ValueId Decoder::norm(ValueId in, Part part, std::int64_t size) {
  return builder_.rms_norm(in, builder_.vector(tensor(part, ".weight", layer_), size),
                           static_cast<float>(config_.norm_epsilon), value_name(names_of(part).gguf));
}

ValueId Decoder::linear(ValueId in, Part part, std::int64_t rows, Bias bias) {
  if (bias == Bias::if_stored) {
    bias = checkpoint_.by_name.contains(tensor(part, ".bias", 0)) ? Bias::required : Bias::none;
  }
  const WeightId weight = builder_.weight(tensor(part, ".weight", layer_), rows, builder_.width(in));
  return builder_.linear(in, weight, value_name(names_of(part).gguf),
                         bias == Bias::none ? WeightId::none : builder_.vector(tensor(part, ".bias", layer_), rows));
}

ValueId Decoder::rope(ValueId in, std::int32_t table, std::string_view name) {
  return builder_.rope(in, static_cast<std::int32_t>(config_.head_dim), table, value_name(name));
}

ValueId Decoder::attention(ValueId q, ValueId k, ValueId v, WeightId sinks) {
  const CacheSlot& slot = cache_slots_[static_cast<std::size_t>(layer_)];
  const auto scale = static_cast<float>(1 / std::sqrt(static_cast<double>(config_.head_dim)));
  return builder_.attention(q, k, v, slot.group, slot.layer, static_cast<std::int32_t>(config_.heads), scale,
                            value_name("attention"), sinks);
}

WeightId Decoder::sinks() {
  return builder_.vector(tensor(Part::sinks, config_.hf_names ? "" : ".weight", layer_), config_.heads);
}

Activation Decoder::activation() {
  Result<Activation> activation = activation_of(config_.activation);
  if (!activation) mistake(std::move(activation).error());
  return activation ? *activation : Activation::silu;
}

ValueId Decoder::glu(ValueId gate, ValueId up) { return builder_.glu(gate, up, activation(), value_name("ffn_glu")); }

ValueId Decoder::add(ValueId a, ValueId b, std::string_view name) { return builder_.add(a, b, value_name(name)); }

bool Decoder::has_experts() const {
  return config_.experts > 0 &&
         (config_.expert_layers.empty() || config_.expert_layers[static_cast<std::size_t>(layer_)] != 0);
}

ValueId Decoder::experts(ValueId in, const Mixture& mixture) {
  const bool mixtral =
      config_.hf_names && checkpoint_.by_name.contains(tensor(Part::mixtral_router, ".weight", layer_));
  const std::int64_t ffn = config_.expert_ffn_size, width = builder_.width(in);
  op::Moe op;
  op.in = in;
  op.router = linear(in, mixtral ? Part::mixtral_router : mixture.router, config_.experts,
                     mixture.biases ? Bias::required : Bias::none);
  for (std::int64_t e = 0; e < config_.experts; ++e) {
    const auto matrix = [&](Part part, Part in_mixtral, std::int64_t rows, std::int64_t cols) {
      return builder_.weight(expert_tensor(mixtral ? in_mixtral : part, ".weight", e), rows, cols);
    };
    op.gate.push_back(matrix(Part::expert_gate, Part::mixtral_gate, ffn, width));
    op.up.push_back(matrix(Part::expert_up, Part::mixtral_up, ffn, width));
    op.down.push_back(matrix(Part::expert_down, Part::mixtral_down, width, ffn));
    if (!mixture.biases) continue;
    op.gate_bias.push_back(builder_.vector(expert_tensor(Part::expert_gate, ".bias", e), ffn));
    op.up_bias.push_back(builder_.vector(expert_tensor(Part::expert_up, ".bias", e), ffn));
    op.down_bias.push_back(builder_.vector(expert_tensor(Part::expert_down, ".bias", e), width));
  }
  op.used = static_cast<std::int32_t>(config_.experts_used);
  op.normalize = config_.normalize_experts.value_or(mixture.normalize);
  op.activation = mixture.activation ? *mixture.activation : activation();
  if (config_.shared_ffn_size > 0) {
    op.shared_gate = linear(in, Part::shared_gate, 1);
    const ValueId gate = linear(in, Part::shared_expert_gate, config_.shared_ffn_size);
    const ValueId up = linear(in, Part::shared_expert_up, config_.shared_ffn_size);
    op.shared = linear(glu(gate, up), Part::shared_expert_down, width);
  }
  return builder_.moe(std::move(op), value_name("ffn_moe"));
}

ValueId Decoder::feed_forward(ValueId x, bool normalize_experts, Bias bias) {
  const ValueId normed = norm(x, Part::ffn_norm);                               // [hidden]
  if (has_experts()) return experts(normed, {.normalize = normalize_experts});  // [hidden]
  const ValueId gate = linear(normed, Part::gate, config_.ffn_size, bias);      // [ffn]
  const ValueId up = linear(normed, Part::up, config_.ffn_size, bias);          // [ffn]
  return linear(glu(gate, up), Part::down, config_.hidden_size, bias);          // [hidden]
}

ValueId Decoder::logits(ValueId hidden) {
  const Part part = tied_ ? Part::embedding : Part::output;
  return builder_.linear(
      hidden, builder_.weight(tensor(part, ".weight", layer_), config_.vocab_size, config_.hidden_size), "logits");
}

Result<Program> Decoder::residual_layers(bool interleaved_rope, AttentionBlock attention,
                                         FeedForwardBlock feed_forward) && {
  const std::int32_t rope = rope_table(interleaved_rope);
  ValueId x = embed();
  for (std::int64_t layer = 0; layer < config_.layers; ++layer) {
    enter_layer(layer);
    x = add(x, attention(*this, x, rope), "attn_residual");
    x = add(x, feed_forward(*this, x), "ffn_residual");
  }
  leave_layers();
  const ValueId hidden = norm(x, Part::final_norm);
  const ValueId out = logits(hidden);
  return std::move(*this).finish(hidden, out);
}

Result<Program> Decoder::finish(ValueId hidden, ValueId logits) && {
  LLMINFER_TRY(std::move(first_mistake_));
  return std::move(builder_).finish(hidden, logits);
}

}  // namespace llminfer::arch
