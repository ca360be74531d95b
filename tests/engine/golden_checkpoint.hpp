// The checkpoints of tests/golden/quantized as the folders that loaders read: files that all of them share, and their
// own.
#pragma once

#include <filesystem>
#include <string>

#include "core/file.hpp"
#include "load/safetensors.hpp"
#include "tests/load/temp_dir.hpp"

namespace llminfer::test {

/// Where it lies in `folder`.
inline std::string put_golden_checkpoint(const TempDir& folder, const std::string& name) {
  const std::string golden = LLMINFER_TEST_DATA "/quantized/";
  const std::filesystem::path dir = folder / name;
  std::filesystem::create_directory(dir);
  std::string map;
  for (const std::string& file : {std::string("base.safetensors"), name + ".safetensors"}) {
    std::filesystem::copy_file(golden + file, dir / file);
    const auto source = core::open_file(golden + file, true).value();
    for (const load::TensorInfo& tensor : load::read_safetensors_header(*source, 0).value()) {
      map += (map.empty() ? "\"" : ",\"") + tensor.name + "\":\"" + file + "\"";
    }
  }
  folder.write(name + "/model.safetensors.index.json", "{\"weight_map\":{" + map + "}}");
  std::filesystem::copy_file(golden + name + ".json", dir / "config.json");
  return dir.string();
}

}  // namespace llminfer::test
