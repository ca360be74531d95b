// Hugging Face directories: what is read from a whole one, and the error code of each way in which one can be wrong.
#include <catch2/catch.hpp>

#include <map>

#include "load/hf.hpp"
#include "tests/load/safetensors_file.hpp"
#include "tests/load/temp_dir.hpp"

using namespace llminfer;
using Catch::Contains;
using test::entry;
using test::safetensors_file;
using test::TempDir;

namespace {

const std::string kConfig = R"({"model_type": "llama", "vocab_size": 32, "hidden_size": 16, "intermediate_size": 24,
  "num_hidden_layers": 2, "num_attention_heads": 4})";

/// A directory with config.json and one tensor.
struct Model {
  TempDir dir;
  Model() {
    dir.write("config.json", kConfig);
    dir.write("model.safetensors", safetensors_file("{" + entry("a", "F32", "2", "0", "8") + "}", "12345678"));
  }
  Result<load::Checkpoint> open() const { return load::open_hf_directory(dir.path(), true); }
  void expect(ErrorCode code, const std::string& named) const {
    const auto checkpoint = open();
    REQUIRE_FALSE(checkpoint);
    INFO(checkpoint.error().message);
    CHECK(checkpoint.error().code == code);
    CHECK_THAT(checkpoint.error().message, Contains(named));
  }
  void remove(const std::string& name) const { std::filesystem::remove(dir / name); }
};

std::string one_tensor(const std::string& name) {
  return safetensors_file("{" + entry(name, "F32", "1", "0", "4") + "}", "1234");
}

std::string index_of(const std::map<std::string, std::string>& files) {
  std::string text;
  for (const auto& [tensor, file] : files) text += (text.empty() ? "" : ",") + ("\"" + tensor + "\":\"" + file + "\"");
  return "{\"metadata\":{\"total_size\":8},\"weight_map\":{" + text + "}}";
}

}  // namespace

TEST_CASE("Hugging Face directory: a whole model") {
  for (const bool use_mmap : {true, false}) {
    const auto opened = load::open_hf_directory(LLMINFER_TEST_DATA "/models/tiny-bf16", use_mmap);
    REQUIRE(opened);
    const load::Checkpoint& checkpoint = *opened;
    CHECK(checkpoint.config.architecture == "llama");
    CHECK(checkpoint.config.name == "tiny-bf16");
    CHECK(checkpoint.config.hf_names);
    CHECK(checkpoint.config.vocab_size == 1024);
    CHECK(checkpoint.config.hidden_size == 128);
    CHECK(checkpoint.config.ffn_size == 384);
    CHECK(checkpoint.config.layers == 3);
    CHECK(checkpoint.config.heads == 4);
    CHECK(checkpoint.config.kv_heads == 2);
    CHECK(checkpoint.config.head_dim == 32);
    CHECK(checkpoint.config.rotary_dim == 32);
    CHECK(checkpoint.config.context_length == 2048);
    CHECK(checkpoint.config.norm_epsilon == 1e-6);
    CHECK(checkpoint.config.rope_base == 10000);
    CHECK_FALSE(checkpoint.config.tied_embeddings);
    CHECK(checkpoint.generation.eos_tokens == std::vector<std::int32_t>{0});
    CHECK(checkpoint.vocabulary.bos == 0);
    CHECK(checkpoint.vocabulary.eos == 0);
    CHECK_THAT(checkpoint.vocabulary.tokenizer_json, Contains("\"BPE\""));
    CHECK_THAT(checkpoint.vocabulary.tokenizer_config_json, Contains("<|endoftext|>"));
    CHECK_THAT(checkpoint.chat_template, Contains("<|im_start|>"));
    const load::TensorInfo* table = checkpoint.find("model.embed_tokens.weight");
    REQUIRE(table);
    CHECK(table->type == WeightType::bf16);
    const auto view = checkpoint.read(*table);
    REQUIRE(view);
    CHECK(view->rows == 1024);
    CHECK(view->data.size() == 1024 * 128 * 2);
  }
}

TEST_CASE("Hugging Face directory: files that are missing") {
  const Model model;
  REQUIRE(model.open());
  SECTION("config.json") {
    model.remove("config.json");
    model.expect(ErrorCode::not_found, "config.json");
  }
  SECTION("weights") {
    model.remove("model.safetensors");
    model.expect(ErrorCode::not_found, "model.safetensors.index.json");
  }
  SECTION("the directory") {
    const auto checkpoint = load::open_hf_directory(model.dir / "none", true);
    REQUIRE_FALSE(checkpoint);
    CHECK(checkpoint.error().code == ErrorCode::not_found);
  }
}

TEST_CASE("Hugging Face directory: files that are not files") {
  const Model model;
  const std::string name = GENERATE("config.json", "model.safetensors", "tokenizer.json", "generation_config.json");
  SECTION("a directory") {
    model.remove(name);
    std::filesystem::create_directory(model.dir / name);
    model.expect(ErrorCode::not_a_file, name);
  }
}

