// What the quantizer holds at its peak: a layer, the calibration's values and the second moments of one matrix' inputs,
// however many layers there are.
#include <algorithm>
#include <catch2/catch.hpp>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>

#include <llminfer/quantize.hpp>

#include "tests/load/temp_dir.hpp"
#include "tests/memory/failing_memory.hpp"

using namespace llminfer;

namespace {

constexpr long kWidth = 128, kInner = 384, kKeys = 64, kLayers = 3;  // of tiny-bf16
const std::string kModel = LLMINFER_TEST_DATA "/models/tiny-bf16";

/// tiny-bf16 with its layers several times.
void write_model(const std::string& directory, long times) {
  std::filesystem::copy(kModel, directory);
  std::ifstream file(kModel + "/model.safetensors", std::ios::binary);
  std::uint64_t length = 0;
  file.read(reinterpret_cast<char*>(&length), 8);
  std::string header(length, ' ');
  file.read(header.data(), static_cast<std::streamsize>(length));
  std::string data(std::istreambuf_iterator<char>(file), {});
  const auto read = nlohmann::json::parse(header);
  nlohmann::json tensors = read;
  const std::string prefix = "model.layers.";
  for (const auto& [name, tensor] : read.items()) {
    if (!name.starts_with(prefix)) continue;
    const std::size_t begin = tensor["data_offsets"][0], end = tensor["data_offsets"][1];
    for (long i = 1; i < times; ++i) {
      const std::string layer = std::to_string(name[prefix.size()] - '0' + i * kLayers);
      nlohmann::json copy = tensor;
      copy["data_offsets"] = {data.size(), data.size() + end - begin};
      tensors[prefix + layer + name.substr(prefix.size() + 1)] = copy;
      data.append(data, begin, end - begin);
    }
  }
  header = tensors.dump();
  length = header.size();
  std::ofstream out(directory + "/model.safetensors", std::ios::binary);
  out.write(reinterpret_cast<const char*>(&length), 8) << header << data;
  auto config = nlohmann::json::parse(std::ifstream(kModel + "/config.json"));
  config["num_hidden_layers"] = kLayers * times;
  std::ofstream(directory + "/config.json") << config;
}

long peak_of(QuantizeMethod method, long times, int tokens) {
  const test::TempDir dir;
  write_model(dir / "model", times);
  QuantizeOptions options;
  options.format = method == QuantizeMethod::awq ? QuantizeFormat::awq : QuantizeFormat::gptq;
  options.method = method;
  options.group_size = 64;
  options.threads = 2;
  options.damping = 0.1;
  options.calibration_length = 64;
  options.calibration_sequences = tokens / 64;
  if (method != QuantizeMethod::round_to_nearest) {
    for (int i = 0; i < 3000; ++i) options.calibration += "Line " + std::to_string(i * 7919 % 10007) + " of a text.\n";
  }
  const long before = test::live_bytes();
  test::reset_peak();
  quantize_model(dir / "model", dir / "out", options).value();
  return test::peak_bytes() - before;
}

}  // namespace

TEST_CASE("the quantizer's peak memory is that of a layer and the calibration, for any number of layers") {
  constexpr long kLayer = 4 * (2 * kWidth * kWidth + 2 * kWidth * kKeys + 3 * kWidth * kInner);
  constexpr long kOther = 1 << 18;  // texts, tables of tensors, buffers of files
  const QuantizeMethod method = GENERATE(QuantizeMethod::round_to_nearest, QuantizeMethod::gptq, QuantizeMethod::awq);
  INFO("method " << static_cast<int>(method));
  const long few = peak_of(method, 1, 128), many = peak_of(method, 4, 128);
  INFO("3 layers: " << few << " bytes, 12 layers: " << many << ", a layer: " << kLayer);
  CHECK(many - few < kLayer / 4);
  if (method == QuantizeMethod::round_to_nearest) {
    CHECK(many < kLayer + kOther);
    return;
  }
  // Rows of the layer's input and residual, and of the wide unit's three values.
  const long values = 128 * 4 * (3 * kWidth + 3 * kInner), moments = 16 * kInner * kInner;
  CHECK(few < kLayer + values + moments + kOther);
  const long longer = peak_of(method, 1, 1152);
  INFO("9 times the tokens: " << longer);
  CHECK(longer - few < 8 * values);
}
