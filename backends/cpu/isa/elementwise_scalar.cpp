// Elementwise kernels for the scalar level.
#include <cstdint>

#include "backends/cpu/elementwise.hpp"

namespace llminfer::cpu::isa_scalar {
// In this order: each stands on those before it.
#include "backends/cpu/kernels/vec_scalar-inl.hpp"
//
#include "backends/cpu/kernels/math-inl.hpp"
//
#include "backends/cpu/kernels/int4-inl.hpp"
//
#include "backends/cpu/kernels/elementwise-inl.hpp"
}  // namespace llminfer::cpu::isa_scalar
