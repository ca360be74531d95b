// A layer of a golden file: {"settings", "tensors": {name: {"type", "shape", "bytes"}}, "values"}, bytes and values (of
// floats) as hexadecimal digits.
#pragma once

#include <cstring>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "core/file.hpp"
#include "tests/load/packed_layer.hpp"

namespace llminfer::test {

inline nlohmann::json read_golden(const std::string& name) {
  return nlohmann::json::parse(
      core::read_text_file(LLMINFER_TEST_DATA "/quantized/" + name + ".json", 1 << 20).value());
}

inline void fill(Layer& layer, const nlohmann::json& golden) {
  layer.settings = golden["settings"].dump();
  for (const auto& [name, tensor] : golden["tensors"].items()) {
    layer.tensors[name] = {tensor["type"].get<std::string>(), tensor["shape"].get<std::vector<std::int64_t>>(),
                           from_hex(tensor["bytes"].get<std::string>())};
  }
}

inline std::vector<float> expected_values(const nlohmann::json& golden) {
  const std::string bytes = from_hex(golden["values"].get<std::string>());
  std::vector<float> values(bytes.size() / sizeof(float));
  std::memcpy(values.data(), bytes.data(), bytes.size());
  return values;
}

}  // namespace llminfer::test
