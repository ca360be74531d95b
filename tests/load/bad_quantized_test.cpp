// HQQ layers, and the error of each way in which quantized checkpoints are wrong.
#include <catch2/catch.hpp>

#include <limits>
#include <string>
#include <vector>

#include "tests/load/packed_layer.hpp"

using namespace llminfer;
using namespace llminfer::test;
using Catch::Contains;

namespace {

/// 4 bits, [4 rows, 64 columns], groups of 32 along rows: the first four groups lie in the high nibbles.
void make_hqq(Layer& layer) {
  const auto scalar = [](std::int32_t value) { return Tensor{"I32", {}, bytes_of(std::vector{value})}; };
  layer.settings = R"({"quant_method": "hqq", "quant_config": {"weight_quant_params":
    {"nbits": 4, "group_size": 32, "axis": 1}, "scale_quant_params": null}, "skip_modules": ["lm_head"]})";
  layer.tensors = {{"x.W_q", raw_bytes("U8", {4, 32}, 0x75)},
                   {"x.scale", floats({8, 1}, 0.5f)},
                   {"x.zero", floats({8, 1}, 2.25f)},
                   {"x.nbits", scalar(4)},
                   {"x.group_size", scalar(32)},
                   {"x.axis", scalar(1)},
                   {"x.shape", {"I64", {2}, bytes_of(std::vector<std::int64_t>{4, 64})}},
                   {"x.packing", {"U8", {7}, "4bit_u8"}},
                   {"x.quant_scale", raw_bytes("U8", {}, 0)},
                   {"x.view_as_float", raw_bytes("U8", {}, 0)},
                   {"x.compute_dtype", {"U8", {13}, "torch.float16"}}};
}

}  // namespace

TEST_CASE("HQQ: float zero points, groups along either axis") {
  Layer layer;
  make_hqq(layer);
  const auto values = layer.values();
  for (std::size_t i = 0; i < values.size(); ++i) CHECK(values[i] == 0.5f * ((i < 128 ? 7 : 5) - 2.25f));
  CHECK(layer.read()->type == WeightType::w4_min);
  SECTION("groups along columns") {
    layer.settings = R"({"quant_method": "hqq", "quant_config": {"weight_quant_params": {"axis": 0}}})";
    layer.tensors["x.axis"] = {"I32", {}, bytes_of(std::vector{0})};
    layer.tensors["x.scale"] = floats({1, 8}, 0.5f);
    std::vector<float> zeros = {0, 1, 2, 3, 4, 5, 6, 7};
    layer.tensors["x.zero"] = {"F32", {1, 8}, bytes_of(zeros)};
    const auto across = layer.values();
    for (std::size_t i = 0; i < values.size(); ++i) {
      CHECK(across[i] == 0.5f * ((i < 128 ? 7 : 5) - static_cast<float>(i % 8)));
    }
    CHECK(layer.read()->type == WeightType::f32);
  }
  SECTION("bytes that are called floats") {
    layer.tensors["x.W_q"] = {"F16", {4, 16}, std::string(128, 0x75)};
    CHECK(layer.values() == values);
  }
  SECTION("settings for each kind of layer") {
    layer.settings = R"({"quant_method": "hqq", "quant_config": {"x": {"weight_quant_params": {"nbits": 4}}}})";
    CHECK(layer.values() == values);
    layer.settings = R"({"quant_method": "hqq", "quant_config": {"y": {"weight_quant_params": {"nbits": 4}}}})";
    layer.expect(ErrorCode::corrupt, "\"x\"");
  }
}

