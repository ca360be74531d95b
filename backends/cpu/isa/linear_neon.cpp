// Linear kernels of level "neon".
#include <arm_neon.h>

#include "backends/cpu/panel.hpp"

namespace llminfer::cpu::isa_neon {
namespace {
constexpr const char* kLevelName = "neon";
}

// In this order: each stands on those before it.
#include "backends/cpu/kernels/linear_neon-inl.hpp"
//
#include "backends/cpu/kernels/dot_words-inl.hpp"
//
#include "backends/cpu/kernels/linear-inl.hpp"

const LinearKernels& linear_kernels() { return kLinearKernels; }

}  // namespace llminfer::cpu::isa_neon
