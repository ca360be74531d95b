// Layers as transformers, FBGEMM, ModelOpt and AutoRound write them, beside what their numbers stand for.
#include <catch2/catch.hpp>

#include <algorithm>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "load/hf.hpp"
#include "tests/load/golden_layer.hpp"
#include "tests/load/reference_weight.hpp"

using namespace llminfer;
using namespace llminfer::test;
using InputKind = InputQuantization::Kind;

namespace {

/// A directory with a golden file's tensors, of a tiny llama.
load::Checkpoint open_tiny(const TempDir& dir, const std::string& tensors, const nlohmann::json& settings, int hidden,
                           int heads, int kv_heads) {
  std::filesystem::copy_file(LLMINFER_TEST_DATA "/quantized/" + tensors + ".safetensors", dir / "model.safetensors",
                             std::filesystem::copy_options::overwrite_existing);
  dir.write("config.json", nlohmann::json{{"model_type", "llama"},
                                          {"vocab_size", 64},
                                          {"hidden_size", hidden},
                                          {"intermediate_size", hidden},
                                          {"num_hidden_layers", 1},
                                          {"num_attention_heads", heads},
                                          {"num_key_value_heads", kv_heads},
                                          {"quantization_config", settings}}
                               .dump());
  return load::open_hf_directory(dir.path(), true).value();
}

struct Expected {
  WeightType type;
  InputKind inputs = InputKind::none;
  bool dynamic = false;
};

}  // namespace

TEST_CASE("FP8 of transformers with scales of powers of two, and of FBGEMM") {
  const nlohmann::json golden = read_golden("fp8");
  REQUIRE(golden.size() == 3);
  for (const auto& [name, form] : golden.items()) {
    INFO(name);
    Layer layer;
    fill(layer, form);
    CHECK(layer.values() == expected_values(form));
    CHECK(layer.read()->type == WeightType::fp8);
    InputQuantization input{.kind = InputKind::fp8};
    if (name == "fbgemm") {
      input.limit = 1200.0f;
    } else {
      input.group = 32;
      input.powers = true;
    }
    CHECK(layer.read()->details.input == input);
    CHECK(load::open_hf_directory(layer.dir.path(), true).value().tensors.size() == 1);
  }
}

TEST_CASE("FP8: bounds, scales and names that are none") {
  Layer layer;
  const nlohmann::json golden = read_golden("fp8");
  SECTION("FBGEMM") {
    fill(layer, golden["fbgemm"]);
    SECTION("bounds") {
      const char* const bound = GENERATE("0", "-1", "1e31", "\"x\"");
      layer.settings = R"({"quant_method": "fbgemm_fp8", "activation_scale_ub": )" + std::string(bound) + "}";
      layer.expect(ErrorCode::corrupt, "activation_scale_ub");
    }
    SECTION("the default bound") {
      layer.settings = R"({"quant_method": "fbgemm_fp8"})";
      CHECK(layer.read()->details.input.limit == 1200.0f);
    }
    SECTION("scales of other rows") {
      layer.tensors["x.weight_scale"] = floats({4, 1}, 1);
      layer.expect(ErrorCode::shape_mismatch, "x.weight_scale");
    }
    SECTION("no scales") {
      layer.tensors.erase("x.weight_scale");
      layer.expect(ErrorCode::missing_tensor, "weight_scale");
    }
  }
  SECTION("UE8M0: a scale that is no number, and another form") {
    fill(layer, golden["ue8m0"]);
    layer.tensors["x.weight_scale_inv"].data[1] = '\xff';
    layer.expect(ErrorCode::corrupt, "x.weight_scale_inv");
    layer.settings = R"({"quant_method": "fp8", "scale_fmt": "ue4m3"})";
    layer.expect(ErrorCode::unsupported, "scale_fmt");
  }
  SECTION("AutoFP8's names") {
    layer.settings = R"({"quant_method": "fp8", "activation_scheme": "static", "ignored_layers": ["lm_head"]})";
    layer.tensors = {{"x.weight", raw_bytes("F8_E4M3", {4, 32}, 0x40)},  // 2
                     {"x.weight_scale", floats({}, 0.5f)},
                     {"x.input_scale", floats({1}, 0.25f)},
                     {"x.kv_scale", floats({}, 1)}};
    CHECK(layer.values() == std::vector<float>(4 * 32, 1.0f));
    CHECK(layer.read()->details.input == InputQuantization{.kind = InputKind::fp8, .dynamic = false, .scale = 0.25f});
    CHECK(load::open_hf_directory(layer.dir.path(), true).value().tensors.size() == 1);
    layer.tensors.erase("x.input_scale");
    layer.expect(ErrorCode::missing_tensor, "x.input_scale");
  }
}

