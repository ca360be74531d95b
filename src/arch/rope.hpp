// Inverse frequencies of rotary embeddings with the scaling rules that stretch a model's context.
#pragma once

#include <llminfer/program.hpp>
#include <llminfer/result.hpp>

#include "load/checkpoint.hpp"

namespace llminfer::arch {

/// The table of a checked config, computed in double. Errors: corrupt (an impossible scaling parameter), shape_mismatch
/// (the wrong number of factors).
Result<RopeTable> make_rope_table(const load::ModelConfig& config, bool interleaved);

}  // namespace llminfer::arch
