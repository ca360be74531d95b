// What fuzzing of quantization settings begins with: each line is accepted by a layer that it describes, and each layer
// by a line, so that they reach the code of that packing.
#include <catch2/catch.hpp>

#include <sstream>
#include <string>
#include <vector>

#include "core/json.hpp"
#include "load/quantization.hpp"
#include "tests/fuzz/packed_layers.hpp"

TEST_CASE("seeds of fuzzing: settings that fit a layer") {
  using namespace llminfer;
  std::istringstream lines(
      core::read_text_file(LLMINFER_TEST_DATA "/../fuzz/quantization_settings.txt", 1 << 20).value());
  const auto& layers = fuzz::packed_layers();
  std::vector<bool> reached(layers.size());
  int count = 0;
  for (std::string line; std::getline(lines, line); ++count) {
    const core::Json settings = core::parse_json(line, "settings").value();
    bool read = false;
    for (std::size_t i = 0; i < layers.size(); ++i) {
      load::Checkpoint packed = layers[i].checkpoint();
      if (!load::apply_quantization(settings, packed)) continue;
      for (const load::TensorInfo& tensor : packed.tensors) {
        if (tensor.packing && packed.read(tensor)) read = reached[i] = true;
      }
    }
    INFO(line);
    CHECK(read);
  }
  CHECK(count == 30);
  for (std::size_t i = 0; i < layers.size(); ++i) {
    INFO("layer " << i);
    CHECK(reached[i]);
  }
}
