// Which experts of a mixture a token goes to, the same for all backends and for the quantizer.
#pragma once

#include <cmath>
#include <cstdint>

#include <llminfer/program.hpp>

namespace llminfer::backend {

inline double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

/// `logits`: the router's output for the token, one per expert; higher ones come first, of equal ones the lower index.
/// To `chosen` go op.used experts in ascending order, to `factors` what their outputs are multiplied by.
void choose_experts(const op::Moe& op, const float* logits, std::int32_t* chosen, float* factors) noexcept;

}  // namespace llminfer::backend
