// One-shot pruning: by magnitude, or by magnitude times input norm (Wanda: Sun et al. 2023, arXiv:2306.11695).
#pragma once

#include <cstdint>
#include <span>

#include <llminfer/quantize.hpp>
#include <llminfer/result.hpp>

#include "core/parallel.hpp"

namespace llminfer::quantize {

/// Sets weights // (rows, cols) to zero: of each row the share that the options say, or prune_n of each prune_m
/// neighbours (a rest of fewer columns stays). `norms` // (cols) of the inputs, or empty: all alike.
Result<void> prune(core::Team& team, const QuantizeOptions& options, std::int64_t cols, std::span<float> weights,
                   std::span<const float> norms);

}  // namespace llminfer::quantize
