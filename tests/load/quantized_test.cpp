// Packed weights of Hugging Face checkpoints: what a correct layer becomes, and the error of each way to be wrong.
#include <catch2/catch.hpp>

#include <algorithm>
#include <filesystem>
#include <limits>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "core/file.hpp"
#include "core/parallel.hpp"
#include "tests/load/packed_layer.hpp"

using namespace llminfer;
using namespace llminfer::test;
using Catch::Contains;

namespace {

const std::string kInt8Config = R"({"quant_method": "compressed-tensors", "format": "int-quantized", "config_groups":
  {"group_0": {"targets": ["Linear"], "weights": {"num_bits": 8, "type": "int", "strategy": "channel",
  "symmetric": true}}}})";

}  // namespace

TEST_CASE("GPTQ: values, permutations and odd groups") {
  Layer layer;
  make_gptq(layer);
  CHECK(layer.values() == std::vector<float>(8 * 64, 2.0f));
  CHECK(layer.read()->type == WeightType::w4);
  SECTION("version 2 stores the zero point itself") {
    layer.settings = R"({"quant_method": "gptq", "bits": 4, "group_size": 32, "checkpoint_format": "gptq_v2"})";
    CHECK(layer.values() == std::vector<float>(8 * 64, 2.5f));
  }
  SECTION("zero points carry into their neighbours") {
    layer.tensors["x.qzeros"] = words({2, 1}, 0xeeeeeeef);  // 0 - 0x11111111: zeros of 0
    CHECK(layer.values() == std::vector<float>(8 * 64, 3.5f));
  }
  SECTION("columns in the order of their groups") {
    std::vector<std::int32_t> index(64);
    for (std::size_t i = 0; i < 64; ++i) index[i] = i % 2;
    layer.tensors["x.g_idx"] = {"I32", {64}, bytes_of(index)};
    std::vector<float> scales(16, 0.5f);
    for (std::size_t i = 8; i < 16; ++i) scales[i] = 1.0f;
    layer.tensors["x.scales"].data = bytes_of(scales);
    const auto values = layer.values();
    for (std::size_t i = 0; i < values.size(); ++i) CHECK(values[i] == (i % 2 ? 4.0f : 2.0f));
    CHECK(layer.read()->details.permutation);
  }
  SECTION("groups that are no whole blocks") {
    layer.settings = R"({"quant_method": "gptq", "bits": 4, "group_size": 24})";
    layer.tensors["x.scales"] = floats({3, 8}, 0.5f);
    layer.tensors["x.qzeros"] = words({3, 1}, 0x22222222);
    CHECK(layer.values() == std::vector<float>(8 * 64, 2.0f));
    CHECK(layer.read()->type == WeightType::f32);
  }
  SECTION("the settings in a file of their own") {
    layer.dir.write("quantize_config.json", R"({"bits": 4, "group_size": 32})");
    layer.settings = "null";
    CHECK(layer.values() == std::vector<float>(8 * 64, 2.0f));
    std::filesystem::rename(layer.dir / "model.safetensors", layer.dir / "gptq_model-4bit-32g.safetensors");
    const auto named = load::open_hf_directory(layer.dir.path(), true);
    REQUIRE(named);
    CHECK(named->read(*named->find("x.weight"))->rows == 8);
  }
  SECTION("groups of a layer's own settings, the last one shorter") {
    const std::string start = R"({"quant_method": "gptq", "bits": 4, "group_size": 16, "dynamic": )";
    layer.settings = start + R"({"+:x": {"group_size": 24}, "-:.*y": {}}})";
    std::vector<float> scales(24, 0.5f);
    for (std::size_t i = 8; i < 24; ++i) scales[i] = i < 16 ? 1.0f : 2.0f;
    layer.tensors["x.scales"] = {"F32", {3, 8}, bytes_of(scales)};
    layer.tensors["x.qzeros"] = words({3, 1}, 0x22222222);
    const auto values = layer.values();
    REQUIRE(values.size() == 8 * 64);
    for (std::size_t i = 0; i < values.size(); ++i) {
      const std::size_t column = i % 64;
      CHECK(values[i] == (column < 24 ? 2.0f : column < 48 ? 4.0f : 8.0f));
    }
    layer.settings = start + R"({"+:x": {"group_size": 24}, "+:y": {"group_size": 30}}})";
    layer.expect(ErrorCode::unsupported, "24 or 30");
    layer.settings = start + R"({"+:x": {"group_size": 40}}})";
    layer.expect(ErrorCode::corrupt, "x.scales");
    layer.settings = start + R"({"+:x": {"group_size": 0}}})";
    layer.expect(ErrorCode::corrupt, "+:x");
    layer.settings = start + "3}";
    layer.expect(ErrorCode::corrupt, "dynamic");
  }
}

