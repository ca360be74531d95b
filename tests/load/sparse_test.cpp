// Layers of compressed-tensors with zeros that are not stored: masks, two of four, Marlin's order of such.
#include <catch2/catch.hpp>

#include <string>
#include <vector>

#include "core/file.hpp"
#include "core/parallel.hpp"
#include "load/packing.hpp"
#include "load/safetensors.hpp"
#include "tests/load/packed_layer.hpp"

using namespace llminfer;
using namespace llminfer::test;

namespace {

/// The tensors of one case of sparse.safetensors.
std::map<std::string, Tensor> golden(const std::string& name) {
  const auto source = core::open_file(LLMINFER_TEST_DATA "/load/sparse.safetensors", false).value();
  std::map<std::string, Tensor> tensors;
  for (const load::TensorInfo& tensor : load::read_safetensors_header(*source, 0).value()) {
    if (!tensor.name.starts_with(name + "/")) continue;
    const core::Bytes bytes = source->read(tensor.offset, tensor.bytes).value();
    tensors[tensor.name.substr(name.size() + 1)] = {
        std::string(load::name_of(tensor.element)), tensor.shape,
        std::string(reinterpret_cast<const char*>(bytes.data.data()), bytes.data.size())};
  }
  REQUIRE_FALSE(tensors.empty());
  return tensors;
}

// The formulas of make_sparse.py.
bool kept_of_four(int n, int k) {
  constexpr int kPairs[6][2] = {{0, 1}, {0, 2}, {0, 3}, {1, 2}, {1, 3}, {2, 3}};
  const auto& pair = kPairs[(n * 5 + k / 4 * 3 + n / 3) % 6];
  return pair[0] == k % 4 || pair[1] == k % 4;
}
bool kept_anywhere(int n, int k) { return (n * 7 + k * 5 + n * k / 3) % 4 == 0; }
int code_at(int n, int k, int limit, bool kept) {
  const int magnitude = (n * 7 + k * 3 + n / 8 * (k / 16)) % limit + 1;
  return !kept ? 0 : (n + k / 2) % 2 == 0 ? magnitude : -magnitude;
}

std::string sparsity(const std::string& format) {
  return R"("sparsity_config": {"format": ")" + format + R"(", "sparsity_structure": "unstructured"})";
}
/// Of weights of 8 bits with a scale per row.
std::string quantized_settings(const std::string& sparse, const std::string& format) {
  const bool floats = format == "float-quantized";
  return R"({"quant_method": "compressed-tensors", "format": ")" + format +
         R"(", "config_groups": {"g": {"targets": ["Linear"], "weights":
    {"num_bits": 8, "strategy": "channel", "symmetric": true, "type": ")" +
         (floats ? "float" : "int") + R"("}}}, )" + sparsity(sparse) + "}";
}
std::string marlin_settings(int bits, int group) {
  return R"({"quant_method": "compressed-tensors", "format": "marlin-24", "config_groups": {"g": {"targets":
    ["Linear"], "weights": {"type": "int", "symmetric": true, "num_bits": )" +
         std::to_string(bits) +
         (group ? R"(, "strategy": "group", "group_size": )" + std::to_string(group) : R"(, "strategy": "channel")") +
         "}}}}";
}

}  // namespace

TEST_CASE("marlin-24 as compressed-tensors writes it") {
  struct Case {
    const char* name;
    int rows, cols, bits, group;
  };
  const auto c = GENERATE(Case{"marlin-24, 4 bits, groups", 64, 384, 4, 128},
                          Case{"marlin-24, 4 bits, groups as long as what is kept", 64, 256, 4, 128},
                          Case{"marlin-24, 8 bits", 128, 64, 8, 0});
  INFO(c.name);
  Layer layer;
  layer.tensors = golden(c.name);
  layer.settings = marlin_settings(c.bits, c.group);
  CHECK(layer.read()->type == (c.bits == 4 ? WeightType::q4_0 : WeightType::q8_0));
  const auto values = layer.values();
  REQUIRE(values.size() == static_cast<std::size_t>(c.rows * c.cols));
  for (int n = 0; n < c.rows; ++n) {
    for (int k = 0; k < c.cols; ++k) {
      const int code = code_at(n, k, (1 << (c.bits - 1)) - 1, kept_of_four(n, k));
      const float scale = static_cast<float>(1 + n + 64 * (c.group ? k / c.group : 0)) / 1024.0f;
      REQUIRE(values[static_cast<std::size_t>(n * c.cols + k)] == scale * static_cast<float>(code));
    }
  }
}

