// Other vocabularies and pipelines against Hugging Face tokenizers and sentencepiece (tests/golden/tok/references.py).
#include "core/utf8.hpp"
#include "tests/tok/support.hpp"

using namespace tok_test;

namespace {

/// A decoder of the reference libraries replaces ill-formed bytes, as StreamDecoder does; decode() gives them as they
/// are.
void check(const Tokenizer& tokenizer, const Json& cases) {
  for (const Json& item : cases) {
    const auto text = item["text"].get<std::string>();
    CAPTURE(text);
    const auto expected = item["ids"].get<std::vector<Token>>();
    CHECK(encode(tokenizer, text) == expected);
    if (item.contains("plain")) {
      CHECK(encode(tokenizer, text, {.add_special = false, .parse_special = false}) ==
            item["plain"].get<std::vector<Token>>());
    }
    const std::string decoded = decode(tokenizer, expected);
    if (item.contains("decoded") && llminfer::core::valid_utf8(decoded))
      CHECK(decoded == item["decoded"].get<std::string>());
    CHECK(llminfer::core::valid_utf8(stream(tokenizer, expected)));
  }
}

}  // namespace

TEST_CASE("byte-level pipelines of tokenizer.json give the reference ids") {
  const Json base = read_golden_json("models/tiny-bf16/tokenizer.json");
  for (const Json& item : read_golden_json("tok/hf.json")) {
    CAPTURE(item["name"].get<std::string>());
    Json json = base;
    json.update(item["dress"]);
    check(make_json(json.dump()).value(), item["cases"]);
  }
}

TEST_CASE("SentencePiece BPE with byte fallback from tokenizer.json gives the reference ids") {
  const Json golden = read_golden_json("tok/sentencepiece.json");
  for (const Json& item : golden["json"]) {
    CAPTURE(item["name"].get<std::string>());
    Json json = item["tokenizer"];
    json["model"] = golden["model"];
    check(make_json(json.dump()).value(), item["cases"]);
  }
}

TEST_CASE("SentencePiece BPE from GGUF gives the reference ids") {
  const Json golden = read_golden_json("tok/sentencepiece.json");
  llminfer::load::VocabularyData data;
  data.model = "llama";
  data.tokens = golden["tokens"].get<std::vector<std::string>>();
  data.types = golden["types"].get<std::vector<std::int32_t>>();
  data.scores = golden["scores"].get<std::vector<float>>();
  data.bos = 1;
  data.eos = 2;
  data.unk = 0;
  data.add_bos = false;
  const Tokenizer tokenizer = make(data).value();
  for (const Json& item : golden["cases"]) {
    const auto text = item["text"].get<std::string>();
    CAPTURE(text);
    const auto ids = encode(tokenizer, text, {.parse_special = false});
    CHECK(ids == item["ids"].get<std::vector<Token>>());
    CHECK(decode(tokenizer, ids) == item["decoded"].get<std::string>());
    CHECK(stream(tokenizer, ids) == item["decoded"].get<std::string>());
  }
  data.add_bos.reset();  // the default of this kind is to add it
  data.add_eos = true;
  const auto ids = encode(make(data).value(), "a");
  CHECK(ids.front() == 1);
  CHECK(ids.back() == 2);
}
