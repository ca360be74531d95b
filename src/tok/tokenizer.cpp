// The public Tokenizer and StreamDecoder over TokenizerModel.
#include <llminfer/tokenizer.hpp>

#include "core/error.hpp"
#include "core/utf8.hpp"
#include "tok/pipeline_tokenizer.hpp"

namespace llminfer::inline v0 {
namespace {

constexpr std::string_view kReplacement = "\ufffd";

Error no_token(Token token, std::int32_t vocab_size) {
  return core::fail(ErrorCode::invalid_argument, "token ", token, " is outside the vocabulary, 0 to ", vocab_size - 1);
}

Error moved_from() { return core::fail(ErrorCode::invalid_state, "the tokenizer was moved from"); }

}  // namespace

Result<std::vector<Token>> Tokenizer::encode(std::string_view text, const EncodeOptions& options) const {
  return core::guarded([&]() -> Result<std::vector<Token>> {
    if (!model_) return moved_from();
    return model_->encode(text, options);
  });
}

Result<std::string> Tokenizer::escape(std::string_view text) const {
  return core::guarded([&]() -> Result<std::string> {
    if (!model_) return moved_from();
    return model_->escape(text);
  });
}

Result<std::string> Tokenizer::decode(std::span<const Token> tokens, const DecodeOptions& options) const {
  return core::guarded([&]() -> Result<std::string> {
    if (!model_) return moved_from();
    std::string text;
    for (const Token token : tokens) {
      if (token < 0 || token >= model_->vocab_size()) return no_token(token, model_->vocab_size());
      if (!options.skip_special || !model_->is_special(token)) text += model_->token_bytes(token);
    }
    if (model_->strips_leading_space() && !text.empty() && text.front() == ' ') text.erase(0, 1);
    return text;
  });
}

// One that was moved from has no tokens.
std::int32_t Tokenizer::vocab_size() const noexcept { return model_ ? model_->vocab_size() : 0; }
std::string_view Tokenizer::token_bytes(Token token) const noexcept {
  return model_ ? model_->token_bytes(token) : std::string_view();
}
std::optional<Token> Tokenizer::find(std::string_view text) const noexcept {
  return model_ ? model_->find(text) : std::nullopt;
}
bool Tokenizer::is_special(Token token) const noexcept { return model_ && model_->is_special(token); }
std::optional<Token> Tokenizer::bos() const noexcept { return model_ ? model_->bos() : std::nullopt; }
std::optional<Token> Tokenizer::eos() const noexcept { return model_ ? model_->eos() : std::nullopt; }
std::span<const Token> Tokenizer::end_tokens() const noexcept {
  return model_ ? model_->end_tokens() : std::span<const Token>();
}

StreamDecoder::StreamDecoder(Tokenizer tokenizer, const DecodeOptions& options)
    : tokenizer_(std::move(tokenizer)), options_(options) {}

Result<std::string> StreamDecoder::push(Token token) {
  return core::guarded([&]() -> Result<std::string> {
    if (token < 0 || token >= tokenizer_.vocab_size()) return no_token(token, tokenizer_.vocab_size());
    if (options_.skip_special && tokenizer_.is_special(token)) return std::string();
    std::string_view bytes = tokenizer_.token_bytes(token);
    if (bytes.empty()) return std::string();
    if (first_ && tokenizer_.model_->strips_leading_space() && bytes.front() == ' ') bytes.remove_prefix(1);
    const std::string text = pending_ + std::string(bytes);
    std::string out;
    std::string_view rest = text;
    while (!rest.empty()) {
      bool cut = false;
      const std::size_t n = core::utf8_length(rest, &cut);
      if (n == 0 && cut) break;
      out += n > 0 ? rest.substr(0, n) : kReplacement;
      rest.remove_prefix(n > 0 ? n : 1);
    }
    pending_ = rest;  // at most three bytes, which take no memory
    first_ = false;
    return out;
  });
}

std::string StreamDecoder::finish() {
  std::string out(pending_.empty() ? std::string_view() : kReplacement);
  pending_.clear();
  first_ = true;
  return out;
}

namespace tok {

Result<std::shared_ptr<const TokenizerModel>> make_tokenizer(const load::VocabularyData& data, std::int64_t vocab_size,
                                                             const load::GenerationDefaults& generation) {
  if (!data.model.empty()) return read_gguf_vocabulary(data, vocab_size, generation);
  if (!data.tokenizer_json.empty()) return read_tokenizer_json(data, vocab_size, generation);
  return core::fail(ErrorCode::bad_vocabulary,
                    "the checkpoint has no vocabulary (tokenizer.ggml.model or tokenizer.json)");
}

}  // namespace tok
}  // namespace llminfer::inline v0