TEST_CASE("marlin-24: what is refused") {
  Layer layer;
  layer.tensors = golden("marlin-24, 8 bits");
  layer.settings = marlin_settings(8, 0);
  REQUIRE(layer.read());
  SECTION("columns of four that are not two") {
    layer.tensors["x.meta"].data[0] = static_cast<char>(GENERATE(0x40, 0x45, 0x4f));
    layer.expect(ErrorCode::corrupt, "x.meta");
  }
  SECTION("parts that are missing or of another shape") {
    layer.tensors.erase("x.meta");
    layer.expect(ErrorCode::missing_tensor, "x.meta");
    layer.tensors["x.meta"] = raw_bytes("I16", {2, 128}, 0);
    layer.tensors["x.meta"].data.resize(2 * 128 * 2);
    layer.expect(ErrorCode::shape_mismatch, "x.meta");
  }
  SECTION("bits that do not fit the words") {
    layer.settings = marlin_settings(4, 0);
    layer.expect(ErrorCode::shape_mismatch, "x.weight_packed");
  }
  SECTION("rows that are no whole tiles") {
    layer.tensors["x.scale_packed"] = {"F16", {1, 96}, std::string(192, 0)};
    layer.expect(ErrorCode::corrupt, "x.scale_packed");
  }
  SECTION("other groups") {
    layer.settings = marlin_settings(8, 32);
    layer.expect(ErrorCode::corrupt, "x.scale_packed");
    layer.settings = marlin_settings(8, 48);
    layer.expect(ErrorCode::unsupported, "x.scale_packed");
  }
  SECTION("scales of another type") {
    layer.tensors["x.scale_packed"].dtype = "BF16";
    layer.expect(ErrorCode::unsupported_type, "x.scale_packed");
  }
  SECTION("another format") {
    layer.settings.replace(layer.settings.find("marlin-24"), 9, "marlin-99");
    layer.expect(ErrorCode::unsupported, "x.weight_packed");
  }
}

TEST_CASE("compressed-tensors: masks of weights as it writes them") {
  const std::string form = GENERATE("sparse-24-bitmask", "sparse-bitmask");
  const std::string type = GENERATE("bf16", "int8", "fp8");
  INFO(form << ", " << type);
  Layer layer;
  layer.tensors = golden(form + ", " + type);
  const int limit = type == "fp8" ? 16 : 100;
  layer.settings = type == "bf16"
                       ? R"({"quant_method": "compressed-tensors", "format": "dense", )" + sparsity(form) + "}"
                       : quantized_settings(form, type == "fp8" ? "float-quantized" : "int-quantized");
  const auto values = layer.values();
  REQUIRE(values.size() == 6 * 20);
  for (int n = 0; n < 6; ++n) {
    for (int k = 0; k < 20; ++k) {
      const bool kept = form == "sparse-bitmask" ? kept_anywhere(n, k) : kept_of_four(n, k);
      const float scale = type == "bf16" ? 1.0f / 8.0f : static_cast<float>(n + 1) / 64.0f;
      REQUIRE(values[static_cast<std::size_t>(n * 20 + k)] == scale * static_cast<float>(code_at(n, k, limit, kept)));
    }
  }
  if (form == "sparse-24-bitmask") return;
  SECTION("a mask that keeps more than there is") {
    layer.tensors["x.bitmask"].data[0] = '\x7f';
    layer.expect(ErrorCode::corrupt, "x.bitmask");
  }
  SECTION("rows that begin elsewhere") {
    layer.tensors["x.row_offsets"].data[8] = '\x7f';
    layer.expect(ErrorCode::corrupt, "x.row_offsets: row 1 begins at 127");
  }
  SECTION("rows that are counted otherwise") {
    layer.tensors["x.row_offsets"] = {"I64", {7}, std::string(56, 0)};
    layer.expect(ErrorCode::shape_mismatch, "x.row_offsets");
  }
  SECTION("bits beyond the row") {
    layer.tensors["x.bitmask"].data[2] = '\x1f';
    layer.expect(ErrorCode::corrupt, "x.bitmask: row 0");
  }
  SECTION("shapes that are none") {
    layer.tensors["x.shape"] = {"I64", {3}, bytes_of(std::vector<std::int64_t>{2, 3, 20})};
    layer.expect(ErrorCode::corrupt, "x.shape");
    layer.tensors["x.shape"] = {"I64", {2}, bytes_of(std::vector<std::int64_t>{6, GENERATE(0, -20, INT64_MAX)})};
    layer.expect(ErrorCode::corrupt, "x.shape");
  }
  SECTION("rows and masks of another shape") {
    layer.tensors["x.shape"] = {"I64", {2}, bytes_of(std::vector<std::int64_t>{6, 28})};
    layer.expect(ErrorCode::shape_mismatch, "x.bitmask");
  }
}

