// The matrix that gives logits, rounded to 8 bits while it is read, for checkpoints that have it in floats.
#pragma once

#include <memory>

#include <llminfer/program.hpp>

#include "load/checkpoint.hpp"

namespace llminfer::inline v0::engine {

/// The output matrix of a program as Q8_0; null if it is no float matrix of whole blocks. Outlived by the checkpoint.
std::unique_ptr<const load::TensorInfo> round_output_matrix(const Program& program, const load::Checkpoint& checkpoint);

}  // namespace llminfer::inline v0::engine
