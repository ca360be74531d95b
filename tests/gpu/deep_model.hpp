// A model of several layers for engines on GPUs that stream some of them.
#pragma once

#include <cstdint>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "tests/engine/split_models.hpp"

namespace llminfer::test {

/// A tiny model with its layers one after the other several times.
class DeepModel {
 public:
  static constexpr int kLayers = 8;

  DeepModel() {
    const std::string from = path_of("qwen2/");
    write_byte_tokenizer(folder_);
    auto config = nlohmann::json::parse(std::ifstream(from + "config.json"));
    const int layers = config["num_hidden_layers"];
    config["num_hidden_layers"] = kLayers;
    folder_.write("config.json", config.dump());

    std::ifstream file(from + "model.safetensors", std::ios::binary);
    std::uint64_t header_bytes = 0;
    file.read(reinterpret_cast<char*>(&header_bytes), sizeof header_bytes);
    std::string text(header_bytes, ' ');
    file.read(text.data(), static_cast<std::streamsize>(header_bytes));
    const std::string data((std::istreambuf_iterator<char>(file)), {});
    nlohmann::json header = nlohmann::json::parse(text), deep = nlohmann::json::object();
    std::string all;
    const auto add = [&](const std::string& name, const nlohmann::json& tensor) {
      const std::size_t begin = tensor["data_offsets"][0], end = tensor["data_offsets"][1];
      deep[name] = tensor;
      deep[name]["data_offsets"] = {all.size(), all.size() + end - begin};
      all += data.substr(begin, end - begin);
    };
    const std::string prefix = "model.layers.";
    for (const auto& [name, tensor] : header.items()) {
      if (name == "__metadata__") continue;
      if (!name.starts_with(prefix)) {
        add(name, tensor);
        continue;
      }
      const std::size_t dot = name.find('.', prefix.size());
      const int layer = std::stoi(name.substr(prefix.size()));
      for (int l = layer; l < kLayers; l += layers) add(prefix + std::to_string(l) + name.substr(dot), tensor);
    }
    std::string out = deep.dump();
    out.resize((out.size() + 7) / 8 * 8, ' ');
    const std::uint64_t size = out.size();
    folder_.write("model.safetensors", std::string(reinterpret_cast<const char*>(&size), sizeof size) + out + all);
  }
  const std::string& path() const { return folder_.path(); }

 private:
  TempDir folder_;
};

inline EngineOptions options_for(std::vector<LayerShare> split) {
  EngineOptions options = options_of(std::move(split));
  options.max_batch_tokens = 16;
  options.cache_tokens = options.context_length = 64;
  return options;
}

/// Requests that run together.
inline std::vector<Token> some_answers(const Engine& engine) {
  std::vector<Completion> running;
  for (unsigned i = 0; i < 2; ++i) {
    CompletionRequest request;
    request.tokens = some_tokens(2 + 2 * i, i);
    request.options.max_tokens = 2;
    request.options.ignore_end = true;
    running.push_back(engine.submit(std::move(request)).value());
  }
  std::vector<Token> all;
  for (Completion& completion : running) {
    const auto tokens = completion.wait().value().tokens;
    all.insert(all.end(), tokens.begin(), tokens.end());
  }
  return all;
}

}  // namespace llminfer::test