TEST_CASE("Hugging Face directory: empty weights") {
  const Model model;
  model.dir.write("model.safetensors", "");
  model.expect(ErrorCode::truncated, "model.safetensors");
}

TEST_CASE("Hugging Face directory: non-ASCII path") {
  const Model model;
  const std::string path = model.dir / "модель 模型";
  std::filesystem::create_directory(path);
  for (const char* name : {"config.json", "model.safetensors"}) {
    std::filesystem::copy_file(model.dir / name, path + "/" + name);
  }
  const auto checkpoint = load::open_hf_directory(path + "/", true);
  REQUIRE(checkpoint);
  CHECK(checkpoint->config.name == "модель 模型");
}

TEST_CASE("Hugging Face directory: shards") {
  const Model model;
  model.remove("model.safetensors");
  model.dir.write("one.safetensors", one_tensor("a"));
  model.dir.write("two.safetensors", one_tensor("b"));
  const auto index = [&](const std::string& text) { model.dir.write("model.safetensors.index.json", text); };
  SECTION("whole") {
    index(index_of({{"a", "one.safetensors"}, {"b", "two.safetensors"}}));
    const auto checkpoint = model.open();
    REQUIRE(checkpoint);
    CHECK(checkpoint->sources.size() == 2);
    REQUIRE(checkpoint->find("a"));
    REQUIRE(checkpoint->find("b"));
    CHECK(checkpoint->find("a")->source != checkpoint->find("b")->source);
  }
  SECTION("paths that leave the directory") {
    const std::string path = GENERATE("../two.safetensors", "/etc/passwd", "x/../../two.safetensors", "..", "");
    index(index_of({{"a", "one.safetensors"}, {"b", path}}));
    model.expect(ErrorCode::corrupt, "tensor b");
  }
  SECTION("a path with a zero byte") {
    index(index_of({{"a", "one.safetensors\\u0000/x"}}));
    model.expect(ErrorCode::corrupt, "tensor a");
  }
  SECTION("a shard that is missing") {
    index(index_of({{"a", "one.safetensors"}, {"b", "three.safetensors"}}));
    model.expect(ErrorCode::not_found, "three.safetensors");
  }
  SECTION("a tensor that no shard has") {
    index(index_of({{"a", "one.safetensors"}, {"c", "two.safetensors"}}));
    model.expect(ErrorCode::missing_tensor, "tensor c");
  }
  SECTION("a tensor in another shard than the index says") {
    index(index_of({{"a", "two.safetensors"}, {"b", "one.safetensors"}}));
    model.expect(ErrorCode::missing_tensor, "tensor a");
  }
  SECTION("a tensor in two shards") {
    model.dir.write("two.safetensors", one_tensor("a"));
    index(index_of({{"a", "one.safetensors"}, {"b", "two.safetensors"}}));
    model.expect(ErrorCode::corrupt, "tensor a");
  }
  SECTION("not an index") {
    index(GENERATE("[]", "{}", "{\"weight_map\":[]}", "{\"weight_map\":{}}", "{\"weight_map\":{\"a\":1}}", "{"));
    model.expect(ErrorCode::corrupt, "model.safetensors.index.json");
  }
}

