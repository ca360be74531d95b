// The parts of tokenizer.json around the model: normalizer, pre_tokenizer, decoder, post_processor.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "core/json.hpp"
#include "tok/pipeline.hpp"
#include "tok/pipeline_tokenizer.hpp"

namespace llminfer::inline v0 {
namespace tok {

/// How a token's written form becomes what it adds to a text.
struct Decoder {
  std::vector<std::function<void(std::string&)>> steps;  ///< for every token
  bool byte_level = false;                               ///< then for tokens of the model: alphabet to bytes
  bool strips_leading_space = false;
  bool fused = false;  ///< the steps that follow would see the whole text
};

// Errors of all four: unsupported, naming the type that is not known; corrupt for members that are missing or of
// another type.
Result<void> read_normalizer(const core::Json& json, std::vector<Normalizer>& out);
Result<void> read_pre_tokenizer(const core::Json& json, std::vector<PreTokenizer>& out);
Result<void> read_decoder(const core::Json& json, Decoder& out);
/// What it adds before and after a text. Ids are checked against `size`.
Result<void> read_post_processor(const core::Json& json, std::int64_t size, std::vector<Token>& prefix,
                                 std::vector<Token>& suffix);

}  // namespace tok
}  // namespace llminfer::inline v0
