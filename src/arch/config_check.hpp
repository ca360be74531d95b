// The plausibility of a ModelConfig, before any arithmetic is done with it.
#pragma once

#include <llminfer/result.hpp>

#include "load/checkpoint.hpp"

namespace llminfer::arch {

/// Checks that every hyperparameter is in a range where products of two of them fit an int64 and a Program stays small,
/// and that heads, KV heads and rotary dimensions agree. Errors: corrupt, naming the key as the checkpoint's format
/// does.
Result<void> check_config(const load::ModelConfig& config);

}  // namespace llminfer::arch
