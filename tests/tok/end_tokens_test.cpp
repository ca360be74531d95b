// Tokens that end a text by their names alone.
#include "tests/tok/support.hpp"

using namespace tok_test;

namespace {

/// The end tokens of a vocabulary that has these control tokens, from id 3 on.
std::vector<Token> ends_of(const std::vector<std::string>& names) {
  llminfer::load::VocabularyData data;
  data.model = "gpt2";
  data.pre = "gpt-2";
  data.tokens = {"a", "b", "ab"};
  data.types = {1, 1, 1};
  data.merges = {"a b"};
  for (const std::string& name : names) {
    data.tokens.push_back(name);
    data.types.push_back(3);
  }
  const Tokenizer tokenizer = make(data, static_cast<std::int64_t>(data.tokens.size())).value();
  return {tokenizer.end_tokens().begin(), tokenizer.end_tokens().end()};
}

}  // namespace

TEST_CASE("end tokens by name") {
  CHECK(ends_of({"<|im_start|>", "<|im_end|>"}) == std::vector<Token>{4});
  CHECK(ends_of({"<|user|>", "<|end|>"}) == std::vector<Token>{4});
  CHECK(ends_of({"<|call|>"}).empty());
}

TEST_CASE("in the Harmony format a message's end is not the turn's") {
  CHECK(ends_of({"<|start|>", "<|end|>", "<|return|>", "<|call|>", "<|endoftext|>"}) == std::vector<Token>{5, 6, 7});
}
