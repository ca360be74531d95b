// What the metadata keys of a GGUF file mean. The names of the keys are those of the GGUF specification
// (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md).
#include <algorithm>
#include <cmath>
#include <utility>

#include "core/error.hpp"
#include "load/gguf_metadata.hpp"

namespace llminfer::load {
namespace {

using core::fail;

// Bounds on hyperparameters, far above any model, so that products of two of them fit in 64 bits.
constexpr std::int64_t kMaxLayers = 1 << 14;
constexpr std::int64_t kMaxHeads = 1 << 16;
constexpr std::int64_t kMaxWidth = 1 << 24;
constexpr std::int64_t kMaxContext = INT32_MAX;

/// rope_freqs.weight: one divisor per rotary pair.
Result<std::vector<float>> read_rope_factors(const Checkpoint& checkpoint, const TensorInfo& tensor) {
  const std::int64_t pairs = checkpoint.config.rotary_dim / 2;
  if (tensor.rows != 1 || tensor.cols != pairs) {
    return fail(ErrorCode::shape_mismatch, "tensor '", tensor.name, "': found [", tensor.rows, ", ", tensor.cols,
                "], expected [1, ", pairs, "], half of the rotary dimensions");
  }
  const WeightView view = LLMINFER_TRY(checkpoint.read(tensor));
  std::vector<float> factors(static_cast<std::size_t>(pairs));
  LLMINFER_TRY(unpack_rows(view, 0, 1, factors));
  if (!std::all_of(factors.begin(), factors.end(), [](float f) { return std::isfinite(f) && f > 0; })) {
    return fail(ErrorCode::corrupt, "tensor '", tensor.name, "': expected positive numbers");
  }
  return factors;
}

Result<void> apply_rope(const GgufMetadata& metadata, const std::string& arch, Checkpoint& checkpoint) {
  ModelConfig& config = checkpoint.config;
  config.rotary_dim =
      LLMINFER_TRY(metadata.integer(arch + "rope.dimension_count", 2, kMaxWidth)).value_or(config.head_dim);
  if (config.rotary_dim > config.head_dim || config.rotary_dim % 2 != 0) {
    return fail(ErrorCode::corrupt, "metadata '", arch, "rope.dimension_count': ", config.rotary_dim,
                " is not an even number up to the head size, ", config.head_dim);
  }
  const auto positive = [&](const char* key, double fallback) -> Result<double> {
    const auto value = LLMINFER_TRY(metadata.number(arch + key));
    if (value && *value <= 0) {
      return fail(ErrorCode::corrupt, "metadata '", arch, key, "': ", *value, " is not positive");
    }
    return value.value_or(fallback);
  };
  config.rope_base = LLMINFER_TRY(positive("rope.freq_base", 10000.0));

  RopeScaling& scaling = config.rope_scaling;
  const auto kind = LLMINFER_TRY(metadata.string(arch + "rope.scaling.type"));
  const double old_factor = LLMINFER_TRY(positive("rope.scale_linear", 1.0));  // before rope.scaling.* existed
  scaling.factor = LLMINFER_TRY(positive("rope.scaling.factor", old_factor));
  scaling.original_context = static_cast<double>(
      LLMINFER_TRY(metadata.integer(arch + "rope.scaling.original_context_length", 0, kMaxContext)).value_or(0));
  if (!kind) {
    scaling.kind = scaling.factor != 1.0 ? RopeScaling::Kind::linear : RopeScaling::Kind::none;
  } else if (*kind == "none") {
    scaling.kind = RopeScaling::Kind::none;
    scaling.factor = 1.0;
  } else if (*kind == "linear") {
    scaling.kind = RopeScaling::Kind::linear;
  } else if (*kind == "yarn") {
    scaling.kind = RopeScaling::Kind::yarn;
    scaling.beta_fast = LLMINFER_TRY(positive("rope.scaling.yarn_beta_fast", 32.0));
    scaling.beta_slow = LLMINFER_TRY(positive("rope.scaling.yarn_beta_slow", 1.0));
    scaling.truncate = config.architecture != "gpt-oss";  // no key tells
    // The key holds a multiple of the default.
    const double multiple = LLMINFER_TRY(positive("rope.scaling.attn_factor", 1.0));
    if (multiple != 1.0) scaling.attention_factor = multiple * (0.1 * std::log(scaling.factor) + 1.0);
    if (scaling.original_context == 0) scaling.original_context = static_cast<double>(config.context_length);
  } else {
    return fail(ErrorCode::unsupported, "metadata '", arch, "rope.scaling.type': '", *kind,
                "'; expected none, linear or yarn");
  }
  // Llama 3's scaling comes as ready divisors.
  if (const TensorInfo* factors = checkpoint.find("rope_freqs.weight")) {
    scaling.factors = LLMINFER_TRY(read_rope_factors(checkpoint, *factors));
    if (scaling.kind == RopeScaling::Kind::none) scaling.kind = RopeScaling::Kind::factors;
  }
  return {};
}

Result<void> apply_experts(const GgufMetadata& metadata, const std::string& arch, ModelConfig& config) {
  config.experts = LLMINFER_TRY(metadata.integer(arch + "expert_count", 0, kMaxExperts)).value_or(0);
  if (config.experts == 0) return {};
  config.experts_used = LLMINFER_TRY(metadata.required(arch + "expert_used_count", 1, config.experts));
  // Older files have the width of all experts that a token uses, or of one.
  const bool qwen = config.architecture.starts_with("qwen");
  config.expert_ffn_size = LLMINFER_TRY(metadata.integer(arch + "expert_feed_forward_length", 1, kMaxWidth))
                               .value_or(qwen ? config.ffn_size / config.experts_used : config.ffn_size);
  if (config.architecture == "qwen2moe") {
    config.shared_ffn_size = LLMINFER_TRY(metadata.integer(arch + "expert_shared_feed_forward_length", 1, kMaxWidth))
                                 .value_or(config.ffn_size);
  }
  config.normalize_experts = LLMINFER_TRY(metadata.boolean(arch + "expert_weights_norm"));
  const double clamp = LLMINFER_TRY(metadata.number(arch + "attention.clamp_kqv")).value_or(0);
  if (clamp > 0) return fail(ErrorCode::unsupported, "metadata '", arch, "attention.clamp_kqv' is ", clamp);
  return {};
}

Result<void> apply_config(const GgufMetadata& metadata, Checkpoint& checkpoint) {
  ModelConfig& config = checkpoint.config;
  auto architecture = LLMINFER_TRY(metadata.string("general.architecture"));
  if (!architecture) return fail(ErrorCode::corrupt, "metadata 'general.architecture' is missing");
  config.architecture = *std::move(architecture);
  config.name = LLMINFER_TRY(metadata.string("general.name")).value_or("");
  config.hf_names = false;
  const std::string arch = config.architecture + ".";

  config.layers = LLMINFER_TRY(metadata.required(arch + "block_count", 1, kMaxLayers));
  config.context_length = LLMINFER_TRY(metadata.required(arch + "context_length", 1, kMaxContext));
  config.hidden_size = LLMINFER_TRY(metadata.required(arch + "embedding_length", 1, kMaxWidth));
  config.ffn_size = LLMINFER_TRY(metadata.required_per_layer(arch + "feed_forward_length", 1, kMaxWidth));
  config.heads = LLMINFER_TRY(metadata.required_per_layer(arch + "attention.head_count", 1, kMaxHeads));
  config.kv_heads =
      LLMINFER_TRY(metadata.per_layer(arch + "attention.head_count_kv", 1, kMaxHeads)).value_or(config.heads);
  if (config.heads % config.kv_heads != 0) {
    return fail(ErrorCode::corrupt, "metadata '", arch, "attention.head_count_kv': ", config.kv_heads,
                " does not divide the number of heads, ", config.heads);
  }
  const auto head_dim = LLMINFER_TRY(metadata.integer(arch + "attention.key_length", 1, kMaxWidth));
  if (!head_dim && config.hidden_size % config.heads != 0) {
    return fail(ErrorCode::corrupt, "metadata '", arch, "attention.head_count': ", config.heads,
                " does not divide the embedding length, ", config.hidden_size);
  }
  config.head_dim = head_dim.value_or(config.hidden_size / config.heads);

  auto epsilon = LLMINFER_TRY(metadata.number(arch + "attention.layer_norm_rms_epsilon"));
  if (!epsilon) epsilon = LLMINFER_TRY(metadata.number(arch + "attention.layer_norm_epsilon"));
  if (!epsilon) return fail(ErrorCode::corrupt, "metadata '", arch, "attention.layer_norm_rms_epsilon' is missing");
  if (*epsilon < 0 || *epsilon > 1) {
    return fail(ErrorCode::corrupt, "metadata '", arch, "attention.layer_norm_rms_epsilon': ", *epsilon,
                " is not in [0, 1]");
  }
  config.norm_epsilon = *epsilon;

  config.sliding_window = LLMINFER_TRY(metadata.integer(arch + "attention.sliding_window", 0, kMaxContext)).value_or(0);
  config.sliding_layers = LLMINFER_TRY(metadata.booleans(arch + "attention.sliding_window_pattern"));
  if (!config.sliding_layers.empty() && config.sliding_layers.size() != static_cast<std::size_t>(config.layers)) {
    return fail(ErrorCode::corrupt, "metadata '", arch,
                "attention.sliding_window_pattern': ", config.sliding_layers.size(), " entries for ", config.layers,
                " layers");
  }
  if (config.architecture == "gpt-oss" && config.sliding_layers.empty()) {
    for (std::int64_t layer = 0; layer < config.layers; ++layer) config.sliding_layers.push_back(layer % 2 == 0);
  }
  config.tied_embeddings = checkpoint.find("output.weight") == nullptr;
  LLMINFER_TRY(apply_experts(metadata, arch, config));
  return apply_rope(metadata, arch, checkpoint);
}

Result<void> apply_vocabulary(const GgufMetadata& metadata, GgufFile& file, Checkpoint& checkpoint) {
  VocabularyData& vocabulary = checkpoint.vocabulary;
  const std::string prefix = "tokenizer.ggml.";
  vocabulary.model = LLMINFER_TRY(metadata.string(prefix + "model")).value_or("");
  vocabulary.pre = LLMINFER_TRY(metadata.string(prefix + "pre")).value_or("");
  vocabulary.tokens = LLMINFER_TRY(take_strings(file, prefix + "tokens"));
  vocabulary.scores = LLMINFER_TRY(metadata.floats(prefix + "scores"));
  vocabulary.types = LLMINFER_TRY(metadata.integers(prefix + "token_type"));
  vocabulary.has_merges = file.metadata.find(prefix + "merges") != nullptr;
  vocabulary.merges = LLMINFER_TRY(take_strings(file, prefix + "merges"));
  const std::size_t tokens = vocabulary.tokens.size();
  for (const auto& [key, size] :
       {std::pair{"scores", vocabulary.scores.size()}, {"token_type", vocabulary.types.size()}}) {
    if (size != 0 && size != tokens) {
      return fail(ErrorCode::bad_vocabulary, "metadata '", prefix, key, "': ", size, " entries for ", tokens,
                  " tokens");
    }
  }
  vocabulary.add_space_prefix = LLMINFER_TRY(metadata.boolean(prefix + "add_space_prefix"));
  vocabulary.add_bos = LLMINFER_TRY(metadata.boolean(prefix + "add_bos_token"));
  vocabulary.add_eos = LLMINFER_TRY(metadata.boolean(prefix + "add_eos_token"));
  vocabulary.remove_extra_whitespaces = LLMINFER_TRY(metadata.boolean(prefix + "remove_extra_whitespaces"));
  const auto id = [&](const char* key) { return metadata.integer(prefix + key, INT64_MIN, INT64_MAX); };
  vocabulary.bos = LLMINFER_TRY(id("bos_token_id"));
  vocabulary.eos = LLMINFER_TRY(id("eos_token_id"));
  vocabulary.eot = LLMINFER_TRY(id("eot_token_id"));
  vocabulary.unk = LLMINFER_TRY(id("unknown_token_id"));
  vocabulary.pad = LLMINFER_TRY(id("padding_token_id"));
  checkpoint.chat_template = LLMINFER_TRY(metadata.string("tokenizer.chat_template")).value_or("");

  // The embedding table decides how many ids there are: it may be padded, but every token needs a row.
  std::int64_t& size = checkpoint.config.vocab_size;
  if (const TensorInfo* embedding = checkpoint.find("token_embd.weight")) {
    size = embedding->rows;
    if (tokens > static_cast<std::uint64_t>(size)) {
      return fail(ErrorCode::bad_vocabulary, "metadata '", prefix, "tokens': ", tokens,
                  " tokens, but tensor 'token_embd.weight' has ", size, " rows");
    }
  } else if (tokens > 0) {
    size = static_cast<std::int64_t>(tokens);
  } else {
    size = LLMINFER_TRY(metadata.integer(checkpoint.config.architecture + ".vocab_size", 1, INT32_MAX)).value_or(0);
  }
  if (size > INT32_MAX) {
    return fail(ErrorCode::limit_exceeded, "a vocabulary of ", size, " tokens; token ids are 32-bit");
  }
  return {};
}

Result<void> apply_generation(const GgufMetadata& metadata, Checkpoint& checkpoint) {
  GenerationDefaults& generation = checkpoint.generation;
  for (const char* key :
       {"tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"}) {
    const auto id = LLMINFER_TRY(metadata.integer(key, INT64_MIN, INT64_MAX));
    // -1 and 2^32 - 1 are how writers say "none"; any other id without a row is an error.
    if (!id || *id == -1 || *id == 0xffffffff) continue;
    if (*id < 0 || *id >= checkpoint.config.vocab_size) {
      return fail(ErrorCode::bad_vocabulary, "metadata '", key, "': ", *id, " is not the id of one of ",
                  checkpoint.config.vocab_size, " tokens");
    }
    auto& ends = generation.eos_tokens;
    const auto token = static_cast<std::int32_t>(*id);
    if (std::find(ends.begin(), ends.end(), token) == ends.end()) ends.push_back(token);
  }
  const auto sampling = [&](const char* key) -> Result<std::optional<float>> {
    const auto value = LLMINFER_TRY(metadata.number(key));
    return value ? std::optional(static_cast<float>(*value)) : std::nullopt;
  };
  generation.temperature = LLMINFER_TRY(sampling("general.sampling.temp"));
  generation.top_p = LLMINFER_TRY(sampling("general.sampling.top_p"));
  generation.min_p = LLMINFER_TRY(sampling("general.sampling.min_p"));
  generation.repetition_penalty = LLMINFER_TRY(sampling("general.sampling.penalty_repeat"));
  if (const auto top_k = LLMINFER_TRY(metadata.integer("general.sampling.top_k", INT32_MIN, INT32_MAX))) {
    generation.top_k = static_cast<std::int32_t>(*top_k);
  }
  return {};
}

}  // namespace

Result<void> apply_gguf_metadata(GgufFile& file, Checkpoint& checkpoint) {
  const GgufMetadata metadata(file);
  LLMINFER_TRY(apply_config(metadata, checkpoint));
  LLMINFER_TRY(apply_vocabulary(metadata, file, checkpoint));
  return apply_generation(metadata, checkpoint);
}

}  // namespace llminfer::load
