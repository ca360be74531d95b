// Quantized Hugging Face checkpoints against references: the weights of two layers, logits and greedy tokens in exact
// mode, and how far the default mode is from that.
#include <catch2/catch.hpp>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "core/file.hpp"
#include "tests/engine/divergence.hpp"
#include "tests/engine/golden_checkpoint.hpp"
#include "tests/engine/program_runner.hpp"
#include "tests/load/reference_weight.hpp"

using namespace llminfer;
using test::check_weight;
using test::divergence;
using test::ProgramRunner;
using test::put_golden_checkpoint;
using test::relative_error;

namespace {

constexpr double kDecidedMargin = 0.05;  // logits; below it two computations may choose different tokens
constexpr double kDivergence = 3e-3;     // of the default mode from exact mode

void check_model(const std::string& path, const nlohmann::json& prompt_ids, const nlohmann::json& reference,
                 bool one_layer) {
  INFO(path);
  ProgramRunner exact(path);
  for (const auto& [key, value] : reference.items()) {
    if (key.compare(0, 7, "layers.") == 0) check_weight(exact.checkpoint(), "model." + key + ".weight", value);
  }
  const nlohmann::json& rounding = reference["activation_quantization"];
  const bool quantizes = !rounding.is_null();
  // Dynamic scales: the reference's own noise, docs/adr/0008. One layer has none; without rounding it is 9e-5 off.
  const bool dynamic = rounding.is_object() && rounding["dynamic"] == true;
  const double noise = one_layer ? 1e-5 : !dynamic ? 1e-4 : rounding["type"] == "int" ? 1e-3 : 5e-3;
  ProgramRunner standard(path, false);
  CHECK(exact.plan_bytes() == exact.foreseen_plan_bytes());
  // The order of columns is known only when a weight has been read.
  if (path.find("actorder") == std::string::npos) CHECK(standard.plan_bytes() == standard.foreseen_plan_bytes());
  const auto prompt = prompt_ids.get<std::vector<std::int32_t>>();
  std::vector<float> logits = exact.forward(prompt), standard_logits = standard.forward(prompt);
  const double error = relative_error(logits, reference["last_logits"].get<std::vector<float>>());
  CHECK(error < (quantizes ? noise : 1e-6));
  double apart = 0;
  std::size_t steps = 0, decided = 0, wrong = 0;
  for (const nlohmann::json& token : reference["greedy"]) {
    apart += divergence(logits, standard_logits);
    const auto best = std::max_element(logits.begin(), logits.end()) - logits.begin();
    if (reference["margins"][steps++].get<double>() >= kDecidedMargin) {
      ++decided;
      wrong += best != token.get<std::int64_t>();
    }
    logits = exact.forward({token.get<std::int32_t>()});
    standard_logits = standard.forward({token.get<std::int32_t>()});
  }
  CHECK(wrong == 0);
  CHECK(decided * 2 > steps);
  CHECK(apart / static_cast<double>(steps) < kDivergence);
}

nlohmann::json read_json(const std::string& path) {
  return nlohmann::json::parse(core::read_text_file(path, 1 << 24).value());
}

}  // namespace

TEST_CASE("Quantized checkpoints: weights, logits and tokens are those of the reference") {
  const nlohmann::json reference = read_json(LLMINFER_TEST_DATA "/quantized/reference.json");
  for (const auto& [name, expected] : reference["checkpoints"].items()) {
    const test::TempDir folder;
    INFO(name);
    check_model(put_golden_checkpoint(folder, name), reference["prompt_ids"], expected, true);
  }
}

TEST_CASE("Quantized checkpoints of a folder of fixtures", "[fixtures]") {
  const char* const folder = std::getenv("LLMINFER_TEST_FIXTURES");
  if (!folder) {
    WARN("skipped: LLMINFER_TEST_FIXTURES names no folder of checkpoints with a reference.json");
    return;
  }
  const nlohmann::json reference = read_json(std::string(folder) + "/reference.json");
  const char* const only = std::getenv("LLMINFER_TEST_FIXTURE");
  for (const auto& [name, expected] : reference["checkpoints"].items()) {
    if (only && name.find(only) == std::string::npos) continue;
    check_model(std::string(folder) + "/" + name, reference["prompt_ids"], expected, false);
  }
}
