// Tokenizer: text to token ids and back.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <llminfer/config.hpp>
#include <llminfer/result.hpp>

namespace llminfer::inline v0 {

/// A token's id, an index into the model's vocabulary.
using Token = std::int32_t;

namespace tok {
class TokenizerModel;
}

struct EncodeOptions {
  bool add_special = true;    ///< add the BOS/EOS tokens that the checkpoint asks for
  bool parse_special = true;  ///< read special tokens written out in the text, such as "<|im_end|>", as tokens
};

struct DecodeOptions {
  bool skip_special = false;  ///< leave control tokens out
};

/// A cheap shared handle. Immutable and thread-safe. One that was moved from has no tokens, and gives invalid_state.
class LLMINFER_API Tokenizer {
 public:
  explicit Tokenizer(std::shared_ptr<const tok::TokenizerModel> model) : model_(std::move(model)) {}

  /// Text that is not valid UTF-8 is legal: byte-level vocabularies encode the bytes as they are. Bytes that a
  /// vocabulary has no token for become its unknown token; where there is none (SmolLM2 lacks 21 bytes), they vanish,
  /// as in the reference. Errors: limit_exceeded for more than 64 MiB of text or a pattern of the checkpoint that
  /// backtracks without end.
  Result<std::vector<Token>> encode(std::string_view text, const EncodeOptions& options = {}) const;
  /// The text with a mark (the noncharacters U+FDD0 U+FDD1) inside each name of a control or end token, so that
  /// encode(), which leaves the marks out, reads it as text: for what users write, before it becomes part of a prompt.
  /// Names of one character, and spellings that a vocabulary's normalizer turns into a name, are not found.
  Result<std::string> escape(std::string_view text) const;
  /// The bytes of the tokens; ends inside a UTF-8 character if the tokens do. Errors: invalid_argument for an id out of
  /// range.
  Result<std::string> decode(std::span<const Token> tokens, const DecodeOptions& options = {}) const;

  std::int32_t vocab_size() const noexcept;
  /// The bytes that the token adds to a text (control tokens: their name, e.g. "<|im_end|>"). Empty if out of range.
  std::string_view token_bytes(Token token) const noexcept;
  /// The token whose written form is exactly `text`, e.g. "<|im_end|>".
  std::optional<Token> find(std::string_view text) const noexcept;
  /// A control token: part of the protocol, not of the text.
  bool is_special(Token token) const noexcept;
  std::optional<Token> bos() const noexcept;
  std::optional<Token> eos() const noexcept;
  /// The tokens that end a generation (end of text, end of turn), ascending.
  std::span<const Token> end_tokens() const noexcept;

 private:
  friend class StreamDecoder;
  std::shared_ptr<const tok::TokenizerModel> model_;
};

/// Turns tokens into text piece by piece and never splits a UTF-8 character: bytes of an unfinished character wait for
/// the next token. Its text is always UTF-8: a byte that cannot belong to a character comes out as U+FFFD (decode()
/// gives the bytes as they are). The space that SentencePiece writes before a first word is dropped. One thread at a
/// time.
class LLMINFER_API StreamDecoder {
 public:
  explicit StreamDecoder(Tokenizer tokenizer, const DecodeOptions& options = {});

  /// The text that became complete with this token; possibly empty. Errors: invalid_argument for an id out of
  /// range; out_of_memory. After either the stream is as it was.
  Result<std::string> push(Token token);
  /// Ends the stream: an unfinished character comes out as U+FFFD.
  std::string finish();

 private:
  Tokenizer tokenizer_;
  DecodeOptions options_;
  std::string pending_;
  bool first_ = true;
};

}  // namespace llminfer::inline v0
