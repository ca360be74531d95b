// Every architecture and rotary scaling against Hugging Face transformers: the Program of each tiny model, run by an
// interpreter in double precision, gives the logits of golden/models/*/reference.json.
#include <catch2/catch.hpp>

#include <algorithm>
#include <string>

#include "arch/arch.hpp"
#include "core/file.hpp"
#include "core/json.hpp"
#include "load/hf.hpp"
#include "tests/arch/interpreter.hpp"

using namespace llminfer;

TEST_CASE("Programs of the tiny models give the logits of transformers") {
  for (const char* name : {"tiny-bf16", "llama3-rope", "linear-rope", "yarn-rope", "llama-biases", "mistral-window",
                           "qwen2", "qwen2-window"}) {
    INFO(name);
    const std::string path = std::string(LLMINFER_TEST_DATA "/models/") + name;
    const load::Checkpoint checkpoint = load::open_hf_directory(path, true).value();
    const Program program = arch::build_program(checkpoint).value();
    const core::Json reference =
        core::parse_json(core::read_text_file(path + "/reference.json", 1 << 20).value(), name).value();
    const auto prompt = reference["prompt_ids"].get<std::vector<std::int32_t>>();
    const auto expected = reference["last_logits"].get<std::vector<double>>();
    const auto argmax = reference["argmax"].get<std::vector<std::int64_t>>();
    REQUIRE(expected.size() == static_cast<std::size_t>(program.vocab_size));
    REQUIRE(argmax.size() == prompt.size());

    const std::vector<double> logits = test::Interpreter(program, checkpoint).run(prompt);
    double error = 0, energy = 0;
    for (std::size_t i = 0; i < expected.size(); ++i) {
      const double difference = logits[logits.size() - expected.size() + i] - expected[i];
      error += difference * difference;
      energy += expected[i] * expected[i];
    }
    CHECK(error / energy < 1e-9);  // the reference computed in float and is rounded to 5 or 6 decimals
    std::size_t agree = 0;
    for (std::size_t t = 0; t < prompt.size(); ++t) {
      const auto row = logits.begin() + static_cast<std::ptrdiff_t>(t * expected.size());
      agree += std::max_element(row, row + static_cast<std::ptrdiff_t>(expected.size())) - row == argmax[t];
    }
    CHECK(agree == prompt.size());
  }
}
