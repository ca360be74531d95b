// A Hugging Face directory with one packed layer, as tests of loading write it.
#pragma once

#include <catch2/catch.hpp>

#include <map>
#include <string>
#include <vector>

#include "load/hf.hpp"
#include "tests/load/temp_dir.hpp"

namespace llminfer::test {

struct Tensor {
  std::string dtype;
  std::vector<std::int64_t> shape;
  std::string data;
};

template <class T>
std::string bytes_of(const std::vector<T>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T)};
}
inline std::string from_hex(const std::string& hex) {
  std::string bytes;
  for (std::size_t i = 0; i < hex.size(); i += 2) {
    bytes += static_cast<char>(std::stoi(hex.substr(i, 2), nullptr, 16));
  }
  return bytes;
}
inline Tensor words(std::vector<std::int64_t> shape, std::uint32_t word) {
  std::int64_t count = 1;
  for (const auto side : shape) count *= side;
  return {"I32", shape, bytes_of(std::vector<std::uint32_t>(static_cast<std::size_t>(count), word))};
}
inline Tensor floats(std::vector<std::int64_t> shape, float value) {
  std::int64_t count = 1;
  for (const auto side : shape) count *= side;
  return {"F32", shape, bytes_of(std::vector<float>(static_cast<std::size_t>(count), value))};
}
inline Tensor raw_bytes(const char* dtype, std::vector<std::int64_t> shape, char byte) {
  std::int64_t count = 1;
  for (const auto side : shape) count *= side;
  return {dtype, shape, std::string(static_cast<std::size_t>(count), byte)};
}

/// A directory whose only layer is "x".
struct Layer {
  std::map<std::string, Tensor> tensors;
  std::string settings;
  std::string model = R"("model_type": "llama", "vocab_size": 32, "hidden_size": 16, "intermediate_size": 24,
      "num_hidden_layers": 2, "num_attention_heads": 4)";  ///< of config.json
  TempDir dir;

  void write() const {
    std::string header = "{", data;
    for (const auto& [name, tensor] : tensors) {
      std::string shape;
      for (const auto side : tensor.shape) shape.append(shape.empty() ? "" : ",").append(std::to_string(side));
      header += (data.empty() ? "\"" : ",\"") + name + "\":{\"dtype\":\"" + tensor.dtype + "\",\"shape\":[" + shape +
                "],\"data_offsets\":[" + std::to_string(data.size()) + "," +
                std::to_string(data.size() + tensor.data.size()) + "]}";
      data += tensor.data;
    }
    header += "}";
    std::string length(8, '\0');
    for (std::size_t i = 0; i < 8; ++i) length[i] = static_cast<char>(header.size() >> (8 * i));
    dir.write("model.safetensors", length + header + data);
    std::string config = "{";
    config.append(model);
    if (!settings.empty()) config.append(", \"quantization_config\": ").append(settings);
    dir.write("config.json", config.append("}"));
  }
  /// Of the layer "x".
  Result<WeightView> read() const {
    write();
    auto checkpoint = load::open_hf_directory(dir.path(), true);
    if (!checkpoint) return std::move(checkpoint).error();
    const load::TensorInfo* weight = checkpoint->find("x.weight");
    REQUIRE(weight);
    return checkpoint->read(*weight);
  }
  /// The elements of any weight, row by row, and its rows.
  std::pair<std::int64_t, std::vector<float>> values(const std::string& name) const {
    write();
    const auto checkpoint = load::open_hf_directory(dir.path(), true).value();
    const load::TensorInfo* tensor = checkpoint.find(name);
    INFO(name);
    REQUIRE(tensor);
    const WeightView view = checkpoint.read(*tensor).value();
    std::vector<float> out(static_cast<std::size_t>(view.rows * view.cols));
    unpack_rows(view, 0, view.rows, out).value();
    return {view.rows, out};
  }
  std::vector<float> values() const {
    const WeightView view = read().value();
    std::vector<float> out(static_cast<std::size_t>(view.rows * view.cols));
    REQUIRE(unpack_rows(view, 0, view.rows, out));
    return out;
  }
  void expect(ErrorCode code, const std::string& named) const {
    const auto view = read();
    REQUIRE_FALSE(view);
    INFO(view.error().message);
    CHECK(to_string(view.error().code) == to_string(code));
    CHECK_THAT(view.error().message, Catch::Contains(named));
  }
};

/// 4 bits, [8 rows, 64 columns], two groups: every value is 0.5 * (7 - 3).
inline void make_gptq(Layer& layer) {
  layer.settings = R"({"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": false})";
  layer.tensors = {{"x.qweight", words({8, 8}, 0x77777777)},
                   {"x.qzeros", words({2, 1}, 0x22222222)},
                   {"x.scales", floats({2, 8}, 0.5f)}};
}

inline void make_awq(Layer& layer) {
  layer.settings = R"({"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm"})";
  layer.tensors = {{"x.qweight", words({64, 1}, 0x77777777)},
                   {"x.qzeros", words({2, 1}, 0x33333333)},
                   {"x.scales", floats({2, 8}, 0.5f)}};
}

}  // namespace llminfer::test
