// A weight beside what its reference knows of it.
#pragma once

#include <algorithm>
#include <catch2/catch.hpp>
#include <cmath>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "load/checkpoint.hpp"
#include "load/hf.hpp"
#include "tests/load/temp_dir.hpp"

namespace llminfer::test {

/// The elements of a weight, row by row, whose shape must be `expected`'s.
inline std::vector<float> read_weight(const load::Checkpoint& checkpoint, const std::string& name,
                                      const nlohmann::json& expected) {
  const load::TensorInfo* tensor = checkpoint.find(name);
  REQUIRE(tensor);
  const WeightView view = checkpoint.read(*tensor).value();
  REQUIRE(view.rows == expected["shape"][0]);
  REQUIRE(view.cols == expected["shape"][1]);
  std::vector<float> values(static_cast<std::size_t>(view.rows * view.cols));
  REQUIRE(unpack_rows(view, 0, view.rows, values));
  return values;
}

/// `expected`: {"shape": […], "rowN": values, "sum": …, "sum_sq": …, "sums_of_rows": […], "sums_of_columns": […]},
/// rounded to 6 decimals; the last two may be missing. `more`: how far an element may be off beside that.
inline void check_values(const std::vector<float>& values, const nlohmann::json& expected, double more = 0) {
  const auto cols = expected["shape"][1].get<std::size_t>();
  double sum = 0, squares = 0;
  for (const float value : values) sum += double{value}, squares += double{value} * double{value};
  CHECK(sum == Approx(expected["sum"].get<double>()).epsilon(1e-4).margin(1e-3));
  CHECK(squares == Approx(expected["sum_sq"].get<double>()).epsilon(1e-5));
  for (const auto& [key, row] : expected.items()) {
    if (key.compare(0, 3, "row") != 0) continue;
    const std::size_t first = std::stoul(key.substr(3)) * cols;
    double worst = 0;
    for (std::size_t i = 0; i < row.size(); ++i) {
      worst = std::max(worst, std::abs(double{values[first + i]} - row[i].get<double>()));
    }
    CHECK(worst <= 0.6e-6 + more);
  }
  for (const char* key : {"sums_of_rows", "sums_of_columns"}) {
    if (!expected.contains(key)) continue;
    auto rest = expected[key].get<std::vector<double>>();
    REQUIRE(rest.size() == (key[8] == 'r' ? values.size() / cols : cols));
    for (std::size_t i = 0; i < values.size(); ++i) rest[key[8] == 'r' ? i / cols : i % cols] -= double{values[i]};
    CHECK(*std::max_element(rest.begin(), rest.end()) < 2e-6);
    CHECK(*std::min_element(rest.begin(), rest.end()) > -2e-6);
  }
}

inline void check_weight(const load::Checkpoint& checkpoint, const std::string& name, const nlohmann::json& expected) {
  INFO(name);
  check_values(read_weight(checkpoint, name, expected), expected);
}

/// The checkpoint of one of the golden `forms`, whose model.safetensors lies in `dir`: two layers, whose weights are
/// those of `form`.
inline load::Checkpoint check_form(const TempDir& dir, const nlohmann::json& form, const nlohmann::json& settings) {
  dir.write("config.json", nlohmann::json{{"model_type", "llama"},
                                          {"vocab_size", 1024},
                                          {"hidden_size", 128},
                                          {"intermediate_size", 384},
                                          {"num_hidden_layers", 3},
                                          {"num_attention_heads", 4},
                                          {"num_key_value_heads", 2},
                                          {"quantization_config", settings}}
                               .dump());
  auto checkpoint = load::open_hf_directory(dir.path(), true);
  REQUIRE(checkpoint);
  CHECK(checkpoint->tensors.size() == 2);
  for (const char* layer : {"layers.1.self_attn.k_proj", "layers.1.mlp.down_proj"}) {
    check_weight(*checkpoint, std::string("model.") + layer + ".weight", form[layer]);
  }
  return *std::move(checkpoint);
}

}  // namespace llminfer::test
