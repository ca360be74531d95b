#include "tok/pipeline_tokenizer.hpp"

#include <algorithm>
#include <limits>

#include "core/error.hpp"

namespace llminfer::inline v0 {
namespace tok {
namespace {

/// What escape() writes into the names of control tokens: two noncharacters.
constexpr std::string_view kMark = "\ufdd0\ufdd1";

std::string without_marks(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (std::size_t mark; (mark = text.find(kMark)) != text.npos; text.remove_prefix(mark + kMark.size())) {
    out += text.substr(0, mark);
  }
  return out += text;
}

class PipelineTokenizer final : public TokenizerModel {
 public:
  explicit PipelineTokenizer(TokenizerParts parts) : parts_(std::move(parts)) {}

  Result<void> fill_finders() {
    for (const AddedToken& token : parts_.added) {
      const bool ends = std::binary_search(parts_.end_tokens.begin(), parts_.end_tokens.end(), token.id);
      if (token.special || ends) control_.add(token.content, token);
      if (!token.normalized) {
        raw_.add(token.content, token);
        continue;
      }
      std::string content = token.content;
      for (const Normalizer& normalizer : parts_.normalizers) LLMINFER_TRY(normalizer(content));
      if (!content.empty()) normalized_.add(content, token);
    }
    return {};
  }

  Result<std::vector<Token>> encode(std::string_view text, const EncodeOptions& options) const override {
    if (text.size() > kMaxBytes) {
      return core::fail(ErrorCode::limit_exceeded, "text of ", text.size(), " bytes; at most ", kMaxBytes,
                        " can be encoded");
    }
    std::vector<Token> out;
    if (options.add_special) out = parts_.prefix;
    for (const auto& part : raw_.cut(text, options.parse_special)) {
      if (part.token >= 0) {
        out.push_back(part.token);
      } else {
        LLMINFER_TRY(encode_fragment(part.text, part.text.data() == text.data(), options, out));
      }
    }
    if (options.add_special) out.insert(out.end(), parts_.suffix.begin(), parts_.suffix.end());
    return out;
  }

  std::string escape(std::string_view text) const override { return control_.split_matches(text, kMark); }
  std::int32_t vocab_size() const noexcept override { return static_cast<std::int32_t>(parts_.bytes.size()); }
  std::string_view token_bytes(Token token) const noexcept override {
    return in_range(token) ? std::string_view(parts_.bytes[static_cast<std::size_t>(token)]) : std::string_view();
  }
  std::optional<Token> find(std::string_view text) const noexcept override {
    return parts_.index->find(text);
  }
  bool is_special(Token token) const noexcept override {
    return in_range(token) && parts_.special[static_cast<std::size_t>(token)];
  }
  std::optional<Token> bos() const noexcept override { return parts_.bos; }
  std::optional<Token> eos() const noexcept override { return parts_.eos; }
  std::span<const Token> end_tokens() const noexcept override { return parts_.end_tokens; }
  bool strips_leading_space() const noexcept override { return parts_.strips_leading_space; }

 private:
  // Leaves room for what the steps add to a text (three bytes of ▁ for a space, NFKD).
  static constexpr std::size_t kMaxBytes = std::size_t{1} << 26;

  bool in_range(Token token) const noexcept {
    return token >= 0 && static_cast<std::size_t>(token) < parts_.bytes.size();
  }

  Result<void> encode_fragment(std::string_view fragment, bool at_start, const EncodeOptions& options,
                               std::vector<Token>& out) const {
    std::string text(fragment);
    for (const Normalizer& normalizer : parts_.normalizers) LLMINFER_TRY(normalizer(text));
    if (normalized_.empty()) return encode_text(std::move(text), at_start, out);
    for (const auto& part : normalized_.cut(text, options.parse_special)) {
      if (part.token >= 0) {
        out.push_back(part.token);
      } else {
        LLMINFER_TRY(encode_text(std::string(part.text), at_start && part.text.data() == text.data(), out));
      }
    }
    return {};
  }

