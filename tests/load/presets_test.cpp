// compressed-tensors' schemes: layers as it packs them, and the numbers that it makes of them.
#include <catch2/catch.hpp>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <vector>

#include "tests/load/golden_layer.hpp"

using namespace llminfer;
using namespace llminfer::test;

namespace {

/// What the settings say of inputs, where these are rounded.
InputQuantization inputs_of(const nlohmann::json& settings) {
  const nlohmann::json& group = settings["config_groups"]["group_0"];
  const nlohmann::json& inputs = group["input_activations"];
  InputQuantization input;
  if (inputs.is_null() || group["weights"].is_null() || settings["format"].get<std::string>()[1] == 'x' ||
      inputs["num_bits"] == 4) {
    return input;
  }
  input.kind = inputs["type"] == "int" ? InputQuantization::Kind::int8 : InputQuantization::Kind::fp8;
  input.dynamic = inputs["dynamic"].get<bool>();
  if (input.dynamic && inputs["strategy"] == "group") input.group = inputs["group_size"].get<std::int32_t>();
  if (!input.dynamic) input.scale = 0.5f;
  if (inputs["symmetric"] == false) input.zero = -7;
  return input;
}

}  // namespace

TEST_CASE("layers in each scheme that compressed-tensors has a name for") {
  const nlohmann::json golden = read_golden("presets");
  REQUIRE(golden.size() == 46);
  const std::set<std::string> refused = {"W2A4", "W3A4", "W4A4"};
  for (const auto& [name, form] : golden.items()) {
    INFO(name);
    Layer layer;
    fill(layer, form);
    if (refused.contains(name)) {
      layer.expect(ErrorCode::unsupported, "input_activations");
      continue;
    }
    const std::vector<float> expected = expected_values(form);
    const std::vector<float> values = layer.values();
    REQUIRE(values.size() == expected.size());
    const float rounding = name.starts_with("NVFP4") ? 1.0f / 256 : 0.0f;  // bfloat16, of which it makes these
    for (std::size_t i = 0; i < values.size(); ++i) {
      CHECK(std::abs(values[i] - expected[i]) <= rounding * std::abs(values[i]));
    }
    CHECK(layer.read()->details.input == inputs_of(form["settings"]));
    CHECK(load::open_hf_directory(layer.dir.path(), true).value().tensors.size() == 1);
  }
}

TEST_CASE("compressed-tensors: what old and hand-written settings leave to rules") {
  const auto settings = [](const std::string& format, const std::string& weights) {
    return R"({"quant_method": "compressed-tensors", "format": ")" + format +
           R"(", "config_groups": {"g": {"targets": ["Linear"], "weights": {"num_bits": 8, )" + weights + "}}}}";
  };
  Layer layer;
  SECTION("blocks as text") {
    const char* const block = GENERATE(R"("2x32")", "[2, 32]");
    layer.settings = settings("float-quantized",
                              R"("type": "float", "strategy": "block", "block_structure": )" + std::string(block));
    layer.tensors = {{"x.weight", raw_bytes("F8_E4M3", {4, 64}, 0x40)},  // 2
                     {"x.weight_scale", {"F32", {2, 2}, bytes_of(std::vector<float>{1, 2, 3, 4})}}};
    const auto values = layer.values();
    for (std::size_t i = 0; i < values.size(); ++i) {
      CHECK(values[i] == 2.0f * static_cast<float>(1 + i / 128 * 2 + i % 64 / 32));
    }
  }
  SECTION("blocks that are none") {
    const char* const block =
        GENERATE(R"("")", R"("2")", R"("2x")", R"("x32")", R"("2x32x")", R"("2 x32")", R"("2x0")",
                 R"("2x99999999999999999999")", "[2]", "[2, 3, 4]", "[2, -1]", R"(["2", 3])", "7");
    layer.settings = settings("float-quantized",
                              R"("type": "float", "strategy": "block", "block_structure": )" + std::string(block));
    layer.tensors = {{"x.weight", raw_bytes("F8_E4M3", {4, 64}, 0x40)}, {"x.weight_scale", floats({2, 2}, 1)}};
    layer.expect(ErrorCode::corrupt, "block_structure");
  }
  SECTION("strategies") {
    const int group_size = GENERATE(0, -1, 32);
    layer.settings =
        settings("int-quantized",
                 R"("strategy": null)" + (group_size ? R"(, "group_size": )" + std::to_string(group_size) : ""));
    layer.tensors = {{"x.weight", raw_bytes("I8", {2, 64}, 3)}};
    layer.tensors["x.weight_scale"] = floats(group_size == 0    ? std::vector<std::int64_t>{1}
                                             : group_size == -1 ? std::vector<std::int64_t>{2, 1}
                                                                : std::vector<std::int64_t>{2, 2},
                                             0.5f);
    CHECK(layer.values() == std::vector<float>(2 * 64, 1.5f));
  }
  SECTION("groups that do not divide the columns") {
    layer.settings = settings("int-quantized", R"("strategy": "group", "group_size": 48)");
    layer.tensors = {{"x.weight", raw_bytes("I8", {2, 64}, 3)}, {"x.weight_scale", floats({2, 2}, 1)}};
    layer.expect(ErrorCode::corrupt, "x.weight");
  }
  SECTION("zero points") {
    const std::string strategy = R"("strategy": "channel", "symmetric": )";
    layer.settings = settings("int-quantized", strategy + "true");
    layer.tensors = {{"x.weight", raw_bytes("I8", {2, 64}, 3)},
                     {"x.weight_scale", floats({2, 1}, 1)},
                     {"x.weight_zero_point", raw_bytes("I8", {2, 1}, 0)}};
    CHECK(layer.values() == std::vector<float>(2 * 64, 3.0f));
    layer.tensors["x.weight_zero_point"].data[1] = 1;
    layer.expect(ErrorCode::corrupt, "x.weight_zero_point");
    layer.settings = settings("int-quantized", strategy + "false");
    auto expected = std::vector<float>(2 * 64, 3.0f);
    std::fill(expected.begin() + 64, expected.end(), 2.0f);
    CHECK(layer.values() == expected);
    layer.tensors["x.weight_zero_point"] = raw_bytes("I8", {2}, 0);
    layer.expect(ErrorCode::shape_mismatch, "x.weight_zero_point");
    layer.tensors.erase("x.weight_zero_point");
    layer.expect(ErrorCode::missing_tensor, "x.weight_zero_point");
  }
  SECTION("zero points of groups that become floats") {
    layer.settings = settings("int-quantized", R"("strategy": "group", "group_size": 16, "symmetric": false)");
    layer.tensors = {{"x.weight", raw_bytes("I8", {1, 64}, 3)},
                     {"x.weight_scale", floats({1, 4}, 0.5f)},
                     {"x.weight_zero_point", {"I8", {1, 4}, bytes_of(std::vector<std::int8_t>{-128, 127, 3, 0})}}};
    const auto values = layer.values();
    for (std::size_t i = 0; i < 64; ++i) CHECK(values[i] == std::vector{65.5f, -62.0f, 0.0f, 1.5f}[i / 16]);
  }
  SECTION("weights that are not rounded yet") {
    layer.settings = settings("int-quantized", R"("strategy": "channel")");
    layer.tensors = {{"x.weight", floats({2, 64}, 1)}, {"x.weight_scale", floats({2, 1}, 1)}};
    layer.expect(ErrorCode::unsupported, "frozen");
  }
  SECTION("MXFP6 of other sizes") {
    layer.settings = R"({"quant_method": "compressed-tensors", "format": "mxfp6-pack-quantized", "config_groups": {"g":
      {"targets": ["Linear"], "weights": {"num_bits": 6, "type": "float", "strategy": "group", "group_size": 32}}}})";
    layer.tensors = {{"x.weight_packed", raw_bytes("U8", {2, 32}, 0)}, {"x.weight_scale", raw_bytes("U8", {2, 1}, 0)}};
    layer.expect(ErrorCode::corrupt, "x.weight_packed");
    layer.tensors["x.weight_packed"] = raw_bytes("U8", {2, 48}, 0);
    layer.expect(ErrorCode::shape_mismatch, "x.weight_scale");
  }
}

