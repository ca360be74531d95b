#include "load/hf_config.hpp"

#include <algorithm>
#include <cmath>
#include <span>

#include "core/error.hpp"
#include "core/json.hpp"

namespace llminfer::load {
namespace {

using core::fail;
using core::Json;

/// A model_type, the architecture that runs it, and the defaults of its configuration class in transformers.
struct Family {
  std::string_view model_type;
  const char* architecture;
  std::int64_t context_length;
  std::int64_t kv_heads;  ///< 0: as many as heads
  enum class Window : std::uint8_t {
    none,
    all,
    switched,
    every_other
  } window;  ///< of which layers; switched: if the config says so; every_other: the first, the third, … unless it does
  std::int64_t sliding_window = 0;  ///< where the key is absent (null switches the window off)
  std::int64_t head_dim = 0;        ///< where the key is absent; 0: hidden size / heads
  bool experts = false;
};
using Window = Family::Window;

constexpr Family kFamilies[] = {
    {"llama", "llama", 2048, 0, Window::none},
    {"mistral", "llama", 131072, 8, Window::all, 4096},
    {"mixtral", "llama", 131072, 8, Window::all, 0, 0, true},
    {"qwen2", "qwen2", 32768, 0, Window::switched, 4096},
    {"qwen2_moe", "qwen2moe", 32768, 16, Window::switched, 4096, 0, true},
    {"qwen3", "qwen3", 32768, 32, Window::switched, 4096, 128},
    {"qwen3_moe", "qwen3moe", 32768, 4, Window::switched, 4096, 0, true},
    {"olmoe", "olmoe", 4096, 0, Window::none, 0, 0, true},
    {"gpt_oss", "gpt-oss", 131072, 8, Window::every_other, 128, 64, true},
};

// Bounds that keep arithmetic on hyperparameters inside an int64.
constexpr std::int64_t kMaxCount = 1 << 24;
constexpr std::int64_t kMaxContext = INT32_MAX;

/// The keys of one JSON object, with range checks.
class Reader {
 public:
  Reader(const Json& object, std::string_view name) : object_(object), name_(name) {}

  Result<std::int64_t> integer(const char* key, std::int64_t fallback, std::int64_t min, std::int64_t max) const {
    const std::int64_t value = LLMINFER_TRY(core::json_int(object_, key, name_)).value_or(fallback);
    if (value >= min && value <= max) return value;
    return fail(ErrorCode::corrupt, name_, ": \"", key, "\" is ", value, ", expected ", min, " … ", max);
  }
  Result<std::int64_t> required(const char* key, std::int64_t max) const {
    LLMINFER_TRY(require(key));
    return integer(key, 0, 1, max);
  }
  Result<double> number(const char* key, double fallback) const {
    return LLMINFER_TRY(core::json_number(object_, key, name_)).value_or(fallback);
  }
  Result<double> required_number(const char* key) const {
    LLMINFER_TRY(require(key));
    return number(key, 0);
  }
  Result<bool> flag(const char* key, bool fallback) const {
    return LLMINFER_TRY(core::json_bool(object_, key, name_)).value_or(fallback);
  }
  Result<std::string> text(const char* key, const char* fallback) const {
    return LLMINFER_TRY(core::json_string(object_, key, name_)).value_or(fallback);
  }
  /// A member that is neither absent nor null.
  const Json* member(const char* key) const {
    const Json* member = object_.find(key);
    return !member || member->is_null() ? nullptr : member;
  }
  bool contains(const char* key) const { return object_.find(key) != nullptr; }
  std::string_view name() const { return name_; }

 private:
  Result<void> require(const char* key) const {
    if (member(key)) return {};
    return fail(ErrorCode::corrupt, name_, ": \"", key, "\" is missing");
  }

