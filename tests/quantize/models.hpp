// What the tests of the quantizer share: models, a text, and how far one model's outputs are from another's.
#pragma once

#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include <llminfer/quantize.hpp>

#include "arch/arch.hpp"
#include "core/parallel.hpp"
#include "load/checkpoint.hpp"
#include "quantize/calibration.hpp"
#include "quantize/executor.hpp"

namespace llminfer::test {

inline const std::string kModels = LLMINFER_TEST_DATA "/models/";

/// Written for these tests.
inline const std::string kText =
    "The quantizer reads a model, one layer after the other, and writes it again with smaller numbers. A weight that "
    "was a "
    "float of sixteen bits becomes a whole number of four bits, and some forty neighbours share the scale that turns "
    "it back. "
    "What is lost can be made good in part: the error of one column is passed on to the columns that are still to "
    "come, in "
    "the measure in which their inputs go together. Columns with large inputs may be scaled up before they are "
    "rounded, and "
    "the layer before them is scaled down by the same factor, so that the product stays what it was. A text like this "
    "one "
    "shows which inputs are large. It need not be long, but it should look like what the model is asked to read later: "
    "sentences, names, numbers such as 17, 256 and 1024, a list, a question. Does it work? The test compares the "
    "outputs of "
    "the small model with those of the large one, on the same words. If the rounding took no care of the inputs, the "
    "difference is larger. Programs are tested in the same manner: they are run on cases whose answers are known, and "
    "the "
    "answers are compared. When they differ, somebody looks for the reason, mends it, and writes down the case, so "
    "that the "
    "mistake does not come back. That is slow at first and quick in the end. In the morning the harbour was grey, and "
    "the "
    "boats lay still; by noon the wind had turned to the west, and all of them were gone.\n";

struct LoadedModel {
  explicit LoadedModel(const std::string& path)
      : checkpoint(load::open_checkpoint(path, true).value()), program(arch::build_program(checkpoint).value()) {}

  /// Logits // (tokens, vocabulary) of the pieces of a text.
  std::vector<float> logits(const QuantizeOptions& options) {
    return logits(quantize::calibration_pieces(checkpoint, options).value());
  }
  std::vector<float> logits(std::vector<std::vector<Token>> pieces) {
    const auto team = core::Team::make(2, {}).value();
    quantize::LayerRun run(program, checkpoint, std::move(pieces), *team);
    const quantize::OpRange all{0, program.ops.size()};
    quantize::FloatWeights weights = run.load_weights(all).value();
    run.run(all, weights, {}).value();
    return run.values()[static_cast<std::size_t>(program.logits)];
  }

  load::Checkpoint checkpoint;
  Program program;
};

/// ||a - b||^2 / ||b||^2
inline double relative_error(const std::vector<float>& a, const std::vector<float>& b) {
  double difference = 0, norm = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    difference += std::pow(static_cast<double>(a[i]) - static_cast<double>(b[i]), 2);
    norm += std::pow(static_cast<double>(b[i]), 2);
  }
  return difference / norm;
}

}  // namespace llminfer::test
