// Checkpoints that have names and shapes of tensors but no data: enough to make a Program of.
#pragma once

#include <string>

#include "load/checkpoint.hpp"

namespace llminfer::test {

inline void add_tensor(load::Checkpoint& checkpoint, const std::string& name, std::int64_t rows, std::int64_t cols) {
  load::TensorInfo tensor;
  tensor.name = name;
  tensor.rows = rows;
  tensor.cols = cols;
  tensor.shape = rows == 1 ? std::vector{cols} : std::vector{rows, cols};
  checkpoint.by_name[name] = checkpoint.tensors.size();
  checkpoint.tensors.push_back(std::move(tensor));
}

inline void remove_tensor(load::Checkpoint& checkpoint, const std::string& name) {
  std::vector<load::TensorInfo> kept = std::move(checkpoint.tensors);
  checkpoint.tensors.clear();
  checkpoint.by_name.clear();
  for (load::TensorInfo& tensor : kept) {
    if (tensor.name == name) continue;
    checkpoint.by_name[tensor.name] = checkpoint.tensors.size();
    checkpoint.tensors.push_back(std::move(tensor));
  }
}

struct Biases {
  bool qkv = false, out = false, mlp = false;
};

/// The tensors that a checkpoint of this config has, named for its format.
inline load::Checkpoint synthetic_checkpoint(const load::ModelConfig& config, const Biases& biases = {}) {
  load::Checkpoint checkpoint;
  checkpoint.path = "synthetic";
  checkpoint.config = config;
  const bool hf = config.hf_names;
  const auto linear = [&](const std::string& name, std::int64_t rows, std::int64_t cols, bool bias) {
    add_tensor(checkpoint, name + ".weight", rows, cols);
    if (bias) add_tensor(checkpoint, name + ".bias", 1, rows);
  };
  const std::int64_t hidden = config.hidden_size;
  const std::int64_t q = config.heads * config.head_dim;
  const std::int64_t kv = config.kv_heads * config.head_dim;
  linear(hf ? "model.embed_tokens" : "token_embd", config.vocab_size, hidden, false);
  linear(hf ? "model.norm" : "output_norm", 1, hidden, false);
  if (!config.tied_embeddings) linear(hf ? "lm_head" : "output", config.vocab_size, hidden, false);
  for (std::int64_t i = 0; i < config.layers; ++i) {
    const std::string layer = (hf ? "model.layers." : "blk.") + std::to_string(i) + ".";
    linear(layer + (hf ? "input_layernorm" : "attn_norm"), 1, hidden, false);
    linear(layer + (hf ? "self_attn.q_proj" : "attn_q"), q, hidden, biases.qkv);
    linear(layer + (hf ? "self_attn.k_proj" : "attn_k"), kv, hidden, biases.qkv);
    linear(layer + (hf ? "self_attn.v_proj" : "attn_v"), kv, hidden, biases.qkv);
    linear(layer + (hf ? "self_attn.o_proj" : "attn_output"), hidden, q, biases.out);
    linear(layer + (hf ? "post_attention_layernorm" : "ffn_norm"), 1, hidden, false);
    if (config.architecture.starts_with("qwen3") || config.architecture == "olmoe") {
      const bool heads = config.architecture != "olmoe";
      linear(layer + (hf ? "self_attn.q_norm" : "attn_q_norm"), 1, heads ? config.head_dim : q, false);
      linear(layer + (hf ? "self_attn.k_norm" : "attn_k_norm"), 1, heads ? config.head_dim : kv, false);
    }
    const auto feed_forward = [&](const std::string& gate, const std::string& up, const std::string& down,
                                  std::int64_t size, bool bias) {
      linear(layer + gate, size, hidden, bias);
      linear(layer + up, size, hidden, bias);
      linear(layer + down, hidden, size, bias);
    };
    if (config.experts == 0 || (!config.expert_layers.empty() && !config.expert_layers[static_cast<std::size_t>(i)])) {
      feed_forward(hf ? "mlp.gate_proj" : "ffn_gate", hf ? "mlp.up_proj" : "ffn_up", hf ? "mlp.down_proj" : "ffn_down",
                   config.ffn_size, biases.mlp);
      continue;
    }
    const bool mixtral = hf && config.architecture == "llama";
    linear(layer + (mixtral ? "block_sparse_moe.gate"
                    : hf    ? "mlp.gate"
                            : "ffn_gate_inp"),
           config.experts, hidden, false);
    for (std::int64_t e = 0; e < config.experts; ++e) {
      const std::string n = std::to_string(e),
                        expert = (mixtral ? "block_sparse_moe.experts." : "mlp.experts.") + n + ".";
      if (hf) {
        feed_forward(expert + (mixtral ? "w1" : "gate_proj"), expert + (mixtral ? "w3" : "up_proj"),
                     expert + (mixtral ? "w2" : "down_proj"), config.expert_ffn_size, false);
      } else {
        feed_forward("ffn_gate." + n, "ffn_up." + n, "ffn_down." + n, config.expert_ffn_size, false);
      }
    }
    if (config.shared_ffn_size == 0) continue;
    linear(layer + (hf ? "mlp.shared_expert_gate" : "ffn_gate_inp_shexp"), 1, hidden, false);
    feed_forward(hf ? "mlp.shared_expert.gate_proj" : "ffn_gate_shexp",
                 hf ? "mlp.shared_expert.up_proj" : "ffn_up_shexp",
                 hf ? "mlp.shared_expert.down_proj" : "ffn_down_shexp", config.shared_ffn_size, false);
  }
  return checkpoint;
}

/// A decoder with the sizes that every model has; head_dim is hidden / heads.
inline load::ModelConfig decoder_config(const std::string& architecture, std::int64_t vocab, std::int64_t hidden,
                                        std::int64_t ffn, std::int64_t layers, std::int64_t heads,
                                        std::int64_t kv_heads, bool tied) {
  load::ModelConfig config;
  config.architecture = architecture;
  config.vocab_size = vocab;
  config.hidden_size = hidden;
  config.ffn_size = ffn;
  config.layers = layers;
  config.heads = heads;
  config.kv_heads = kv_heads;
  config.head_dim = config.rotary_dim = hidden / heads;
  config.context_length = 2048;
  config.tied_embeddings = tied;
  return config;
}

/// The same with a mixture of experts in each layer.
inline load::ModelConfig mixture_config(load::ModelConfig config, std::int64_t head_dim, std::int64_t experts,
                                        std::int64_t used, std::int64_t ffn, std::int64_t shared = 0) {
  config.head_dim = config.rotary_dim = head_dim;
  config.experts = experts;
  config.experts_used = used;
  config.expert_ffn_size = ffn;
  config.shared_ffn_size = shared;
  return config;
}

inline load::ModelConfig small_llama() { return decoder_config("llama", 32, 16, 24, 2, 4, 2, false); }

}  // namespace llminfer::test
