// What fuzzing of quantization settings begins with: each line is accepted by a layer that it describes, so that it
// reaches the code of that packing.
#include <catch2/catch.hpp>

#include <sstream>
#include <string>

#include "core/json.hpp"
#include "load/quantization.hpp"
#include "tests/fuzz/packed_layers.hpp"

TEST_CASE("seeds of fuzzing: settings that fit a layer") {
  using namespace llminfer;
  std::istringstream lines(
      core::read_text_file(LLMINFER_TEST_DATA "/../fuzz/quantization_settings.txt", 1 << 20).value());
  int count = 0;
  for (std::string line; std::getline(lines, line); ++count) {
    const core::Json settings = core::parse_json(line, "settings").value();
    bool read = false;
    for (const fuzz::PackedLayer& layer : fuzz::packed_layers()) {
      load::Checkpoint packed = layer.checkpoint();
      if (!load::apply_quantization(settings, packed)) continue;
      for (const load::TensorInfo& tensor : packed.tensors) {
        read = read || (tensor.packing && packed.read(tensor).has_value());
      }
    }
    INFO(line);
    CHECK(read);
  }
  CHECK(count == 27);
}
