// Vocabularies that contradict themselves: each gives its error code.
#include <cmath>

#include "tests/tok/support.hpp"

using namespace tok_test;

namespace {

llminfer::load::VocabularyData small_gguf() {
  llminfer::load::VocabularyData data;
  data.model = "gpt2";
  data.pre = "gpt-2";
  data.tokens = {"<s>", "a", "b", "ab"};
  data.types = {3, 1, 1, 1};
  data.merges = {"a b"};
  return data;
}

Json small_json() {
  return Json::parse(R"({"added_tokens":[{"id":3,"content":"<s>","special":true}],"normalizer":null,
    "pre_tokenizer":{"type":"ByteLevel"},"decoder":{"type":"ByteLevel"},"post_processor":null,
    "model":{"type":"BPE","vocab":{"a":0,"b":1,"ab":2},"merges":["a b"]}})");
}

template <class Change>
ErrorCode gguf_error(Change&& change, std::int64_t vocab_size = 4) {
  auto data = small_gguf();
  change(data);
  const auto made = make(data, vocab_size);
  REQUIRE_FALSE(made.has_value());
  CHECK_FALSE(made.error().message.empty());
  return made.error().code;
}

ErrorCode json_error(const std::string& text, std::int64_t vocab_size = 4) {
  const auto made = make_json(text, vocab_size);
  REQUIRE_FALSE(made.has_value());
  CHECK_FALSE(made.error().message.empty());
  return made.error().code;
}

template <class Change>
ErrorCode json_error_of(Change&& change, std::int64_t vocab_size = 4) {
  Json json = small_json();
  change(json);
  CAPTURE(json.dump());
  return json_error(json.dump(), vocab_size);
}

}  // namespace

TEST_CASE("the small vocabularies are sound as they are") {
  CHECK(encode(make(small_gguf(), 4).value(), "ab<s>") == std::vector<Token>{3, 0});
  CHECK(encode(make_json(small_json().dump(), 4).value(), "<s>").size() == 1);
  CHECK(make(small_gguf(), 10).value().vocab_size() == 10);  // padded embeddings
  CHECK(decode(make(small_gguf(), 10).value(), {1, 9, 2}) == "ab");
  auto unmerged = small_gguf();
  unmerged.merges.clear();
  unmerged.has_merges = true;  // a list, if an empty one
  CHECK(encode(make(unmerged, 4).value(), "ab") == std::vector<Token>{1, 2});
}

TEST_CASE("GGUF vocabularies that contradict themselves") {
  using D = llminfer::load::VocabularyData;
  const auto bad = ErrorCode::bad_vocabulary;
  CHECK(gguf_error([](D& d) { d.merges = {"a c"}; }) == bad);
  CHECK(gguf_error([](D& d) { d.merges = {"b a"}; }) == bad);
  CHECK(gguf_error([](D& d) { d.merges = {"ab"}; }) == bad);
  CHECK(gguf_error([](D& d) { d.merges = {""}; }) == bad);
  CHECK(gguf_error([](D& d) { d.merges = {"a "}; }) == bad);
  CHECK(gguf_error([](D& d) { d.merges.clear(); }) == bad);
  CHECK(gguf_error([](D& d) { d.tokens.clear(); }) == bad);
  CHECK(gguf_error([](D& d) { d.tokens[2] = "a"; }) == bad);
  CHECK(gguf_error([](D& d) { d.types.pop_back(); }) == bad);
  CHECK(gguf_error([](D& d) { d.types[1] = 7; }) == bad);
  CHECK(gguf_error([](D& d) { d.types[1] = -1; }) == bad);
  CHECK(gguf_error([](D& d) { d.scores = {1.f}; }) == bad);
  CHECK(gguf_error([](D& d) { d.bos = 4; }) == bad);
  CHECK(gguf_error([](D& d) { d.eos = -1; }) == bad);
  CHECK(gguf_error([](D& d) { d.eot = std::int64_t{1} << 40; }) == bad);
  CHECK(gguf_error([](D& d) { d.unk = 99; }) == bad);
  CHECK(gguf_error([](D& d) { d.pad = 99; }) == bad);
  CHECK(gguf_error([](D&) {}, 3) == bad);
  CHECK(gguf_error([](D&) {}, std::int64_t{1} << 40) == bad);
  CHECK(gguf_error([](D&) {}, -1) == bad);
  CHECK(gguf_error([](D& d) { d.model = "llama"; }) == bad);  // no scores
  CHECK(gguf_error([](D& d) { d.model.clear(); }) == bad);
  const auto byte_named_wrongly = [](D& d) {
    d.model = "llama";
    d.scores.assign(4, 0.f);
    d.types[1] = 6;
  };
  CHECK(gguf_error(byte_named_wrongly) == bad);
  const auto nan_score = [](D& d) {
    d.model = "llama";
    d.scores = {0.f, std::nanf(""), 0.f, 0.f};
  };
  CHECK(gguf_error(nan_score) == bad);
  CHECK(gguf_error([](D& d) { d.pre = "no-such-split"; }) == ErrorCode::unsupported);
  for (const char* kind : {"bert", "t5", "rwkv", "nonsense"}) {
    CHECK(gguf_error([&](D& d) { d.model = kind; }) == ErrorCode::unsupported);
  }
  llminfer::load::GenerationDefaults generation;
  generation.eos_tokens = {4};
  CHECK(make(small_gguf(), 4, generation).error().code == bad);
}

