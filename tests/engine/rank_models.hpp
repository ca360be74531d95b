// Models that are shared by ranks, and engines on ranks of this process.
#pragma once

#include <llminfer/llminfer.hpp>

#include <cmath>
#include <filesystem>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "tests/engine/split_models.hpp"
#include "tests/load/safetensors_file.hpp"

namespace llminfer::test {

inline EngineOptions of_rank(std::shared_ptr<Communicator> rank, int shards, const EngineOptions& base) {
  EngineOptions options = base;
  options.communicator = std::move(rank);
  options.tensor_parallel = shards;
  return options;
}

/// An engine on so many ranks of this process, `shards` of them to a stage.
class Ranks {
 public:
  Ranks(const std::string& path, int ranks, int shards, EngineOptions base = options_of({}))
      : Ranks(path, make_thread_communicators(ranks).value(), shards, base) {}
  Ranks(const std::string& path, std::vector<std::shared_ptr<Communicator>> ranks, int shards, EngineOptions base,
        std::map<std::size_t, std::shared_ptr<Backend>> backends = {})
      : outcomes_(ranks.size()) {
    const auto options_of_rank = [&](std::size_t r) {
      EngineOptions options = of_rank(std::move(ranks[r]), shards, base);
      if (!backends.contains(r)) return options;
      const std::size_t stage = r / static_cast<std::size_t>(shards);
      (options.split.empty() ? options.custom_backend : options.split[stage].backend) = backends[r];
      return options;
    };
    for (std::size_t r = 1; r < ranks.size(); ++r) {
      threads_.emplace_back([this, r, path, options = options_of_rank(r)]() mutable {
        outcomes_[r] = Engine::serve(path, options);
        options = {};
      });
    }
    engine_.emplace_back(Engine::load(path, options_of_rank(0)));
  }
  ~Ranks() { end(); }
  Result<Engine>& engine() { return engine_.front(); }
  /// Of all but rank 0, which ends.
  const std::vector<Result<void>>& end() {
    engine_.clear();
    for (std::thread& thread : threads_) thread.join();
    threads_.clear();
    return outcomes_;
  }

 private:
  std::vector<Result<void>> outcomes_;
  std::vector<std::thread> threads_;
  std::vector<Result<Engine>> engine_;
};

/// How far `found` is from `expected`, relative to the latter's length; infinite if one is not a number.
inline double distance(std::span<const float> found, std::span<const float> expected) {
  if (found.size() != expected.size()) return HUGE_VAL;
  double error = 0, power = 0;
  for (std::size_t i = 0; i < found.size(); ++i) {
    error += std::pow(double{found[i]} - double{expected[i]}, 2);
    power += std::pow(double{expected[i]}, 2);
  }
  return std::isnan(error) ? HUGE_VAL : std::sqrt(error / power);
}

inline CompletionRequest some_request(int tokens = 10) {
  CompletionRequest request;
  request.tokens = some_tokens(30, 1);
  request.options.max_tokens = tokens;
  request.options.ignore_end = true;
  return request;
}

/// A folder with a model of 256 tokens, and the tokenizer of WindowModel.
class ModelFolder {
 public:
  ModelFolder() {
    const WindowModel other;
    std::filesystem::copy_file(other.path() + "/tokenizer.json", folder_ / "tokenizer.json");
  }
  const std::string& path() const { return folder_.path(); }
  const TempDir& folder() const { return folder_; }

  void add(const std::string& name, std::int64_t rows, std::int64_t cols) {
    const auto count = static_cast<std::size_t>(rows * cols);
    for (std::size_t i = 0; i < count; ++i) {
      const float x = std::normal_distribution<float>(rows == 1 ? 1.0f : 0.0f, rows == 1 ? 0.1f : 0.2f)(random_);
      data_.append(reinterpret_cast<const char*>(&x), sizeof x);
    }
    const std::string shape = rows == 1 ? std::to_string(cols) : std::to_string(rows) + "," + std::to_string(cols);
    header_ +=
        (header_.empty() ? "{" : ",") +
        entry(name, "F32", shape, std::to_string(data_.size() - count * sizeof(float)), std::to_string(data_.size()));
  }
  void finish(const std::string& config, int layers = 2, int hidden = 48, int heads = 6, int kv_heads = 3) {
    const auto number = [](const char* name, int value) {
      return "\"" + std::string(name) + "\":" + std::to_string(value) + ",";
    };
    folder_.write("config.json", "{" + number("num_hidden_layers", layers) + number("hidden_size", hidden) +
                                     number("num_attention_heads", heads) + number("num_key_value_heads", kv_heads) +
                                     "\"vocab_size\":256,\"rms_norm_eps\":1e-5,\"head_dim\":8,"
                                     "\"max_position_embeddings\":512,\"hidden_act\":\"silu\"," +
                                     config + "}");
    folder_.write("model.safetensors", safetensors_file(header_ + "}", data_));
  }

