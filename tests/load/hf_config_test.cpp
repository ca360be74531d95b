// config.json in the spellings of transformers 4 and 5, and the error code of each way in which it can be wrong.
#include <catch2/catch.hpp>
#include <nlohmann/json.hpp>

#include "load/hf_config.hpp"

using namespace llminfer;
using Catch::Contains;
using Json = nlohmann::json;
using Kind = load::RopeScaling::Kind;

namespace {

Json base() {
  return Json::parse(R"({"model_type": "llama", "vocab_size": 32, "hidden_size": 16, "intermediate_size": 24,
    "num_hidden_layers": 2, "num_attention_heads": 4})");
}

/// base() with the members of `changes` (null stays).
Json with(const char* changes) {
  Json config = base();
  config.update(Json::parse(changes));
  return config;
}

load::ModelConfig parse(const Json& config) {
  auto parsed = load::parse_hf_config(config.dump(), "config.json");
  if (!parsed) FAIL(parsed.error().message);
  return parsed->model;
}

void expect_text(const std::string& text, ErrorCode code, const std::string& named) {
  const auto parsed = load::parse_hf_config(text, "config.json");
  REQUIRE_FALSE(parsed);
  INFO(parsed.error().message);
  CHECK(parsed.error().code == code);
  CHECK_THAT(parsed.error().message, Contains(named) && Contains("config.json"));
}

void expect(const char* changes, ErrorCode code, const std::string& named) {
  expect_text(with(changes).dump(), code, named);
}

}  // namespace

TEST_CASE("config.json: defaults") {
  const load::ModelConfig config = parse(base());
  CHECK(config.architecture == "llama");
  CHECK(config.hf_names);
  CHECK(config.kv_heads == 4);
  CHECK(config.head_dim == 4);
  CHECK(config.context_length == 2048);
  CHECK(config.norm_epsilon == 1e-6);
  CHECK(config.rope_base == 10000);
  CHECK(config.rope_scaling.kind == Kind::none);
  CHECK(config.sliding_window == 0);
  CHECK_FALSE(config.tied_embeddings);
  CHECK(config.activation == "silu");
}

TEST_CASE("config.json: explicit values") {
  const load::ModelConfig config =
      parse(with(R"({"num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 99, "rms_norm_eps": 1e-5,
        "tie_word_embeddings": true, "hidden_act": "gelu"})"));
  CHECK(config.kv_heads == 2);
  CHECK(config.head_dim == 8);
  CHECK(config.rotary_dim == 8);
  CHECK(config.context_length == 99);
  CHECK(config.norm_epsilon == 1e-5);
  CHECK(config.tied_embeddings);
  CHECK(config.activation == "gelu");
}

