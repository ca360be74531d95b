// Linear kernels of level "neon_dotprod".
#include <arm_neon.h>

#include "backends/cpu/panel.hpp"

namespace llminfer::cpu::isa_neon_dotprod {
namespace {
constexpr const char* kLevelName = "neon_dotprod";
}

// In this order: each stands on those before it.
#include "backends/cpu/kernels/linear_neon-inl.hpp"
//
#include "backends/cpu/kernels/dot_bytes-inl.hpp"
//
#include "backends/cpu/kernels/linear-inl.hpp"

const LinearKernels& linear_kernels() { return kLinearKernels; }

}  // namespace llminfer::cpu::isa_neon_dotprod
