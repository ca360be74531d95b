// The metadata of a GGUF file: the input's own, or config.json and tokenizer.json in the terms of the GGUF
// specification (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md).
#include <algorithm>
#include <cmath>
#include <cstring>
#include <unordered_map>
#include <utility>

#include "arch/rope.hpp"
#include "core/error.hpp"
#include "core/json.hpp"
#include "quantize/gguf_output.hpp"
#include "tok/pre_types.hpp"
#include "tok/tokenizer_model.hpp"

namespace llminfer::quantize {
namespace {

using core::fail;
using core::Json;
using load::GgufNumbers;
using load::GgufType;
using load::RopeScaling;

// tokenizer.ggml.token_type
constexpr std::int32_t kNormal = 1, kUnknown = 2, kControl = 3, kUserDefined = 4, kUnused = 5, kByte = 6;

class Metadata {
 public:
  std::vector<GgufPair> pairs;

  void text(std::string key, std::string value) {
    pairs.push_back({std::move(key), {GgufType::string, std::move(value)}});
  }
  void count(std::string key, std::int64_t value) {
    pairs.push_back({std::move(key), {GgufType::u32, static_cast<std::uint64_t>(value)}});
  }
  void number(std::string key, double value) { pairs.push_back({std::move(key), {GgufType::f32, value}}); }
  void flag(std::string key, bool value) { pairs.push_back({std::move(key), {GgufType::boolean, value}}); }
  void texts(std::string key, std::vector<std::string> values) {
    pairs.push_back({std::move(key), {GgufType::array, std::move(values)}});
  }
  template <class T>
  void numbers(std::string key, GgufType element, const std::vector<T>& values) {
    GgufNumbers array{element, std::vector<std::byte>(values.size() * sizeof(T))};
    std::memcpy(array.bytes.data(), values.data(), array.bytes.size());
    pairs.push_back({std::move(key), {GgufType::array, std::move(array)}});
  }
};

void add_experts(const load::ModelConfig& c, const std::string& arch, Metadata& out) {
  if (c.experts == 0) return;
  out.count(arch + "expert_count", c.experts);
  out.count(arch + "expert_used_count", c.experts_used);
  out.count(arch + "expert_feed_forward_length", c.expert_ffn_size);
  if (c.shared_ffn_size > 0) out.count(arch + "expert_shared_feed_forward_length", c.shared_ffn_size);
  if (c.normalize_experts) out.flag(arch + "expert_weights_norm", *c.normalize_experts);
}

void add_hyperparameters(const load::ModelConfig& c, Metadata& out) {
  const std::string arch = c.architecture + ".";
  out.text("general.architecture", c.architecture);
  if (!c.name.empty()) out.text("general.name", c.name);
  out.count(arch + "block_count", c.layers);
  out.count(arch + "context_length", c.context_length);
  out.count(arch + "embedding_length", c.hidden_size);
  out.count(arch + "feed_forward_length", c.ffn_size);
  add_experts(c, arch, out);
  out.count(arch + "attention.head_count", c.heads);
  out.count(arch + "attention.head_count_kv", c.kv_heads);
  out.count(arch + "attention.key_length", c.head_dim);
  out.count(arch + "attention.value_length", c.head_dim);
  out.number(arch + "attention.layer_norm_rms_epsilon", c.norm_epsilon);
  out.count(arch + "vocab_size", c.vocab_size);
  out.count(arch + "rope.dimension_count", c.rotary_dim);
  out.number(arch + "rope.freq_base", c.rope_base);
  if (c.sliding_window > 0) out.count(arch + "attention.sliding_window", c.sliding_window);
  if (c.sliding_window > 0 && !c.sliding_layers.empty()) {
    out.numbers(arch + "attention.sliding_window_pattern", GgufType::boolean, c.sliding_layers);
  }
  const RopeScaling& s = c.rope_scaling;
  if (s.kind == RopeScaling::Kind::linear || s.kind == RopeScaling::Kind::yarn) {
    const bool yarn = s.kind == RopeScaling::Kind::yarn;
    out.text(arch + "rope.scaling.type", yarn ? "yarn" : "linear");
    out.number(arch + "rope.scaling.factor", s.factor);
    if (!yarn) return;
    out.count(arch + "rope.scaling.original_context_length", static_cast<std::int64_t>(s.original_context));
    out.number(arch + "rope.scaling.yarn_beta_fast", s.beta_fast);
    out.number(arch + "rope.scaling.yarn_beta_slow", s.beta_slow);
    if (s.attention_factor > 0) {  // stored as a multiple of the default
      out.number(arch + "rope.scaling.attn_factor", s.attention_factor / (0.1 * std::log(s.factor) + 1));
    }
  }
}

Error no_name(const std::string& what) {
  return fail(ErrorCode::unsupported, "tokenizer.json: ", what, " has no name in GGUF files");
}

/// The patterns of a pre-tokenizer in the order in which they cut. Errors: unsupported.
Result<std::vector<std::string>> patterns_of(const Json& step) {
  const auto type = LLMINFER_TRY(core::json_string(step, "type", "tokenizer.json")).value_or("");
  std::vector<std::string> patterns;
  if (type == "Sequence") {
    const Json* steps = step.find("pretokenizers");
    for (std::size_t i = 0; steps && i < steps->size() && steps->is_array(); ++i) {
      const auto more = LLMINFER_TRY(patterns_of(steps->array()[i]));
      patterns.insert(patterns.end(), more.begin(), more.end());
    }
    return patterns;
  }
  if (type == "Digits") {
    const bool each = LLMINFER_TRY(core::json_bool(step, "individual_digits", "tokenizer.json")).value_or(false);
    patterns.emplace_back(each ? R"re(\p{N})re" : R"re(\p{N}+)re");
    return patterns;
  }
  if (type == "ByteLevel") {
    if (LLMINFER_TRY(core::json_bool(step, "add_prefix_space", "tokenizer.json")).value_or(true)) {
      return no_name("a byte-level vocabulary that puts a space before each text");
    }
    if (LLMINFER_TRY(core::json_bool(step, "use_regex", "tokenizer.json")).value_or(true)) {
      patterns.emplace_back(tok::find_pre_type("gpt-2")->patterns[0]);
    }
    return patterns;
  }
  const Json* pattern = step.find("pattern");
  const Json* regex = pattern ? pattern->find("Regex") : nullptr;
  if (type != "Split" || !regex || !regex->is_string()) return no_name("the pre-tokenizer \"" + type + "\"");
  patterns.push_back(regex->string());
  return patterns;
}

/// tokenizer.ggml.pre: a name of the table whose steps are the file's.
Result<std::string> pre_name(const Json& tokenizer, bool ignore_merges) {
  const Json* normalizer = tokenizer.find("normalizer");
  const Json* kind = normalizer ? normalizer->find("type") : nullptr;
  const bool nfc = kind && kind->is_string() && kind->string() == "NFC";
  if (normalizer && !normalizer->is_null() && !nfc) return no_name("its normalizer");
  const Json* step = tokenizer.find("pre_tokenizer");
  if (!step) return no_name("a vocabulary without pre-tokenizer");
  const auto patterns = LLMINFER_TRY(patterns_of(*step));
  for (const char* name : {"gpt-2", "smollm", "llama-bpe", "dbrx", "qwen2", "stablelm2", "qwen35", "tekken", "gpt-4o",
                           "deepseek-coder", "deepseek-v3", "bloom", "viking", "falcon", "seed-coder"}) {
    const tok::PreType& type = *tok::find_pre_type(name);
    const bool same = std::equal(patterns.begin(), patterns.end(), type.patterns.begin(), type.patterns.end());
    if (same && type.nfc == nfc && type.ignore_merges == ignore_merges) return std::string(name);
  }
  return no_name("its way to cut a text");
}

struct Tokens {
  std::vector<std::string> texts;
  std::vector<std::int32_t> types;
};

/// All ids of the model have a token in GGUF files; those without one here become unused.
Tokens tokens_of(const Json& tokenizer, std::int64_t vocab_size) {
  Tokens tokens;
  tokens.texts.resize(static_cast<std::size_t>(vocab_size));
  tokens.types.assign(tokens.texts.size(), kUnused);
  const auto place = [&](const std::string& text, std::optional<std::int64_t> id, std::int32_t type) {
    if (!id || *id < 0 || *id >= vocab_size) return;
    tokens.texts[static_cast<std::size_t>(*id)] = text;
    tokens.types[static_cast<std::size_t>(*id)] = type;
  };
  for (const auto& [text, id] : tokenizer.find("model")->find("vocab")->object()) place(text, id.integer(), kNormal);
  if (const Json* added = tokenizer.find("added_tokens"); added && added->is_array()) {
    for (const Json& token : added->array()) {
      const Json* content = token.find("content");
      const Json* special = token.find("special");
      const Json* id = token.find("id");
      if (!content || !content->is_string() || !id) continue;
      place(content->string(), id->integer(), special && special->boolean().value_or(false) ? kControl : kUserDefined);
    }
  }
  for (std::size_t i = 0; i < tokens.texts.size(); ++i) {
    if (tokens.texts[i].empty()) tokens.texts[i] = "[PAD" + std::to_string(i) + "]";
  }
  return tokens;
}

std::vector<std::pair<std::string, std::string>> merges_of(const Json& model) {
  std::vector<std::pair<std::string, std::string>> merges;
  for (const Json& item : model.find("merges")->array()) {
    if (item.is_string()) {
      const std::size_t space = item.string().find(' ', 1);
      if (space == std::string::npos || item.string().starts_with("#version")) continue;
      merges.emplace_back(item.string().substr(0, space), item.string().substr(space + 1));
    } else {
      merges.emplace_back(item.array()[0].string(), item.array()[1].string());
    }
  }
  return merges;
}

/// What a pre- or post-processor adds is best known to the tokenizer that was made of it.
void add_special_tokens(const tok::TokenizerModel& model, const load::VocabularyData& data, Metadata& out) {
  const std::string prefix = "tokenizer.ggml.";
  if (model.bos()) out.count(prefix + "bos_token_id", *model.bos());
  if (model.eos()) out.count(prefix + "eos_token_id", *model.eos());
  for (const char* name : {"<|im_end|>", "<|eot_id|>", "<|end|>", "<end_of_turn>"}) {
    const auto id = model.find(name);
    const auto ends = model.end_tokens();
    if (!id || id == model.eos() || std::find(ends.begin(), ends.end(), *id) == ends.end()) continue;
    out.count(prefix + "eot_token_id", *id);
    break;
  }
  if (data.pad && *data.pad >= 0) out.count(prefix + "padding_token_id", *data.pad);
  const auto encoded = model.encode("x", {.add_special = true, .parse_special = false});
  if (!encoded || encoded->empty()) return;
  out.flag(prefix + "add_bos_token", model.bos() && encoded->front() == *model.bos());
  out.flag(prefix + "add_eos_token", encoded->size() > 1 && model.eos() && encoded->back() == *model.eos());
}

Result<void> add_vocabulary(const load::Checkpoint& checkpoint, Metadata& out) {
  const load::VocabularyData& data = checkpoint.vocabulary;
  if (data.tokenizer_json.empty()) return {};  // a model for tokens alone
  // Reading it as a tokenizer checks all that is relied on below.
  const auto made = LLMINFER_TRY(tok::make_tokenizer(data, checkpoint.config.vocab_size, checkpoint.generation));
  const Json tokenizer = LLMINFER_TRY(core::parse_json(data.tokenizer_json, "tokenizer.json"));
  const Json& model = *tokenizer.find("model");
  const auto flag = [&](const char* key) -> Result<bool> {
    return LLMINFER_TRY(core::json_bool(model, key, "tokenizer.json")).value_or(false);
  };
  const bool sentencepiece = LLMINFER_TRY(flag("byte_fallback"));
  Tokens tokens = tokens_of(tokenizer, checkpoint.config.vocab_size);
  const auto merges = merges_of(model);
  const std::string prefix = "tokenizer.ggml.";
  out.text(prefix + "model", sentencepiece ? "llama" : "gpt2");
  if (sentencepiece) {
    // SentencePiece merges by the score of the result; the rank of the first merge that gives it puts them in the same
    // order.
    std::unordered_map<std::string, float> rank;
    for (std::size_t i = 0; i < merges.size(); ++i)
      rank.emplace(merges[i].first + merges[i].second, static_cast<float>(i));
    std::vector<float> scores;
    const auto unknown = LLMINFER_TRY(core::json_string(model, "unk_token", "tokenizer.json"));
    for (std::size_t i = 0; i < tokens.texts.size(); ++i) {
      const std::string& text = tokens.texts[i];
      const auto found = rank.find(text);
      scores.push_back(found == rank.end() ? -1e6f : -found->second);
      if (text.size() == 6 && text.starts_with("<0x") && text.back() == '>') tokens.types[i] = kByte;
      if (unknown && text == *unknown) {
        tokens.types[i] = kUnknown;
        out.count(prefix + "unknown_token_id", static_cast<std::int64_t>(i));
      }
    }
    out.numbers(prefix + "scores", GgufType::f32, scores);
    out.flag(prefix + "add_space_prefix", made->strips_leading_space());
  } else {
    out.text(prefix + "pre", LLMINFER_TRY(pre_name(tokenizer, LLMINFER_TRY(flag("ignore_merges")))));
    std::vector<std::string> lines;
    for (const auto& [left, right] : merges) lines.push_back(left + " " + right);
    out.texts(prefix + "merges", std::move(lines));
  }
  out.numbers(prefix + "token_type", GgufType::i32, tokens.types);
  out.texts(prefix + "tokens", std::move(tokens.texts));
  add_special_tokens(*made, data, out);
  if (!checkpoint.chat_template.empty()) out.text("tokenizer.chat_template", checkpoint.chat_template);
  return {};
}

}  // namespace

Result<std::vector<GgufPair>> gguf_metadata(const Source& source) {
  Metadata out;
  if (!source.from_hf) {
    load::GgufFile file = LLMINFER_TRY(load::parse_gguf(*source.checkpoint.sources.front()));
    for (auto& [key, value] : file.metadata) {
      const bool of_file = key.starts_with("split.") || key == "general.alignment" || key == "general.file_type" ||
                           key == "general.quantization_version";
      if (!of_file) out.pairs.push_back({key, std::move(value)});
    }
    const auto rank = [](const GgufPair& pair) {
      return std::pair(pair.key == "general.architecture" ? 0 : pair.key.starts_with("tokenizer.") ? 2 : 1, pair.key);
    };
    std::sort(out.pairs.begin(), out.pairs.end(), [&](const auto& a, const auto& b) { return rank(a) < rank(b); });
  } else {
    const load::ModelConfig& config = source.checkpoint.config;
    const RopeScaling& rope = config.rope_scaling;
    const bool truncates = config.architecture != "gpt-oss";  // what the architecture means, since no key says it
    if (rope.kind == RopeScaling::Kind::yarn && rope.truncate != truncates) {
      return fail(ErrorCode::unsupported, "rope scaling: \"truncate\": ", rope.truncate ? "true" : "false",
                  " has no form in GGUF files of ", config.architecture);
    }
    if (std::find(config.expert_layers.begin(), config.expert_layers.end(), 0) != config.expert_layers.end()) {
      return fail(ErrorCode::unsupported, "layers without experts among those with some have no form in GGUF files of ",
                  config.architecture);
    }
    add_hyperparameters(source.checkpoint.config, out);
    LLMINFER_TRY(add_vocabulary(source.checkpoint, out));
  }
  out.count("general.quantization_version", 2);
  return std::move(out.pairs);
}

Result<std::vector<float>> gguf_rope_factors(const Source& source) {
  std::vector<float> factors;
  if (!source.from_hf || source.checkpoint.config.rope_scaling.kind != RopeScaling::Kind::llama3) return factors;
  load::ModelConfig plain = source.checkpoint.config;
  const RopeTable scaled = LLMINFER_TRY(arch::make_rope_table(plain, false));
  plain.rope_scaling = {};
  factors = LLMINFER_TRY(arch::make_rope_table(plain, false)).inverse_frequency;
  for (std::size_t i = 0; i < factors.size(); ++i) factors[i] /= scaled.inverse_frequency[i];
  return factors;
}

}  // namespace llminfer::quantize