TEST_CASE("config.json: rotary parameters of transformers 4 and 5") {
  SECTION("theta") {
    CHECK(parse(with(R"({"rope_theta": 5e5})")).rope_base == 5e5);
    CHECK(parse(with(R"({"rope_theta": 5e5, "rope_scaling": null})")).rope_base == 5e5);
    CHECK(parse(with(R"({"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}})")).rope_base == 5e5);
  }
  SECTION("linear") {
    for (const char* text : {R"({"rope_scaling": {"type": "linear", "factor": 4}})",
                             R"({"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000}})"}) {
      const load::ModelConfig config = parse(with(text));
      CHECK(config.rope_scaling.kind == Kind::linear);
      CHECK(config.rope_scaling.factor == 4);
    }
  }
  SECTION("llama3") {
    for (const char* key : {"rope_scaling", "rope_parameters"}) {
      Json json = base();
      json[key] = {{"rope_type", "llama3"},
                   {"factor", 8},
                   {"low_freq_factor", 1.5},
                   {"high_freq_factor", 3},
                   {"original_max_position_embeddings", 512}};
      const load::RopeScaling scaling = parse(json).rope_scaling;
      CHECK(scaling.kind == Kind::llama3);
      CHECK(scaling.factor == 8);
      CHECK(scaling.low_freq_factor == 1.5);
      CHECK(scaling.high_freq_factor == 3);
      CHECK(scaling.original_context == 512);
    }
  }
  SECTION("yarn") {
    const load::RopeScaling scaling =
        parse(with(R"({"max_position_embeddings": 4096, "rope_scaling": {"type": "yarn", "factor": 4,
          "original_max_position_embeddings": 1024, "beta_fast": 16, "truncate": false}})"))
            .rope_scaling;
    CHECK(scaling.kind == Kind::yarn);
    CHECK(scaling.factor == 4);
    CHECK(scaling.original_context == 1024);
    CHECK(scaling.beta_fast == 16);
    CHECK(scaling.beta_slow == 1);
    CHECK(scaling.attention_factor == 0);
    CHECK_FALSE(scaling.truncate);
  }
  SECTION("yarn: factor from the contexts, attention factor from two scales") {
    const load::RopeScaling scaling = parse(with(R"({"max_position_embeddings": 4096, "rope_scaling": {"type": "yarn",
          "original_max_position_embeddings": 1024, "mscale": 1.0, "mscale_all_dim": 0.5}})"))
                                          .rope_scaling;
    CHECK(scaling.factor == 4);
    // 0.1 * mscale * ln(4) + 1 over the same with mscale_all_dim
    CHECK(scaling.attention_factor == Approx(1.1386294361119891 / 1.0693147180559945));
  }
}

TEST_CASE("config.json: sliding windows") {
  CHECK(parse(with(R"({"sliding_window": 8})")).sliding_window == 0);  // llama has none
  CHECK(parse(with(R"({"model_type": "mistral", "sliding_window": 8})")).sliding_window == 8);
  CHECK(parse(with(R"({"model_type": "mistral", "sliding_window": null})")).sliding_window == 0);
  CHECK(parse(with(R"({"model_type": "mistral", "num_key_value_heads": 4})")).sliding_window == 4096);
  CHECK(parse(with(R"({"model_type": "qwen2", "sliding_window": 8})")).sliding_window == 0);
  CHECK(parse(with(R"({"model_type": "qwen2", "sliding_window": 8})")).architecture == "qwen2");
  const load::ModelConfig by_index = parse(
      with(R"({"model_type": "qwen2", "use_sliding_window": true, "sliding_window": 8, "max_window_layers": 1})"));
  CHECK(by_index.sliding_window == 8);
  CHECK(by_index.sliding_layers == std::vector<std::uint8_t>{0, 1});
  const load::ModelConfig by_name =
      parse(with(R"({"model_type": "qwen2", "use_sliding_window": true, "sliding_window": 8, "max_window_layers": 1,
        "layer_types": ["sliding_attention", "full_attention"]})"));
  CHECK(by_name.sliding_layers == std::vector<std::uint8_t>{1, 0});
}

