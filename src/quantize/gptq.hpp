// GPTQ (Frantar et al. 2022, arXiv:2210.17323): the columns of a matrix are rounded one after the other, and the error
// of each is made up for by the columns that follow, as the inputs' second moments say.
#pragma once

#include <cstdint>
#include <span>

#include <llminfer/result.hpp>

#include "core/parallel.hpp"
#include "quantize/affine.hpp"

namespace llminfer::quantize {

struct GptqOptions {
  double damping = 0.01;
  bool activation_order = false;
};

/// Quantizes `weights` // (rows, cols), which becomes scratch, for inputs x with `hessian` = sum of x x^T // (cols,
/// cols). Errors: unsupported (a Hessian that is no positive matrix even with the damping: inputs that are no numbers).
Result<AffineWeight> gptq(core::Team& team, const AffineScheme& scheme, std::int64_t rows, std::int64_t cols,
                          std::span<float> weights, std::span<const float> hessian, const GptqOptions& options);

}  // namespace llminfer::quantize