TEST_CASE("compressed-tensors 0.8: masks of all tensors, under their whole names") {
  Layer layer;
  layer.tensors = golden("sparse-bitmask, whole names");
  layer.settings = R"({"quant_method": "compressed-tensors", "format": "dense", )" + sparsity("sparse-bitmask") + "}";
  const auto values = layer.values();
  REQUIRE(values.size() == 6 * 20);
  const auto [rows, norm] = layer.values("norm.weight");
  CHECK(rows == 1);
  for (int n = 0; n < 6; ++n) {
    for (int k = 0; k < 20; ++k) {
      const float value = static_cast<float>(code_at(n, k, 100, kept_anywhere(n, k))) / 8.0f;
      REQUIRE(values[static_cast<std::size_t>(n * 20 + k)] == value);
      if (n == 0) REQUIRE(norm[static_cast<std::size_t>(k)] == value);
    }
  }
}

TEST_CASE("compressed-tensors: two of four weights and a mask") {
  Layer layer;
  layer.settings = R"({"quant_method": "compressed-tensors", "format": "dense", "config_groups": {},
    "sparsity_config": {"format": "sparse-24-bitmask", "sparsity_structure": "2:4"}})";
  // Columns 0, 3, 5, 6, 8, 9 of row 0; 1, 2, 4, 7, 10, 11 of row 1.
  layer.tensors = {
      {"x.shape", {"I64", {2, 1}, bytes_of(std::vector<std::int64_t>{2, 12})}},
      {"x.compressed", {"F32", {2, 6}, bytes_of(std::vector<float>{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12})}},
      {"x.bitmask", {"U8", {2, 2}, bytes_of(std::vector<std::uint8_t>{0x69, 0x03, 0x96, 0x0c})}}};
  SECTION("as numpy.packbits with bitorder little has it") {
    CHECK(layer.values() ==
          std::vector<float>{1, 0, 0, 2, 0, 3, 4, 0, 5, 6, 0, 0, 0, 7, 8, 0, 9, 0, 0, 10, 0, 0, 11, 12});
  }
  SECTION("a mask of more or fewer columns, or beyond the row") {
    layer.tensors["x.bitmask"].data[2] = static_cast<char>(GENERATE(0x97, 0x16));
    layer.expect(ErrorCode::corrupt, "x.bitmask: row 1");
  }
  SECTION("bits beyond the row") {
    layer.tensors["x.bitmask"].data[3] = 0x14;
    layer.expect(ErrorCode::corrupt, "x.bitmask: row 1");
  }
  SECTION("parts that are missing or of another shape") {
    layer.tensors.erase("x.bitmask");
    layer.expect(ErrorCode::missing_tensor, "x.bitmask");
    layer.tensors["x.bitmask"] = raw_bytes("U8", {2, 3}, 0);
    layer.expect(ErrorCode::shape_mismatch, "x.bitmask");
  }
  SECTION("values that are quantized, but no scales and no settings for them") {
    layer.tensors["x.compressed"] = raw_bytes("F8_E4M3", {2, 6}, 1);
    layer.expect(ErrorCode::corrupt, "config_groups");
    layer.settings = quantized_settings("sparse-24-bitmask", "float-quantized");
    layer.expect(ErrorCode::missing_tensor, "x.weight_scale");
    layer.tensors["x.weight_scale"] = floats({2, 1}, 0.5f);
    layer.tensors["x.compressed"] = raw_bytes("F8_E4M3", {2, 6}, 0x40);
    CHECK(layer.values()[0] == 1.0f);
    CHECK(layer.values()[1] == 0.0f);
    layer.tensors["x.compressed"] = raw_bytes("I8", {2, 6}, 1);
    layer.expect(ErrorCode::corrupt, "x.compressed");
    layer.tensors["x.compressed"] = words({2, 6}, 1);
    layer.expect(ErrorCode::unsupported_type, "x.compressed");
  }
  SECTION("a shape that is none") {
    layer.tensors["x.shape"].data =
        bytes_of(std::vector<std::int64_t>{2, GENERATE(as<std::int64_t>{}, 0, -4, 10, std::int64_t{1} << 40)});
    layer.expect(ErrorCode::corrupt, "x.shape");
  }
  SECTION("no such tensors") {
    layer.tensors = {{"x.weight", floats({2, 12}, 1)}};
    layer.expect(ErrorCode::missing_tensor, "compressed");
  }
}
