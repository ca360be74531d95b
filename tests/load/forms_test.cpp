// Checkpoints as their tools wrote them: the weights of two layers, beside the sums of all rows and columns.
#include <catch2/catch.hpp>

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>

#include "core/file.hpp"
#include "tests/load/reference_weight.hpp"
#include "tests/load/temp_dir.hpp"

using namespace llminfer;

TEST_CASE("weights of bitsandbytes, compressed-tensors and GPTQModel are those of the tools") {
  const std::string golden = LLMINFER_TEST_DATA "/quantized/forms";
  const auto forms = nlohmann::json::parse(core::read_text_file(golden + ".json", 1 << 20).value());
  REQUIRE(forms.size() == 12);
  for (const auto& [name, form] : forms.items()) {
    INFO(name);
    const test::TempDir dir;
    std::filesystem::copy_file(golden + "/" + name + ".safetensors", dir / "model.safetensors");
    const load::Checkpoint checkpoint = test::check_form(dir, form, form["settings"]);
    const WeightDetails& details = checkpoint.find("model.layers.1.mlp.down_proj.weight")->details;
    const std::string inputs = details.input.kind == InputQuantization::Kind::none   ? "floats"
                               : details.input.kind == InputQuantization::Kind::int8 ? "int8"
                                                                                     : "fp8";
    CHECK(inputs == (name.find("w8a8") != std::string::npos  ? "int8"
                     : name.find("fp8") != std::string::npos ? "fp8"
                                                             : "floats"));
    if (inputs != "floats") CHECK(details.input.dynamic == (name != "ct-fp8-static"));
  }
}