TEST_CASE("ModelOpt: its algorithms, and factors of inputs") {
  const std::map<std::string, Expected> expected = {{"FP8", {WeightType::fp8, InputKind::fp8}},
                                                    {"FP8 per channel", {WeightType::fp8, InputKind::fp8, true}},
                                                    {"FP8 blocks", {WeightType::fp8}},
                                                    {"W8A16", {WeightType::w8_sym}},
                                                    {"W8A8 SmoothQuant", {WeightType::w8_sym, InputKind::int8}},
                                                    {"W4A16 AWQ", {WeightType::w4_sym}},
                                                    {"W4A16", {WeightType::f32}},  // groups of 16
                                                    {"W4A8 AWQ", {WeightType::w4_sym, InputKind::fp8}},
                                                    {"NVFP4", {WeightType::fp4_16}},
                                                    {"NVFP4 AWQ", {WeightType::fp4_16}},
                                                    {"W4A8 NVFP4 FP8", {WeightType::fp4_16, InputKind::fp8}},
                                                    {"MXFP4", {WeightType::mxfp4}},
                                                    {"W4A8 MXFP4 FP8", {WeightType::mxfp4}},
                                                    {"MXFP8", {WeightType::fp8}},
                                                    {"mixed", {WeightType::fp4_16}}};
  const nlohmann::json golden = read_golden("modelopt");
  REQUIRE(golden.size() == expected.size());
  int in_rows = 0, in_columns = 0;
  for (const auto& [name, form] : golden.items()) {
    INFO(name);
    std::string file = name;
    std::replace(file.begin(), file.end(), ' ', '-');
    const TempDir dir;
    const auto checkpoint = open_tiny(dir, "modelopt/" + file, form["settings"], 64, 4, form["kv_heads"].get<int>());
    CHECK(checkpoint.tensors.size() == 4);
    for (const auto& [layer, weight] : form["layers"].items()) {
      INFO(layer);
      std::vector<float> values = read_weight(checkpoint, layer + ".weight", weight);
      const auto cols = weight["shape"][1].get<std::size_t>();
      const load::TensorInfo& info = *checkpoint.find(layer + ".weight");
      const bool attention = layer.find("self_attn") != std::string::npos, by_columns = weight.contains("factors");
      Expected own = expected.at(name);
      if (name == "mixed" && attention) own = {WeightType::fp8, InputKind::fp8};
      // Factors of a reader's inputs are factors of the rows that it reads, unless two heads of queries share a head of
      // values; any other layer's are factors of its columns.
      const std::string reader = std::string("model.layers.0.") + (attention ? "self_attn.o_proj" : "mlp.down_proj");
      const bool moves = !attention || form["kv_heads"] == 4;
      if (by_columns && (layer != reader || !moves)) {
        own = {WeightType::f32};
        ++in_columns;
      } else if (by_columns) {
        const auto factors = weight["factors"].get<std::vector<float>>();
        for (std::size_t i = 0; i < values.size(); ++i) values[i] *= factors[i % cols];
        ++in_rows;
      }
      if (layer != reader && moves && form["layers"][reader].contains("factors")) {
        const auto factors = form["layers"][reader]["factors"].get<std::vector<float>>();
        for (std::size_t i = 0; i < values.size(); ++i) values[i] /= factors[i / cols];
      }
      check_values(values, weight, 2e-7);  // factors that are multiplied and divided by
      CHECK(static_cast<int>(info.type) == static_cast<int>(own.type));
      CHECK(static_cast<int>(info.details.input.kind) == static_cast<int>(own.inputs));
      if (own.inputs != InputKind::none) CHECK(info.details.input.dynamic == own.dynamic);
    }
  }
  CHECK(in_rows == 5);     // down_proj of three, o_proj of two
  CHECK(in_columns == 4);  // o_proj of two, and SmoothQuant's v_proj and up_proj
}