  const Json& object_;
  std::string_view name_;
};

Result<Json> parse_object(std::string_view text, std::string_view name) {
  Json json = LLMINFER_TRY(core::parse_json(text, name));
  if (!json.is_object()) return fail(ErrorCode::corrupt, name, ": not a JSON object");
  return json;
}

/// A token id or a list of them; -1 stands for none.
Result<std::vector<std::int32_t>> token_ids(const Reader& reader, const char* key, std::int64_t vocab_size) {
  std::vector<std::int32_t> ids;
  const Json* member = reader.member(key);
  if (!member) return ids;
  for (const Json& entry : member->is_array() ? std::span(member->array()) : std::span(member, 1)) {
    const std::int64_t value = entry.integer().value_or(INT64_MAX);
    if (value == -1) continue;
    if (value < 0 || value >= vocab_size) {
      return fail(ErrorCode::bad_vocabulary, reader.name(), ": \"", key, "\" has ", entry.dump(),
                  ", expected token ids below ", vocab_size);
    }
    const auto id = static_cast<std::int32_t>(value);
    if (std::find(ids.begin(), ids.end(), id) == ids.end()) ids.push_back(id);
  }
  return ids;
}

Result<void> read_yarn(const Reader& rope, std::int64_t context_length, RopeScaling& scaling) {
  scaling.kind = RopeScaling::Kind::yarn;
  scaling.factor = LLMINFER_TRY(rope.number("factor", static_cast<double>(context_length) / scaling.original_context));
  scaling.beta_fast = LLMINFER_TRY(rope.number("beta_fast", scaling.beta_fast));
  scaling.beta_slow = LLMINFER_TRY(rope.number("beta_slow", scaling.beta_slow));
  scaling.truncate = LLMINFER_TRY(rope.flag("truncate", true));
  scaling.attention_factor = LLMINFER_TRY(rope.number("attention_factor", 0));
  const double mscale = LLMINFER_TRY(rope.number("mscale", 0));
  const double mscale_all_dim = LLMINFER_TRY(rope.number("mscale_all_dim", 0));
  if (!rope.member("attention_factor") && mscale != 0 && mscale_all_dim != 0) {
    const auto magnitude = [&](double m) { return scaling.factor > 1 ? 0.1 * m * std::log(scaling.factor) + 1 : 1; };
    scaling.attention_factor = magnitude(mscale) / magnitude(mscale_all_dim);
  }
  return {};
}

/// The rotary parameters as transformers 5 or 4 name them, or null.
const Json* rope_object(const Reader& config) {
  const Json* object = config.member("rope_parameters");
  return object ? object : config.member("rope_scaling");
}

Result<void> read_rope(const Reader& config, ModelConfig& model) {
  const Json* object = rope_object(config);
  const Json none{Json::Object()};
  if (!object) object = &none;
  if (!object->is_object()) return fail(ErrorCode::corrupt, config.name(), ": the rope parameters must be an object");
  const Reader rope(*object, config.name());

  model.rope_base = LLMINFER_TRY(rope.number("rope_theta", LLMINFER_TRY(config.number("rope_theta", 10000.0))));
  for (const Reader* reader : {&config, &rope}) {
    if (LLMINFER_TRY(reader->number("partial_rotary_factor", 1.0)) != 1.0) {
      return fail(ErrorCode::unsupported, config.name(), ": \"partial_rotary_factor\" other than 1");
    }
  }

  RopeScaling& scaling = model.rope_scaling;
  std::string type = LLMINFER_TRY(rope.text("rope_type", ""));
  if (type.empty()) type = LLMINFER_TRY(rope.text("type", "default"));
  scaling.original_context = static_cast<double>(
      LLMINFER_TRY(rope.integer("original_max_position_embeddings", model.context_length, 1, kMaxContext)));
  if (type == "default") return {};
  if (type == "linear") {
    scaling.kind = RopeScaling::Kind::linear;
    scaling.factor = LLMINFER_TRY(rope.required_number("factor"));
    return {};
  }
  if (type == "llama3") {
    scaling.kind = RopeScaling::Kind::llama3;
    scaling.factor = LLMINFER_TRY(rope.required_number("factor"));
    scaling.low_freq_factor = LLMINFER_TRY(rope.required_number("low_freq_factor"));
    scaling.high_freq_factor = LLMINFER_TRY(rope.required_number("high_freq_factor"));
    return {};
  }
  if (type == "yarn") return read_yarn(rope, model.context_length, scaling);
  return fail(ErrorCode::unsupported, config.name(), ": the rotary scaling \"", type,
              "\"; expected default, linear, llama3 or yarn");
}

/// Which layers see a window only. Mistral, Mixtral: all. Qwen: those that layer_types names, or else those from
/// max_window_layers on; where there are experts, that depends on the version of transformers. gpt-oss: those that
/// layer_types names, or else every other one.
Result<void> read_sliding_window(const Reader& config, const Family& family, ModelConfig& model) {
  if (family.window == Window::none) return {};
  if (!config.contains("sliding_window")) model.sliding_window = family.sliding_window;
  if (config.member("sliding_window")) {
    model.sliding_window = LLMINFER_TRY(config.integer("sliding_window", 0, 0, kMaxContext));
  }
  if (family.window == Window::all) return {};
  const bool every_other = family.window == Window::every_other;
  if ((!every_other && !LLMINFER_TRY(config.flag("use_sliding_window", false))) || model.sliding_window == 0) {
    model.sliding_window = 0;
    return {};
  }
  const Json* types = config.member("layer_types");
  const std::int64_t first = LLMINFER_TRY(config.integer("max_window_layers", 28, 0, kMaxCount));
  if (types && (!types->is_array() || types->size() != static_cast<std::size_t>(model.layers))) {
    return fail(ErrorCode::corrupt, config.name(), ": \"layer_types\" must be a list of ", model.layers, " names");
  }
  if (!types && family.experts && !every_other) {
    return fail(ErrorCode::unsupported, config.name(), ": \"use_sliding_window\" without \"layer_types\"");
  }
  for (std::int64_t layer = 0; layer < model.layers; ++layer) {
    bool slides = every_other ? layer % 2 == 0 : layer >= first;
    if (types) {
      const Json& type = types->array()[static_cast<std::size_t>(layer)];
      const auto is = [&](std::string_view name) { return type.is_string() && type.string() == name; };
      slides = is("sliding_attention");
      if (!slides && !is("full_attention")) {
        return fail(ErrorCode::unsupported, config.name(), ": the layer type ", type.dump(),
                    "; expected full_attention or sliding_attention");
      }
    }
    model.sliding_layers.push_back(slides ? 1 : 0);
  }
  return {};
}

/// Which layers have mixtures: every decoder_sparse_step-th one but those of mlp_only_layers.
Result<void> read_expert_layers(const Reader& config, ModelConfig& model) {
  const std::int64_t step = LLMINFER_TRY(config.integer("decoder_sparse_step", 1, 1, kMaxCount));
  const Json* dense = config.member("mlp_only_layers");
  if (dense && !dense->is_array()) {
    return fail(ErrorCode::corrupt, config.name(), ": \"mlp_only_layers\" must be a list of layers");
  }
  if (step == 1 && (!dense || dense->size() == 0)) return {};
  for (std::int64_t layer = 0; layer < model.layers; ++layer) {
    model.expert_layers.push_back((layer + 1) % step == 0 ? 1 : 0);
  }
  if (!dense) return {};
  for (const Json& entry : dense->array()) {
    const std::int64_t layer = entry.integer().value_or(-1);
    if (layer < 0 || layer >= model.layers) {
      return fail(ErrorCode::corrupt, config.name(), ": \"mlp_only_layers\" has ", entry.dump(), ", expected 0 … ",
                  model.layers - 1);
    }
    model.expert_layers[static_cast<std::size_t>(layer)] = 0;
  }
  return {};
}

/// What the architecture has as it is published, and what has no default here.
Result<void> check_gpt_oss(const Reader& config) {
  constexpr std::pair<const char*, double> kNumbers[] = {{"swiglu_limit", 7.0}, {"swiglu_alpha", 1.702}};
  for (const auto& [key, expected] : kNumbers) {
    const double value = LLMINFER_TRY(config.number(key, expected));
    if (value == expected) continue;
    return fail(ErrorCode::unsupported, config.name(), ": \"", key, "\" is ", value, ", expected ", expected);
  }
  if (!config.member("rms_norm_eps")) return fail(ErrorCode::corrupt, config.name(), ": no \"rms_norm_eps\"");
  const Json* rope = rope_object(config);
  if (!rope) return fail(ErrorCode::corrupt, config.name(), ": neither \"rope_parameters\" nor \"rope_scaling\"");
  if (config.member("rope_theta") || rope->find("rope_theta")) return {};
  return fail(ErrorCode::corrupt, config.name(), ": no \"rope_theta\"");
}

Result<void> read_experts(const Reader& config, const Family& family, ModelConfig& model) {
  if (!family.experts) return {};
  const char* count = config.member("num_local_experts") ? "num_local_experts" : "num_experts";
  model.experts = LLMINFER_TRY(config.required(count, kMaxExperts));
  model.experts_used = LLMINFER_TRY(config.required("num_experts_per_tok", model.experts));
  model.expert_ffn_size = model.ffn_size;
  if (family.model_type == "mixtral") return {};
  if (family.model_type == "gpt_oss") return check_gpt_oss(config);
  model.normalize_experts = LLMINFER_TRY(config.flag("norm_topk_prob", false));
  if (family.model_type == "olmoe") {
    if (!config.member("clip_qkv")) return {};
    return fail(ErrorCode::unsupported, config.name(), ": \"clip_qkv\" other than null");
  }
  model.expert_ffn_size = LLMINFER_TRY(config.required("moe_intermediate_size", kMaxCount));
  if (family.model_type == "qwen2_moe") {
    model.shared_ffn_size = LLMINFER_TRY(config.required("shared_expert_intermediate_size", kMaxCount));
  }
  return read_expert_layers(config, model);
}

Result<Json> read_quantization(const Reader& config) {
  for (const char* key : {"quantization_config", "compression_config"}) {
    const Json* quantization = config.member(key);
    if (!quantization) continue;
    if (quantization->is_object()) return *quantization;
    return fail(ErrorCode::corrupt, config.name(), ": \"", key, "\" must be an object");
  }
  return Json();
}

}  // namespace

Result<HfConfig> parse_hf_config(std::string_view text, std::string_view name) {
  const Json json = LLMINFER_TRY(parse_object(text, name));
  const Reader config(json, name);
  const std::string model_type = LLMINFER_TRY(config.text("model_type", ""));
  const auto* family = std::find_if(std::begin(kFamilies), std::end(kFamilies),
                                    [&](const Family& candidate) { return candidate.model_type == model_type; });
  if (family == std::end(kFamilies)) {
    std::string known;
    for (const Family& candidate : kFamilies) known.append(known.empty() ? "" : ", ").append(candidate.model_type);
    return fail(ErrorCode::unsupported_architecture, name, ": the model_type \"", model_type, "\"; expected ", known);
  }

  HfConfig result;
  result.quantization = LLMINFER_TRY(read_quantization(config));
  ModelConfig& model = result.model;
  model.architecture = family->architecture;
  model.hf_names = true;
  model.vocab_size = LLMINFER_TRY(config.required("vocab_size", kMaxCount));
  model.context_length =
      LLMINFER_TRY(config.integer("max_position_embeddings", family->context_length, 1, kMaxContext));
  model.layers = LLMINFER_TRY(config.required("num_hidden_layers", 1000));
  model.hidden_size = LLMINFER_TRY(config.required("hidden_size", kMaxCount));
  model.ffn_size = LLMINFER_TRY(config.required("intermediate_size", kMaxCount));
  model.heads = LLMINFER_TRY(config.required("num_attention_heads", kMaxCount));
  const bool kv_default = family->kv_heads != 0 && !config.contains("num_key_value_heads");
  model.kv_heads =
      LLMINFER_TRY(config.integer("num_key_value_heads", kv_default ? family->kv_heads : model.heads, 1, kMaxCount));
  if (!config.member("head_dim") && family->head_dim == 0 && model.hidden_size % model.heads != 0) {
    return fail(ErrorCode::corrupt, name, ": \"num_attention_heads\" is ", model.heads,
                ", which does not divide \"hidden_size\", ", model.hidden_size, ", and there is no \"head_dim\"");
  }
  const std::int64_t head_dim = family->head_dim != 0 ? family->head_dim : model.hidden_size / model.heads;
  model.head_dim = LLMINFER_TRY(config.integer("head_dim", head_dim, 1, kMaxCount));
  model.rotary_dim = model.head_dim;
  model.norm_epsilon = LLMINFER_TRY(config.number("rms_norm_eps", 1e-6));
  model.tied_embeddings = LLMINFER_TRY(config.flag("tie_word_embeddings", false));
  model.activation = LLMINFER_TRY(config.text("hidden_act", "silu"));
  LLMINFER_TRY(read_rope(config, model));
  LLMINFER_TRY(read_sliding_window(config, *family, model));
  LLMINFER_TRY(read_experts(config, *family, model));

  result.bos = LLMINFER_TRY(core::json_int(json, "bos_token_id", name));
  result.pad = LLMINFER_TRY(core::json_int(json, "pad_token_id", name));
  result.eos_tokens = LLMINFER_TRY(token_ids(config, "eos_token_id", model.vocab_size));
  if (!result.eos_tokens.empty()) result.eos = result.eos_tokens.front();
  return result;
}

Result<GenerationDefaults> parse_generation_config(std::string_view text, std::string_view name,
                                                   std::int64_t vocab_size) {
  const Json json = LLMINFER_TRY(parse_object(text, name));
  const Reader config(json, name);
  GenerationDefaults result;
  const auto number = [&](const char* key) -> Result<std::optional<float>> {
    const auto value = LLMINFER_TRY(core::json_number(json, key, name));
    return value ? std::optional(static_cast<float>(*value)) : std::nullopt;
  };
  result.temperature = LLMINFER_TRY(number("temperature"));
  result.top_p = LLMINFER_TRY(number("top_p"));
  result.min_p = LLMINFER_TRY(number("min_p"));
  result.repetition_penalty = LLMINFER_TRY(number("repetition_penalty"));
  result.do_sample = LLMINFER_TRY(core::json_bool(json, "do_sample", name));
  if (config.member("top_k")) {
    result.top_k = static_cast<std::int32_t>(LLMINFER_TRY(config.integer("top_k", 0, 0, INT32_MAX)));
  }
  result.eos_tokens = LLMINFER_TRY(token_ids(config, "eos_token_id", vocab_size));
  return result;
}

Result<std::string> parse_chat_template(std::string_view tokenizer_config, std::string_view name) {
  const Json json = LLMINFER_TRY(parse_object(tokenizer_config, name));
  const Json* member = Reader(json, name).member("chat_template");
  if (!member) return std::string();
  if (member->is_string()) return member->string();
  if (!member->is_array()) {
    return fail(ErrorCode::corrupt, name, ": \"chat_template\" must be a string or a list of templates");
  }
  for (const Json& entry : member->array()) {
    if (!entry.is_object()) return fail(ErrorCode::corrupt, name, ": an entry of \"chat_template\" is not an object");
    if (LLMINFER_TRY(core::json_string(entry, "name", name)) != "default") continue;
    return LLMINFER_TRY(core::json_string(entry, "template", name)).value_or("");
  }
  return std::string();
}

}  // namespace llminfer::load
