// Whole models on the GPU backend: an Engine with it gives the tokens of the models' references, which the CPU backend
// gives, too.
#include <catch2/catch.hpp>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include <llminfer/llminfer.hpp>

#include "core/file.hpp"
#include "tests/engine/golden_checkpoint.hpp"
#include "tests/engine/program_runner.hpp"
#include "tests/gpu/machines.hpp"

using namespace llminfer;
using namespace llminfer::test;

namespace {

constexpr float kDecidedMargin = 0.05f;  // logits; below it two computations may choose different tokens

std::string path_of(const std::string& model) { return std::string(LLMINFER_TEST_DATA "/models/") + model; }

nlohmann::json reference_of(const std::string& model) {
  return nlohmann::json::parse(core::read_text_file(path_of(model) + "/reference.json", 1 << 24).value());
}

/// Teacher-forced: the model is given the reference's tokens, so that one close call does not spoil the rest.
void check_model(const std::string& name, std::shared_ptr<Backend> backend) {
  const auto json = reference_of(name);
  const auto greedy = json["greedy"].get<std::vector<std::int32_t>>();
  const auto margins = json["margins"].get<std::vector<float>>();
  test::ProgramRunner sequence(path_of(name), std::move(backend));
  std::vector<float> logits = sequence.forward(json["prompt_ids"].get<std::vector<std::int32_t>>());
  CHECK(relative_error(logits, json["last_logits"].get<std::vector<float>>()) < 1e-5);
  std::size_t decided = 0;
  for (std::size_t step = 0; step < greedy.size(); ++step) {
    if (margins[step] >= kDecidedMargin) {
      CHECK(std::max_element(logits.begin(), logits.end()) - logits.begin() == greedy[step]);
      ++decided;
    }
    logits = sequence.forward({greedy[step]});
  }
  CHECK(decided * 2 > greedy.size());
}

}  // namespace

TEST_CASE("An engine on the GPU, or on the GPU and the CPU, gives the reference's tokens") {
  const auto json = reference_of("tiny-bf16");
  const auto margins = json["margins"].get<std::vector<float>>();
  const auto close = std::find_if(margins.begin(), margins.end(), [](float margin) { return margin < kDecidedMargin; });
  auto expected = json["greedy"].get<std::vector<Token>>();
  expected.resize(std::min<std::size_t>(6, static_cast<std::size_t>(close - margins.begin())));
  REQUIRE(expected.size() >= 3);
  const std::shared_ptr<Backend> gpu = make_machine_backend();
  EngineOptions options;
  options.threads = 1;
  options.context_length = 256;
  options.cache_tokens = 512;
  const auto check = [&] {
    const Engine engine = Engine::load(path_of("tiny-bf16"), options).value();
    CompletionRequest request;
    request.tokens = json["prompt_ids"].get<std::vector<Token>>();
    request.options.max_tokens = static_cast<std::int32_t>(expected.size());
    request.options.ignore_end = true;
    CHECK(engine.complete(std::move(request)).value().tokens == expected);
    return engine.info().backend;
  };
  options.custom_backend = gpu;
  CHECK(check() == gpu->description());
  options.cache_type = CacheType::fp8;
  CHECK(Engine::load(path_of("tiny-bf16"), options).value().stats().cache_bytes ==
        Engine::plan(path_of("tiny-bf16"), options).value().cache);
  options.cache_type = CacheType::f16;

  // The middle layer on the GPU, since that has room for one; the others on the CPU.
  options.custom_backend = nullptr;
  options.split = {{{}, 1}, {gpu, 1}, {}};
  const std::int64_t room = Engine::plan(path_of("tiny-bf16"), options).value().shares[1].total();
  options.split[1] = {gpu, {}, room};
  CHECK_THAT(check(), Catch::StartsWith("layers 0 to 0 on cpu") &&
                          Catch::Contains("; layers 1 to 1 on " + gpu->description() + "; layers 2 to 2 on cpu"));
}

TEST_CASE("gpt-oss on the GPU: sinks, windows, experts in MXFP4 with biases, clamped units") {
  check_model("gpt-oss", make_machine_backend());
}

TEST_CASE("Quantized checkpoints on the GPU give the reference's logits, each on a kind of machine in turn") {
  const std::string golden = LLMINFER_TEST_DATA "/quantized/reference.json";
  const auto reference = nlohmann::json::parse(core::read_text_file(golden, 1 << 24).value());
  const auto prompt = reference["prompt_ids"].get<std::vector<std::int32_t>>();
  std::size_t turn = 0;
  for (const auto& [name, checkpoint] : reference["checkpoints"].items()) {
    const std::vector<Machine> all = machines(turn + 1);
    const Machine& machine = all[turn++ % all.size()];
    CAPTURE(name, machine.name);
    const TempDir folder;
    const std::string path = put_golden_checkpoint(folder, name);
    const auto expected = checkpoint["last_logits"].get<std::vector<float>>();
    // Inputs and weights that are rounded by the checkpoint are multiplied as they are, others in halves.
    const bool exact = !checkpoint["activation_quantization"].is_null();
    CHECK(relative_error(ProgramRunner(path, make_machine_backend(machine.options)).forward(prompt), expected) <
          (exact ? 1e-12 : 1e-6));
  }
}

TEST_CASE("Every tiny model, each kind of machine in turn", "[.slow]") {
  std::size_t turn = 0;
  for (const char* model :
       {"tiny-bf16", "llama3-rope", "linear-rope", "yarn-rope", "llama-biases", "mistral-window", "qwen2",
        "qwen2-window", "qwen3", "gpt-oss", "mixtral", "olmoe", "qwen2-moe", "qwen3-moe"}) {
    const std::vector<Machine> all = machines(turn + 1);
    for (const bool batch_invariant : {false, true}) {
      const Machine& machine = all[(turn + batch_invariant) % all.size()];
      CAPTURE(model, machine.name, batch_invariant);
      check_model(model, make_machine_backend(machine.options, batch_invariant));
    }
    ++turn;
  }
}