TEST_CASE("tokenizer.json that contradicts itself") {
  const auto bad = ErrorCode::bad_vocabulary;
  CHECK(json_error_of([](Json& j) { j["model"]["merges"] = {"a c"}; }) == bad);
  CHECK(json_error_of([](Json& j) { j["model"]["merges"] = {"b a"}; }) == bad);
  CHECK(json_error_of([](Json& j) { j["model"]["merges"] = {"a b c"}; }) == bad);
  CHECK(json_error_of([](Json& j) { j["model"]["merges"] = Json::array({Json::array({"a", "c"})}); }) == bad);
  CHECK(json_error_of([](Json& j) { j["model"]["vocab"]["b"] = 0; }) == bad);
  CHECK(json_error_of([](Json& j) { j["model"]["vocab"]["b"] = 4; }) == bad);
  CHECK(json_error_of([](Json& j) { j["model"]["vocab"]["b"] = -1; }) == bad);
  CHECK(json_error_of([](Json& j) { j["model"]["vocab"]["b"] = 18446744073709551615u; }) == bad);
  CHECK(json_error_of([](Json& j) { j["model"]["vocab"]["b"] = 2000000000; }, 0) == bad);  // a small file asks for much
  CHECK(json_error_of([](Json& j) { j["model"]["vocab"][""] = 3; }) == bad);
  CHECK(json_error_of([](Json& j) { j["added_tokens"][0]["id"] = 2; }) == bad);
  CHECK(json_error_of([](Json& j) { j["added_tokens"][0]["id"] = 4; }) == bad);
  CHECK(json_error_of([](Json& j) { j["added_tokens"][0]["content"] = ""; }) == bad);
  CHECK(json_error_of([](Json& j) { j["added_tokens"][0]["content"] = "a"; }) == bad);
  CHECK(json_error_of([](Json& j) { j["model"]["unk_token"] = "none"; }) == bad);
  CHECK(json_error_of([](Json& j) {
          j["post_processor"] = {{"type", "TemplateProcessing"},
                                 {"single", Json::array({{{"SpecialToken", {{"id", "<x>"}}}}})}};
        }) == bad);
  CHECK(json_error_of([](Json& j) {
          j["post_processor"] = {
              {"type", "RobertaProcessing"}, {"cls", Json::array({"<s>", 9})}, {"sep", Json::array({"<s>", 3})}};
        }) == bad);
}

