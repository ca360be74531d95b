// PipelineTokenizer: added tokens, normalizers, pre-tokenizers and a merge model put together. Knows no file format.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "tok/added_tokens.hpp"
#include "tok/merge_model.hpp"
#include "tok/pipeline.hpp"
#include "tok/tokenizer_model.hpp"

namespace llminfer::inline v0 {
namespace tok {

/// What a vocabulary's reader fills in. The two vectors by id are equally long; holes are empty.
struct TokenizerParts {
  std::vector<std::string> bytes;  ///< what the token adds to a text, e.g. " the"
  std::vector<bool> special;
  std::shared_ptr<TokenIndex> index = std::make_shared<TokenIndex>();  ///< of written forms, e.g. "Ġthe"
  std::vector<AddedToken> added;
  std::vector<Normalizer> normalizers;
  std::vector<PreTokenizer> pre_tokenizers;
  std::unique_ptr<const MergeModel> model;
  std::vector<Token> prefix, suffix;  ///< what EncodeOptions::add_special adds
  std::optional<Token> bos, eos;
  std::vector<Token> end_tokens;  ///< ascending
  bool strips_leading_space = false;
};

/// Errors: those of the normalizers, which added tokens may go through.
Result<std::shared_ptr<const TokenizerModel>> make_pipeline_tokenizer(TokenizerParts parts);

/// The tokens that end a generation: eos, those that the checkpoint names, and the well-known names among control
/// tokens.
std::vector<Token> find_end_tokens(const TokenizerParts& parts, const std::vector<Token>& named);

/// `id` as a token of a vocabulary of `size`. Errors: bad_vocabulary, naming `what`.
Result<Token> checked_token(std::int64_t id, std::int64_t size, std::string_view what);

/// "<0x0A>": the byte; -1 for anything else.
int byte_token_value(std::string_view text) noexcept;

// The readers, one per vocabulary format.
Result<std::shared_ptr<const TokenizerModel>> read_gguf_vocabulary(const load::VocabularyData& data,
                                                                   std::int64_t vocab_size,
                                                                   const load::GenerationDefaults& generation);
Result<std::shared_ptr<const TokenizerModel>> read_tokenizer_json(const load::VocabularyData& data,
                                                                  std::int64_t vocab_size,
                                                                  const load::GenerationDefaults& generation);

}  // namespace tok
}  // namespace llminfer::inline v0
