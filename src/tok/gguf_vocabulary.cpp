// GGUF's vocabulary arrays to a tokenizer: byte-level BPE ("gpt2") and SentencePiece BPE ("llama").
#include <algorithm>
#include <array>
#include <cmath>

#include "core/error.hpp"
#include "tok/pipeline_tokenizer.hpp"
#include "tok/pre_types.hpp"

namespace llminfer::inline v0 {
namespace tok {
namespace {

constexpr std::string_view kMark = "\u2581";  // SentencePiece's space

/// Texts looked up together, so that what they wait for in memory comes at once.
constexpr std::size_t kAhead = 16;

// tokenizer.ggml.token_type
enum TokenType : std::int32_t { kNormal = 1, kUnknown = 2, kControl = 3, kUserDefined = 4, kUnused = 5, kByte = 6 };

std::int32_t type_of(const load::VocabularyData& data, std::size_t i) {
  return data.types.empty() ? kNormal : data.types[i];
}

/// Texts, index, specials, added tokens: what both kinds share.
Result<TokenizerParts> read_tokens(const load::VocabularyData& data, std::int64_t vocab_size) {
  const std::size_t count = data.tokens.size();
  if (count == 0) return core::fail(ErrorCode::bad_vocabulary, "tokenizer.ggml.tokens is missing or empty");
  if (count > INT32_MAX || vocab_size > INT32_MAX || vocab_size < 0) {
    return core::fail(ErrorCode::bad_vocabulary, "a vocabulary of ",
                      std::max<std::int64_t>(vocab_size, static_cast<std::int64_t>(count)), " tokens; at most ",
                      INT32_MAX);
  }
  if (vocab_size > 0 && count > static_cast<std::size_t>(vocab_size)) {
    return core::fail(ErrorCode::bad_vocabulary, "tokenizer.ggml.tokens has ", count, " tokens, the model only ",
                      vocab_size);
  }
  if (!data.types.empty() && data.types.size() != count) {
    return core::fail(ErrorCode::bad_vocabulary, "tokenizer.ggml.token_type has ", data.types.size(),
                      " entries, expected ", count);
  }
  if (!data.scores.empty() && data.scores.size() != count) {
    return core::fail(ErrorCode::bad_vocabulary, "tokenizer.ggml.scores has ", data.scores.size(),
                      " entries, expected ", count);
  }
  TokenizerParts parts;
  const std::size_t size = std::max(count, static_cast<std::size_t>(vocab_size));
  parts.bytes.resize(size);
  parts.special.resize(size);
  std::size_t bytes = 0;
  for (const std::string& text : data.tokens) bytes += text.size();
  parts.index->reserve(count, bytes);
  for (std::size_t i = 0; i < count; ++i) {
    if (i + kAhead < count) parts.index->prefetch(data.tokens[i + kAhead]);
    const std::string& text = data.tokens[i];
    const std::int32_t type = type_of(data, i);
    if (type < kNormal || type > kByte) {
      return core::fail(ErrorCode::bad_vocabulary, "tokenizer.ggml.token_type[", i, "] is ", type, ", expected 1 to 6");
    }
    if (text.empty()) continue;  // a hole
    const auto [other, fresh] = parts.index->emplace(text, static_cast<Token>(i));
    if (!fresh) {
      return core::fail(ErrorCode::bad_vocabulary, "tokens ", other, " and ", i, " have the same text \"", text, "\"");
    }
    parts.special[i] = type == kControl || type == kUnknown;
    if (parts.special[i] || type == kUserDefined) {
      parts.added.push_back({static_cast<Token>(i), text, parts.special[i], false, false, false, false});
    }
  }
  const auto size64 = static_cast<std::int64_t>(count);
  if (data.bos) parts.bos = LLMINFER_TRY(checked_token(*data.bos, size64, "tokenizer.ggml.bos_token_id"));
  if (data.eos) parts.eos = LLMINFER_TRY(checked_token(*data.eos, size64, "tokenizer.ggml.eos_token_id"));
  if (data.unk) (void)LLMINFER_TRY(checked_token(*data.unk, size64, "tokenizer.ggml.unknown_token_id"));
  if (data.pad) (void)LLMINFER_TRY(checked_token(*data.pad, size64, "tokenizer.ggml.padding_token_id"));
  return parts;
}

Result<void> finish(const load::VocabularyData& data, const load::GenerationDefaults& generation, bool add_bos,
                    TokenizerParts& parts) {
  std::vector<Token> ends;
  const auto size = static_cast<std::int64_t>(data.tokens.size());
  if (data.eot) ends.push_back(LLMINFER_TRY(checked_token(*data.eot, size, "tokenizer.ggml.eot_token_id")));
  for (const std::int32_t id : generation.eos_tokens)
    ends.push_back(LLMINFER_TRY(checked_token(id, size, "eos_token_id")));
  parts.end_tokens = find_end_tokens(parts, ends);
  if (data.add_bos.value_or(add_bos) && parts.bos) parts.prefix.push_back(*parts.bos);
  if (data.add_eos.value_or(false) && parts.eos) parts.suffix.push_back(*parts.eos);
  return {};
}

Result<std::vector<Merge>> read_merges(const std::vector<std::string>& lines, const TokenIndex& index) {
  std::vector<Merge> merges(lines.size());
  struct Parts {
    std::string_view left, right;
    std::string both;
  };
  std::array<Parts, kAhead> some;
  for (std::size_t begin = 0; begin < lines.size(); begin += kAhead) {
    const std::size_t count = std::min(kAhead, lines.size() - begin);
    for (std::size_t i = 0; i < count; ++i) {
      const std::string_view line = lines[begin + i];
      const std::size_t space = line.find(' ', 1);
      if (space == std::string_view::npos || space + 1 == line.size()) {
        return core::fail(ErrorCode::bad_vocabulary, "tokenizer.ggml.merges[", begin + i, "] is \"", line,
                          "\", expected two tokens");
      }
      Parts& parts = some[i];
      parts.left = line.substr(0, space);
      parts.right = line.substr(space + 1);
      parts.both.assign(parts.left).append(parts.right);
      for (const std::string_view text : {parts.left, parts.right, std::string_view(parts.both)}) index.prefetch(text);
    }
    for (std::size_t i = 0; i < count; ++i) {
      Merge& merge = merges[begin + i];
      for (const auto& [text, id] : {std::pair(some[i].left, &merge.left),
                                     {some[i].right, &merge.right},
                                     {std::string_view(some[i].both), &merge.merged}}) {
        const auto token = index.find(text);
        if (!token) {
          return core::fail(ErrorCode::bad_vocabulary, "tokenizer.ggml.merges[", begin + i, "]: \"", text,
                            "\" is no token");
        }
        *id = *token;
      }
    }
  }
  return merges;
}

Result<TokenizerParts> read_byte_level(const load::VocabularyData& data, std::int64_t vocab_size,
                                       const load::GenerationDefaults& generation) {
  const PreType* pre = find_pre_type(data.pre);
  if (!pre) {
    return core::fail(ErrorCode::unsupported, "tokenizer.ggml.pre: pre-tokenizer \"", data.pre, "\" is not known");
  }
  TokenizerParts parts = LLMINFER_TRY(read_tokens(data, vocab_size));
  for (std::size_t i = 0; i < data.tokens.size(); ++i) {
    const std::int32_t type = type_of(data, i);
    const bool text_token = type == kNormal || type == kUnused || type == kByte;
    auto bytes = text_token ? alphabet_to_bytes(data.tokens[i]) : std::nullopt;
    parts.bytes[i] = bytes ? *std::move(bytes) : data.tokens[i];
  }
  if (data.merges.empty() && !data.has_merges) return core::fail(ErrorCode::bad_vocabulary, "tokenizer.ggml.merges is missing");
  const std::vector<Merge> merges = LLMINFER_TRY(read_merges(data.merges, *parts.index));
  if (pre->nfc) parts.normalizers.push_back(normal_form(NormalForm::nfc));
  if (data.add_space_prefix.value_or(false)) parts.pre_tokenizers.push_back(prefix_space());
  for (const std::string_view pattern : pre->patterns) {
    parts.pre_tokenizers.push_back(
        split(LLMINFER_TRY(Pattern::compile(pattern, pre->name)), SplitBehavior::isolated, false));
  }
  parts.pre_tokenizers.push_back(byte_level());
  parts.model = make_ranked_bpe(parts.index, merges, {}, pre->ignore_merges);
  LLMINFER_TRY(finish(data, generation, pre->add_bos, parts));
  return parts;
}

/// SentencePiece's remove_extra_whitespaces: none at the ends, one between words.
Result<void> squeeze_spaces(std::string& text) {
  std::string out;
  for (const char c : text) {
    if (c != ' ' || (!out.empty() && out.back() != ' ')) out += c;
  }
  if (!out.empty() && out.back() == ' ') out.pop_back();
  text = std::move(out);
  return {};
}

Result<TokenizerParts> read_sentencepiece(const load::VocabularyData& data, std::int64_t vocab_size,
                                          const load::GenerationDefaults& generation) {
  TokenizerParts parts = LLMINFER_TRY(read_tokens(data, vocab_size));
  if (data.scores.empty()) return core::fail(ErrorCode::bad_vocabulary, "tokenizer.ggml.scores is missing or empty");
  const auto mergeable = std::make_shared<TokenIndex>();
  Fallback fallback;
  for (std::size_t i = 0; i < data.tokens.size(); ++i) {
    const std::string& text = data.tokens[i];
    const auto id = static_cast<Token>(i);
    if (std::isnan(data.scores[i]))
      return core::fail(ErrorCode::bad_vocabulary, "tokenizer.ggml.scores[", i, "] is not a number");
    const std::int32_t type = type_of(data, i);
    if (type == kByte) {
      const int byte = byte_token_value(text);
      if (byte < 0) {
        return core::fail(ErrorCode::bad_vocabulary, "token ", i, " is a byte token named \"", text,
                          "\", expected <0x00> to <0xFF>");
      }
      fallback.bytes[static_cast<std::size_t>(byte)] = id;
      parts.bytes[i] = std::string(1, static_cast<char>(byte));
      continue;
    }
    const bool text_token = type == kNormal || type == kUnused || type == kUserDefined;
    parts.bytes[i] = text_token ? replaced(text, kMark, " ") : text;
    if (text_token && !text.empty()) mergeable->emplace(text, id);
  }
  if (data.unk) fallback.unknown = static_cast<Token>(*data.unk);
  for (std::size_t i = 0; i < data.types.size() && !fallback.unknown; ++i) {
    if (data.types[i] == kUnknown) fallback.unknown = static_cast<Token>(i);
  }
  const bool space_first = data.add_space_prefix.value_or(true);
  if (data.remove_extra_whitespaces.value_or(false)) parts.normalizers.push_back(squeeze_spaces);
  if (space_first) parts.normalizers.push_back(prepend(" "));
  parts.normalizers.push_back(replace_all(" ", std::string(kMark)));
  parts.strips_leading_space = space_first;
  parts.model = make_scored_bpe(mergeable, data.scores, std::move(fallback));
  LLMINFER_TRY(finish(data, generation, true, parts));
  return parts;
}

}  // namespace

Result<std::shared_ptr<const TokenizerModel>> read_gguf_vocabulary(const load::VocabularyData& data,
                                                                   std::int64_t vocab_size,
                                                                   const load::GenerationDefaults& generation) {
  if (data.model == "gpt2") {
    return make_pipeline_tokenizer(LLMINFER_TRY(read_byte_level(data, vocab_size, generation)));
  }
  if (data.model == "llama") {
    return make_pipeline_tokenizer(LLMINFER_TRY(read_sentencepiece(data, vocab_size, generation)));
  }
  return core::fail(ErrorCode::unsupported, "tokenizer.ggml.model: tokenizers of kind \"", data.model,
                    "\" are not available");
}

}  // namespace tok
}  // namespace llminfer::inline v0