TEST_CASE("GPTQ: what is refused") {
  Layer layer;
  make_gptq(layer);
  REQUIRE(layer.read());
  const auto without = [&](const char* name) { layer.tensors.erase(name); };
  const auto with = [&](const char* settings) { layer.settings = settings; };
  SECTION("no zero points") { without("x.qzeros"), layer.expect(ErrorCode::missing_tensor, "x.qzeros"); }
  SECTION("no scales") { without("x.scales"), layer.expect(ErrorCode::missing_tensor, "x.scales"); }
  SECTION("no layers") {
    layer.tensors = {{"x.weight", floats({1, 1}, 0)}};
    layer.expect(ErrorCode::missing_tensor, "qweight");
  }
  SECTION("types") {
    layer.tensors["x.qweight"].dtype = "F32";
    layer.expect(ErrorCode::unsupported_type, "x.qweight");
  }
  SECTION("shapes of the words") {
    layer.tensors["x.qweight"] = words({8, 4}, 0);
    layer.expect(ErrorCode::shape_mismatch, "x.qweight");
  }
  SECTION("shapes of the zero points") {
    layer.tensors["x.qzeros"] = words({2, 2}, 0);
    layer.expect(ErrorCode::shape_mismatch, "x.qzeros");
  }
  SECTION("a group out of range") {
    for (const std::int32_t group : {-1, 2, 1 << 30}) {
      std::vector<std::int32_t> index(64, 0);
      index[63] = group;
      layer.tensors["x.g_idx"] = {"I32", {64}, bytes_of(index)};
      layer.expect(ErrorCode::corrupt, "x.g_idx");
    }
  }
  SECTION("an order of other columns") {
    layer.tensors["x.g_idx"] = words({63}, 0);
    layer.expect(ErrorCode::shape_mismatch, "x.g_idx");
  }
  SECTION("scales that are not finite") {
    layer.tensors["x.scales"] = floats({2, 8}, std::numeric_limits<float>::infinity());
    layer.expect(ErrorCode::corrupt, "x.scales");
  }
  SECTION("symmetric by name only") {
    with(R"({"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": true})");
    layer.expect(ErrorCode::corrupt, "x.qzeros");
  }
  SECTION("group sizes that do not fit the scales") {
    with(R"({"quant_method": "gptq", "bits": 4, "group_size": 64})");
    layer.expect(ErrorCode::corrupt, "x.scales");
  }
  SECTION("bits that do not fit the words") {
    with(R"({"quant_method": "gptq", "bits": 8, "group_size": 16})");
    layer.expect(ErrorCode::shape_mismatch, "x.qzeros");
  }
  SECTION("bits") {
    const char* bits = GENERATE("0", "-4", "5", "64", "9223372036854775807");
    layer.settings = std::string(R"({"quant_method": "gptq", "group_size": 32, "bits": )") + bits + "}";
    layer.expect(ErrorCode::unsupported, "bits");
  }
  SECTION("group sizes") {
    const char* size = GENERATE("0", "-2", "9223372036854775807");
    layer.settings = std::string(R"({"quant_method": "gptq", "bits": 4, "group_size": )") + size + "}";
    layer.expect(ErrorCode::corrupt, "group_size");
  }
  SECTION("settings of wrong types") {
    with(R"({"quant_method": "gptq", "bits": "4", "group_size": 32})");
    layer.expect(ErrorCode::corrupt, "bits");
  }
  SECTION("formats") {
    with(R"({"quant_method": "gptq", "bits": 4, "group_size": 32, "checkpoint_format": "exl2"})");
    layer.expect(ErrorCode::unsupported, "exl2");
  }
  SECTION("methods") {
    with(GENERATE(R"({"quant_method": "quip"})", "{}"));
    layer.expect(ErrorCode::unsupported, "quant_method");
  }
  SECTION("packed and plain at once") {
    layer.tensors["x.weight"] = floats({8, 64}, 0);
    layer.expect(ErrorCode::corrupt, "x.weight");
  }
  SECTION("tensors of packings that the settings do not name") {
    layer.tensors["y.weight"] = raw_bytes("I8", {4, 4}, 1);
    layer.expect(ErrorCode::unsupported_type, "y.weight");
  }
}

