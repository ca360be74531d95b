// EngineOptions::output_bits: the matrix that gives logits, rounded when it is loaded.
#include <catch2/catch.hpp>

#include <algorithm>
#include <cmath>
#include <llminfer/llminfer.hpp>
#include <string>
#include <vector>

#include "arch/arch.hpp"
#include "engine/output_matrix.hpp"
#include "tests/engine/divergence.hpp"

using namespace llminfer;

namespace {

const std::string kModels = LLMINFER_TEST_DATA "/models/";

std::vector<float> floats(const WeightView& view) {
  std::vector<float> values(static_cast<std::size_t>(view.rows * view.cols));
  unpack_rows(view, 0, view.rows, values).value();
  return values;
}

EngineOptions with_bits(int bits) {
  EngineOptions options;
  options.threads = 2;
  options.output_bits = bits;
  return options;
}

std::vector<float> logits(const std::string& model, int bits) {
  const Engine engine = Engine::load(model, with_bits(bits)).value();
  Session session = engine.new_session().value();
  session.prefill(std::vector<Token>{1, 5, 9, 2, 17}).value();
  const auto last = session.logits();
  return {last.begin(), last.end()};
}

}  // namespace

TEST_CASE("an output matrix is rounded to within half a step of 8 bits") {
  for (const char* name : {"tiny-bf16", "llama-biases"}) {  // the second has one matrix for both ends
    const load::Checkpoint checkpoint = load::open_checkpoint(kModels + name, true).value();
    const auto rounded = engine::round_output_matrix(arch::build_program(checkpoint).value(), checkpoint);
    REQUIRE(rounded);
    REQUIRE(rounded->type == WeightType::q8_0);
    const auto before = floats(checkpoint.read(*checkpoint.find(rounded->name)).value());
    const auto after = floats(checkpoint.read(*rounded).value());
    REQUIRE(before.size() == after.size());
    for (std::size_t begin = 0; begin < before.size(); begin += 32) {
      float most = 0, error = 0;
      for (std::size_t i = begin; i < begin + 32; ++i) {
        most = std::max(most, std::fabs(before[i]));
        error = std::max(error, std::fabs(before[i] - after[i]));
      }
      REQUIRE(error <= most / 127 * 0.57f);  // the scale is a half: codes up to 127 move by up to 127 * 2^-11 of a step
    }
  }
}

TEST_CASE("rounding the output matrix: less memory, nearly the same logits") {
  const std::string model = kModels + "tiny-bf16";
  const auto whole = logits(model, 16), rounded = logits(model, 8);
  CHECK(whole != rounded);
  CHECK(test::divergence(whole, rounded) < 1e-4);
  const MemoryPlan before = Engine::plan(model, with_bits(16)).value();
  const MemoryPlan after = Engine::plan(model, with_bits(8)).value();
  CHECK(after.weights < before.weights);
  CHECK(Engine::load(model, with_bits(8)).value().stats().weight_bytes == after.weights);
}
