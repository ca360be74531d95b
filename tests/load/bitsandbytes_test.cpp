// bitsandbytes' 4 bits whose bytes are called elements of other types ("bnb_4bit_quant_storage").
#include <catch2/catch.hpp>

#include <cstring>
#include <iterator>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "core/file.hpp"
#include "quant/traits_w.hpp"
#include "tests/load/packed_layer.hpp"
#include "tests/load/reference_weight.hpp"
#include "tests/load/safetensors_file.hpp"

using namespace llminfer;
using namespace llminfer::test;

namespace {

struct Storage {
  const char* setting;
  const char* type;
  std::int64_t bytes;
};

/// A safetensors file whose U8 tensors [n, 1] are called elements of `storage`.
std::string called(const std::string& file, const Storage& storage) {
  std::uint64_t length = 0;
  std::memcpy(&length, file.data(), 8);
  auto header = nlohmann::json::parse(file.substr(8, length));
  int changed = 0;
  for (auto& [name, tensor] : header.items()) {
    if (!name.ends_with(".weight") || tensor["dtype"] != "U8") continue;
    tensor["dtype"] = storage.type;
    tensor["shape"][0] = tensor["shape"][0].get<std::int64_t>() / storage.bytes;
    ++changed;
  }
  REQUIRE(changed == 2);
  return safetensors_file(header.dump(), file.substr(8 + length));
}

/// NF4, [4, 32], two blocks.
void make_nf4(Layer& layer, const char* type, std::int64_t elements, std::size_t bytes) {
  const std::string state = R"({"blocksize": 64, "shape": [4, 32], "quant_type": "nf4"})";
  layer.settings = R"({"quant_method": "bitsandbytes", "load_in_4bit": true, "bnb_4bit_quant_storage": "bfloat16"})";
  layer.tensors = {{"x.weight", {type, {elements, 1}, std::string(bytes, 0x7f)}},  // 0, then 1
                   {"x.weight.absmax", floats({2}, 2.0f)},
                   {"x.weight.quant_map",
                    {"F32", {16}, bytes_of(std::vector(std::begin(quant::kNf4Values), std::end(quant::kNf4Values)))}},
                   {"x.weight.quant_state.bitsandbytes__nf4", {"U8", {static_cast<int>(state.size())}, state}}};
}

}  // namespace

TEST_CASE("bitsandbytes: the same weights, whatever type their bytes are called") {
  const auto storage = GENERATE(Storage{"uint8", "U8", 1}, Storage{"int8", "I8", 1}, Storage{"bfloat16", "BF16", 2},
                                Storage{"float16", "F16", 2}, Storage{"float32", "F32", 4});
  const std::string golden = LLMINFER_TEST_DATA "/quantized/forms";
  const auto forms = nlohmann::json::parse(core::read_text_file(golden + ".json", 1 << 20).value());
  for (const std::string name : {"bnb-nf4", "bnb-fp4"}) {
    INFO(name << " as " << storage.type);
    const auto& form = forms[name];
    const TempDir dir;
    dir.write("model.safetensors",
              called(core::read_text_file(golden + "/" + name + ".safetensors", 1 << 24).value(), storage));
    auto settings = form["settings"];
    settings["bnb_4bit_quant_storage"] = storage.setting;
    (void)check_form(dir, form, settings);
  }
}

TEST_CASE("bitsandbytes: bytes that are called floats, and what is refused of them") {
  Layer layer;
  make_nf4(layer, "BF16", 32, 64);
  const auto values = layer.values();
  REQUIRE(values.size() == 4 * 32);
  for (std::size_t i = 0; i < values.size(); ++i) CHECK(values[i] == (i % 2 ? 2.0f : 0.0f));
  SECTION("as many elements as there should be bytes") {
    make_nf4(layer, "BF16", 64, 128);
    layer.expect(ErrorCode::shape_mismatch, "x.weight has 128 bytes, expected 64");
  }
  SECTION("a matrix of floats") {
    layer.tensors["x.weight"] = {"BF16", {4, 8}, std::string(64, 0)};
    layer.expect(ErrorCode::shape_mismatch, "x.weight");
  }
  SECTION("other types") {
    make_nf4(layer, "I32", 16, 64);
    layer.expect(ErrorCode::unsupported_type, "x.weight");
  }
  SECTION("a setting that is no such type") {
    layer.settings = R"({"quant_method": "bitsandbytes", "bnb_4bit_quant_storage": "float64"})";
    layer.expect(ErrorCode::unsupported, "bnb_4bit_quant_storage");
  }
  SECTION("a layer beside it without a description is no layer of floats") {
    layer.tensors["y.weight"] = layer.tensors["x.weight"];
    const char* const part = GENERATE("absmax", "quant_map");
    layer.tensors[std::string("y.weight.") + part] = layer.tensors[std::string("x.weight.") + part];
    layer.expect(ErrorCode::missing_tensor, "y.weight.quant_state");
  }
}
