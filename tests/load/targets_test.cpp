// Which of compressed-tensors' config_groups a layer belongs to: as compressed-tensors itself answers, and what is
// refused.
#include <catch2/catch.hpp>

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "load/module_list.hpp"
#include "tests/load/golden_layer.hpp"

using namespace llminfer;
using namespace llminfer::test;
using Catch::Contains;

namespace {

core::Json list(const std::string& json) { return core::parse_json(json, "test").value(); }

/// x: 4 bits, [4 rows, 64 columns], groups of 32, every value 1.
void make_packed(Layer& layer, const std::string& targets, const std::string& ignore = "[]") {
  layer.settings = R"({"quant_method": "compressed-tensors", "format": "pack-quantized", "ignore": )" + ignore +
                   R"(, "config_groups": {"g": {"targets": )" + targets + R"(, "weights": {"num_bits": 4,
                   "type": "int", "strategy": "group", "group_size": 32, "symmetric": true}}}})";
  layer.tensors = {{"x.weight_packed", words({4, 8}, 0x99999999)},
                   {"x.weight_scale", floats({4, 2}, 1)},
                   {"x.weight_shape", {"I64", {2}, bytes_of(std::vector<std::int64_t>{4, 64})}}};
}

}  // namespace

TEST_CASE("targets name layers as in compressed-tensors") {
  const nlohmann::json golden = read_golden("targets");
  REQUIRE(golden["matches"].size() >= 18);
  for (const auto& match : golden["matches"]) {
    load::ModuleList targets;
    for (std::size_t i = 0; i < match["targets"].size(); ++i) {
      REQUIRE(targets.add(list("[" + match["targets"][i].dump() + "]"), i, "test"));
    }
    for (std::size_t n = 0; n < golden["names"].size(); ++n) {
      INFO(match["targets"].dump() << " " << golden["names"][n]);
      const auto found = targets.find(golden["names"][n].get<std::string>()).value();
      const auto& expected = match["found"][n];
      CHECK(found.has_value() != expected.is_null());
      if (found && !expected.is_null()) CHECK(*found == expected.get<std::size_t>());
    }
  }
}

TEST_CASE("a target that is listed again belongs to the later group") {
  load::ModuleList targets;
  REQUIRE(targets.add(list(R"(["Linear", "re:.*up"])"), 0, "test"));
  REQUIRE(targets.add(list(R"(["re:.*up"])"), 1, "test"));
  CHECK(targets.find("x").value() == 0);
  CHECK(targets.find("x.up").value() == 1);
}

TEST_CASE("layers of five groups of one form, as compressed-tensors packs them and makes floats of them") {
  const nlohmann::json golden = read_golden("targets");
  Layer layer;
  fill(layer, golden);
  REQUIRE(golden["values"].size() == 11);
  for (const auto& [name, values] : golden["values"].items()) {
    INFO(name);
    CHECK(layer.values(name).second == values.get<std::vector<float>>());
  }
  SECTION("that contradict their targets") {
    auto settings = golden["settings"];
    settings["config_groups"]["group_4"]["targets"] = nlohmann::json::array({"re:.*gate_proj"});
    layer.settings = settings.dump();  // 8 bits, where Linear has 4
    layer.expect(ErrorCode::corrupt, "layers.0.mlp.up_proj.weight_packed");
    settings = golden["settings"];
    settings["config_groups"]["group_1"]["targets"] = nlohmann::json::array({"re:.*v_proj"});
    layer.settings = settings.dump();  // a group per row, where Linear has groups of 32
    layer.expect(ErrorCode::corrupt, "layers.0.self_attn.o_proj.weight_scale");
    settings = golden["settings"];
    settings["config_groups"]["group_2"]["targets"] = nlohmann::json::array({"re:.*self_attn\\.o_proj"});
    layer.settings = settings.dump();  // zero points, where Linear is symmetric
    layer.expect(ErrorCode::corrupt, "layers.0.mlp.down_proj.weight_zero_point");
    settings = golden["settings"];
    settings["ignore"].push_back("layers.0.mlp.gate_proj");
    layer.settings = settings.dump();
    layer.expect(ErrorCode::corrupt, "layers.0.mlp.gate_proj.weight_packed");
    settings = golden["settings"];
    settings["config_groups"]["group_4"]["targets"].push_back("lm_head");
    layer.settings = settings.dump();
    CHECK(layer.values("lm_head.weight").first == 8);
    settings["ignore"].erase(0);  // lm_head
    layer.settings = settings.dump();
    layer.expect(ErrorCode::corrupt, "lm_head.weight");
  }
}

TEST_CASE("targets and ignored layers: what is refused") {
  Layer layer;
  make_packed(layer, R"(["Linear"])");
  CHECK(layer.values() == std::vector<float>(4 * 64, 1.0f));
  SECTION("no targets, or others") {
    make_packed(layer, R"("Linear")");
    layer.expect(ErrorCode::corrupt, "config_groups.g.targets");
    make_packed(layer, "[3]");
    layer.expect(ErrorCode::corrupt, "config_groups.g.targets");
    layer.settings.replace(layer.settings.find(R"("targets")"), 9, R"("target")");
    layer.expect(ErrorCode::corrupt, "targets");
  }
  SECTION("zero points of a symmetric layer that are none") {
    layer.tensors["x.weight_zero_point"] = raw_bytes("I8", {4, 2}, 0);
    CHECK(layer.values() == std::vector<float>(4 * 64, 1.0f));
    layer.tensors["x.weight_zero_point"].data[7] = 1;
    layer.expect(ErrorCode::corrupt, "x.weight_zero_point");
  }
  SECTION("layers that no target names") {
    make_packed(layer, GENERATE("[]", R"(["Embedding"])", R"(["re:.*y"])", R"(["x.weight"])"));
    layer.expect(ErrorCode::corrupt, "x.weight_packed");
  }
  SECTION("layers that are ignored") {
    make_packed(layer, R"(["Linear"])", GENERATE(R"(["x"])", R"(["re:x$"])", R"(["Linear"])"));
    layer.expect(ErrorCode::corrupt, "x.weight_packed");
    make_packed(layer, R"(["Linear"])", R"({"x": 1})");
    layer.expect(ErrorCode::corrupt, "ignore");
    make_packed(layer, R"(["Linear"])", "null");
    CHECK(layer.read());
  }
  SECTION("regular expressions of bad syntax") {
    make_packed(layer, GENERATE(R"(["re:("])", R"(["Linear", "re:[a"])", R"(["re:\\C"])"));
    layer.expect(ErrorCode::corrupt, "regular expression");
  }
  SECTION("regular expressions that are long") {
    make_packed(layer, "[\"re:" + std::string(65537, 'x') + "\"]");
    layer.expect(ErrorCode::limit_exceeded, "targets");
  }
}

TEST_CASE("targets that backtrack without end are stopped") {
  const std::string pattern = "(x+)+[yz]";
  load::ModuleList targets;
  REQUIRE(targets.add(list("[\"re:" + pattern + "\"]"), 0, "test"));
  const auto found = targets.find(std::string(100, 'x'));
  REQUIRE_FALSE(found);
  CHECK(to_string(found.error().code) == to_string(ErrorCode::limit_exceeded));
  CHECK_THAT(found.error().message, Contains(pattern));
}
