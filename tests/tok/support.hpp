// Vocabularies and references for the tokenizer's tests.
#pragma once

#include <catch2/catch.hpp>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <vector>

#include <llminfer/tokenizer.hpp>

#include "tok/tokenizer_model.hpp"

namespace tok_test {

using llminfer::ErrorCode;
using llminfer::Token;
using llminfer::Tokenizer;
using Json = nlohmann::json;

inline std::string read_golden(const std::string& name) {
  std::ifstream file(std::string(LLMINFER_TEST_DATA) + "/" + name, std::ios::binary);
  REQUIRE(file.good());
  return std::string(std::istreambuf_iterator<char>(file), {});
}

inline Json read_golden_json(const std::string& name) { return Json::parse(read_golden(name)); }

inline llminfer::Result<Tokenizer> make(const llminfer::load::VocabularyData& data, std::int64_t vocab_size = 0,
                                        const llminfer::load::GenerationDefaults& generation = {}) {
  auto model = llminfer::tok::make_tokenizer(data, vocab_size, generation);
  if (!model) return std::move(model).error();
  return Tokenizer(std::move(model).value());
}

inline llminfer::Result<Tokenizer> make_json(const std::string& tokenizer_json, std::int64_t vocab_size = 0,
                                             const std::string& config = "") {
  llminfer::load::VocabularyData data;
  data.tokenizer_json = tokenizer_json;
  data.tokenizer_config_json = config;
  return make(data, vocab_size);
}

/// The vocabulary of SmolLM2-Instruct as its GGUF file holds it.
inline llminfer::load::VocabularyData smollm2_gguf() {
  std::istringstream file(read_golden("tok/smollm2-merges.txt"));
  llminfer::load::VocabularyData data;
  data.model = "gpt2";
  data.pre = "smollm";
  data.bos = 1;
  data.eos = 2;
  data.unk = 0;
  data.pad = 2;
  data.add_bos = false;
  data.add_space_prefix = false;
  std::string line, word;
  std::getline(file, line);
  for (std::istringstream words(line); words >> word;) data.tokens.push_back(word);
  data.types.assign(data.tokens.size(), 3);
  std::getline(file, line);
  for (std::istringstream words(line); words >> word;) data.tokens.push_back(word);
  while (std::getline(file, line)) {
    data.merges.push_back(line);
    data.tokens.push_back(line.erase(line.find(' '), 1));
  }
  data.types.resize(data.tokens.size(), 1);
  return data;
}

/// The same vocabulary as its tokenizer.json holds it.
inline Json smollm2_json() {
  const auto data = smollm2_gguf();
  Json vocab = Json::object();
  Json added = Json::array();
  for (std::size_t i = 0; i < data.tokens.size(); ++i) {
    vocab[data.tokens[i]] = i;
    if (data.types[i] == 3) {
      added.push_back({{"id", i},
                       {"content", data.tokens[i]},
                       {"single_word", false},
                       {"lstrip", false},
                       {"rstrip", false},
                       {"normalized", false},
                       {"special", true}});
    }
  }
  const Json byte_level = {
      {"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", true}};
  const Json digits = {{"type", "Digits"}, {"individual_digits", true}};
  return {{"version", "1.0"},
          {"added_tokens", added},
          {"normalizer", nullptr},
          {"pre_tokenizer", {{"type", "Sequence"}, {"pretokenizers", Json::array({digits, byte_level})}}},
          {"post_processor", nullptr},
          {"decoder", byte_level},
          {"model", {{"type", "BPE"}, {"vocab", vocab}, {"merges", data.merges}}}};
}

inline std::vector<Token> encode(const Tokenizer& tokenizer, std::string_view text,
                                 const llminfer::EncodeOptions& options = {}) {
  auto ids = tokenizer.encode(text, options);
  if (!ids) FAIL(ids.error().message);
  return std::move(ids).value();
}

inline std::string decode(const Tokenizer& tokenizer, const std::vector<Token>& ids,
                          const llminfer::DecodeOptions& options = {}) {
  auto text = tokenizer.decode(ids, options);
  if (!text) FAIL(text.error().message);
  return std::move(text).value();
}

/// The whole stream of the tokens.
inline std::string stream(const Tokenizer& tokenizer, const std::vector<Token>& ids) {
  llminfer::StreamDecoder decoder(tokenizer);
  std::string out;
  for (const Token id : ids) out += decoder.push(id).value();
  return out + decoder.finish();
}

}  // namespace tok_test
