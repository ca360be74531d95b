// AWQ in its layouts, and packings that several tools share: AutoRound's and Marlin's.
#include <catch2/catch.hpp>

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "core/file.hpp"
#include "tests/load/packed_layer.hpp"

using namespace llminfer;
using namespace llminfer::test;

TEST_CASE("AWQ") {
  Layer layer;
  make_awq(layer);
  CHECK(layer.values() == std::vector<float>(8 * 64, 2.0f));
  SECTION("the order of nibbles") {
    layer.tensors["x.qweight"] = words({64, 1}, 0x75316420);  // column j holds j
    const auto values = layer.values();
    for (std::size_t n = 0; n < 8; ++n) CHECK(values[n * 64] == 0.5f * (static_cast<float>(n) - 3.0f));
  }
  SECTION("early settings") {
    layer.settings = "null";
    layer.dir.write("quant_config.json", R"({"zero_point": true, "q_group_size": 32, "w_bit": 4, "version": "GEMM"})");
    CHECK(layer.values() == std::vector<float>(8 * 64, 2.0f));
  }
  SECTION("no zero points") {
    layer.tensors.erase("x.qzeros");
    layer.expect(ErrorCode::missing_tensor, "x.qzeros");
  }
  SECTION("kernels of other names, over the same words") {
    const std::string version = GENERATE("exllama", "ipex", "EXLLAMA");
    layer.settings = R"({"quant_method": "awq", "bits": 4, "group_size": 32, "version": ")" + version + "\"}";
    CHECK(layer.values() == std::vector<float>(8 * 64, 2.0f));
  }
  SECTION("the layout by another name, or by none") {
    const std::string rest = GENERATE("", R"(, "checkpoint_format": "gemm")", R"(, "format": "gemm")");
    layer.settings = R"({"quant_method": "awq", "bits": 4, "group_size": 32)" + rest + "}";
    CHECK(layer.values() == std::vector<float>(8 * 64, 2.0f));
  }
  SECTION("another layout") {
    const std::string key = GENERATE("version", "checkpoint_format", "format");
    const std::string layout = GENERATE("gemv_fast", "llm-awq");
    layer.settings = R"({"quant_method": "awq", "bits": 4, "group_size": 32, ")" + key + R"(": ")" + layout + "\"}";
    layer.expect(ErrorCode::unsupported, '"' + key + "\" is \"" + layout);
  }
  SECTION("another width") {
    layer.settings = R"({"quant_method": "awq", "bits": 3, "group_size": 32})";
    layer.expect(ErrorCode::unsupported, "bits");
  }
}

TEST_CASE("AWQ, GEMV: rows of words, padded scales and zero points") {
  Layer layer;
  layer.settings = R"({"quant_method": "awq", "bits": 4, "group_size": 32, "version": "GEMV"})";
  std::vector<float> scales(2 * 32, 99.0f);
  for (const std::size_t i : {0u, 1u, 32u, 33u}) scales[i] = i % 2 ? 2.0f : 0.5f;
  layer.tensors = {{"x.qweight", words({2, 8}, 0x76543210)},  // column k holds k mod 8
                   {"x.qzeros", words({2, 4}, 0xffffff13)},   // 3, then 1
                   {"x.scales", {"F32", {2, 32}, bytes_of(scales)}}};
  const std::string key = GENERATE("version", "checkpoint_format", "format");
  layer.settings.replace(layer.settings.find("version"), 7, key);
  const auto values = layer.values();
  for (std::size_t i = 0; i < 128; ++i) {
    const auto code = static_cast<float>(i % 8);
    CHECK(values[i] == (i % 64 < 32 ? 0.5f * (code - 3.0f) : 2.0f * (code - 1.0f)));
  }
  SECTION("zero points that are not padded") {
    layer.tensors["x.qzeros"] = words({2, 1}, 0);
    layer.expect(ErrorCode::shape_mismatch, "x.qzeros");
  }
  SECTION("groups that do not divide the columns") {
    layer.settings = R"({"quant_method": "awq", "bits": 4, "group_size": 48, "version": "gemv"})";
    layer.expect(ErrorCode::corrupt, "x.qweight");
  }
}

