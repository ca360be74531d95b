// The model to be quantized, in the vocabulary of the output: GGUF's names and rotary pairs, or Hugging Face's.
#pragma once

#include <string>
#include <vector>

#include <llminfer/program.hpp>
#include <llminfer/result.hpp>

#include "load/checkpoint.hpp"

namespace llminfer::quantize {

struct Source {
  load::Checkpoint checkpoint;  ///< its tensors named and ordered as the output wants them
  Program program;              ///< of that checkpoint
  bool from_hf = false;         ///< what the input is
};

/// Opens a checkpoint and turns it to the names and the rotary order of Hugging Face (`hf_names`) or GGUF. `untie`: an
/// output matrix that is the embedding table becomes a tensor of its own. Errors: those of opening and of describing
/// it; unsupported (a tensor without a name in the other vocabulary).
Result<Source> open_source(const std::string& path, bool hf_names, bool untie);

/// The rows of a weight as floats // (rows, cols).
Result<std::vector<float>> read_floats(const load::Checkpoint& checkpoint, const load::TensorInfo& tensor);

}  // namespace llminfer::quantize
