// Every architecture and rotary scaling against Hugging Face transformers: the Program of each tiny model, run by an
// interpreter in double precision, gives the logits of golden/models/*/reference.json.
#include <catch2/catch.hpp>

#include <algorithm>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>

#include "arch/arch.hpp"
#include "load/hf.hpp"
#include "tests/arch/interpreter.hpp"

using namespace llminfer;

namespace {

struct Model {
  explicit Model(const std::string& name)
      : path(LLMINFER_TEST_DATA "/models/" + name), checkpoint(load::open_hf_directory(path, true).value()) {
    const nlohmann::json reference = nlohmann::json::parse(std::ifstream(path + "/reference.json"));
    prompt = reference["prompt_ids"].get<std::vector<std::int32_t>>();
    last_logits = reference["last_logits"].get<std::vector<double>>();
    argmax = reference["argmax"].get<std::vector<std::int64_t>>();
  }

  /// Logits of every position of the prompt.
  std::vector<double> run() const {
    const Program program = arch::build_program(checkpoint).value();
    return test::Interpreter(program, checkpoint).run(prompt);
  }
  /// Squared error of the last position's logits relative to the reference's energy.
  double error(const std::vector<double>& logits) const {
    double squares = 0, energy = 0;
    for (std::size_t i = 0; i < last_logits.size(); ++i) {
      const double difference = logits[logits.size() - last_logits.size() + i] - last_logits[i];
      squares += difference * difference;
      energy += last_logits[i] * last_logits[i];
    }
    return squares / energy;
  }

  std::string path;
  load::Checkpoint checkpoint;
  std::vector<std::int32_t> prompt;
  std::vector<double> last_logits;
  std::vector<std::int64_t> argmax;
};

}  // namespace

TEST_CASE("Programs of the tiny models give the logits of transformers") {
  for (const char* name : {"tiny-bf16", "llama3-rope", "linear-rope", "yarn-rope", "llama-biases", "mistral-window",
                           "qwen2", "qwen2-window", "mixtral", "qwen2-moe", "olmoe", "qwen3", "qwen3-moe", "gpt-oss"}) {
    INFO(name);
    const Model model(name);
    const auto vocabulary = static_cast<std::ptrdiff_t>(model.last_logits.size());
    REQUIRE(vocabulary == model.checkpoint.config.vocab_size);
    const std::vector<double> logits = model.run();
    CHECK(model.error(logits) < 1e-9);  // the reference computed in float and is rounded to 5 or 6 decimals
    std::vector<std::int64_t> argmax;
    for (auto row = logits.begin(); row != logits.end(); row += vocabulary) {
      argmax.push_back(std::max_element(row, row + vocabulary) - row);
    }
    CHECK(argmax == model.argmax);
  }
}

TEST_CASE("The tiny models' references notice a wrong hyperparameter") {
  const auto changed = [](const char* name, auto&& change) {
    Model model(name);
    change(model.checkpoint.config);
    return model.error(model.run());
  };
  using load::ModelConfig;
  using Kind = load::RopeScaling::Kind;
  const auto unscaled = [](ModelConfig& config) { config.rope_scaling.kind = Kind::none; };
  CHECK(changed("llama3-rope", unscaled) > 1e-3);
  CHECK(changed("linear-rope", unscaled) > 1e-3);
  CHECK(changed("yarn-rope", unscaled) > 1e-3);
  CHECK(changed("yarn-rope", [](ModelConfig& config) { config.rope_scaling.attention_factor = 1; }) > 1e-3);
  CHECK(changed("mistral-window", [](ModelConfig& config) { config.sliding_window = 9; }) > 1e-3);
  CHECK(changed("qwen2-window", [](ModelConfig& config) { config.sliding_layers = {1, 1, 1}; }) > 1e-3);
  CHECK(changed("gpt-oss", [](ModelConfig& config) { config.rope_scaling.truncate = true; }) > 1e-6);
  CHECK(changed("gpt-oss", [](ModelConfig& config) { config.sliding_layers = {0, 1}; }) > 1e-3);
  CHECK(changed("qwen2", [](ModelConfig& config) { config.rope_base = 1e6; }) > 1e-3);
}