 private:
  TempDir folder_;
  std::mt19937 random_{7};
  std::string header_, data_;
};

/// 3 KV heads and 20 features, so that no two ranks have the same; with experts, a mixture in each layer.
class UnevenModel : public ModelFolder {
 public:
  explicit UnevenModel(const std::string& kind);
};

inline UnevenModel::UnevenModel(const std::string& kind) {
  ModelFolder& model = *this;
  const bool mixture = kind != "llama", qwen = kind == "qwen2_moe", gpt_oss = kind == "gpt_oss";
  model.add("model.embed_tokens.weight", 256, 48);
  model.add("model.norm.weight", 1, 48);
  for (int i = 0; i < 2; ++i) {
    const std::string layer = "model.layers." + std::to_string(i) + ".";
    const auto block = [&](const std::string& prefix, const char* gate, const char* up, const char* down) {
      model.add(layer + prefix + gate + ".weight", 20, 48);
      model.add(layer + prefix + up + ".weight", 20, 48);
      model.add(layer + prefix + down + ".weight", 48, 20);
    };
    model.add(layer + "input_layernorm.weight", 1, 48);
    model.add(layer + "post_attention_layernorm.weight", 1, 48);
    model.add(layer + "self_attn.q_proj.weight", 48, 48);
    model.add(layer + "self_attn.k_proj.weight", 24, 48);
    model.add(layer + "self_attn.v_proj.weight", 24, 48);
    model.add(layer + "self_attn.o_proj.weight", 48, 48);
    if (qwen) {
      model.add(layer + "self_attn.q_proj.bias", 1, 48);
      model.add(layer + "self_attn.k_proj.bias", 1, 24);
      model.add(layer + "self_attn.v_proj.bias", 1, 24);
    }
    if (kind == "llama") {
      block("mlp.", "gate_proj", "up_proj", "down_proj");
      for (const char* biased : {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
                                 "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"}) {
        const std::string name = biased;
        const bool kv = name.ends_with("k_proj") || name.ends_with("v_proj"),
                   inner = name.ends_with("e_proj") || name.ends_with("up_proj");
        model.add(layer + name + ".bias", 1, kv ? 24 : inner ? 20 : 48);
      }
    }
    const char* const router = qwen ? "mlp.gate" : gpt_oss ? "mlp.router" : "block_sparse_moe.gate";
    if (mixture) model.add(layer + router + ".weight", 4, 48);
    if (gpt_oss) {
      model.add(layer + router + ".bias", 1, 4);
      model.add(layer + "self_attn.sinks", 1, 6);
    }
    for (int e = 0; e < 4 && mixture; ++e) {
      const std::string expert = "experts." + std::to_string(e) + ".";
      if (qwen || gpt_oss) block("mlp." + expert, "gate_proj", "up_proj", "down_proj");
      if (!qwen && !gpt_oss) block("block_sparse_moe." + expert, "w1", "w3", "w2");
      if (!gpt_oss) continue;
      model.add(layer + "mlp." + expert + "gate_proj.bias", 1, 20);
      model.add(layer + "mlp." + expert + "up_proj.bias", 1, 20);
      model.add(layer + "mlp." + expert + "down_proj.bias", 1, 48);
    }
    if (qwen) {
      block("mlp.shared_expert.", "gate_proj", "up_proj", "down_proj");
      model.add(layer + "mlp.shared_expert_gate.weight", 1, 48);
    }
  }
  if (kind != "llama") model.add("lm_head.weight", 256, 48);
  const std::string tied = kind == "llama" ? "true" : "false";
  model.finish("\"tie_word_embeddings\":" + tied + ",\"intermediate_size\":20,\"model_type\":\"" + kind + "\"," +
               (kind == "llama" ? R"("attention_bias":true,"mlp_bias":true)"
                : qwen          ? R"("num_experts":4,"num_experts_per_tok":2,"moe_intermediate_size":20,)"
                                  R"("shared_expert_intermediate_size":20,"decoder_sparse_step":1)"
                : gpt_oss       ? R"("num_local_experts":4,"num_experts_per_tok":2,"sliding_window":16,)"
                                  R"("rope_parameters":{"rope_type":"yarn","rope_theta":10000,"factor":4,)"
                                  R"("original_max_position_embeddings":64,"truncate":false})"
                                : R"("num_local_experts":4,"num_experts_per_tok":2)"));
}

}  // namespace llminfer::test
