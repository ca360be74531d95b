// Hugging Face's tokenizer.json (model type BPE) and tokenizer_config.json to a tokenizer.
#include <algorithm>

#include "core/error.hpp"
#include "core/json.hpp"
#include "tok/json_pipeline.hpp"
#include "tok/pipeline_tokenizer.hpp"

namespace llminfer::inline v0 {
namespace tok {
namespace {

using core::Json;

constexpr std::string_view kFile = "tokenizer.json";
constexpr std::string_view kConfigFile = "tokenizer_config.json";

const Json& member(const Json& object, const char* key) {
  static const Json kNull;
  const Json* found = object.find(key);
  return found ? *found : kNull;
}

/// The id that a JSON value holds. `limit`: ids at or above it are refused.
Result<Token> read_id(const Json& value, std::int64_t limit, std::string_view text) {
  if (!value.is_integer()) {
    return core::fail(ErrorCode::corrupt, kFile, ": the id of \"", text, "\" must be an integer");
  }
  const std::int64_t id = value.integer().value_or(INT64_MAX);
  if (id < 0 || id >= limit) {
    return core::fail(ErrorCode::bad_vocabulary, kFile, ": \"", text, "\" has the id ", value.dump(),
                      ", expected 0 to ", limit - 1);
  }
  return static_cast<Token>(id);
}

/// Until the decoder is known, TokenizerParts::bytes holds written forms.
Result<void> place_token(TokenizerParts& parts, Token id, const std::string& text) {
  const auto i = static_cast<std::size_t>(id);
  if (i >= parts.bytes.size()) parts.bytes.resize(i + 1);
  const auto [known, fresh] = parts.index->emplace(text, id);
  if (!fresh && known != id) {
    return core::fail(ErrorCode::bad_vocabulary, kFile, ": \"", text, "\" has the ids ", known, " and ", id);
  }
  if (fresh && !parts.bytes[i].empty()) {
    return core::fail(ErrorCode::bad_vocabulary, kFile, ": \"", parts.bytes[i], "\" and \"", text,
                      "\" have the same id ", id);
  }
  parts.bytes[i] = text;
  return {};
}

Result<void> read_added_tokens(const Json& list, std::int64_t limit, TokenizerParts& parts) {
  if (list.is_null()) return {};
  if (!list.is_array()) return core::fail(ErrorCode::corrupt, kFile, ": \"added_tokens\" must be an array");
  for (const Json& item : list.array()) {
    if (!item.is_object()) return core::fail(ErrorCode::corrupt, kFile, ": \"added_tokens\" must hold objects");
    AddedToken token;
    const auto content = LLMINFER_TRY(core::json_string(item, "content", kFile));
    if (!content || content->empty())
      return core::fail(ErrorCode::bad_vocabulary, kFile, ": an added token without content");
    token.content = *content;
    token.id = LLMINFER_TRY(read_id(member(item, "id"), limit, token.content));
    token.special = LLMINFER_TRY(core::json_bool(item, "special", kFile)).value_or(false);
    token.normalized = LLMINFER_TRY(core::json_bool(item, "normalized", kFile)).value_or(!token.special);
    token.lstrip = LLMINFER_TRY(core::json_bool(item, "lstrip", kFile)).value_or(false);
    token.rstrip = LLMINFER_TRY(core::json_bool(item, "rstrip", kFile)).value_or(false);
    token.single_word = LLMINFER_TRY(core::json_bool(item, "single_word", kFile)).value_or(false);
    LLMINFER_TRY(place_token(parts, token.id, token.content));
    parts.added.push_back(std::move(token));
  }
  return {};
}

Result<std::vector<Merge>> read_merges(const Json& list, const TokenIndex& index) {
  if (!list.is_array()) return core::fail(ErrorCode::corrupt, kFile, ": model.merges must be an array");
  std::vector<Merge> merges;
  merges.reserve(list.size());
  for (const Json& item : list.array()) {
    std::string_view left, right;
    if (item.is_string()) {
      const std::string& line = item.string();
      if (line.compare(0, 8, "#version") == 0) continue;
      const std::size_t space = line.find(' ');
      if (space != std::string::npos && line.find(' ', space + 1) == std::string::npos) {
        left = std::string_view(line).substr(0, space);
        right = std::string_view(line).substr(space + 1);
      }
    } else if (item.is_array() && item.size() == 2 && item.array()[0].is_string() && item.array()[1].is_string()) {
      left = item.array()[0].string();
      right = item.array()[1].string();
    } else {
      return core::fail(ErrorCode::corrupt, kFile, ": model.merges must hold strings or pairs of strings");
    }
    if (left.empty() || right.empty()) {
      return core::fail(ErrorCode::bad_vocabulary, kFile, ": model.merges[", merges.size(), "] is ", item.dump(),
                        ", expected two tokens");
    }
    Merge merge;
    const std::string both = std::string(left).append(right);
    for (const auto& [text, id] :
         {std::pair(left, &merge.left), {right, &merge.right}, {std::string_view(both), &merge.merged}}) {
      const auto token = index.find(text);
      if (!token) {
        return core::fail(ErrorCode::bad_vocabulary, kFile, ": model.merges[", merges.size(), "]: \"", text,
                          "\" is no token");
      }
      *id = *token;
    }
    merges.push_back(merge);
  }
  return merges;
}

Result<void> read_bpe(const Json& model, std::int64_t limit, TokenizerParts& parts) {
  const Json& vocab = member(model, "vocab");
  if (!vocab.is_object()) return core::fail(ErrorCode::corrupt, kFile, ": model.vocab must be an object");
  for (const auto& [text, id] : vocab.object()) {
    if (text.empty()) return core::fail(ErrorCode::bad_vocabulary, kFile, ": model.vocab has a token without text");
    LLMINFER_TRY(place_token(parts, LLMINFER_TRY(read_id(id, limit, text)), text));
  }
  for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    if (!LLMINFER_TRY(core::json_string(model, key, kFile)).value_or("").empty()) {
      return core::fail(ErrorCode::unsupported, kFile, ": model.", key, " is not available");
    }
  }
  const std::vector<Merge> merges = LLMINFER_TRY(read_merges(member(model, "merges"), *parts.index));
  Fallback fallback;
  if (LLMINFER_TRY(core::json_bool(model, "byte_fallback", kFile)).value_or(false)) {
    parts.index->for_each([&](std::string_view text, Token id) {
      const int byte = byte_token_value(text);
      if (byte >= 0) fallback.bytes[static_cast<std::size_t>(byte)] = id;
    });
  }
  fallback.fuse_unknown = LLMINFER_TRY(core::json_bool(model, "fuse_unk", kFile)).value_or(false);
  if (const auto unknown = LLMINFER_TRY(core::json_string(model, "unk_token", kFile)); unknown && !unknown->empty()) {
    fallback.unknown = parts.index->find(*unknown);
    if (!fallback.unknown)
      return core::fail(ErrorCode::bad_vocabulary, kFile, ": unk_token \"", *unknown, "\" is no token");
  }
  const bool whole_first = LLMINFER_TRY(core::json_bool(model, "ignore_merges", kFile)).value_or(false);
  // A copy: added tokens join parts.index later, but text does not become them by merging.
  parts.model = make_ranked_bpe(std::make_shared<TokenIndex>(*parts.index), merges, std::move(fallback), whole_first);
  return {};
}

/// "bos_token" and the like: a string, or an object with its content. Nothing where that is no token.
std::optional<Token> named_token(const Json& config, const char* key, const TokenIndex& index) {
  const Json& value = member(config, key);
  const Json& text = value.is_object() ? member(value, "content") : value;
  if (!text.is_string()) return std::nullopt;
  return index.find(text.string());
}

/// The classes whose add_bos_token and add_eos_token replace what post_processor says.
bool honours_add_tokens(std::string_view tokenizer_class) {
  if (tokenizer_class.size() > 4 && tokenizer_class.substr(tokenizer_class.size() - 4) == "Fast")
    tokenizer_class.remove_suffix(4);
  return tokenizer_class == "LlamaTokenizer" || tokenizer_class == "CodeLlamaTokenizer" ||
         tokenizer_class == "GemmaTokenizer" || tokenizer_class == "CohereTokenizer";
}

Result<void> apply_config(const Json& config, TokenizerParts& parts) {
  if (!config.is_object()) return core::fail(ErrorCode::corrupt, kConfigFile, " must be an object");
  if (const auto bos = named_token(config, "bos_token", *parts.index)) parts.bos = bos;
  if (const auto eos = named_token(config, "eos_token", *parts.index)) parts.eos = eos;
  if (!honours_add_tokens(LLMINFER_TRY(core::json_string(config, "tokenizer_class", kConfigFile)).value_or("")))
    return {};
  if (const auto add = LLMINFER_TRY(core::json_bool(config, "add_bos_token", kConfigFile)); add && parts.bos) {
    parts.prefix.clear();
    if (*add) parts.prefix.push_back(*parts.bos);
  }
  if (const auto add = LLMINFER_TRY(core::json_bool(config, "add_eos_token", kConfigFile)); add && parts.eos) {
    parts.suffix.clear();
    if (*add) parts.suffix.push_back(*parts.eos);
  }
  return {};
}

}  // namespace

Result<std::shared_ptr<const TokenizerModel>> read_tokenizer_json(const load::VocabularyData& data,
                                                                  std::int64_t vocab_size,
                                                                  const load::GenerationDefaults& generation) {
  const Json json = LLMINFER_TRY(core::parse_json(data.tokenizer_json, kFile));
  if (!json.is_object() || !member(json, "model").is_object()) {
    return core::fail(ErrorCode::corrupt, kFile, ": \"model\" must be an object");
  }
  const Json& model = member(json, "model");
  const std::string kind =
      LLMINFER_TRY(core::json_string(model, "type", kFile)).value_or(model.find("merges") ? "BPE" : "");
  if (kind != "BPE")
    return core::fail(ErrorCode::unsupported, kFile, ": tokenizers of kind \"", kind, "\" are not available");

  // Without a model beside it, ids may leave some holes, but not so many that a small file asks for much memory.
  const auto tokens = static_cast<std::int64_t>(member(model, "vocab").size() + member(json, "added_tokens").size());
  const std::int64_t limit = vocab_size > 0 ? std::min<std::int64_t>(vocab_size, INT32_MAX) : 8 * tokens + 1024;
  TokenizerParts parts;
  LLMINFER_TRY(read_bpe(model, limit, parts));
  LLMINFER_TRY(read_added_tokens(member(json, "added_tokens"), limit, parts));
  if (parts.bytes.empty()) return core::fail(ErrorCode::bad_vocabulary, kFile, ": no tokens");
  if (vocab_size > 0) parts.bytes.resize(static_cast<std::size_t>(limit));
  const auto size = static_cast<std::int64_t>(parts.bytes.size());

  Decoder decoder;
  LLMINFER_TRY(read_normalizer(member(json, "normalizer"), parts.normalizers));
  LLMINFER_TRY(read_pre_tokenizer(member(json, "pre_tokenizer"), parts.pre_tokenizers));
  LLMINFER_TRY(read_decoder(member(json, "decoder"), decoder));
  LLMINFER_TRY(read_post_processor(member(json, "post_processor"), size, parts.prefix, parts.suffix));
  parts.strips_leading_space = decoder.strips_leading_space;

  parts.special.resize(parts.bytes.size());
  std::vector<bool> added(parts.bytes.size());
  for (const AddedToken& token : parts.added) {
    added[static_cast<std::size_t>(token.id)] = true;
    parts.special[static_cast<std::size_t>(token.id)] = token.special;
  }
  for (std::size_t i = 0; i < parts.bytes.size(); ++i) {
    for (const auto& step : decoder.steps) step(parts.bytes[i]);
    if (!decoder.byte_level || added[i]) continue;
    if (auto bytes = alphabet_to_bytes(parts.bytes[i])) parts.bytes[i] = std::move(*bytes);
  }

  std::vector<Token> ends;
  if (data.bos) parts.bos = LLMINFER_TRY(checked_token(*data.bos, size, "bos_token_id"));
  if (data.eos) ends.push_back(LLMINFER_TRY(checked_token(*data.eos, size, "eos_token_id")));
  if (data.eot) ends.push_back(LLMINFER_TRY(checked_token(*data.eot, size, "eot_token_id")));
  for (const std::int32_t id : generation.eos_tokens)
    ends.push_back(LLMINFER_TRY(checked_token(id, size, "eos_token_id")));
  if (data.eos) parts.eos = static_cast<Token>(*data.eos);
  if (!data.tokenizer_config_json.empty()) {
    LLMINFER_TRY(apply_config(LLMINFER_TRY(core::parse_json(data.tokenizer_config_json, kConfigFile)), parts));
  }
  parts.end_tokens = find_end_tokens(parts, ends);
  return make_pipeline_tokenizer(std::move(parts));
}

}  // namespace tok
}  // namespace llminfer::inline v0
