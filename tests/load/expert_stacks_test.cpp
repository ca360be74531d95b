// Directories in which the experts of a layer share tensors, as their classes in transformers hold them.
#include "tests/load/packed_layer.hpp"

using namespace llminfer;
using namespace llminfer::test;

namespace {

/// 0, 1, 2, … in this shape.
Tensor counted(std::vector<std::int64_t> shape) {
  std::int64_t count = 1;
  for (const auto side : shape) count *= side;
  std::vector<float> values(static_cast<std::size_t>(count));
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i);
  return {"F32", std::move(shape), bytes_of(values)};
}

const std::string kExperts = "model.layers.0.mlp.experts.";

}  // namespace

TEST_CASE("stacks of experts: gate above up") {
  Layer model;
  model.model = R"("model_type": "qwen3_moe", "vocab_size": 32, "hidden_size": 2, "intermediate_size": 24,
    "num_hidden_layers": 1, "num_attention_heads": 4, "num_experts": 2, "num_experts_per_tok": 1,
    "head_dim": 2, "moe_intermediate_size": 3)";
  model.tensors = {{kExperts + "gate_up_proj", counted({2, 6, 2})}, {kExperts + "down_proj", counted({2, 2, 3})}};
  CHECK(model.values(kExperts + "0.gate_proj.weight") ==
        std::pair(std::int64_t{3}, std::vector<float>{0, 1, 2, 3, 4, 5}));
  CHECK(model.values(kExperts + "0.up_proj.weight").second == std::vector<float>{6, 7, 8, 9, 10, 11});
  CHECK(model.values(kExperts + "1.up_proj.weight").second == std::vector<float>{18, 19, 20, 21, 22, 23});
  CHECK(model.values(kExperts + "1.down_proj.weight") ==
        std::pair(std::int64_t{2}, std::vector<float>{6, 7, 8, 9, 10, 11}));
  const auto refused = [&](ErrorCode code, const std::string& named) {
    model.write();
    const auto opened = load::open_hf_directory(model.dir.path(), true);
    REQUIRE_FALSE(opened);
    CHECK(to_string(opened.error().code) == to_string(code));
    CHECK_THAT(opened.error().message, Catch::Contains(named));
  };
  SECTION("another number of experts") {
    model.tensors[kExperts + "gate_up_proj"] = counted({3, 6, 2});
    refused(ErrorCode::shape_mismatch, kExperts + "gate_up_proj is [3, 6, 2], expected [2, 6, 2]");
  }
  SECTION("more stacks than the layers have") {
    for (int i = 0; i < 4; ++i) model.tensors["x" + std::to_string(i) + ".experts.down_proj"] = counted({2, 2, 3});
    refused(ErrorCode::corrupt, "is one stack of experts too many for 1 layers");
  }
  SECTION("transposed") {
    model.tensors[kExperts + "down_proj"] = counted({2, 3, 2});
    refused(ErrorCode::shape_mismatch, kExperts + "down_proj");
  }
  SECTION("an expert that is there by itself, too") {
    model.tensors[kExperts + "1.up_proj.weight"] = counted({3, 2});
    refused(ErrorCode::corrupt, kExperts + "1.up_proj.weight");
  }
}

TEST_CASE("stacks of experts: gpt-oss, transposed, gate and up in turn, with biases") {
  Layer model;
  model.model = R"("model_type": "gpt_oss", "vocab_size": 32, "hidden_size": 2, "intermediate_size": 3,
    "num_hidden_layers": 1, "num_attention_heads": 8, "num_local_experts": 2, "num_experts_per_tok": 1,
    "rms_norm_eps": 1e-5, "rope_theta": 150000,
    "rope_scaling": {"rope_type": "yarn", "factor": 32.0, "original_max_position_embeddings": 4096})";
  model.tensors = {{kExperts + "gate_up_proj", counted({2, 2, 6})},
                   {kExperts + "gate_up_proj_bias", counted({2, 6})},
                   {kExperts + "down_proj", counted({2, 3, 2})},
                   {kExperts + "down_proj_bias", counted({2, 2})}};
  CHECK(model.values(kExperts + "0.gate_proj.weight") ==
        std::pair(std::int64_t{3}, std::vector<float>{0, 6, 2, 8, 4, 10}));
  CHECK(model.values(kExperts + "1.up_proj.weight").second == std::vector<float>{13, 19, 15, 21, 17, 23});
  CHECK(model.values(kExperts + "1.down_proj.weight") ==
        std::pair(std::int64_t{2}, std::vector<float>{6, 8, 10, 7, 9, 11}));
  CHECK(model.values(kExperts + "0.gate_proj.bias") == std::pair(std::int64_t{1}, std::vector<float>{0, 2, 4}));
  CHECK(model.values(kExperts + "1.up_proj.bias").second == std::vector<float>{7, 9, 11});
  CHECK(model.values(kExperts + "1.down_proj.bias").second == std::vector<float>{2, 3});
}
