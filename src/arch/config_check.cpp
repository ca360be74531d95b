#include "arch/config_check.hpp"

#include <cmath>
#include <string>

#include "core/error.hpp"

namespace llminfer::arch {
namespace {

using core::fail;

/// Names a hyperparameter as config.json or as GGUF metadata does.
struct Key {
  const char* hf;
  const char* gguf;  ///< without the architecture in front
};

std::string name_of(const load::ModelConfig& config, const Key& key) {
  return config.hf_names ? std::string("config.json: ") + key.hf : config.architecture + "." + key.gguf;
}

struct Bound {
  Key key;
  std::int64_t load::ModelConfig::*field;
  std::int64_t min, max;
};

constexpr Key kHeads{"num_attention_heads", "attention.head_count"};
constexpr Key kKvHeads{"num_key_value_heads", "attention.head_count_kv"};
constexpr Key kHeadDim{"head_dim", "attention.key_length"};
constexpr Key kRotaryDim{"partial_rotary_factor", "rope.dimension_count"};
constexpr Key kExpertsUsed{"num_experts_per_tok", "expert_used_count"};
constexpr Key kExpertFfn{"moe_intermediate_size", "expert_feed_forward_length"};
constexpr Key kSlidingWindow{"sliding_window", "attention.sliding_window"};

/// Several times beyond the largest published models.
constexpr Bound kBounds[] = {
    {{"vocab_size", "vocab_size"}, &load::ModelConfig::vocab_size, 1, 1 << 24},
    {{"max_position_embeddings", "context_length"}, &load::ModelConfig::context_length, 1, INT32_MAX},
    {{"num_hidden_layers", "block_count"}, &load::ModelConfig::layers, 1, 1000},
    {{"hidden_size", "embedding_length"}, &load::ModelConfig::hidden_size, 1, 1 << 20},
    {{"intermediate_size", "feed_forward_length"}, &load::ModelConfig::ffn_size, 1, 1 << 22},
    {kHeads, &load::ModelConfig::heads, 1, 1 << 12},
    {kKvHeads, &load::ModelConfig::kv_heads, 1, 1 << 12},
    {kHeadDim, &load::ModelConfig::head_dim, 2, 1 << 12},
    {kRotaryDim, &load::ModelConfig::rotary_dim, 2, 1 << 12},
    {{"num_experts", "expert_count"}, &load::ModelConfig::experts, 0, load::kMaxExperts},
    {kExpertsUsed, &load::ModelConfig::experts_used, 0, load::kMaxExperts},
    {kExpertFfn, &load::ModelConfig::expert_ffn_size, 0, 1 << 22},
    {{"shared_expert_intermediate_size", "expert_shared_feed_forward_length"},
     &load::ModelConfig::shared_ffn_size,
     0,
     1 << 22},
    {kSlidingWindow, &load::ModelConfig::sliding_window, 0, INT32_MAX},
};

}  // namespace

Result<void> check_config(const load::ModelConfig& config) {
  for (const Bound& bound : kBounds) {
    const std::int64_t value = config.*bound.field;
    if (value >= bound.min && value <= bound.max) continue;
    return fail(ErrorCode::corrupt, name_of(config, bound.key), " is ", value, ", expected ", bound.min, " … ",
                bound.max);
  }
  if (config.heads % config.kv_heads != 0) {
    return fail(ErrorCode::corrupt, name_of(config, kHeads), " is ", config.heads, ", expected a multiple of ",
                name_of(config, kKvHeads), ", ", config.kv_heads);
  }
  if (config.experts > 0 && (config.experts_used < 1 || config.experts_used > config.experts)) {
    return fail(ErrorCode::corrupt, name_of(config, kExpertsUsed), " is ", config.experts_used, ", expected 1 … ",
                config.experts, ", the number of experts");
  }
  if (config.experts > 0 && config.expert_ffn_size < 1) {
    return fail(ErrorCode::corrupt, name_of(config, kExpertFfn), " is ", config.expert_ffn_size,
                ", expected 1 or more");
  }
  if (!config.expert_layers.empty() && config.expert_layers.size() != static_cast<std::size_t>(config.layers)) {
    return fail(ErrorCode::corrupt, name_of(config, {"mlp_only_layers", "expert_count"}), ": ",
                config.expert_layers.size(), " layers, expected ", config.layers);
  }
  if (config.head_dim % 2 != 0) {
    return fail(ErrorCode::corrupt, name_of(config, kHeadDim), " is ", config.head_dim, ", expected an even number");
  }
  if (config.rotary_dim % 2 != 0 || config.rotary_dim > config.head_dim) {
    return fail(ErrorCode::corrupt, name_of(config, kRotaryDim), " asks for ", config.rotary_dim,
                " rotated dimensions, expected an even number up to the head size, ", config.head_dim);
  }
  if (!(config.norm_epsilon >= 0 && config.norm_epsilon <= 1)) {
    return fail(ErrorCode::corrupt, name_of(config, {"rms_norm_eps", "attention.layer_norm_rms_epsilon"}), " is ",
                config.norm_epsilon, ", expected 0 … 1");
  }
  if (!(config.rope_base > 1 && config.rope_base <= 1e15)) {
    return fail(ErrorCode::corrupt, name_of(config, {"rope_theta", "rope.freq_base"}), " is ", config.rope_base,
                ", expected a number above 1 and up to 1e15");
  }
  if (!config.sliding_layers.empty() && config.sliding_layers.size() != static_cast<std::size_t>(config.layers)) {
    return fail(ErrorCode::corrupt, name_of(config, {"layer_types", "attention.sliding_window_pattern"}), " has ",
                config.sliding_layers.size(), " entries, expected one for each of ", config.layers, " layers");
  }
  return {};
}

}  // namespace llminfer::arch
