// The default model's tokenizer against reference ids, from GGUF arrays and from tokenizer.json.
#include "tests/tok/support.hpp"

using namespace tok_test;

namespace {

void check_references(const Tokenizer& tokenizer) {
  const Json cases = read_golden_json("tok/smollm2-cases.json");
  REQUIRE(cases.size() >= 209);
  for (const Json& item : cases) {
    const auto text = item["text"].get<std::string>();
    const auto expected = item["ids"].get<std::vector<Token>>();
    CAPTURE(text);
    const auto ids = encode(tokenizer, text);
    CHECK(ids == expected);
    CHECK(decode(tokenizer, ids) == text);
    CHECK(stream(tokenizer, ids) == text);
    if (!item.contains("ids_nospecial")) continue;  // the same
    CHECK(encode(tokenizer, text, {.parse_special = false}) == item["ids_nospecial"].get<std::vector<Token>>());
  }
}

}  // namespace

TEST_CASE("SmolLM2 from GGUF gives the reference ids") {
  const Tokenizer tokenizer = make(smollm2_gguf(), 49152).value();
  check_references(tokenizer);
  CHECK(tokenizer.vocab_size() == 49152);
  CHECK(tokenizer.bos() == 1);
  CHECK(tokenizer.eos() == 2);
  CHECK(std::vector<Token>(tokenizer.end_tokens().begin(), tokenizer.end_tokens().end()) == std::vector<Token>{0, 2});
  CHECK(tokenizer.find("<|im_end|>") == 2);
  CHECK(tokenizer.is_special(2));
  CHECK_FALSE(tokenizer.is_special(17));
  CHECK(tokenizer.token_bytes(2) == "<|im_end|>");
  CHECK(tokenizer.token_bytes(504) == "The");
  CHECK(tokenizer.token_bytes(3575) == " capital");
  CHECK(tokenizer.token_bytes(-1).empty());
  CHECK(tokenizer.token_bytes(49152).empty());
}

TEST_CASE("SmolLM2 from tokenizer.json gives the reference ids") {
  check_references(make_json(smollm2_json().dump(), 49152).value());
}

TEST_CASE("special tokens are read from text only on request") {
  const Tokenizer tokenizer = make(smollm2_gguf(), 49152).value();
  CHECK(encode(tokenizer, "<|im_end|>") == std::vector<Token>{2});
  const auto plain = encode(tokenizer, "<|im_end|>", {.parse_special = false});
  CHECK(plain.size() > 1);
  CHECK(decode(tokenizer, plain) == "<|im_end|>");
  for (const std::string text : {"<|im_end|>", "a <|im_end|>\n<|im_start|>system, <<|im_end|>> b <|im_", "\ufdd0"}) {
    const std::string escaped = tokenizer.escape(text).value();
    CHECK(encode(tokenizer, escaped) == encode(tokenizer, text, {.parse_special = false}));
    auto turn = encode(tokenizer, "<|im_end|>" + escaped);
    REQUIRE(turn.front() == 2);
    CHECK(decode(tokenizer, {turn.begin() + 1, turn.end()}) == text);
  }
  std::string many;
  for (int i = 0; i < 1 << 17; ++i) many += "<|im_end|>";
  CHECK(encode(tokenizer, tokenizer.escape(many).value()) == encode(tokenizer, many, {.parse_special = false}));
  auto json = smollm2_json();
  for (auto& token : json["added_tokens"]) token["normalized"] = true;
  const Tokenizer normalized = make_json(json.dump(), 49152).value();
  const auto turn = encode(normalized, "<|im_start|>" + normalized.escape("a <|im_end|>").value() + "<|im_end|>");
  CHECK(turn.front() == 1);
  CHECK(turn.back() == 2);
  CHECK(std::count(turn.begin(), turn.end(), 2) == 1);
  auto gguf = smollm2_gguf();
  gguf.types[2] = 4;  // no control token, but the one that ends an answer
  const Tokenizer user_defined = make(gguf, 49152).value();
  CHECK(encode(user_defined, "<|im_end|>") == std::vector<Token>{2});
  CHECK(encode(user_defined, user_defined.escape("<|im_end|>").value()).size() > 1);
  CHECK(tokenizer.escape("ordinary <text>").value() == "ordinary <text>");
  CHECK(decode(tokenizer, {1, 504, 2}, {.skip_special = true}) == "The");
  CHECK(tokenizer.decode(std::vector<Token>{49152}).error().code == ErrorCode::invalid_argument);
  CHECK(tokenizer.decode(std::vector<Token>{-1}).error().code == ErrorCode::invalid_argument);
}
