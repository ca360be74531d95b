#include "quantize/hf_tokenizer.hpp"

#include <algorithm>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "core/error.hpp"
#include "quantize/json_fields.hpp"
#include "tok/pre_types.hpp"

namespace llminfer::quantize {
namespace {

using core::fail;
using core::Json;
using load::VocabularyData;

// tokenizer.ggml.token_type
constexpr std::int32_t kUnknown = 2, kControl = 3, kUserDefined = 4;
constexpr const char* kMark = "\xe2\x96\x81";  // the lower block that stands for a space

Json typed(const char* type) { return Fields().add("type", type).json(); }

Json sequence_of(const char* key, Json::Array items) {
  return Fields().add("type", "Sequence").add(key, std::move(items)).json();
}

Json replace(const char* from, const char* to) {
  return Fields().add("type", "Replace").add("pattern", Fields().add("String", from).json()).add("content", to).json();
}

Json byte_level() {
  Fields fields;
  fields.add("type", "ByteLevel").add("add_prefix_space", false).add("trim_offsets", true).add("use_regex", false);
  return fields.json();
}

Json added_tokens(const VocabularyData& v) {
  Json::Array added;
  for (std::size_t i = 0; i < v.types.size(); ++i) {
    const bool special = v.types[i] == kControl || v.types[i] == kUnknown;
    if (!special && v.types[i] != kUserDefined) continue;
    Fields token;
    token.add("id", static_cast<std::int64_t>(i)).add("content", Json(v.tokens[i])).add("single_word", false);
    token.add("lstrip", false).add("rstrip", false).add("normalized", false).add("special", special);
    added.push_back(token.json());
  }
  return added;
}

Json vocabulary(const VocabularyData& v) {
  Json::Object tokens;
  for (std::size_t i = 0; i < v.tokens.size(); ++i) tokens.emplace_back(v.tokens[i], static_cast<std::int64_t>(i));
  return tokens;
}

Json pair_of(std::string_view left, std::string_view right) {
  Json::Array pair;
  pair.emplace_back(std::string(left));
  pair.emplace_back(std::string(right));
  return pair;
}

Json stored_merges(const VocabularyData& v) {
  Json::Array merges;
  for (const std::string& line : v.merges) {
    const std::size_t space = line.find(' ', 1);
    merges.push_back(pair_of(std::string_view(line).substr(0, space), std::string_view(line).substr(space + 1)));
  }
  return merges;
}

/// SentencePiece merges the two neighbours whose union has the best score; so the ranked merges are all ways to cut a
/// token into two, the best tokens first.
Json scored_merges(const VocabularyData& v) {
  std::unordered_map<std::string_view, std::size_t> ids;
  for (std::size_t i = 0; i < v.tokens.size(); ++i) ids.emplace(v.tokens[i], i);
  std::vector<std::size_t> order(v.tokens.size());
  for (std::size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::stable_sort(order.begin(), order.end(), [&](auto a, auto b) { return v.scores[a] > v.scores[b]; });
  Json::Array merges;
  for (const std::size_t id : order) {
    const std::int32_t type = v.types.empty() ? 1 : v.types[id];
    if (type != 1 && type != kUserDefined) continue;
    const std::string_view token = v.tokens[id];
    std::vector<std::pair<std::size_t, std::size_t>> cuts;
    for (std::size_t at = 1; at < token.size(); ++at) {
      const auto left = ids.find(token.substr(0, at)), right = ids.find(token.substr(at));
      if (left != ids.end() && right != ids.end()) cuts.emplace_back(left->second, right->second);
    }
    std::sort(cuts.begin(), cuts.end());
    for (const auto& [left, right] : cuts) merges.push_back(pair_of(v.tokens[left], v.tokens[right]));
  }
  return merges;
}

Json post_processor(const VocabularyData& v, bool add_bos) {
  Json::Array single, pair;
  Fields specials;
  const auto add_special = [&](std::int64_t id) {
    const std::string& text = v.tokens[static_cast<std::size_t>(id)];
    Json token = Fields().add("SpecialToken", Fields().add("id", Json(text)).add("type_id", 0).json()).json();
    single.push_back(token);
    pair.push_back(std::move(token));
    Fields special;
    special.add("id", Json(text)).add("ids", list_of(id)).add("tokens", list_of(text));
    specials.add(text, special.json());
  };
  const auto sequence = [](const char* id, int type) {
    return Fields().add("Sequence", Fields().add("id", id).add("type_id", type).json()).json();
  };
  if (add_bos && v.bos) add_special(*v.bos);
  single.push_back(sequence("A", 0));
  pair.push_back(sequence("A", 0));
  pair.push_back(sequence("B", 1));
  if (v.add_eos.value_or(false) && v.eos && v.eos != v.bos) add_special(*v.eos);
  Fields processor;
  processor.add("type", "TemplateProcessing").add("single", std::move(single)).add("pair", std::move(pair));
  return processor.add("special_tokens", specials.json()).json();
}

Result<Json> byte_level_tokenizer(const VocabularyData& v) {
  const tok::PreType* pre = tok::find_pre_type(v.pre);
  if (!pre) return fail(ErrorCode::unsupported, "tokenizer.ggml.pre: pre-tokenizer \"", v.pre, "\" is not known");
  Json::Array steps;
  for (const std::string_view pattern : pre->patterns) {
    Fields split;
    split.add("type", "Split").add("pattern", Fields().add("Regex", Json(std::string(pattern))).json());
    steps.push_back(split.add("behavior", "Isolated").add("invert", false).json());
  }
  steps.push_back(byte_level());
  Fields model, all;
  model.add("type", "BPE").add_null("dropout").add_null("unk_token").add_null("continuing_subword_prefix");
  model.add_null("end_of_word_suffix").add("fuse_unk", false).add("byte_fallback", false);
  model.add("ignore_merges", pre->ignore_merges).add("vocab", vocabulary(v)).add("merges", stored_merges(v));
  all.add("version", "1.0").add_null("truncation").add_null("padding").add("added_tokens", added_tokens(v));
  pre->nfc ? all.add("normalizer", typed("NFC")) : all.add_null("normalizer");
  all.add("pre_tokenizer", sequence_of("pretokenizers", std::move(steps)));
  all.add("post_processor", post_processor(v, v.add_bos.value_or(pre->add_bos)));
  return all.add("decoder", byte_level()).add("model", model.json()).json();
}

Json sentencepiece_tokenizer(const VocabularyData& v) {
  Json::Array normalizers, decoders;
  if (v.add_space_prefix.value_or(true)) {
    normalizers.push_back(Fields().add("type", "Prepend").add("prepend", kMark).json());
  }
  normalizers.push_back(replace(" ", kMark));
  decoders.push_back(replace(kMark, " "));
  decoders.push_back(typed("ByteFallback"));
  decoders.push_back(typed("Fuse"));
  if (v.add_space_prefix.value_or(true)) {
    decoders.push_back(Fields().add("type", "Strip").add("content", " ").add("start", 1).add("stop", 0).json());
  }
  Fields model, all;
  model.add("type", "BPE").add_null("dropout");
  const auto unknown = std::find(v.types.begin(), v.types.end(), kUnknown);
  if (unknown != v.types.end()) {
    model.add("unk_token", Json(v.tokens[static_cast<std::size_t>(unknown - v.types.begin())]));
  } else {
    model.add_null("unk_token");
  }
  model.add_null("continuing_subword_prefix").add_null("end_of_word_suffix").add("fuse_unk", true);
  model.add("byte_fallback", true).add("vocab", vocabulary(v)).add("merges", scored_merges(v));
  all.add("version", "1.0").add_null("truncation").add_null("padding").add("added_tokens", added_tokens(v));
  all.add("normalizer", sequence_of("normalizers", std::move(normalizers))).add_null("pre_tokenizer");
  all.add("post_processor", post_processor(v, v.add_bos.value_or(true)));
  return all.add("decoder", sequence_of("decoders", std::move(decoders))).add("model", model.json()).json();
}

}  // namespace

Result<std::vector<TextFile>> make_hf_tokenizer(const load::Checkpoint& checkpoint) {
  const VocabularyData& v = checkpoint.vocabulary;
  std::vector<TextFile> texts;
  if (v.model.empty()) return texts;  // a model for tokens alone
  Json tokenizer;
  if (v.model == "gpt2") {
    tokenizer = LLMINFER_TRY(byte_level_tokenizer(v));
  } else if (v.model == "llama") {
    tokenizer = sentencepiece_tokenizer(v);
  } else {
    return fail(ErrorCode::unsupported, "tokenizer.ggml.model: no tokenizer.json for a vocabulary of kind \"", v.model,
                "\"");
  }
  texts.push_back({"tokenizer.json", tokenizer.dump()});

  Fields config;
  const auto name = [&](const char* key, const std::optional<std::int64_t>& id) {
    if (id && *id >= 0 && *id < static_cast<std::int64_t>(v.tokens.size())) {
      config.add(key, Json(v.tokens[static_cast<std::size_t>(*id)]));
    }
  };
  config.add("tokenizer_class", "PreTrainedTokenizerFast").add("clean_up_tokenization_spaces", false);
  config.add("model_max_length", checkpoint.config.context_length);
  name("bos_token", v.bos);
  name("eos_token", v.eos);
  name("pad_token", v.pad);
  name("unk_token", v.unk);
  if (!checkpoint.chat_template.empty()) {
    config.add("chat_template", Json(checkpoint.chat_template));
    texts.push_back({"chat_template.jinja", checkpoint.chat_template});
  }
  texts.push_back({"tokenizer_config.json", config.json().dump()});
  return texts;
}

}  // namespace llminfer::quantize
