// Hostile texts: linear time and no crash; streams that never split a character.
#include <ctime>

#include "core/utf8.hpp"
#include "tests/tok/support.hpp"

using namespace tok_test;

namespace {

std::string repeated(std::string_view unit, std::size_t bytes) {
  std::string out;
  while (out.size() < bytes) out += unit;
  return out;
}

#if defined(LLMINFER_SANITIZED)
constexpr std::size_t kMegabyte = 1000 * 100;  // they look for other things than time
#else
constexpr std::size_t kMegabyte = 1000 * 1000;
#endif

#if defined(NDEBUG) && !defined(LLMINFER_SANITIZED)
constexpr double kSeconds = 4.0;  // of processor time, for a megabyte: a quadratic algorithm takes minutes
#else
constexpr double kSeconds = 40.0;
#endif

void check_fast(const Tokenizer& tokenizer, bool round_trip, std::size_t size) {
  const std::string spaces = repeated(" ", size);
  for (const std::string& text :
       {repeated("a", size), spaces, spaces + "x", repeated("\u0301", size), repeated("\u0301\u0323", size),
        repeated("A", size), repeated("1", size), repeated("\n", size), repeated(" \n", size), repeated("ab", size),
        repeated("\xff", size), repeated("<|im_start|", size), repeated("'", size), repeated("日", size)}) {
    CAPTURE(text.substr(0, 16));
    const std::clock_t start = std::clock();
    const auto ids = encode(tokenizer, text);
    const double took = static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC;
    CHECK(took < kSeconds * static_cast<double>(size) / static_cast<double>(kMegabyte));
    if (round_trip && llminfer::core::valid_utf8(text)) CHECK((decode(tokenizer, ids) == text));
  }
}

}  // namespace

TEST_CASE("a megabyte of anything is tokenized in linear time") {
  auto data = smollm2_gguf();
  for (const char* pre :
       {"smollm", "llama-bpe", "tekken", "gpt-4o", "deepseek-coder", "deepseek-v3", "falcon", "bloom", "default"}) {
    data.pre = pre;
    CAPTURE(pre);
    check_fast(make(data).value(), true, data.pre == "smollm" ? kMegabyte : kMegabyte / 10);
  }
  data.pre = "qwen2";  // normalizes
  check_fast(make(data).value(), false, kMegabyte);
}

TEST_CASE("a megabyte of anything through SentencePiece") {
  const Json golden = read_golden_json("tok/sentencepiece.json");
  llminfer::load::VocabularyData data;
  data.model = "llama";
  data.tokens = golden["tokens"].get<std::vector<std::string>>();
  data.types = golden["types"].get<std::vector<std::int32_t>>();
  data.scores = golden["scores"].get<std::vector<float>>();
  data.add_bos = false;
  check_fast(make(data).value(), true, kMegabyte);
}

TEST_CASE("text that is not UTF-8 keeps its bytes") {
  const Tokenizer tokenizer = make_json(read_golden("models/tiny-bf16/tokenizer.json")).value();  // has all 256 bytes
  for (const std::string text : {"\xff", "a\x80z", "\xe2\x82", "\xc0\xaf", "\xed\xa0\x80 x", "\xf5\x80\x80\x80",
                                 "ok \xf0\x9f\x98 \xf0\x9f\x98\x80"}) {
    CAPTURE(text);
    CHECK(decode(tokenizer, encode(tokenizer, text)) == text);
  }
}

TEST_CASE("a stream never splits a character") {
  const Tokenizer tokenizer = make_json(read_golden("models/tiny-bf16/tokenizer.json")).value();
  const std::string text = "é日本👨‍👩‍👧 ok";
  llminfer::StreamDecoder decoder(tokenizer);
  std::string whole;
  for (const Token id : encode(tokenizer, text)) {
    for (const Token bad : {Token{-1}, tokenizer.vocab_size()}) {  // changes nothing, wherever the stream is
      const auto refused = decoder.push(bad);
      REQUIRE_FALSE(refused);
      CHECK(refused.error().code == llminfer::ErrorCode::invalid_argument);
    }
    const std::string piece = decoder.push(id).value();
    CHECK(llminfer::core::valid_utf8(piece));
    whole += piece;
  }
  CHECK(whole == text);
  CHECK(decoder.finish().empty());

  const auto one_byte = [&](unsigned char byte) {
    return encode(tokenizer, std::string(1, static_cast<char>(byte))).at(0);
  };
  CHECK(decoder.push(one_byte(0xe6)).value().empty());
  CHECK(decoder.push(one_byte(0x97)).value().empty());
  CHECK(decoder.finish() == "\ufffd");
  CHECK(decoder.finish().empty());
  CHECK(decoder.push(one_byte(0xe6)).value().empty());
  CHECK(decoder.push(one_byte('a')).value() == "\ufffda");  // what can't become a character any more is replaced at once
  CHECK(decoder.push(one_byte(0xff)).value() == "\ufffd");
}
