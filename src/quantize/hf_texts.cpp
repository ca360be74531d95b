// config.json and its neighbours.
#include <sys/stat.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <iterator>

#include "arch/rope.hpp"
#include "core/error.hpp"
#include "core/file.hpp"
#include "quantize/hf_output.hpp"
#include "quantize/hf_tokenizer.hpp"
#include "quantize/json_fields.hpp"
#include "quantize/output_file.hpp"

namespace llminfer::quantize {
namespace {

using core::fail;
using core::Json;
using load::RopeScaling;

constexpr std::uint64_t kMaxText = std::uint64_t{512} << 20;

/// What belongs to a model beside its weights and config.json.
constexpr const char* kCopied[] = {"generation_config.json",
                                   "tokenizer.json",
                                   "tokenizer_config.json",
                                   "special_tokens_map.json",
                                   "added_tokens.json",
                                   "vocab.json",
                                   "merges.txt",
                                   "tokenizer.model",
                                   "chat_template.jinja",
                                   "chat_template.json",
                                   "LICENSE"};

constexpr const char* kQuantizeConfig = "quantize_config.json";

/// Sets or removes (null) a member.
void set(Json::Object& object, const std::string& key, Json value) {
  std::erase_if(object, [&](const Json::Member& member) { return member.key == key; });
  if (!value.is_null()) object.emplace_back(key, std::move(value));
}

const char* torch_name(std::string_view element) {
  return element == "F32" ? "float32" : element == "F16" ? "float16" : "bfloat16";
}

/// Llama 3's rule, if the factors of a GGUF file are those that it gives for a model of 8192 tokens, as all of them
/// are.
std::optional<RopeScaling> llama3_rule(const load::ModelConfig& config) {
  load::ModelConfig guess = config;
  RopeScaling& rule = guess.rope_scaling;
  const auto& factors = config.rope_scaling.factors;
  rule = {};
  rule.kind = RopeScaling::Kind::llama3;
  rule.factor = static_cast<double>(*std::max_element(factors.begin(), factors.end()));
  rule.original_context = 8192;
  const auto wanted = arch::make_rope_table(config, false), found = arch::make_rope_table(guess, false);
  if (!wanted || !found) return std::nullopt;
  for (std::size_t i = 0; i < wanted->inverse_frequency.size(); ++i) {
    const float a = wanted->inverse_frequency[i], b = found->inverse_frequency[i];
    if (std::fabs(a - b) > 1e-4f * a) return std::nullopt;
  }
  return rule;
}

Result<Json> rope_parameters(const load::ModelConfig& config) {
  RopeScaling s = config.rope_scaling;
  if (!s.factors.empty()) {
    const auto rule = s.kind == RopeScaling::Kind::factors ? llama3_rule(config) : std::nullopt;
    if (!rule) {
      return fail(ErrorCode::unsupported,
                  "tensor rope_freqs.weight: frequency factors that are not those of Llama 3's rule for a model of "
                  "8192 tokens before it was extended have no form in config.json");
    }
    s = *rule;
  }
  Fields rope;
  rope.add("rope_theta", config.rope_base);
  switch (s.kind) {
    case RopeScaling::Kind::none:
    case RopeScaling::Kind::factors:
      rope.add("rope_type", "default");
      break;
    case RopeScaling::Kind::linear:
      rope.add("rope_type", "linear").add("factor", s.factor);
      break;
    case RopeScaling::Kind::llama3:
      rope.add("rope_type", "llama3").add("factor", s.factor).add("low_freq_factor", s.low_freq_factor);
      rope.add("high_freq_factor", s.high_freq_factor);
      rope.add("original_max_position_embeddings", static_cast<std::int64_t>(s.original_context));
      break;
    case RopeScaling::Kind::yarn:
      rope.add("rope_type", "yarn").add("factor", s.factor).add("beta_fast", s.beta_fast).add("beta_slow", s.beta_slow);
      rope.add("original_max_position_embeddings", static_cast<std::int64_t>(s.original_context));
      if (s.attention_factor > 0) rope.add("attention_factor", s.attention_factor);
      if (!s.truncate) rope.add("truncate", false);
      break;
  }
  return rope.json();
}

struct FamilyNames {
  const char *type, *model;  ///< model_type, and its class in transformers
};
FamilyNames names_of(const load::ModelConfig& c) {
  const std::string& name = c.architecture;
  if (name == "qwen2") return {"qwen2", "Qwen2ForCausalLM"};
  if (name == "qwen3") return {"qwen3", "Qwen3ForCausalLM"};
  if (name == "qwen2moe") return {"qwen2_moe", "Qwen2MoeForCausalLM"};
  if (name == "qwen3moe") return {"qwen3_moe", "Qwen3MoeForCausalLM"};
  if (name == "olmoe") return {"olmoe", "OlmoeForCausalLM"};
  if (name == "gpt-oss") return {"gpt_oss", "GptOssForCausalLM"};
  if (c.experts > 0) return {"mixtral", "MixtralForCausalLM"};
  return c.sliding_window > 0 ? FamilyNames{"mistral", "MistralForCausalLM"} : FamilyNames{"llama", "LlamaForCausalLM"};
}

/// Errors: unsupported (a rule that the family's config.json has no key for).
Result<void> add_experts(const load::ModelConfig& c, Fields& config) {
  if (c.experts == 0) return {};
  const bool local = c.architecture == "llama" || c.architecture == "gpt-oss";
  config.add(local ? "num_local_experts" : "num_experts", c.experts).add("num_experts_per_tok", c.experts_used);
  if (local) {
    if (c.normalize_experts.value_or(true)) return {};
    return fail(ErrorCode::unsupported, "metadata '", c.architecture,
                ".expert_weights_norm' is false, which has no form ",
                "in this model's config.json; expected true, or no such key");
  }
  if (c.architecture == "olmoe") {
    config.add("norm_topk_prob", c.normalize_experts.value_or(false));
    return {};
  }
  config.add("moe_intermediate_size", c.expert_ffn_size);
  if (c.shared_ffn_size > 0) config.add("shared_expert_intermediate_size", c.shared_ffn_size);
  config.add("norm_topk_prob", c.normalize_experts.value_or(c.architecture == "qwen3moe"));
  config.add("decoder_sparse_step", 1).add("mlp_only_layers", Json(Json::Array()));
  return {};
}

/// config.json of a checkpoint that had none.
Result<Json> make_config(const load::Checkpoint& checkpoint) {
  const load::ModelConfig& c = checkpoint.config;
  const bool qwen2 = c.architecture.starts_with("qwen2"), qwen = c.architecture.starts_with("qwen"),
             gpt_oss = c.architecture == "gpt-oss", window = c.sliding_window > 0;
  const auto [type, model] = names_of(c);
  Fields config;
  config.add("architectures", list_of(model));
  config.add("model_type", type).add("vocab_size", c.vocab_size).add("hidden_size", c.hidden_size);
  // Where there is no key for it, this is the width of an expert.
  const bool of_expert = c.experts > 0 && !qwen;
  config.add("intermediate_size", of_expert ? c.expert_ffn_size : c.ffn_size)
      .add("num_hidden_layers", c.layers)
      .add("num_attention_heads", c.heads);
  config.add("num_key_value_heads", c.kv_heads).add("head_dim", c.head_dim).add("hidden_act", c.activation);
  config.add("max_position_embeddings", c.context_length).add("rms_norm_eps", c.norm_epsilon);
  config.add("tie_word_embeddings", c.tied_embeddings);
  LLMINFER_TRY(add_experts(c, config));
  if (!qwen2) config.add("attention_bias", checkpoint.find("model.layers.0.self_attn.q_proj.bias") != nullptr);
  if (!qwen && c.experts == 0) config.add("mlp_bias", checkpoint.find("model.layers.0.mlp.up_proj.bias") != nullptr);
  Json rope = LLMINFER_TRY(rope_parameters(c));
  config.add("rope_theta", c.rope_base);  // transformers 4 reads this and the next, 5 the one after it
  if (c.rope_scaling.kind != RopeScaling::Kind::none) config.add("rope_scaling", rope);
  config.add("rope_parameters", std::move(rope));
  if (window) config.add("sliding_window", c.sliding_window);
  if (qwen) config.add("use_sliding_window", window);
  if (window && !c.sliding_layers.empty()) {
    if (!qwen && !gpt_oss)
      return fail(ErrorCode::unsupported, "a sliding window in some layers only has no form in Mistral's config.json");
    Json::Array types;
    for (const std::uint8_t slides : c.sliding_layers)
      types.emplace_back(slides ? "sliding_attention" : "full_attention");
    config.add("layer_types", std::move(types));
  } else if (window && qwen) {
    config.add("max_window_layers", 0);
  }
  const load::VocabularyData& v = checkpoint.vocabulary;
  if (v.bos) config.add("bos_token_id", *v.bos);
  if (v.eos) config.add("eos_token_id", *v.eos);
  if (v.pad) config.add("pad_token_id", *v.pad);
  return config.json();
}

Json make_generation_config(const load::Checkpoint& checkpoint) {
  const load::GenerationDefaults& g = checkpoint.generation;
  Fields config;
  if (checkpoint.vocabulary.bos) config.add("bos_token_id", *checkpoint.vocabulary.bos);
  Json::Array ends;
  for (const std::int32_t id : g.eos_tokens) ends.emplace_back(std::int64_t{id});
  if (!ends.empty()) config.add("eos_token_id", std::move(ends));
  if (g.temperature)
    config.add("do_sample", *g.temperature > 0).add("temperature", static_cast<double>(*g.temperature));
  if (g.top_k) config.add("top_k", *g.top_k);
  if (g.top_p) config.add("top_p", static_cast<double>(*g.top_p));
  if (g.repetition_penalty) config.add("repetition_penalty", static_cast<double>(*g.repetition_penalty));
  return config.json();
}

Result<std::vector<TextFile>> copied_texts(const std::string& input) {
  std::vector<TextFile> texts;
  for (const char* name : kCopied) {
    auto text = core::read_text_file(input + "/" + name, kMaxText);
    if (!text && text.error().code == ErrorCode::not_found) continue;
    if (!text) return std::move(text).error();
    texts.push_back({name, std::move(*text)});
  }
  return texts;
}

}  // namespace

Result<std::vector<TextFile>> make_hf_texts(const Source& source, const std::string& input,
                                            const QuantizeOptions& options, const Layout& layout) {
  const load::Checkpoint& checkpoint = source.checkpoint;
  std::vector<TextFile> texts;
  Json config;
  if (source.from_hf) {
    const std::string path = input + "/config.json";
    config = LLMINFER_TRY(core::parse_json(LLMINFER_TRY(core::read_text_file(path, kMaxText)), path));
    texts = LLMINFER_TRY(copied_texts(input));
  } else {
    config = LLMINFER_TRY(make_config(checkpoint));
    texts = LLMINFER_TRY(make_hf_tokenizer(checkpoint));
    texts.push_back({"generation_config.json", make_generation_config(checkpoint).dump()});
  }
  auto& members = std::get<Json::Object>(config.value());
  const Json settings = quantization_config(options, layout.routers);
  set(members, "compression_config", {});
  set(members, "quantization_config", settings);
  if (options.output_matrix) set(members, "tie_word_embeddings", false);
  for (const char* key : {"torch_dtype", "dtype"}) set(members, key, torch_name(layout.dense));
  if (options.format == QuantizeFormat::gptq || options.format == QuantizeFormat::awq) {
    texts.push_back({kQuantizeConfig, settings.dump()});
  }
  texts.push_back({"config.json", config.dump()});
  return texts;
}

Result<void> write_hf_texts(const std::vector<TextFile>& texts, const std::string& directory) {
  std::vector<std::string> stale(std::begin(kCopied), std::end(kCopied));
  stale.insert(stale.end(), {kQuantizeConfig, "quant_config.json", "model.safetensors.index.json"});
  for (const TextFile& file : texts) {
    LLMINFER_TRY(write_file(directory + "/" + file.name, file.text));
    std::erase(stale, file.name);
  }
  std::error_code ignored;
  for (const std::string& name : stale) std::filesystem::remove(directory + "/" + name, ignored);
  return {};
}

}  // namespace llminfer::quantize
