// GPUs of ranks that sum by themselves: emulated ones with fake_nccl.cpp, or the first of this machine.
#pragma once

#include <cstddef>
#include <map>
#include <memory>
#include <string>

#include "tests/engine/rank_models.hpp"
#include "tests/gpu/machines.hpp"

namespace llminfer::test {

using Backends = std::map<std::size_t, std::shared_ptr<Backend>>;

#ifdef LLMINFER_TEST_GPU

/// Empty where the machine has fewer.
inline Backends summing_backends(std::size_t count) {
  Backends all;
  for (std::size_t i = 0; i < count; ++i) {
    auto device = make_real_device({.device = static_cast<int>(i)});
    if (!device) return {};
    all[i] = gpu::make_backend(std::move(*device), {});
  }
  return all;
}

#else

/// `options` of all of them, but for the seed.
inline Backends summing_backends(std::size_t count, gpu::EmulatorOptions options = {}) {
  Backends all;
  options.collectives = LLMINFER_TEST_FAKE_NCCL;
  for (std::size_t i = 0; i < count; ++i) {
    options.seed = 11 + i;
    all[i] = make_machine_backend(options);
  }
  return all;
}

#endif

/// 4 KV heads, so that as many as 4 ranks share its layers.
class FourHeadsModel : public ModelFolder {
 public:
  explicit FourHeadsModel(int layers = 2) {
    add("model.embed_tokens.weight", 256, 32);
    add("model.norm.weight", 1, 32);
    for (int i = 0; i < layers; ++i) {
      const std::string layer = "model.layers." + std::to_string(i) + ".";
      add(layer + "input_layernorm.weight", 1, 32);
      add(layer + "post_attention_layernorm.weight", 1, 32);
      for (const char* name : {"q_proj", "k_proj", "v_proj", "o_proj"})
        add(layer + "self_attn." + name + ".weight", 32, 32);
      add(layer + "mlp.gate_proj.weight", 24, 32);
      add(layer + "mlp.up_proj.weight", 24, 32);
      add(layer + "mlp.down_proj.weight", 32, 24);
    }
    finish(R"("model_type":"llama","tie_word_embeddings":true,"intermediate_size":24)", layers, 32, 4, 4);
  }
};

inline EngineOptions summing_options(DeviceSums sums) {
  EngineOptions options = options_of({});
  options.max_batch_tokens = 16;
  options.cache_tokens = options.context_length = 64;
  options.device_sums = sums;
  return options;
}

/// Logits after a prompt of two passes, of which the second has one row, and some tokens.
inline std::vector<float> few_logits(const Engine& engine) {
  Session session = engine.new_session().value();
  session.prefill(some_tokens(17, 1)).value();
  std::vector<float> all(session.logits().begin(), session.logits().end());
  CompletionRequest request;
  request.tokens = some_tokens(5, 2);
  request.options.max_tokens = 2;
  request.options.ignore_end = true;
  for (const Token token : engine.complete(request).value().tokens) all.push_back(static_cast<float>(token));
  return all;
}

}  // namespace llminfer::test
