// Every architecture and rotary scaling end to end on the CPU backend: the tiny models of golden/models in exact mode
// give the logits and the greedy tokens of Hugging Face transformers.
#include <catch2/catch.hpp>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "core/file.hpp"
#include "tests/engine/program_runner.hpp"

using namespace llminfer;
using test::relative_error;
using test::Sequence;

namespace {

constexpr float kDecidedMargin = 0.05f;  // logits; below it two computations may choose different tokens

struct Reference {
  std::vector<std::int32_t> prompt, greedy;
  std::vector<float> last_logits, margins;
};

Reference read_reference(const std::string& model) {
  const nlohmann::json json =
      nlohmann::json::parse(core::read_text_file(model + "/reference.json", 1 << 24).value());
  return {json["prompt_ids"].get<std::vector<std::int32_t>>(), json["greedy"].get<std::vector<std::int32_t>>(),
          json["last_logits"].get<std::vector<float>>(), json["margins"].get<std::vector<float>>()};
}

}  // namespace

TEST_CASE("The tiny models on the CPU backend equal transformers") {
  for (const char* name : {"tiny-bf16", "llama3-rope", "linear-rope", "yarn-rope", "llama-biases", "mistral-window",
                           "qwen2", "qwen2-window"}) {
    INFO(name);
    const std::string model = std::string(LLMINFER_TEST_DATA "/models/") + name;
    const Reference reference = read_reference(model);
    REQUIRE(reference.greedy.size() == reference.margins.size());

    Sequence whole(model);
    std::vector<float> logits = whole.forward(reference.prompt);
    REQUIRE(logits.size() == reference.last_logits.size());
    CHECK(relative_error(logits, reference.last_logits) < 1e-6);

    // Teacher-forced: the model is given the reference's tokens, so that one close call does not spoil the rest.
    std::size_t decided = 0;
    for (std::size_t step = 0; step < reference.greedy.size(); ++step) {
      const auto best = std::max_element(logits.begin(), logits.end()) - logits.begin();
      if (reference.margins[step] >= kDecidedMargin) {
        CHECK(best == reference.greedy[step]);
        ++decided;
      }
      logits = whole.forward({reference.greedy[step]});
    }
    CHECK(decided * 2 > reference.greedy.size());

    Sequence pieces(model);
    for (std::size_t begin = 0; begin < reference.prompt.size(); begin += 7) {
      const std::size_t end = std::min(begin + 7, reference.prompt.size());
      logits = pieces.forward({reference.prompt.begin() + static_cast<std::ptrdiff_t>(begin),
                               reference.prompt.begin() + static_cast<std::ptrdiff_t>(end)});
    }
    CHECK(relative_error(logits, reference.last_logits) < 1e-6);
  }
}
