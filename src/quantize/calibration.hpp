// Calibration: the pieces of text that the model is run on, and what is kept of a run between layers.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include <llminfer/quantize.hpp>
#include <llminfer/result.hpp>
#include <llminfer/tokenizer.hpp>

#include "quantize/executor.hpp"

namespace llminfer::quantize {

/// Pieces of calibration_length tokens, spread evenly over the text; each begins with BOS where the tokenizer adds one.
/// Errors: invalid_argument (the text does not fill a piece, or the length is beyond the model's context), those of the
/// tokenizer.
Result<std::vector<std::vector<Token>>> calibration_pieces(const load::Checkpoint& checkpoint,
                                                           const QuantizeOptions& options);

/// Writes the values that are alive before layer `layer`, for a later run.
Result<void> save_values(const std::string& path, std::size_t layer, const LayerRun::Values& values);

struct SavedValues {
  std::size_t layer = 0;
  LayerRun::Values values;
};
/// Nothing if there is no such file, or it is not whole.
std::optional<SavedValues> load_values(const std::string& path, const Program& program, std::int64_t tokens);

}  // namespace llminfer::quantize