TEST_CASE("AutoRound: what is refused") {
  Layer layer;
  make_gptq(layer);
  const char* settings = GENERATE(R"("packing_format": "auto_round:exl2")", R"("data_type": "mx_int")",
                                  R"("act_bits": 8)", R"("bits": 5)");
  layer.settings = std::string(R"({"quant_method": "auto-round", "group_size": 32, "sym": false, )") + settings + "}";
  layer.expect(ErrorCode::unsupported, std::string(settings).substr(1, 4));
}

TEST_CASE("ModelOpt") {
  Layer layer;
  layer.settings = R"({"quant_method": "modelopt", "quant_algo": "FP8", "kv_cache_scheme": {"num_bits": 8}})";
  layer.tensors = {{"x.weight", raw_bytes("F8_E4M3", {4, 32}, 0x40)},  // 2
                   {"x.weight_scale", floats({}, 0.5f)},
                   {"x.input_scale", floats({}, 0.25f)},
                   {"x.k_scale", floats({}, 1.0f)},
                   {"x.v_scale", floats({1}, 1.0f)}};
  CHECK(layer.values() == std::vector<float>(4 * 32, 1.0f));
  CHECK(layer.read()->details.input == InputQuantization{InputQuantization::Kind::fp8, false, 0, 0.25f, 0});
  SECTION("settings in a file of their own") {
    layer.settings = "null";
    layer.dir.write("hf_quant_config.json", R"({"producer": {}, "quantization": {"quant_algo": "FP8"}})");
    CHECK(layer.values() == std::vector<float>(4 * 32, 1.0f));
    layer.dir.write("hf_quant_config.json", R"({"producer": {}})");
    layer.expect(ErrorCode::corrupt, "quantization");
  }
  SECTION("no scale") {
    layer.tensors.erase("x.weight_scale");
    layer.expect(ErrorCode::missing_tensor, "weight_scale");
  }
  SECTION("a scale of nothing") {
    layer.tensors["x.input_scale"] = floats({}, 0.0f);
    layer.expect(ErrorCode::corrupt, "x.input_scale");
  }
  SECTION("other algorithms") {
    layer.settings = R"({"quant_method": "modelopt", "quant_algo": "NVFP4_SVD"})";
    layer.expect(ErrorCode::unsupported, "NVFP4_SVD");
  }
  SECTION("NVFP4") {
    const std::string algorithm = GENERATE("NVFP4", "W4A16_NVFP4");
    layer.settings = R"({"quant_method": "modelopt", "quant_algo": ")" + algorithm + R"("})";
    layer.tensors = {{"x.weight", raw_bytes("U8", {4, 16}, 0x32)},            // 1, then 1.5
                     {"x.weight_scale", raw_bytes("F8_E4M3", {4, 2}, 0x40)},  // 2
                     {"x.weight_scale_2", floats({}, 0.25f)},
                     {"x.input_scale", floats({}, 1.0f)}};
    const auto values = layer.values();
    for (std::size_t i = 0; i < 128; ++i) CHECK(values[i] == (i % 2 ? 0.75f : 0.5f));
    CHECK(layer.read()->details.input.kind == InputQuantization::Kind::none);
    layer.tensors["x.weight_scale"] = raw_bytes("F8_E4M3", {4, 1}, 0x40);
    layer.expect(ErrorCode::shape_mismatch, "x.weight_scale");
    layer.settings.insert(1, R"("group_size": 32, )");
    layer.expect(ErrorCode::corrupt, "group_size");
  }
  SECTION("MXFP4") {
    const std::string algorithm = GENERATE("mxfp4", "MXFP4");
    const char* const type = algorithm == "mxfp4" ? "U8" : "F8_E8M0";
    layer.settings = R"({"quant_method": "modelopt", "quant_algo": ")" + algorithm + R"("})";
    layer.tensors = {{"x.weight", raw_bytes("U8", {4, 16}, 0x32)},             // 1, then 1.5
                     {"x.weight_scale", raw_bytes(type, {4, 1}, char{126})}};  // 0.5
    const auto values = layer.values();
    for (std::size_t i = 0; i < 128; ++i) CHECK(values[i] == (i % 2 ? 0.75f : 0.5f));
    layer.tensors["x.weight_scale"] = raw_bytes("U8", {4, 2}, char{126});
    layer.expect(ErrorCode::shape_mismatch, "x.weight_scale");
  }
  SECTION("factors of inputs") {
    layer.tensors["x.pre_quant_scale"] = floats({32}, 3.0f);
    CHECK(layer.values() == std::vector<float>(4 * 32, 3.0f));
    CHECK(layer.read()->details.input == InputQuantization{});  // which would come after the factors
  }
}