TEST_CASE("HQQ: what is refused") {
  Layer layer;
  make_hqq(layer);
  REQUIRE(layer.read());
  const auto scalar = [&](const char* name, std::int32_t value, ErrorCode code) {
    layer.tensors[name] = {"I32", {}, bytes_of(std::vector{value})};
    layer.expect(code, name);
  };
  SECTION("missing parts") {
    const std::string part = GENERATE("scale", "zero", "nbits", "group_size", "axis", "shape", "packing");
    layer.tensors.erase("x." + part);
    layer.expect(ErrorCode::missing_tensor, "x." + part);
  }
  SECTION("no layers") {
    layer.tensors = {{"x.weight", floats({1, 1}, 0)}};
    layer.expect(ErrorCode::missing_tensor, "W_q");
  }
  SECTION("axes") { scalar("x.axis", GENERATE(-1, 2), ErrorCode::corrupt); }
  SECTION("group sizes") { scalar("x.group_size", GENERATE(0, -1, 7, 24, 1 << 30), ErrorCode::corrupt); }
  SECTION("bits that are not packed so") { scalar("x.nbits", GENERATE(-4, 0, 3, 8), ErrorCode::corrupt); }
  SECTION("quantized scales") { scalar("x.quant_scale", 1, ErrorCode::unsupported); }
  SECTION("another packing") {
    layer.tensors["x.packing"] = {"U8", {7}, "4bit_32"};
    layer.expect(ErrorCode::unsupported, "x.packing");
  }
  SECTION("shapes") {
    const std::int64_t rows = GENERATE(-4, 0, 6, std::int64_t{1} << 40);
    layer.tensors["x.shape"] = {"I64", {2}, bytes_of(std::vector<std::int64_t>{rows, 64})};
    layer.expect(rows == 6 ? ErrorCode::shape_mismatch : ErrorCode::corrupt, rows == 6 ? "x.W_q" : "x.shape");
  }
  SECTION("scales of other groups") {
    layer.tensors["x.scale"] = floats({4, 1}, 0.5f);
    layer.expect(ErrorCode::shape_mismatch, "x.scale");
  }
  SECTION("zero points that are no numbers") {
    layer.tensors["x.zero"] = floats({8, 1}, std::numeric_limits<float>::quiet_NaN());
    layer.expect(ErrorCode::corrupt, "x.zero");
  }
  SECTION("settings that contradict the tensors") {
    const std::string params = GENERATE(R"("nbits": 3)", R"("group_size": 64)", R"("axis": 0)");
    layer.settings = R"({"quant_method": "hqq", "quant_config": {"weight_quant_params": {)" + params + "}}}";
    layer.expect(ErrorCode::corrupt, "x.W_q");
  }
  SECTION("quantized zero points by the settings") {
    layer.settings = R"({"quant_method": "hqq", "quant_config": {"weight_quant_params": {}, "zero_quant_params": {}}})";
    layer.expect(ErrorCode::unsupported, "zero_quant_params");
  }
  SECTION("no settings") {
    layer.settings = R"({"quant_method": "hqq"})";
    layer.expect(ErrorCode::corrupt, "quant_config");
  }
}

TEST_CASE("bad quantized checkpoints: group sizes that do not divide the columns") {
  Layer layer;
  SECTION("AWQ") {
    make_awq(layer);
    layer.settings = R"({"quant_method": "awq", "bits": 4, "group_size": 48, "version": "gemm"})";
    const int groups = GENERATE(1, 2);
    layer.tensors["x.scales"] = floats({groups, 8}, 0.5f);
    layer.tensors["x.qzeros"] = words({groups, 1}, 0);
    layer.expect(ErrorCode::corrupt, groups == 1 ? "x.scales" : "x.qweight");
  }
  SECTION("compressed-tensors, integers") {
    layer.settings = R"({"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {"g":
      {"targets": ["Linear"], "weights": {"num_bits": 4, "type": "int", "strategy": "group",
      "group_size": 48, "symmetric": true}}}})";
    layer.tensors = {{"x.weight_packed", words({4, 8}, 0)},
                     {"x.weight_scale", floats({4, 1}, 1)},
                     {"x.weight_shape", {"I64", {2}, bytes_of(std::vector<std::int64_t>{4, 64})}}};
    layer.tensors["x.weight_scale"] = floats({4, GENERATE(1, 2)}, 1);
    layer.expect(ErrorCode::corrupt, "x.weight_packed");
  }
  SECTION("compressed-tensors, NVFP4 and MXFP4") {
    const bool nvfp4 = GENERATE(true, false);
    layer.settings = std::string(R"({"quant_method": "compressed-tensors", "format": ")") + (nvfp4 ? "nv" : "mx") +
                     R"(fp4-pack-quantized", "config_groups": {"g": {"targets": ["Linear"],
                       "weights": {"num_bits": 4, "type": "float",
                       "strategy": "group", "group_size": 16}}}})";
    layer.tensors = {{"x.weight_packed", raw_bytes("U8", {4, 12}, 0)},
                     {"x.weight_scale", raw_bytes(nvfp4 ? "F8_E4M3" : "U8", {4, 1}, 0x40)}};
    if (nvfp4) layer.tensors["x.weight_global_scale"] = floats({1}, 1.0f);
    layer.expect(ErrorCode::corrupt, "x.weight_packed");
  }
  SECTION("bitsandbytes") {
    const std::string state = R"({"blocksize": 48, "shape": [4, 32], "quant_type": "nf4"})";
    layer.settings = R"({"quant_method": "bitsandbytes", "load_in_4bit": true})";
    layer.tensors = {{"x.weight", raw_bytes("U8", {64, 1}, 0)},
                     {"x.weight.quant_state.bitsandbytes__nf4", {"U8", {static_cast<int>(state.size())}, state}}};
    layer.expect(ErrorCode::corrupt, "blocksize");
  }
}