  Result<void> encode_text(std::string text, bool at_start, std::vector<Token>& out) const {
    if (text.find(kMark) != text.npos) text = without_marks(text);
    if (text.empty()) return {};
    Pieces pieces;
    pieces.ranges = {Range(0, text.size())};
    pieces.text = std::move(text);
    pieces.at_start = at_start;
    for (const PreTokenizer& step : parts_.pre_tokenizers) LLMINFER_TRY(step(pieces));
    if (pieces.text.size() > static_cast<std::size_t>(std::numeric_limits<std::int32_t>::max())) {
      return core::fail(ErrorCode::limit_exceeded, "normalized text of ", pieces.text.size(), " bytes");
    }
    for (const Range& range : pieces.ranges) parts_.model->encode(pieces.piece(range), out);
    return {};
  }

  TokenizerParts parts_;
  AddedTokenFinder raw_, normalized_;
  AddedTokenFinder control_;  ///< the special and end tokens of both, as they are written
};

}  // namespace

Result<std::shared_ptr<const TokenizerModel>> make_pipeline_tokenizer(TokenizerParts parts) {
  auto tokenizer = std::make_shared<PipelineTokenizer>(std::move(parts));
  LLMINFER_TRY(tokenizer->fill_finders());
  return std::shared_ptr<const TokenizerModel>(std::move(tokenizer));
}

std::vector<Token> find_end_tokens(const TokenizerParts& parts, const std::vector<Token>& named) {
  static constexpr std::string_view kNames[] = {"<|im_end|>",      "<|eot_id|>",    "<|eom_id|>",
                                                "<end_of_turn>",   "<turn|>",       "<|endoftext|>",
                                                "<|end|>",         "<|return|>",    "<|EOT|>",
                                                "<|eot|>",         "<EOT>",         "<|end_of_text|>",
                                                "<|end_of_turn|>", "<|endofturn|>", "_<EOT>",
                                                "[EOS]",           "[EOT]",         "<|END_OF_TURN_TOKEN|>",
                                                "<eos>",           "<|role_end|>",  "<｜end▁of▁sentence｜>"};
  std::vector<Token> ends = named;
  if (parts.eos) ends.push_back(*parts.eos);
  const auto special = [&](std::string_view name) {
    const auto token = parts.index->find(name);
    return token && parts.special[static_cast<std::size_t>(*token)] ? token : std::nullopt;
  };
  // In OpenAI's Harmony format (gpt-oss) <|end|> closes one of a turn's messages, and these two the turn.
  const auto call = special("<|call|>");
  const bool harmony = call && special("<|return|>");
  if (harmony) ends.push_back(*call);
  for (const std::string_view name : kNames) {
    if (harmony && name == "<|end|>") continue;
    if (const auto token = special(name)) ends.push_back(*token);
  }
  std::sort(ends.begin(), ends.end());
  ends.erase(std::unique(ends.begin(), ends.end()), ends.end());
  return ends;
}

Result<Token> checked_token(std::int64_t id, std::int64_t size, std::string_view what) {
  if (id < 0 || id >= size) {
    return core::fail(ErrorCode::bad_vocabulary, what, " is ", id, ", but the vocabulary has ", size, " tokens");
  }
  return static_cast<Token>(id);
}

int byte_token_value(std::string_view text) noexcept {
  if (text.size() != 6 || text.substr(0, 3) != "<0x" || text[5] != '>') return -1;
  int value = 0;
  for (const char c : text.substr(3, 2)) {
    const int digit = c >= '0' && c <= '9'   ? c - '0'
                      : c >= 'A' && c <= 'F' ? c - 'A' + 10
                      : c >= 'a' && c <= 'f' ? c - 'a' + 10
                                             : -1;
    if (digit < 0) return -1;
    value = value * 16 + digit;
  }
  return value;
}

}  // namespace tok
}  // namespace llminfer::inline v0