TEST_CASE("Hugging Face directory: weights as GPTQ's tools name them") {
  const Model model;
  model.remove("model.safetensors");
  const auto weights = [&](const std::string& name) { model.dir.write(name, one_tensor("a")); };
  const auto with = [&](const std::string& settings) { model.dir.write("quantize_config.json", settings); };
  // The one tensor is no layer of GPTQ: once the file is found, that is the error.
  const auto found = [&] { model.expect(ErrorCode::missing_tensor, "*.qweight"); };
  const std::string usual = "gptq_model-4bit-128g.safetensors";
  with(R"({"bits": 4, "group_size": 128, "model_file_base_name": null})");
  SECTION("bits and group size") {
    weights(usual);
    found();
  }
  SECTION("one group for all columns") {
    with(R"({"bits": 8, "group_size": -1})");
    weights("gptq_model-8bit--1g.safetensors");
    found();
  }
  SECTION("settings in config.json") {
    model.remove("quantize_config.json");
    model.dir.write("config.json", kConfig.substr(0, kConfig.size() - 1) +
                                       R"(, "quantization_config": {"quant_method": "gptq", "bits": 4,
                                       "group_size": 128}})");
    weights(usual);
    found();
    SECTION("but the name beside it") {
      with(R"({"model_file_base_name": "stated"})");
      weights("stated.safetensors");
      model.dir.write(usual, "");
      found();
    }
  }
  SECTION("the name that the settings state goes first, model.safetensors before it") {
    with(R"({"bits": 4, "group_size": 128, "model_file_base_name": "stated"})");
    model.dir.write("stated.safetensors", "");
    weights(usual);
    model.expect(ErrorCode::truncated, "stated.safetensors");
    model.remove("stated.safetensors");
    found();
    model.dir.write("model.safetensors", "");
    model.expect(ErrorCode::truncated, "model.safetensors");
  }
  SECTION("shards, also in a folder") {
    const std::string folder = GENERATE("", "sub/");
    with(R"({"bits": 4, "group_size": 128, "model_file_base_name": ")" + folder + R"(stated"})");
    if (!folder.empty()) std::filesystem::create_directory(model.dir / "sub");
    weights(folder + "one.safetensors");
    const std::string index = folder + "stated.safetensors.index.json";
    model.dir.write(index, index_of({{"a", "one.safetensors"}}));
    found();
    model.dir.write(index, index_of({{"a", "../one.safetensors"}}));
    model.expect(ErrorCode::corrupt, "tensor a");
  }
  SECTION("names that leave the directory, or are none") {
    const std::string name = GENERATE(R"("../x")", R"("/etc/x")", R"("sub/../../x")", R"("x\u0000")", "3");
    with(R"({"bits": 4, "group_size": 128, "model_file_base_name": )" + name + "}");
    weights(usual);
    model.expect(ErrorCode::corrupt, "model_file_base_name");
  }
  SECTION("a file and an index") {
    weights(usual);
    model.dir.write(usual + ".index.json", index_of({{"a", "one.safetensors"}}));
    model.expect(ErrorCode::corrupt, usual + ".index.json");
  }
  SECTION("two names, and a file of each") {
    model.dir.write("config.json", kConfig.substr(0, kConfig.size() - 1) +
                                       R"(, "quantization_config": {"quant_method": "gptq", "bits": 4,
                                       "group_size": 128, "model_file_base_name": "first"}})");
    with(R"({"model_file_base_name": "second"})");
    weights("first.safetensors");
    found();
    weights("second.safetensors");
    model.expect(ErrorCode::corrupt, "first.safetensors and second.safetensors");
  }
  SECTION("none of them") {
    model.expect(ErrorCode::not_found, "there is no file *.safetensors");
    model.expect(ErrorCode::not_found, usual + ".index.json");
    weights("gptq_model-3bit-128g.safetensors");
    weights("adapter.safetensors");
    model.expect(ErrorCode::not_found, "adapter.safetensors, gptq_model-3bit-128g.safetensors");
  }
}

TEST_CASE("Hugging Face directory: chat template") {
  const Model model;
  SECTION("a string") {
    model.dir.write("tokenizer_config.json", R"({"chat_template": "one"})");
    CHECK(model.open().value().chat_template == "one");
  }
  SECTION("a list") {
    model.dir.write("tokenizer_config.json", R"({"chat_template": [{"name": "tool_use", "template": "two"},
      {"name": "default", "template": "three"}]})");
    CHECK(model.open().value().chat_template == "three");
  }
  SECTION("a list without a default") {
    model.dir.write("tokenizer_config.json", R"({"chat_template": [{"name": "tool_use", "template": "two"}]})");
    CHECK(model.open().value().chat_template.empty());
  }
  SECTION("the file goes first") {
    model.dir.write("tokenizer_config.json", R"({"chat_template": "one"})");
    model.dir.write("chat_template.jinja", "four");
    CHECK(model.open().value().chat_template == "four");
  }
  SECTION("neither") { CHECK(model.open().value().chat_template.empty()); }
  SECTION("something else") {
    model.dir.write("tokenizer_config.json",
                    GENERATE(R"({"chat_template": 1})", R"({"chat_template": [1]})", "[]", "{"));
    model.expect(ErrorCode::corrupt, "tokenizer_config.json");
  }
}

TEST_CASE("Hugging Face directory: end tokens") {
  const Model model;
  model.dir.write("config.json", kConfig.substr(0, kConfig.size() - 1) + R"(, "eos_token_id": [3, 4]})");
  SECTION("of config.json") { CHECK(model.open().value().generation.eos_tokens == std::vector<std::int32_t>{3, 4}); }
  SECTION("generation_config.json goes first") {
    model.dir.write("generation_config.json", R"({"eos_token_id": 5, "temperature": 0.6, "top_p": 0.9, "top_k": 20,
      "do_sample": true, "repetition_penalty": 1.1, "min_p": 0.05})");
    const load::GenerationDefaults generation = model.open().value().generation;
    CHECK(generation.eos_tokens == std::vector<std::int32_t>{5});
    CHECK(generation.temperature == 0.6f);
    CHECK(generation.top_p == 0.9f);
    CHECK(generation.min_p == 0.05f);
    CHECK(generation.repetition_penalty == 1.1f);
    CHECK(generation.top_k == 20);
    CHECK(generation.do_sample == true);
  }
  SECTION("that are no tokens") {
    model.dir.write("generation_config.json",
                    GENERATE(R"({"eos_token_id": 32})", R"({"eos_token_id": -2})", R"({"eos_token_id": [1, "x"]})",
                             R"({"eos_token_id": 1.5})", R"({"eos_token_id": 18446744073709551615})"));
    model.expect(ErrorCode::bad_vocabulary, "eos_token_id");
  }
  SECTION("none") {
    model.dir.write("config.json", kConfig);
    model.dir.write("generation_config.json", R"({"eos_token_id": -1})");
    CHECK(model.open().value().generation.eos_tokens.empty());
  }
}
