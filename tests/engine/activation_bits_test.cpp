// EngineOptions::activation_bits: what its default is, and that the backend gets it.
#include <catch2/catch.hpp>
#include <string>

#include "engine/model_layout.hpp"
#include "tests/arch/synthetic.hpp"

using namespace llminfer;

namespace {

/// The CPU backend's description of itself when it is given the model.
std::string backend_for(const load::ModelConfig& config, int activation_bits) {
  EngineOptions options;
  options.activation_bits = activation_bits;
  const load::Checkpoint checkpoint = test::synthetic_checkpoint(config);
  return engine::lay_out(checkpoint, options).value().memory.shares.at(0).backend;
}

}  // namespace

TEST_CASE("activations have 8 bits where the model is not small, or where the host says so") {
  const auto eight = Catch::Contains("activations of 8 bits");
  const auto smollm2_360m = test::decoder_config("llama", 49152, 960, 2560, 32, 15, 5, true);
  const auto llama32_1b = test::decoder_config("llama", 128256, 2048, 8192, 16, 32, 8, true);
  CHECK_THAT(backend_for(smollm2_360m, 0), !eight);
  CHECK_THAT(backend_for(smollm2_360m, 8), eight);
  CHECK_THAT(backend_for(llama32_1b, 0), eight);
  CHECK_THAT(backend_for(llama32_1b, 16), !eight);
}