TEST_CASE("MXFP4 experts") {
  Layer layer;
  layer.settings = R"({"quant_method": "mxfp4"})";
  layer.model = R"("model_type": "gpt_oss", "vocab_size": 32, "hidden_size": 64, "intermediate_size": 2,
    "num_hidden_layers": 1, "num_attention_heads": 8, "num_local_experts": 2, "num_experts_per_tok": 1,
    "rms_norm_eps": 1e-5, "rope_scaling": {"rope_type": "yarn", "rope_theta": 150000, "factor": 32.0,
    "original_max_position_embeddings": 4096})";
  const std::string blocks = "experts.gate_up_proj_blocks", scales = "experts.gate_up_proj_scales";
  std::string bytes(2 * 4 * 2 * 16, 0x72);  // 1, then 6
  std::string exponents(2 * 4 * 2, 127);    // 1
  for (std::size_t row = 0; row < 8; ++row) {
    if (row % 2 == 1) std::fill_n(exponents.begin() + static_cast<long>(2 * row), 2, static_cast<char>(128));  // 2
  }
  bytes[4 * 2 * 16] = 0x11;  // 0.5 and 0.5 in the first block of expert 1
  layer.tensors = {{blocks, {"U8", {2, 4, 2, 16}, bytes}},
                   {scales, {"U8", {2, 4, 2}, exponents}},
                   {"experts.down_proj_blocks", raw_bytes("U8", {2, 3, 1, 16}, 0x11)},
                   {"experts.down_proj_scales", raw_bytes("U8", {2, 3, 1}, 127)},
                   {"x.weight", floats({1, 1}, 0)}};
  const auto read = [&](const std::string& name) { return layer.values(name); };
  SECTION("each matrix of each expert is a weight") {
    const auto [rows, gate] = read("experts.0.gate_proj.weight");
    CHECK(rows == 2);
    REQUIRE(gate.size() == 2 * 64);
    for (std::size_t i = 0; i < gate.size(); ++i) CHECK(gate[i] == (i % 2 ? 6.0f : 1.0f));
    const auto up = read("experts.0.up_proj.weight").second;
    for (std::size_t i = 0; i < up.size(); ++i) CHECK(up[i] == (i % 2 ? 12.0f : 2.0f));
    const auto other = read("experts.1.gate_proj.weight").second;
    for (std::size_t i = 0; i < other.size(); ++i) CHECK(other[i] == (i < 2 ? 0.5f : i % 2 ? 6.0f : 1.0f));
    CHECK(read("experts.1.down_proj.weight").first == 3);
    CHECK(read("experts.1.down_proj.weight").second == std::vector(3 * 32, 0.5f));
  }
  SECTION("an odd number of rows of gate and up") {
    layer.tensors[blocks] = raw_bytes("U8", {2, 3, 2, 16}, 0x72);
    layer.tensors[scales] = raw_bytes("U8", {2, 3, 2}, 127);
    layer.expect(ErrorCode::shape_mismatch, blocks);
  }
  SECTION("another number of experts") {
    layer.tensors[blocks] = raw_bytes("U8", {5000, 2, 1, 16}, 0);
    layer.tensors[scales] = raw_bytes("U8", {5000, 2, 1}, 0);
    layer.expect(ErrorCode::shape_mismatch, blocks);
  }
  SECTION("more stacks than the layers have") {
    layer.tensors["a.experts.down_proj_blocks"] = layer.tensors.at("experts.down_proj_blocks");
    layer.expect(ErrorCode::corrupt, "3 tensors are named *_blocks");
  }
  SECTION("scales of other blocks") {
    layer.tensors[scales] = raw_bytes("U8", {2, 4, 1}, 0);
    layer.expect(ErrorCode::shape_mismatch, scales);
  }
  SECTION("no scales") {
    layer.tensors.erase(scales);
    layer.expect(ErrorCode::missing_tensor, scales);
  }
  SECTION("no blocks") {
    layer.tensors = {{"x.weight", floats({1, 1}, 0)}};
    layer.expect(ErrorCode::missing_tensor, "_blocks");
  }
}