TEST_CASE("compressed-tensors: layers whose weights are not quantized") {
  Layer layer;
  layer.settings = R"({"quant_method": "compressed-tensors", "format": "dense", "config_groups": {"g": {"targets":
    ["LlamaAttention", "re:.*q$"], "weights": null, "input_activations": {"num_bits": 8, "strategy": "attn_head"}}}})";
  layer.tensors = {
      {"x.weight", floats({2, 4}, 0.5f)}, {"q.weight", floats({2, 4}, 0.5f)}, {"q.input_scale", floats({1}, 3)}};
  for (const char* name : {"x.q_scale", "x.k_scale", "x.v_scale"}) layer.tensors[name] = floats({4, 1, 1}, 1);
  layer.tensors["x.k_zero_point"] = raw_bytes("I8", {4, 1, 1}, 1);
  SECTION("but keys and values, or inputs") {
    CHECK(layer.values() == std::vector<float>(2 * 4, 0.5f));
    CHECK(load::open_hf_directory(layer.dir.path(), true).value().tensors.size() == 2);
  }
  SECTION("keys and values alone, in the first tools' names") {
    layer.settings =
        R"({"quant_method": "compressed-tensors", "config_groups": {}, "kv_cache_scheme": {"num_bits": 8}})";
    layer.tensors = {{"x.weight", floats({2, 4}, 0.5f)}, {"x.k_proj.output_scale", floats({1}, 1)}};
    CHECK(layer.values() == std::vector<float>(2 * 4, 0.5f));
    CHECK(load::open_hf_directory(layer.dir.path(), true).value().tensors.size() == 1);
  }
  SECTION("tensors that say that they are") {
    layer.tensors["q.weight"] = raw_bytes("I8", {2, 4}, 1);
    layer.tensors["q.weight_scale"] = floats({2, 1}, 1);
    layer.expect(ErrorCode::corrupt, "q.weight");
  }
}

TEST_CASE("checkpoints whose models rotate inputs are refused") {
  Layer layer;
  make_gptq(layer);
  const char* const setting = GENERATE(R"("rotation": "hadamard")", R"("spinquant_config": {"r1": true})",
                                       R"("rotation_config": {"block_size": 32})", R"("transform_config": {"a": 1})");
  layer.settings.insert(1, std::string(setting) + ", ");
  layer.expect(ErrorCode::unsupported, std::string(setting).substr(0, 8));
  layer.settings =
      R"({"rotation": null, "transform_config": {}, )" + layer.settings.substr(layer.settings.find("\"quant"));
  CHECK(layer.read());
}