TEST_CASE("tokenizer.json that is malformed or of another kind") {
  CHECK(json_error("{") == ErrorCode::corrupt);
  CHECK(json_error("[]") == ErrorCode::corrupt);
  CHECK(json_error("{\"model\":1}") == ErrorCode::corrupt);
  CHECK(json_error("{\"model\":{\"type\":\"BPE\",\"vocab\":{\"\xff\":0}}}") == ErrorCode::invalid_encoding);
  CHECK(json_error(std::string(1000000, '[')) == ErrorCode::limit_exceeded);
  CHECK(json_error_of([](Json& j) { j["model"]["vocab"] = 3; }) == ErrorCode::corrupt);
  CHECK(json_error_of([](Json& j) { j["model"]["vocab"]["b"] = "1"; }) == ErrorCode::corrupt);
  CHECK(json_error_of([](Json& j) { j["model"]["vocab"]["b"] = 1.5; }) == ErrorCode::corrupt);
  CHECK(json_error_of([](Json& j) { j["model"]["merges"] = 3; }) == ErrorCode::corrupt);
  CHECK(json_error_of([](Json& j) { j["model"]["merges"] = {3}; }) == ErrorCode::corrupt);
  CHECK(json_error_of([](Json& j) { j["added_tokens"] = "x"; }) == ErrorCode::corrupt);
  CHECK(json_error_of([](Json& j) { j["pre_tokenizer"] = {{"type", "Split"}}; }) == ErrorCode::corrupt);
  CHECK(json_error_of([](Json& j) {
          j["pre_tokenizer"] = {{"type", "Split"}, {"pattern", {{"Regex", "(a"}}}, {"behavior", "Isolated"}};
        }) == ErrorCode::corrupt);
  CHECK(json_error_of([](Json& j) {
          j["pre_tokenizer"] = {{"type", "Split"}, {"pattern", {{"Regex", std::string(70000, 'a')}}}};
        }) == ErrorCode::limit_exceeded);
  for (const char* kind : {"Unigram", "WordPiece", "WordLevel"}) {
    CHECK(json_error_of([&](Json& j) { j["model"]["type"] = kind; }) == ErrorCode::unsupported);
  }
  for (const char* part : {"normalizer", "pre_tokenizer", "decoder", "post_processor"}) {
    CHECK(json_error_of([&](Json& j) { j[part] = {{"type", "Nonsense"}}; }) == ErrorCode::unsupported);
    CHECK(json_error_of([&](Json& j) { j[part] = 5; }) == ErrorCode::corrupt);
  }
  CHECK(json_error_of([](Json& j) { j["model"]["end_of_word_suffix"] = "</w>"; }) == ErrorCode::unsupported);
}

TEST_CASE("a pattern that backtracks without end is stopped") {
  Json json = small_json();
  json["pre_tokenizer"] = {{"type", "Split"}, {"pattern", {{"Regex", "(a|a|aa)+[!?]"}}}, {"behavior", "Isolated"}};
  const Tokenizer tokenizer = make_json(json.dump(), 4).value();
  CHECK(tokenizer.encode(std::string(2000, 'a')).error().code == ErrorCode::limit_exceeded);
  CHECK(tokenizer.encode("b!").has_value());
}

TEST_CASE("tokenizer_config.json names the special tokens and may override what is added") {
  const std::string json = small_json().dump();
  const auto with = [&](const std::string& config) { return encode(make_json(json, 4, config).value(), "<s>"); };
  CHECK(with(R"({"bos_token":"<s>"})") == std::vector<Token>{3});
  CHECK(with(R"({"bos_token":{"content":"<s>"},"add_bos_token":true,"tokenizer_class":"LlamaTokenizerFast"})") ==
        std::vector<Token>{3, 3});
  CHECK(with(R"({"eos_token":"<s>","add_eos_token":true,"tokenizer_class":"GemmaTokenizer"})") ==
        std::vector<Token>{3, 3});
  CHECK(with(R"({"bos_token":"<s>","add_bos_token":true,"tokenizer_class":"Qwen2Tokenizer"})") ==
        std::vector<Token>{3});
  CHECK(make_json(json, 4, R"({"eos_token":"<s>"})").value().eos() == 3);
  CHECK(make_json(json, 4, "{").error().code == ErrorCode::corrupt);
}