TEST_CASE("layers are converted alike by one thread and by many") {
  Layer layer;
  make_gptq(layer);
  layer.tensors["x.qweight"] = words({8, 104}, 0x75316420);
  layer.tensors["x.qzeros"] = words({2, 13}, 0x22222222);
  layer.tensors["x.scales"] = floats({2, 104}, 0.5f);
  REQUIRE(layer.read());
  const auto checkpoint = load::open_hf_directory(layer.dir.path(), true).value();
  const load::TensorInfo& tensor = *checkpoint.find("x.weight");
  const auto team = core::Team::make(3, {}).value();
  const WeightView one = checkpoint.read(tensor).value(), many = checkpoint.read(tensor, team.get()).value();
  CHECK(std::equal(one.data.begin(), one.data.end(), many.data.begin(), many.data.end()));
}

TEST_CASE("pack-quantized: rows that end within a word") {
  const int bits = GENERATE(2, 4, 8);
  const std::int64_t rows = 17, cols = 35, width = (cols * bits + 31) / 32;
  const auto code = [&](std::int64_t n, std::int64_t k) { return static_cast<int>((3 * n + 5 * k) % (1 << bits)); };
  std::vector<std::uint32_t> packed(static_cast<std::size_t>(rows * width), 0xffffffffu);
  for (std::int64_t n = 0; n < rows; ++n) {
    for (std::int64_t k = 0; k < cols; ++k) {
      std::uint32_t& word = packed[static_cast<std::size_t>(n * width + k * bits / 32)];
      const auto shift = static_cast<unsigned>(k * bits % 32);
      word = (word & ~(((1u << bits) - 1) << shift)) | static_cast<std::uint32_t>(code(n, k)) << shift;
    }
  }
  Layer layer;
  layer.settings = R"({"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {"g":
      {"targets": ["Linear"], "weights": {"num_bits": )" +
                   std::to_string(bits) + R"(, "type": "int", "strategy": "channel", "symmetric": true}}}})";
  layer.tensors = {{"x.weight_packed", {"I32", {rows, width}, bytes_of(packed)}},
                   {"x.weight_scale", floats({rows, 1}, 0.5f)},
                   {"x.weight_shape", {"I64", {2}, bytes_of(std::vector<std::int64_t>{rows, cols})}}};
  const auto values = layer.values();
  for (std::int64_t n = 0; n < rows; ++n) {
    for (std::int64_t k = 0; k < cols; ++k) {
      INFO(bits << " bits, row " << n << ", column " << k);
      REQUIRE(values[static_cast<std::size_t>(n * cols + k)] ==
              0.5f * static_cast<float>(code(n, k) - (1 << (bits - 1))));
    }
  }
}

TEST_CASE("pack-quantized: 4 bits are Q4_0 if halves hold all scales") {
  const auto [scale, type] = GENERATE(table<float, WeightType>({{0x1.82p-9f, WeightType::q4_0},  // of BF16
                                                                {0x1.82p-20f, WeightType::w4_sym},
                                                                {0x1p17f, WeightType::w4_sym},
                                                                {0.1f, WeightType::w4_sym}}));
  Layer layer;
  layer.settings = R"({"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {"g":
      {"targets": ["Linear"], "weights": {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32,
       "symmetric": true}}}})";
  std::vector<float> scales(2 * 2, 0.5f);
  scales[3] = scale;
  layer.tensors = {{"x.weight_packed", words({2, 8}, 0x99999999)},
                   {"x.weight_scale", {"F32", {2, 2}, bytes_of(scales)}},
                   {"x.weight_shape", {"I64", {2}, bytes_of(std::vector<std::int64_t>{2, 64})}}};
  CHECK(layer.read().value().type == type);
  const auto values = layer.values();
  CHECK(values[0] == 0.5f);
  CHECK(values[127] == scale);
}

