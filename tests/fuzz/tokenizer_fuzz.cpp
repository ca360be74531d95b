// tokenizer.json of any content: an error or a tokenizer that encodes, decodes and streams.
#include <cstddef>
#include <cstdint>
#include <string>

#include "tok/tokenizer_model.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  // The input is a tokenizer.json, then optionally a zero byte and the text to encode.
  const std::string input(reinterpret_cast<const char*>(data), size);
  const std::size_t zero = input.find('\0');
  llminfer::load::VocabularyData vocabulary;
  vocabulary.tokenizer_json = input.substr(0, zero);
  const std::string text = zero == std::string::npos ? "a <s> \xf0\x9f\x98\x80 12\xff" : input.substr(zero + 1);
  if (vocabulary.tokenizer_json.empty()) return 0;
  auto model = llminfer::tok::make_tokenizer(vocabulary, size % 2 == 0 ? 0 : 300, {});
  if (!model) return 0;
  const llminfer::Tokenizer tokenizer(std::move(model).value());
  const auto ids = tokenizer.encode(text);
  if (!ids) return 0;
  if (!tokenizer.decode(*ids)) __builtin_trap();  // ids of its own must decode
  llminfer::StreamDecoder decoder(tokenizer);
  for (const llminfer::Token id : *ids) decoder.push(id).value();
  decoder.finish();
  return 0;
}