TEST_CASE("packings as tools write them: AutoRound, Marlin of GPTQ and of AWQ") {
  const auto golden =
      nlohmann::json::parse(core::read_text_file(LLMINFER_TEST_DATA "/quantized/packings.json", 1 << 20).value());
  const bool awq = GENERATE(false, true);  // whose Marlin differs in names alone
  for (const auto& [name, tensors] : golden.items()) {
    if (awq && !name.starts_with("marlin")) continue;
    INFO(name << (awq ? " of AWQ" : ""));
    Layer layer;
    for (const auto& [tensor, content] : tensors.items()) {
      const auto shape = content["shape"].get<std::vector<std::int64_t>>();
      const std::string as = !awq ? tensor : tensor == "x.B" ? "x.qweight" : "x.scales";
      layer.tensors[as] = content.contains("words")
                              ? Tensor{"I32", shape, bytes_of(content["words"].get<std::vector<std::int32_t>>())}
                              : Tensor{"F16", shape, bytes_of(content["halves"].get<std::vector<std::uint16_t>>())};
    }
    const bool marlin = name.starts_with("marlin"), one_group = name == "marlin, one group";
    const std::string of_marlin = awq ? R"({"quant_method": "awq", "version": "marlin", "zero_point": false, )"
                                      : R"({"quant_method": "gptq", "checkpoint_format": "marlin", )";
    const char* const group_size = !one_group ? "32" : awq ? "64" : "-1";
    layer.settings = marlin ? of_marlin + R"("bits": 4, "group_size": )" + group_size + "}"
                            : R"({"quant_method": "auto-round", "bits": 4, "group_size": 32, "sym": false,
                                 "data_type": "int", "act_bits": 16, "packing_format": ")" +
                                  name + "\"}";
    const auto values = layer.values();
    REQUIRE(values.size() == 64 * 64);
    for (int n = 0; n < 64; ++n) {
      for (int k = 0; k < 64; ++k) {
        const int group = one_group ? 0 : k / 32;
        const int code = (n * 7 + k * 3 + n / 8 * (k / 16)) % 16, zero = marlin ? 8 : (n + 5 * group) % 13 + 1;
        const float scale = static_cast<float>(1 + n + 64 * group) / 1024.0f;
        // AutoRound packs from weights, which it cuts to the codes that there are.
        REQUIRE(values[static_cast<std::size_t>(n * 64 + k)] == scale * static_cast<float>(code - zero));
      }
    }
    if (!marlin) continue;
    layer.settings.replace(layer.settings.find(R"("bits": 4)"), 9, R"("bits": 8)");
    layer.expect(ErrorCode::unsupported, "8 bits");
  }
}

TEST_CASE("AWQ, Marlin: what is refused") {
  Layer layer;
  layer.settings = R"({"quant_method": "awq", "version": "marlin", "bits": 4, "group_size": 32})";
  layer.tensors = {{"x.qweight", words({4, 128}, 0x99999999)}, {"x.scales", floats({2, 64}, 0.5f)}};
  CHECK(layer.values() == std::vector<float>(64 * 64, 0.5f));
  SECTION("rows that are no whole tiles") {
    layer.tensors["x.scales"] = floats({2, 32}, 0.5f);
    layer.expect(ErrorCode::corrupt, "x.scales");
  }
  SECTION("words of other rows") {
    layer.tensors["x.qweight"] = words({4, 64}, 0);
    layer.expect(ErrorCode::shape_mismatch, "x.qweight");
  }
  SECTION("no scales, no words") {
    layer.tensors.erase("x.scales");
    layer.expect(ErrorCode::missing_tensor, "x.scales");
    layer.tensors = {{"x.B", words({4, 128}, 0)}};
    layer.expect(ErrorCode::missing_tensor, "qweight");
  }
}

TEST_CASE("AWQ: rows and columns beside the squares that are unpacked together") {
  constexpr std::int64_t rows = 88, cols = 35;
  constexpr int kRowOfNibble[8] = {0, 2, 4, 6, 1, 3, 5, 7};
  const auto code = [](std::int64_t n, std::int64_t k) { return static_cast<std::uint32_t>((3 * n + 5 * k) % 16); };
  std::vector<std::uint32_t> packed;
  for (std::int64_t k = 0; k < cols; ++k) {
    for (std::int64_t n = 0; n < rows; n += 8) {
      std::uint32_t word = 0;
      for (int i = 0; i < 8; ++i) word |= code(n + kRowOfNibble[i], k) << 4 * i;
      packed.push_back(word);
    }
  }
  Layer layer;
  layer.settings = R"({"quant_method": "awq", "bits": 4, "group_size": -1, "version": "gemm"})";
  layer.tensors = {{"x.qweight", {"I32", {cols, rows / 8}, bytes_of(packed)}},
                   {"x.qzeros", words({1, rows / 8}, 0x33333333)},
                   {"x.scales", floats({1, rows}, 0.5f)}};
  const auto values = layer.values();
  for (std::int64_t n = 0; n < rows; ++n) {
    for (std::int64_t k = 0; k < cols; ++k) {
      INFO("row " << n << ", column " << k);
      REQUIRE(values[static_cast<std::size_t>(n * cols + k)] == 0.5f * (static_cast<float>(code(n, k)) - 3));
    }
  }
}