TEST_CASE("bad quantized checkpoints: scales of which weights come that are not finite") {
  Layer layer;
  SECTION("GPTQ") {
    make_gptq(layer);
    layer.tensors["x.scales"] = floats({2, 8}, -3e38f);
    layer.expect(ErrorCode::corrupt, "x.scales");
  }
  SECTION("LLM.int8()") {
    layer.settings = R"({"quant_method": "bitsandbytes", "load_in_8bit": true})";
    layer.tensors = {{"x.weight", raw_bytes("I8", {4, 32}, 127)}, {"x.SCB", floats({4}, 3e38f)}};
    layer.expect(ErrorCode::corrupt, "x.SCB");
  }
  SECTION("NVFP4: the quotient of two") {
    layer.settings = R"({"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized", "config_groups": {"g":
      {"targets": ["Linear"], "weights": {"num_bits": 4, "type": "float"}}}})";
    layer.tensors = {{"x.weight_packed", raw_bytes("U8", {4, 16}, 0)},
                     {"x.weight_scale", raw_bytes("F8_E4M3", {4, 2}, 0x7e)},
                     {"x.weight_global_scale", floats({1}, 1e-37f)}};
    layer.expect(ErrorCode::corrupt, "x.weight_packed");
  }
  SECTION("HQQ: a product with a zero point") {
    make_hqq(layer);
    layer.tensors["x.zero"] = floats({8, 1}, 3e38f);
    layer.expect(ErrorCode::corrupt, "x.zero");
  }
}