TEST_CASE("ModelOpt: what its factors and settings per layer may not be") {
  Layer layer;
  const auto int4 = [](std::int64_t rows, std::int64_t cols) { return raw_bytes("U8", {rows / 2, cols}, 0x7f); };
  layer.settings = R"({"quant_method": "modelopt", "quant_algo": "W4A16_AWQ"})";
  layer.tensors = {{"x.weight", int4(4, 64)}, {"x.weight_scale", floats({4, 2}, 0.5f)}};
  const auto values = layer.values();  // nibbles 15, which is -1, in even rows, 7 in odd ones
  for (std::size_t i = 0; i < values.size(); ++i) CHECK(values[i] == (i / 64 % 2 ? 3.5f : -0.5f));
  SECTION("factors of other columns, of no layer, and beyond floats") {
    layer.tensors["x.pre_quant_scale"] = floats({63}, 1);
    layer.expect(ErrorCode::shape_mismatch, "x.pre_quant_scale");
    layer.tensors["x.pre_quant_scale"] = floats({64}, 2);
    for (const float value : layer.values()) CHECK((value == 7.0f || value == -1.0f));
    layer.tensors["x.pre_quant_scale"] = floats({64}, 3e38f);
    layer.expect(ErrorCode::corrupt, "x.weight");
    layer.tensors["y.pre_quant_scale"] = floats({64}, 1);
    layer.expect(ErrorCode::corrupt, "y.pre_quant_scale");
  }
  SECTION("factors that do not fit the rows that they are to multiply") {
    layer.tensors = {{"down_proj.weight", int4(4, 64)},
                     {"down_proj.weight_scale", floats({4, 2}, 0.5f)},
                     {"down_proj.pre_quant_scale", floats({64}, 2)},
                     {"up_proj.weight", int4(64, 32)},
                     {"up_proj.weight_scale", floats({64, 1}, 0.5f)}};
    CHECK(layer.values("up_proj.weight").second[32] == 7.0f);
    CHECK(layer.values("down_proj.weight").second[64] == 3.5f);
    layer.tensors["up_proj.bias"] = floats({64}, 1);  // which would have to be multiplied, too
    CHECK(layer.values("up_proj.weight").second[32] == 3.5f);
    CHECK(layer.values("down_proj.weight").second[64] == 7.0f);
    layer.tensors.erase("up_proj.bias");
    layer.tensors["up_proj.weight"] = int4(32, 32);
    layer.tensors["up_proj.weight_scale"] = floats({32, 1}, 0.5f);
    layer.expect(ErrorCode::shape_mismatch, "up_proj.weight");
  }
  SECTION("groups that do not divide the columns") {
    layer.tensors["x.weight_scale"] = floats({4, 3}, 0.5f);
    layer.expect(ErrorCode::corrupt, "x.weight_scale");
    layer.tensors["x.weight_scale"] = floats({4, 2}, 0.5f);
    layer.settings.insert(1, R"("group_size": 64, )");
    layer.expect(ErrorCode::corrupt, "x.weight_scale");
  }
  SECTION("int8 inputs without their scale") {
    layer.settings = R"({"quant_method": "modelopt", "quant_algo": "W8A8_SQ_PER_CHANNEL"})";
    layer.tensors = {{"x.weight", raw_bytes("I8", {4, 32}, 2)}, {"x.weight_scale", floats({4}, 0.5f)}};
    layer.expect(ErrorCode::missing_tensor, "x.input_scale");
    layer.tensors["x.input_scale"] = floats({}, 0.25f);
    CHECK(layer.read()->details.input == InputQuantization{.kind = InputKind::int8, .dynamic = false, .scale = 0.25f});
  }
  SECTION("settings per layer") {
    const std::string mixed = R"({"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION")";
    layer.settings = mixed + R"(, "quantized_layers": {"x": {"quant_algo": "W4A16_AWQ", "group_size": 32}}})";
    CHECK(layer.values() == values);
    layer.settings = mixed + "}";
    layer.expect(ErrorCode::corrupt, "quantized_layers");
    layer.settings = mixed + R"(, "quantized_layers": {"y": {"quant_algo": "FP8"}}})";
    layer.expect(ErrorCode::corrupt, "x.weight");
    layer.settings = mixed + R"(, "quantized_layers": {"x": {"quant_algo": "NVFP4_SVD"}}})";
    layer.expect(ErrorCode::unsupported, "quantized_layers.x");
    layer.settings = mixed + R"(, "quantized_layers": {"x": {"quant_algo": "NVFP4", "group_size": 32}}})";
    layer.expect(ErrorCode::corrupt, "group_size");
    layer.settings = mixed + R"(, "quantized_layers": {"x": 3}})";
    layer.expect(ErrorCode::unsupported, "quantized_layers.x");
  }
}

TEST_CASE("AutoRound: FP8, MXFP8, MXFP4 and NVFP4") {
  const std::map<std::string, Expected> expected = {{"FP8_STATIC", {WeightType::fp8, InputKind::fp8}},
                                                    {"FP8_BLOCK", {WeightType::fp8, InputKind::fp8, true}},
                                                    {"MXFP8", {WeightType::fp8}},
                                                    {"MXFP4", {WeightType::mxfp4}},
                                                    {"NVFP4", {WeightType::fp4_16}}};
  const nlohmann::json golden = read_golden("auto_round");
  REQUIRE(golden.size() == expected.size());
  for (const auto& [name, form] : golden.items()) {
    INFO(name);
    const TempDir dir;
    const auto checkpoint = open_tiny(dir, "auto_round/" + name, form["settings"], 128, 4, 2);
    CHECK(checkpoint.tensors.size() == form["layers"].size());
    for (const auto& [layer, weight] : form["layers"].items()) {
      check_weight(checkpoint, layer + ".weight", weight);
      const load::TensorInfo& info = *checkpoint.find(layer + ".weight");
      CHECK(static_cast<int>(info.type) == static_cast<int>(expected.at(name).type));
      CHECK(static_cast<int>(info.details.input.kind) == static_cast<int>(expected.at(name).inputs));
      if (weight.contains("input_scale")) CHECK(info.details.input.scale == weight["input_scale"].get<float>());
    }
  }
}
