// TokenizerModel: the interface behind Tokenizer, one subclass per kind of tokenizer.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <llminfer/tokenizer.hpp>

#include "load/checkpoint.hpp"

namespace llminfer::inline v0 {
namespace tok {

class TokenizerModel {
 public:
  virtual ~TokenizerModel() = default;
  virtual Result<std::vector<Token>> encode(std::string_view text, const EncodeOptions& options) const = 0;
  virtual std::string escape(std::string_view text) const = 0;
  virtual std::int32_t vocab_size() const noexcept = 0;
  virtual std::string_view token_bytes(Token token) const noexcept = 0;
  virtual std::optional<Token> find(std::string_view text) const noexcept = 0;
  virtual bool is_special(Token token) const noexcept = 0;
  virtual std::optional<Token> bos() const noexcept = 0;
  virtual std::optional<Token> eos() const noexcept = 0;
  virtual std::span<const Token> end_tokens() const noexcept = 0;
  /// SentencePiece vocabularies write a space before the first word, which decoding a whole text takes off again.
  virtual bool strips_leading_space() const noexcept = 0;
};

/// Makes the tokenizer of a checkpoint. `vocab_size` is the model's (embedding rows); ids at or above it are refused.
/// Errors: bad_vocabulary, unsupported (a kind or pre-tokenizer that is not known), corrupt and the JSON errors.
Result<std::shared_ptr<const TokenizerModel>> make_tokenizer(const load::VocabularyData& data, std::int64_t vocab_size,
                                                             const load::GenerationDefaults& generation);

}  // namespace tok
}  // namespace llminfer::inline v0