TEST_CASE("config.json: mixtures of experts") {
  const load::ModelConfig mixtral =
      parse(with(R"({"model_type": "mixtral", "num_local_experts": 8, "num_experts_per_tok": 2,
        "num_key_value_heads": 2, "sliding_window": null})"));
  CHECK(mixtral.architecture == "llama");
  CHECK(mixtral.experts == 8);
  CHECK(mixtral.experts_used == 2);
  CHECK(mixtral.expert_ffn_size == 24);
  CHECK(mixtral.shared_ffn_size == 0);
  CHECK_FALSE(mixtral.normalize_experts.has_value());
  CHECK(mixtral.sliding_window == 0);
  const load::ModelConfig qwen =
      parse(with(R"({"model_type": "qwen2_moe", "num_experts": 60, "num_experts_per_tok": 4, "num_key_value_heads": 2,
        "moe_intermediate_size": 8, "shared_expert_intermediate_size": 40, "mlp_only_layers": [0]})"));
  CHECK(qwen.architecture == "qwen2moe");
  CHECK(qwen.experts == 60);
  CHECK(qwen.expert_ffn_size == 8);
  CHECK(qwen.shared_ffn_size == 40);
  CHECK(qwen.normalize_experts == false);
  CHECK(qwen.expert_layers == std::vector<std::uint8_t>{0, 1});
  const load::ModelConfig qwen3 =
      parse(with(R"({"model_type": "qwen3_moe", "num_local_experts": 4, "num_experts_per_tok": 4, "head_dim": 32,
        "num_key_value_heads": 2, "moe_intermediate_size": 8, "norm_topk_prob": true, "decoder_sparse_step": 2})"));
  CHECK(qwen3.experts == 4);
  CHECK(qwen3.head_dim == 32);
  CHECK(qwen3.normalize_experts == true);
  CHECK(qwen3.expert_layers == std::vector<std::uint8_t>{0, 1});
  CHECK(parse(with(R"({"model_type": "qwen3", "num_key_value_heads": 2})")).head_dim == 128);
  const auto refused = [](const char* changes, ErrorCode code, const std::string& named) {
    Json config = with(R"({"model_type": "qwen2_moe", "num_experts": 6, "num_experts_per_tok": 4,
      "num_key_value_heads": 2, "moe_intermediate_size": 8, "shared_expert_intermediate_size": 40})");
    parse(config);
    const Json changed = Json::parse(changes);
    for (const auto& [key, value] : changed.items()) {
      if (value == "absent") {
        config.erase(key);
      } else {
        config[key] = value;
      }
    }
    expect_text(config.dump(), code, named);
  };
  refused(R"({"num_experts": "absent"})", ErrorCode::corrupt, "num_experts");
  refused(R"({"num_experts": 0})", ErrorCode::corrupt, "num_experts");
  refused(R"({"num_experts": 1000000})", ErrorCode::corrupt, "num_experts");
  refused(R"({"num_experts_per_tok": "absent"})", ErrorCode::corrupt, "num_experts_per_tok");
  refused(R"({"num_experts_per_tok": 7})", ErrorCode::corrupt, "num_experts_per_tok");
  refused(R"({"moe_intermediate_size": -1})", ErrorCode::corrupt, "moe_intermediate_size");
  refused(R"({"shared_expert_intermediate_size": "absent"})", ErrorCode::corrupt, "shared_expert_intermediate_size");
  refused(R"({"decoder_sparse_step": 0})", ErrorCode::corrupt, "decoder_sparse_step");
  refused(R"({"mlp_only_layers": 1})", ErrorCode::corrupt, "mlp_only_layers");
  refused(R"({"mlp_only_layers": [2]})", ErrorCode::corrupt, "mlp_only_layers");
  refused(R"({"use_sliding_window": true, "sliding_window": 8})", ErrorCode::unsupported, "layer_types");
  refused(R"({"model_type": "olmoe", "clip_qkv": 8.0})", ErrorCode::unsupported, "clip_qkv");
}

TEST_CASE("config.json: gpt-oss") {
  const char* const text = R"({"model_type": "gpt_oss", "num_hidden_layers": 3, "num_local_experts": 6,
    "num_experts_per_tok": 4, "num_attention_heads": 16, "swiglu_limit": 7.0, "rope_theta": 150000, "rms_norm_eps": 1e-5,
    "rope_scaling": {"rope_type": "yarn", "factor": 32.0, "original_max_position_embeddings": 4096, "truncate": false}})";
  const load::ModelConfig config = parse(with(text));
  CHECK(config.architecture == "gpt-oss");
  CHECK(config.kv_heads == 8);
  CHECK(config.head_dim == 64);
  CHECK(config.context_length == 131072);
  CHECK(config.experts == 6);
  CHECK(config.experts_used == 4);
  CHECK(config.expert_ffn_size == 24);
  CHECK(config.sliding_window == 128);
  CHECK(config.sliding_layers == std::vector<std::uint8_t>{1, 0, 1});
  CHECK(config.rope_scaling.kind == Kind::yarn);
  CHECK_FALSE(config.rope_scaling.truncate);
  Json json = with(text);
  json["layer_types"] = {"full_attention", "full_attention", "sliding_attention"};
  CHECK(parse(json).sliding_layers == std::vector<std::uint8_t>{0, 0, 1});
  json["layer_types"] = {"full_attention", "full_attention", "chunked_attention"};
  expect_text(json.dump(), ErrorCode::unsupported, "chunked_attention");
  json = with(text);
  json["swiglu_limit"] = 8.0;
  expect_text(json.dump(), ErrorCode::unsupported, "swiglu_limit");
  json = with(text);
  json.erase("rope_scaling");
  expect_text(json.dump(), ErrorCode::corrupt, "rope_scaling");
  for (const char* const required : {"rope_theta", "rms_norm_eps"}) {
    json = with(text);
    json.erase(required);
    expect_text(json.dump(), ErrorCode::corrupt, required);
  }
}

