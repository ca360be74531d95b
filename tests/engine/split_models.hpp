// Tiny models whose layers are split, ranks that fail, and all that an engine gives, to be compared bit for bit.
#pragma once

#include <llminfer/llminfer.hpp>

#include <atomic>
#include <filesystem>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "tests/engine/tiny_model.hpp"
#include "tests/load/temp_dir.hpp"

namespace llminfer::test {

inline std::string path_of(const std::string& model) { return std::string(LLMINFER_TEST_DATA "/models/") + model; }

inline std::shared_ptr<Backend> cpu(int threads) {
  BackendOptions options;
  options.threads = threads;
  return make_cpu_backend(options).value();
}

inline EngineOptions options_of(std::vector<LayerShare> split) {
  EngineOptions options;
  options.threads = 1;
  options.context_length = options.cache_tokens = 256;
  options.max_batch_tokens = 48;  // prompts go in chunks
  options.split = std::move(split);
  return options;
}

using tiny::some_tokens;

/// What an engine gives: the logits and hidden states of sessions that fork, truncate and get embeddings, and requests
/// that run together.
inline std::vector<float> everything(const Engine& engine) {
  std::vector<float> all;
  const auto add = [&](std::span<const float> values) { all.insert(all.end(), values.begin(), values.end()); };
  Session session = engine.new_session().value();
  session.prefill(some_tokens(100, 1), {.hidden_states = true}).value();
  add(session.logits());
  add(session.hidden_states());
  Session fork = session.fork().value();
  fork.prefill(some_tokens(20, 2)).value();
  add(fork.logits());
  session.truncate(70).value();
  session.prefill(some_tokens(9, 3)).value();
  add(session.logits());
  std::vector<float> embeddings(5 * static_cast<std::size_t>(engine.info().hidden_size));
  std::mt19937 random(4);
  for (float& value : embeddings) value = std::normal_distribution<float>()(random);
  session.prefill_embeddings(embeddings).value();
  add(session.logits());
  std::vector<Completion> running;
  for (unsigned i = 0; i < 5; ++i) {
    CompletionRequest request;
    request.tokens = some_tokens(10 + 17 * i, i);
    request.options.max_tokens = 12;
    request.options.ignore_end = true;
    request.options.sampling.temperature = 1.0f;
    request.options.sampling.seed = i;
    running.push_back(engine.submit(std::move(request)).value());
  }
  for (Completion& completion : running) {
    for (const Token token : completion.wait().value().tokens) all.push_back(static_cast<float>(token));
  }
  return all;
}

/// The bytes of another model's tokenizer, for one that has none of its own and 256 tokens.
inline void write_byte_tokenizer(const TempDir& folder) {
  auto tokenizer = nlohmann::json::parse(std::ifstream(path_of("tiny-bf16/tokenizer.json")));
  auto& vocabulary = tokenizer["model"]["vocab"];
  for (auto token = vocabulary.begin(); token != vocabulary.end();) {
    token = token.value() < 256 ? std::next(token) : vocabulary.erase(token);
  }
  tokenizer["model"]["merges"] = nlohmann::json::array();
  folder.write("tokenizer.json", tokenizer.dump());
}

/// A model of one layer that sees everything and two with a window, whose embedding table is also its output matrix.
class WindowModel {
 public:
  WindowModel() {
    for (const char* file : {"model.safetensors", "config.json"}) {
      std::filesystem::copy_file(path_of("qwen2-window/") + file, folder_ / file);
    }
    write_byte_tokenizer(folder_);
  }
  const std::string& path() const { return folder_.path(); }

 private:
  TempDir folder_;
};

/// Fails after so many messages, as if the connection were cut.
class FailingCommunicator final : public Communicator {
 public:
  FailingCommunicator(std::shared_ptr<Communicator> inner, int messages) : inner_(std::move(inner)), left_(messages) {}
  int rank() const noexcept override { return inner_->rank(); }
  int size() const noexcept override { return inner_->size(); }
  Result<void> send(int to, std::span<const std::byte> data) override {
    if (left_-- <= 0) return Error{ErrorCode::peer_lost, "cut"};
    return inner_->send(to, data);
  }
  Result<void> receive(int from, std::span<std::byte> data) override {
    if (left_-- <= 0) return Error{ErrorCode::peer_lost, "cut"};
    return inner_->receive(from, data);
  }
  std::optional<bool> ready(int from) noexcept override {
    return left_ <= 0 ? std::optional(true) : inner_->ready(from);
  }

 private:
  const std::shared_ptr<Communicator> inner_;
  std::atomic<int> left_;
};

/// "code: message" of the error that plan() and load() have in common.
inline std::string refusal(const std::string& model, const EngineOptions& options) {
  const auto plan = Engine::plan(model, options);
  const auto engine = Engine::load(model, options);
  REQUIRE_FALSE(plan);
  REQUIRE_FALSE(engine);
  CHECK(plan.error().message == engine.error().message);
  return std::string(to_string(plan.error().code)) + ": " + plan.error().message;
}

}  // namespace llminfer::test
