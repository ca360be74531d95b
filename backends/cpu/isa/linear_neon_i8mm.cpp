// Linear kernels of level "neon_i8mm".
#include <arm_neon.h>

#include "backends/cpu/panel.hpp"

namespace llminfer::cpu::isa_neon_i8mm {
namespace {
constexpr const char* kLevelName = "neon_i8mm";
}

// In this order: each stands on those before it.
#include "backends/cpu/kernels/linear_neon-inl.hpp"
//
#include "backends/cpu/kernels/dot_matrix-inl.hpp"
//
#include "backends/cpu/kernels/linear-inl.hpp"

const LinearKernels& linear_kernels() { return kLinearKernels; }

}  // namespace llminfer::cpu::isa_neon_i8mm
