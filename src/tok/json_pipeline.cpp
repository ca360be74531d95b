#include "tok/json_pipeline.hpp"

#include "core/error.hpp"

namespace llminfer::inline v0 {
namespace tok {
namespace {

using core::Json;

constexpr std::string_view kGpt2Split =
    R"re('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)re";

/// "tokenizer.json: decoder"
std::string place(const char* what) { return std::string("tokenizer.json: ") + what; }

Result<std::string> type_of(const Json& json, const char* what) {
  if (!json.is_object()) return core::fail(ErrorCode::corrupt, place(what), " must be an object");
  const auto type = LLMINFER_TRY(core::json_string(json, "type", place(what)));
  if (!type) return core::fail(ErrorCode::corrupt, place(what), ": \"type\" is missing");
  return *type;
}

Error unknown_type(const char* what, const std::string& type) {
  return core::fail(ErrorCode::unsupported, place(what), " of type \"", type, "\" is not available");
}

Result<std::string> required_string(const Json& json, const char* key, const char* what) {
  const auto value = LLMINFER_TRY(core::json_string(json, key, place(what)));
  if (!value) return core::fail(ErrorCode::corrupt, place(what), ": \"", key, "\" is missing");
  return *value;
}

Result<bool> flag(const Json& json, const char* key, bool otherwise, const char* what) {
  return LLMINFER_TRY(core::json_bool(json, key, place(what))).value_or(otherwise);
}

Result<const Json::Array*> required_array(const Json& json, const char* key, const char* what) {
  const Json* member = json.find(key);
  if (!member || !member->is_array()) {
    return core::fail(ErrorCode::corrupt, place(what), ": \"", key, "\" must be an array");
  }
  return &member->array();
}

/// {"String": …} or {"Regex": …}
struct PatternText {
  std::string text;
  bool regex = false;
};
Result<PatternText> read_pattern(const Json& json, const char* what) {
  const Json* pattern = json.find("pattern");
  if (!pattern || !pattern->is_object()) {
    return core::fail(ErrorCode::corrupt, place(what), ": \"pattern\" must be an object");
  }
  if (pattern->find("Regex")) return PatternText{LLMINFER_TRY(required_string(*pattern, "Regex", what)), true};
  return PatternText{LLMINFER_TRY(required_string(*pattern, "String", what)), false};
}

Result<Pattern> compile(const PatternText& pattern, const char* what) {
  if (pattern.text.empty()) return core::fail(ErrorCode::corrupt, place(what), ": empty pattern");
  return pattern.regex ? Pattern::compile(pattern.text, place(what)) : Pattern::literal(pattern.text, place(what));
}

Result<SplitBehavior> read_behavior(const Json& json, const char* what) {
  const std::string name = LLMINFER_TRY(core::json_string(json, "behavior", place(what))).value_or("Isolated");
  if (name == "Removed") return SplitBehavior::removed;
  if (name == "Isolated") return SplitBehavior::isolated;
  if (name == "MergedWithPrevious") return SplitBehavior::merged_with_previous;
  if (name == "MergedWithNext") return SplitBehavior::merged_with_next;
  if (name == "Contiguous") return SplitBehavior::contiguous;
  return core::fail(ErrorCode::unsupported, place(what), ": split behavior \"", name, "\" is not known");
}

Result<PrependScheme> read_prepend_scheme(const Json& json, const char* what) {
  const auto scheme = LLMINFER_TRY(core::json_string(json, "prepend_scheme", place(what)));
  if (!scheme) {
    return LLMINFER_TRY(flag(json, "add_prefix_space", true, what)) ? PrependScheme::always : PrependScheme::never;
  }
  if (*scheme == "always") return PrependScheme::always;
  if (*scheme == "first") return PrependScheme::first;
  if (*scheme == "never") return PrependScheme::never;
  return core::fail(ErrorCode::unsupported, place(what), ": prepend_scheme \"", *scheme, "\" is not known");
}

Result<std::string> read_mark(const Json& json, const char* what) {
  std::string mark = LLMINFER_TRY(core::json_string(json, "replacement", place(what))).value_or("\u2581");
  if (mark.empty()) return core::fail(ErrorCode::corrupt, place(what), ": empty replacement");
  return mark;
}

Result<Token> read_id(const Json& id, std::int64_t size, const char* what) {
  if (!id.is_integer()) return core::fail(ErrorCode::corrupt, place(what), ": token ids must be integers");
  return checked_token(id.integer().value_or(INT64_MAX), size, place(what) + " id");
}

/// ["</s>", 2]
Result<Token> read_pair_id(const Json& json, const char* key, std::int64_t size, const char* what) {
  const Json::Array* pair = LLMINFER_TRY(required_array(json, key, what));
  if (pair->size() != 2) return core::fail(ErrorCode::corrupt, place(what), ": \"", key, "\" must be [text, id]");
  return read_id((*pair)[1], size, what);
}

Result<void> read_template(const Json& json, std::int64_t size, const char* what, std::vector<Token>& before,
                           std::vector<Token>& after) {
  const Json::Array* items = LLMINFER_TRY(required_array(json, "single", what));
  bool passed = false;
  for (const Json& item : *items) {
    if (!item.is_object()) return core::fail(ErrorCode::corrupt, place(what), ": \"single\" must hold objects");
    if (item.find("Sequence")) {
      passed = true;
      continue;
    }
    const Json* special = item.find("SpecialToken");
    if (!special || !special->is_object()) {
      return core::fail(ErrorCode::corrupt, place(what), ": \"single\" must hold Sequence and SpecialToken objects");
    }
    const std::string name = LLMINFER_TRY(required_string(*special, "id", what));
    const Json* table = json.find("special_tokens");
    const Json* entry = table ? table->find(name) : nullptr;
    if (!entry || !entry->is_object()) {
      return core::fail(ErrorCode::bad_vocabulary, place(what), ": special token \"", name, "\" is not defined");
    }
    for (const Json& id : *LLMINFER_TRY(required_array(*entry, "ids", what))) {
      (passed ? after : before).push_back(LLMINFER_TRY(read_id(id, size, what)));
    }
  }
  return {};
}

}  // namespace

Result<void> read_normalizer(const Json& json, std::vector<Normalizer>& out) {
  constexpr const char* kWhat = "normalizer";
  if (json.is_null()) return {};
  const std::string type = LLMINFER_TRY(type_of(json, kWhat));
  if (type == "Sequence") {
    for (const Json& step : *LLMINFER_TRY(required_array(json, "normalizers", kWhat)))
      LLMINFER_TRY(read_normalizer(step, out));
  } else if (type == "NFC") {
    out.push_back(normal_form(NormalForm::nfc));
  } else if (type == "NFD") {
    out.push_back(normal_form(NormalForm::nfd));
  } else if (type == "NFKC") {
    out.push_back(normal_form(NormalForm::nfkc));
  } else if (type == "NFKD") {
    out.push_back(normal_form(NormalForm::nfkd));
  } else if (type == "Lowercase") {
    out.push_back(lowercase_all());
  } else if (type == "Prepend") {
    out.push_back(prepend(LLMINFER_TRY(required_string(json, "prepend", kWhat))));
  } else if (type == "Strip") {
    const bool left = LLMINFER_TRY(flag(json, "strip_left", true, kWhat));
    out.push_back(strip_whitespace(left, LLMINFER_TRY(flag(json, "strip_right", true, kWhat))));
  } else if (type == "Replace") {
    const PatternText pattern = LLMINFER_TRY(read_pattern(json, kWhat));
    std::string content = LLMINFER_TRY(required_string(json, "content", kWhat));
    if (pattern.regex) {
      out.push_back(replace_matches(LLMINFER_TRY(compile(pattern, kWhat)), std::move(content)));
    } else {
      if (pattern.text.empty()) return core::fail(ErrorCode::corrupt, place(kWhat), ": empty pattern");
      out.push_back(replace_all(pattern.text, std::move(content)));
    }
  } else {
    return unknown_type(kWhat, type);
  }
  return {};
}

Result<void> read_pre_tokenizer(const Json& json, std::vector<PreTokenizer>& out) {
  constexpr const char* kWhat = "pre_tokenizer";
  if (json.is_null()) return {};
  const std::string type = LLMINFER_TRY(type_of(json, kWhat));
  const auto push_split = [&](std::string_view pattern, SplitBehavior behavior, bool invert) -> Result<void> {
    out.push_back(split(LLMINFER_TRY(Pattern::compile(pattern, place(kWhat))), behavior, invert));
    return {};
  };
  if (type == "Sequence") {
    for (const Json& step : *LLMINFER_TRY(required_array(json, "pretokenizers", kWhat))) {
      LLMINFER_TRY(read_pre_tokenizer(step, out));
    }
  } else if (type == "ByteLevel") {
    if (LLMINFER_TRY(flag(json, "add_prefix_space", true, kWhat))) out.push_back(prefix_space());
    if (LLMINFER_TRY(flag(json, "use_regex", true, kWhat))) {
      LLMINFER_TRY(push_split(kGpt2Split, SplitBehavior::isolated, false));
    }
    out.push_back(byte_level());
  } else if (type == "Split") {
    const PatternText pattern = LLMINFER_TRY(read_pattern(json, kWhat));
    const SplitBehavior behavior = LLMINFER_TRY(read_behavior(json, kWhat));
    const bool invert = LLMINFER_TRY(flag(json, "invert", false, kWhat));
    out.push_back(split(LLMINFER_TRY(compile(pattern, kWhat)), behavior, invert));
  } else if (type == "Digits") {
    const bool single = LLMINFER_TRY(flag(json, "individual_digits", false, kWhat));
    LLMINFER_TRY(push_split(single ? "\\p{N}" : "\\p{N}+", SplitBehavior::isolated, false));
  } else if (type == "Punctuation") {
    LLMINFER_TRY(push_split("[!-/:-@\\[-`{-~\\p{P}]", LLMINFER_TRY(read_behavior(json, kWhat)), false));
  } else if (type == "Whitespace") {
    LLMINFER_TRY(push_split("\\w+|[^\\w\\s]+", SplitBehavior::removed, true));
  } else if (type == "WhitespaceSplit") {
    LLMINFER_TRY(push_split("\\s", SplitBehavior::removed, false));
  } else if (type == "CharDelimiterSplit") {
    const std::string delimiter = LLMINFER_TRY(required_string(json, "delimiter", kWhat));
    out.push_back(split(LLMINFER_TRY(compile({delimiter, false}, kWhat)), SplitBehavior::removed, false));
  } else if (type == "Metaspace") {
    std::string mark = LLMINFER_TRY(read_mark(json, kWhat));
    const PrependScheme scheme = LLMINFER_TRY(read_prepend_scheme(json, kWhat));
    out.push_back(metaspace(std::move(mark), scheme, LLMINFER_TRY(flag(json, "split", true, kWhat))));
  } else {
    return unknown_type(kWhat, type);
  }
  return {};
}

Result<void> read_decoder(const Json& json, Decoder& out) {
  constexpr const char* kWhat = "decoder";
  if (json.is_null()) return {};
  const std::string type = LLMINFER_TRY(type_of(json, kWhat));
  if (type == "Sequence") {
    for (const Json& step : *LLMINFER_TRY(required_array(json, "decoders", kWhat)))
      LLMINFER_TRY(read_decoder(step, out));
    return {};
  }
  if (type == "Fuse") {
    out.fused = true;
    return {};
  }
  if (type == "Strip") {
    const std::int64_t start = LLMINFER_TRY(core::json_int(json, "start", place(kWhat))).value_or(0);
    const std::int64_t stop = LLMINFER_TRY(core::json_int(json, "stop", place(kWhat))).value_or(0);
    const std::string content = LLMINFER_TRY(required_string(json, "content", kWhat));
    if (start == 0 && stop == 0) return {};
    if (!out.fused || content != " " || start != 1 || stop != 0) {
      return core::fail(ErrorCode::unsupported, place(kWhat), ": Strip of anything but one leading space of the text");
    }
    out.strips_leading_space = true;
    return {};
  }
  if (out.fused || out.byte_level)
    return core::fail(ErrorCode::unsupported, place(kWhat), ": ", type, " on a whole text");
  if (type == "ByteLevel") {
    out.byte_level = true;
  } else if (type == "ByteFallback") {
    out.steps.push_back([](std::string& text) {
      const int byte = byte_token_value(text);
      if (byte >= 0) text.assign(1, static_cast<char>(byte));
    });
  } else if (type == "Replace") {
    const PatternText pattern = LLMINFER_TRY(read_pattern(json, kWhat));
    if (pattern.regex) return core::fail(ErrorCode::unsupported, place(kWhat), ": Replace of a regular expression");
    if (pattern.text.empty()) return core::fail(ErrorCode::corrupt, place(kWhat), ": empty pattern");
    out.steps.push_back([from = pattern.text, to = LLMINFER_TRY(required_string(json, "content", kWhat))](
                            std::string& text) { text = replaced(text, from, to); });
  } else if (type == "Metaspace") {
    out.steps.push_back(
        [mark = LLMINFER_TRY(read_mark(json, kWhat))](std::string& text) { text = replaced(text, mark, " "); });
    out.strips_leading_space = LLMINFER_TRY(read_prepend_scheme(json, kWhat)) != PrependScheme::never;
  } else {
    return unknown_type(kWhat, type);
  }
  return {};
}

Result<void> read_post_processor(const Json& json, std::int64_t size, std::vector<Token>& prefix,
                                 std::vector<Token>& suffix) {
  constexpr const char* kWhat = "post_processor";
  if (json.is_null()) return {};
  const std::string type = LLMINFER_TRY(type_of(json, kWhat));
  if (type == "Sequence") {
    for (const Json& step : *LLMINFER_TRY(required_array(json, "processors", kWhat))) {
      LLMINFER_TRY(read_post_processor(step, size, prefix, suffix));
    }
    return {};
  }
  std::vector<Token> before, after;
  if (type == "TemplateProcessing") {
    LLMINFER_TRY(read_template(json, size, kWhat, before, after));
  } else if (type == "BertProcessing" || type == "RobertaProcessing") {
    before.push_back(LLMINFER_TRY(read_pair_id(json, "cls", size, kWhat)));
    after.push_back(LLMINFER_TRY(read_pair_id(json, "sep", size, kWhat)));
  } else if (type != "ByteLevel") {
    return unknown_type(kWhat, type);
  }
  prefix.insert(prefix.begin(), before.begin(), before.end());
  suffix.insert(suffix.end(), after.begin(), after.end());
  return {};
}

}  // namespace tok
}  // namespace llminfer::inline v0
