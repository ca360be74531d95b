// Whole models on the emulated GPU backend: an Engine with it gives the tokens of the models' references, which the CPU backend
// gives, too.
#include <catch2/catch.hpp>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include <llminfer/llminfer.hpp>

#include "core/file.hpp"
#include "tests/gpu/emulated.hpp"

using namespace llminfer;
using namespace llminfer::test;

namespace {

std::vector<Token> generate(const Engine& engine, const std::vector<Token>& prompt, std::size_t count) {
  CompletionRequest request;
  request.tokens = prompt;
  request.options.max_tokens = static_cast<std::int32_t>(count);
  request.options.ignore_end = true;
  return engine.complete(std::move(request)).value().tokens;
}

EngineOptions engine_options(std::shared_ptr<Backend> backend) {
  EngineOptions options;
  options.custom_backend = std::move(backend);
  options.context_length = 256;
  options.cache_tokens = 512;
  return options;
}

/// The tokens of the reference up to the first choice that it makes by less than 0.05 logit.
void check_model(const std::string& name, std::shared_ptr<Backend> backend, std::size_t count) {
  const std::string model = std::string(LLMINFER_TEST_DATA "/models/") + name;
  const auto json = nlohmann::json::parse(core::read_text_file(model + "/reference.json", 1 << 24).value());
  const auto margins = json["margins"].get<std::vector<float>>();
  const auto close = std::find_if(margins.begin(), margins.end(), [](float margin) { return margin < 0.05f; });
  auto expected = json["greedy"].get<std::vector<Token>>();
  expected.resize(std::min(count, static_cast<std::size_t>(close - margins.begin())));
  REQUIRE(expected.size() >= std::min<std::size_t>(count, 3));
  const Engine engine = Engine::load(model, engine_options(std::move(backend))).value();
  CHECK(engine.info().backend.find("emulator") != std::string::npos);
  CHECK(generate(engine, json["prompt_ids"].get<std::vector<Token>>(), expected.size()) == expected);
}

constexpr const char* kModels[] = {"tiny-bf16",    "llama3-rope",    "linear-rope", "yarn-rope",
                                   "llama-biases", "mistral-window", "qwen2",       "qwen2-window"};

}  // namespace

TEST_CASE("A tiny model gives its reference's tokens on the emulated GPU") {
  check_model("tiny-bf16", emulated_backend(), 6);
}

TEST_CASE("Every tiny model on every kind of machine", "[.slow]") {
  for (const char* model : kModels) {
    for (const Emulated& machine : emulated_machines()) {
      CAPTURE(model, machine.name);
      check_model(model, emulated_backend(machine.options), 20);
      check_model(model, emulated_backend(machine.options, true), 20);
    }
  }
}