TEST_CASE("compressed-tensors: 4-bit floats whose inputs are such, too, which are left as they are") {
  Layer layer;
  const bool nvfp4 = GENERATE(true, false);
  const std::string scheme = R"({"num_bits": 4, "type": "float", "strategy": ")", kind = nvfp4 ? "nv" : "mx";
  const std::string own = nvfp4 ? R"(tensor_group", "group_size": 16)" : R"(group", "group_size": 32)";
  layer.settings = R"({"quant_method": "compressed-tensors", "format": ")" + kind + R"(fp4-pack-quantized",
    "config_groups": {"g": {"targets": ["Linear"], "weights": )" +
                   scheme + own + R"(, "dynamic": false}, "input_activations": )" + scheme + own + R"(, "dynamic": )" +
                   (nvfp4 ? R"("local")" : "true") + "}}}}";
  layer.tensors = {{"x.weight_packed", raw_bytes("U8", {4, 16}, 0x32)}};  // 1, then 1.5
  if (nvfp4) {
    layer.tensors["x.weight_scale"] = raw_bytes("F8_E4M3", {4, 2}, 0x40);  // 2
    layer.tensors["x.weight_global_scale"] = floats({1}, 4.0f);
    layer.tensors["x.input_global_scale"] = floats({1}, 3.0f);
  } else {
    layer.tensors["x.weight_scale"] = raw_bytes("U8", {4, 1}, char{126});  // 0.5
  }
  const auto values = layer.values();
  for (std::size_t i = 0; i < 128; ++i) CHECK(values[i] == (i % 2 ? 0.75f : 0.5f));
  CHECK(layer.read()->details.input.kind == InputQuantization::Kind::none);
  CHECK_FALSE(load::open_hf_directory(layer.dir.path(), true).value().find("x.input_global_scale"));
}

TEST_CASE("compressed-tensors: what is refused") {
  Layer layer;
  layer.settings = kInt8Config;
  layer.tensors = {{"x.weight", raw_bytes("I8", {4, 32}, -2)}, {"x.weight_scale", floats({4, 1}, 0.5f)}};
  CHECK(layer.values() == std::vector<float>(4 * 32, -1.0f));
  SECTION("no scales") {
    layer.tensors.erase("x.weight_scale");
    layer.expect(ErrorCode::missing_tensor, "weight_scale");
  }
  SECTION("scales of another shape") {
    layer.tensors["x.weight_scale"] = floats({1}, 0.5f);
    layer.expect(ErrorCode::shape_mismatch, "x.weight_scale");
  }
  SECTION("elements of another type") {
    layer.tensors["x.weight"] = raw_bytes("F8_E4M3", {4, 32}, 8);
    layer.expect(ErrorCode::corrupt, "x.weight");
  }
  SECTION("no groups") {
    layer.settings = R"({"quant_method": "compressed-tensors", "config_groups": {}})";
    layer.expect(ErrorCode::corrupt, "config_groups");
  }
  SECTION("sparsity") {
    layer.settings.insert(1, R"("sparsity_config": {"format": "sparse-bytemask"}, )");
    layer.expect(ErrorCode::unsupported, "sparsity_config");
  }
  SECTION("transforms") {
    layer.settings.insert(1, R"("transform_config": {"format": "dense", "config_groups": {"u": {}}}, )");
    layer.expect(ErrorCode::unsupported, "transform_config");
  }
  SECTION("inputs of 4 bits") {
    const std::string weights = R"("weights")";
    layer.settings.insert(
        layer.settings.find(weights),
        R"("input_activations": {"num_bits": 4, "type": "int", "dynamic": true, "strategy": "token"}, )");
    layer.expect(ErrorCode::unsupported, "input_activations");
  }
  SECTION("inputs of 4-bit floats") {
    layer.settings.insert(layer.settings.find(R"("weights")"),
                          R"("input_activations": {"num_bits": 4, "type": "float", "dynamic": "local"}, )");
    layer.expect(ErrorCode::unsupported, "input_activations");
  }
  SECTION("words that do not hold the shape") {
    layer.settings = R"({"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {"g":
      {"targets": ["Linear"], "weights": {"num_bits": 4, "type": "int", "strategy": "group",
      "group_size": 32, "symmetric": true}}}})";
    layer.tensors = {{"x.weight_packed", words({4, 4}, 0)},
                     {"x.weight_scale", floats({4, 1}, 1)},
                     {"x.weight_shape", {"I64", {2}, bytes_of(std::vector<std::int64_t>{4, 64})}}};
    layer.expect(ErrorCode::corrupt, "x.weight_packed");
    layer.tensors["x.weight_shape"].data = bytes_of(std::vector<std::int64_t>{5, 32});
    layer.expect(ErrorCode::corrupt, "x.weight_shape");
    layer.tensors["x.weight_shape"].data = bytes_of(std::vector<std::int64_t>{4, 32});
    CHECK(layer.values() == std::vector<float>(4 * 32, -8.0f));
  }
}

