// A tokenizer of letters, for tests of the sampler.
#pragma once

#include <cstdint>
#include <string>
#include <utility>

#include "tok/tokenizer_model.hpp"

namespace llminfer::test {

/// Tokens a, b, c, … z, then "," (26), "x," (27) and padding up to `size`.
inline Tokenizer letters(std::int64_t size = 32) {
  load::VocabularyData data;
  data.model = "gpt2";
  data.pre = "gpt-2";
  for (char c = 'a'; c <= 'z'; ++c) data.tokens.push_back(std::string(1, c));
  data.tokens.insert(data.tokens.end(), {",", "x,"});
  data.merges = {"x ,"};
  data.types.assign(data.tokens.size(), 1);
  return Tokenizer(tok::make_tokenizer(data, size, {}).value());
}

}  // namespace llminfer::test