TEST_CASE("bad quantized checkpoints: zero points, orders of columns and packings") {
  Layer layer;
  SECTION("AWQ: zero points of other groups") {
    make_awq(layer);
    layer.tensors["x.qzeros"] = words({1, 1}, 0);
    layer.expect(ErrorCode::shape_mismatch, "x.qzeros");
  }
  SECTION("AWQ: rows that are no whole words") {
    make_awq(layer);
    layer.tensors["x.scales"] = floats({2, 7}, 0.5f);
    layer.expect(ErrorCode::corrupt, "x.scales");
  }
  SECTION("Marlin: rows that are no whole tiles") {
    layer.settings = R"({"quant_method": "gptq", "checkpoint_format": "marlin", "bits": 4, "group_size": -1})";
    layer.tensors = {{"x.B", words({4, 64}, 0)}, {"x.s", floats({1, 32}, 1.0f)}};
    layer.expect(ErrorCode::corrupt, "x.s");
  }
  SECTION("compressed-tensors") {
    layer.settings = R"({"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {"g":
      {"targets": ["Linear"], "weights": {"num_bits": 4, "type": "int", "strategy": "group",
      "group_size": 32, "symmetric": false}}}})";
    layer.tensors = {{"x.weight_packed", words({8, 8}, 0x99999999)},  // 9 - 8
                     {"x.weight_zero_point", words({1, 2}, 0xaaaaaaaa)},
                     {"x.weight_scale", floats({8, 2}, 1)},
                     {"x.weight_shape", {"I64", {2}, bytes_of(std::vector<std::int64_t>{8, 64})}}};
    CHECK(layer.values() == std::vector<float>(8 * 64, -1.0f));
    SECTION("no zero points") {
      layer.tensors.erase("x.weight_zero_point");
      layer.expect(ErrorCode::missing_tensor, "x.weight_zero_point");
    }
    SECTION("zero points of other groups") {
      layer.tensors["x.weight_zero_point"] = words({1, 1}, 0);
      layer.expect(ErrorCode::shape_mismatch, "x.weight_zero_point");
    }
    SECTION("a group out of range") {
      std::vector<std::int32_t> index(64, 1);
      index[7] = GENERATE(-1, 2);
      layer.tensors["x.weight_g_idx"] = {"I32", {64}, bytes_of(index)};
      layer.expect(ErrorCode::corrupt, "x.weight_g_idx");
    }
    SECTION("an order of columns that nothing has set") {
      std::vector<float> scales(16);
      for (std::size_t i = 0; i < 16; ++i) scales[i] = i % 2 == 0 ? 1.0f : 2.0f;
      layer.tensors["x.weight_scale"].data = bytes_of(scales);
      const auto values = layer.values();
      CHECK(values[31] == -1.0f);
      CHECK(values[32] == -2.0f);
      layer.tensors["x.weight_g_idx"] = {"I32", {64}, bytes_of(std::vector<std::int32_t>(64, -1))};
      CHECK(layer.values() == values);
      CHECK_FALSE(layer.read()->details.permutation);
      CHECK(load::open_hf_directory(layer.dir.path(), true).value().tensors.size() == 1);
    }
    SECTION("words of another type") {
      layer.tensors["x.weight_packed"].dtype = "F32";
      layer.expect(ErrorCode::unsupported_type, "x.weight_packed");
    }
    SECTION("a zero point of an input beyond 8 bits, and a scale of nothing") {
      layer.settings = R"({"quant_method": "compressed-tensors", "format": "int-quantized", "config_groups": {"g":
        {"targets": ["Linear"], "weights": {"num_bits": 8, "type": "int", "strategy": "channel", "symmetric": true},
        "input_activations":
        {"num_bits": 8, "type": "int", "strategy": "tensor", "dynamic": false, "symmetric": false}}}})";
      layer.tensors = {{"x.weight", raw_bytes("I8", {4, 32}, 1)},
                       {"x.weight_scale", floats({4, 1}, 0.5f)},
                       {"x.input_scale", floats({1}, 0.5f)},
                       {"x.input_zero_point", raw_bytes("I8", {1}, 3)}};
      CHECK(layer.read()->details.input.zero == 3);
      layer.tensors["x.input_zero_point"] = {"I32", {1}, bytes_of(std::vector{300})};
      layer.expect(ErrorCode::unsupported_type, "x.input_zero_point");
      layer.tensors["x.input_zero_point"] = raw_bytes("I8", {1}, 3);
      layer.tensors["x.input_scale"] = floats({1}, 0.0f);
      layer.expect(ErrorCode::corrupt, "x.input_scale");
    }
  }
  SECTION("FP8: elements of another type") {
    layer.settings = R"({"quant_method": "fp8", "weight_block_size": [2, 32]})";
    layer.tensors = {{"x.weight", raw_bytes("I8", {4, 32}, 1)}, {"x.weight_scale_inv", floats({2, 1}, 0.5f)}};
    layer.expect(ErrorCode::unsupported_type, "x.weight");
  }
  SECTION("LLM.int8(): scales of other rows") {
    layer.settings = R"({"quant_method": "bitsandbytes", "load_in_8bit": true})";
    layer.tensors = {{"x.weight", raw_bytes("I8", {4, 32}, 127)}, {"x.SCB", floats({5}, 2.0f)}};
    layer.expect(ErrorCode::shape_mismatch, "x.SCB");
  }
  SECTION("NF4: bytes that do not hold the shape") {
    const std::string state = R"({"blocksize": 64, "shape": [4, 32], "quant_type": "nf4"})";
    layer.settings = R"({"quant_method": "bitsandbytes", "load_in_4bit": true})";
    layer.tensors = {{"x.weight", raw_bytes("U8", {65, 1}, 0)},
                     {"x.weight.quant_state.bitsandbytes__nf4", {"U8", {static_cast<int>(state.size())}, state}}};
    layer.expect(ErrorCode::shape_mismatch, "x.weight");
  }
}