TEST_CASE("FP8: factors, divisors and what is refused") {
  Layer layer;
  layer.settings = R"({"quant_method": "fp8", "weight_block_size": [2, 32]})";
  layer.tensors = {{"x.weight", raw_bytes("F8_E4M3", {4, 32}, 0x40)},  // 2
                   {"x.weight_scale_inv", floats({2, 1}, 0.5f)}};
  CHECK(layer.values() == std::vector<float>(4 * 32, 1.0f));
  SECTION("divisors") {
    layer.settings = R"({"quant_method": "fp8", "weight_scale_semantics": "inverse"})";
    layer.tensors["x.weight_scale_inv"] = floats({4}, 0.5f);
    CHECK(layer.values() == std::vector<float>(4 * 32, 4.0f));
    layer.tensors["x.weight_scale_inv"] = floats({4}, 0.0f);
    layer.expect(ErrorCode::corrupt, "x.weight_scale_inv");
  }
  SECTION("other semantics") {
    layer.settings = R"({"quant_method": "fp8", "weight_scale_semantics": "cubic"})";
    layer.expect(ErrorCode::unsupported, "cubic");
  }
  SECTION("blocks that do not fit the scales") {
    layer.settings = R"({"quant_method": "fp8", "weight_block_size": [1, 32]})";
    layer.expect(ErrorCode::shape_mismatch, "x.weight_scale_inv");
  }
  SECTION("blocks of nothing") {
    layer.settings = R"({"quant_method": "fp8", "weight_block_size": [0, 32]})";
    layer.expect(ErrorCode::corrupt, "weight_block_size");
  }
  SECTION("elements that are no numbers") {
    layer.tensors["x.weight"].data[5] = 0x7f;
    layer.expect(ErrorCode::corrupt, "x.weight");
  }
}

TEST_CASE("bitsandbytes: what is refused") {
  Layer layer;
  layer.settings = R"({"quant_method": "bitsandbytes", "load_in_8bit": true})";
  layer.tensors = {{"x.weight", raw_bytes("I8", {4, 32}, 127)}, {"x.SCB", floats({4}, 2.0f)}};
  CHECK(layer.values()[0] == Approx(2.0));
  CHECK(layer.read()->details.input.outliers);
  SECTION("another order") {
    layer.tensors["x.weight_format"] = raw_bytes("U8", {}, 1);
    layer.expect(ErrorCode::unsupported, "x.weight_format");
  }
  SECTION("4 bits without a table, with a false one, or with a broken description") {
    const std::string state = R"({"blocksize": 64, "shape": [4, 32], "quant_type": "nf4"})";
    layer.tensors = {{"x.weight", raw_bytes("U8", {64, 1}, 0)},
                     {"x.weight.absmax", floats({2}, 1.0f)},
                     {"x.weight.quant_state.bitsandbytes__nf4", {"U8", {static_cast<int>(state.size())}, state}}};
    layer.expect(ErrorCode::missing_tensor, "x.weight.quant_map");
    layer.tensors["x.weight.quant_map"] = floats({16}, 1.0f);
    layer.expect(ErrorCode::unsupported, "x.weight.quant_map");
    const std::string bad =
        GENERATE("{", "[]", R"({"blocksize": 0, "shape": [4, 32]})", R"({"blocksize": 64})",
                 R"({"blocksize": 64, "shape": [4, -32]})", R"({"blocksize": 64, "shape": [4, 9223372036854775807]})");
    layer.tensors["x.weight.quant_state.bitsandbytes__nf4"] = {"U8", {static_cast<int>(bad.size())}, bad};
    layer.expect(ErrorCode::corrupt, "x.weight.quant_state");
  }
}