TEST_CASE("config.json: what is refused") {
  expect(R"({"model_type": "mamba"})", ErrorCode::unsupported_architecture, "mamba");
  expect(R"({"model_type": null})", ErrorCode::unsupported_architecture, "model_type");
  expect(R"({"quantization_config": 1})", ErrorCode::corrupt, "quantization_config");
  expect(R"({"compression_config": []})", ErrorCode::corrupt, "compression_config");
  expect(R"({"rope_scaling": {"type": "dynamic", "factor": 2}})", ErrorCode::unsupported, "dynamic");
  expect(R"({"rope_scaling": {"rope_type": "longrope"}})", ErrorCode::unsupported, "longrope");
  expect(R"({"partial_rotary_factor": 0.5})", ErrorCode::unsupported, "partial_rotary_factor");
}

TEST_CASE("config.json: keys that are missing") {
  const char* key =
      GENERATE("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads");
  Json config = base();
  config.erase(key);
  expect_text(config.dump(), ErrorCode::corrupt, key);
  for (const Json& value : {Json(0), Json(-1), Json("7"), Json(1.5), Json(1e300), Json(INT64_MAX), Json(UINT64_MAX)}) {
    config[key] = value;
    expect_text(config.dump(), ErrorCode::corrupt, key);
  }
}

TEST_CASE("config.json: values that are wrong") {
  expect(R"({"num_attention_heads": 3})", ErrorCode::corrupt, "num_attention_heads");  // 16 / 3, and no head_dim
  expect(R"({"num_key_value_heads": 0})", ErrorCode::corrupt, "num_key_value_heads");
  expect(R"({"rms_norm_eps": "x"})", ErrorCode::corrupt, "rms_norm_eps");
  expect(R"({"tie_word_embeddings": 1})", ErrorCode::corrupt, "tie_word_embeddings");
  expect(R"({"rope_scaling": 3})", ErrorCode::corrupt, "rope");
  expect(R"({"rope_scaling": {"type": "linear"}})", ErrorCode::corrupt, "factor");
  expect(R"({"rope_scaling": {"type": "llama3", "factor": 8}})", ErrorCode::corrupt, "low_freq_factor");
  expect(R"({"rope_scaling": {"type": "yarn", "original_max_position_embeddings": 0}})", ErrorCode::corrupt,
         "original_max_position_embeddings");
  expect(
      R"({"model_type": "qwen2", "use_sliding_window": true, "sliding_window": 8, "layer_types": ["full_attention"]})",
      ErrorCode::corrupt, "layer_types");
  expect(R"({"eos_token_id": 32})", ErrorCode::bad_vocabulary, "eos_token_id");
}

TEST_CASE("config.json: text that is not an object") {
  expect_text("", ErrorCode::corrupt, "config.json");
  expect_text("[]", ErrorCode::corrupt, "config.json");
  expect_text("{", ErrorCode::corrupt, "config.json");
  expect_text("{\"vocab_size\": 1e999}", ErrorCode::corrupt, "config.json");
  expect_text("{\"model_type\": \"\xff\"}", ErrorCode::invalid_encoding, "config.json");
  expect_text("{\"a\": 1, \"a\": 2}", ErrorCode::corrupt, "duplicate");
  expect_text("{\"a\": " + std::string(1'000'000, '['), ErrorCode::limit_exceeded, "config.json");
}
