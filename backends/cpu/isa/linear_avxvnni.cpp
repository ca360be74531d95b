// Linear kernels of level "avxvnni".
#include <immintrin.h>

#include "backends/cpu/panel.hpp"

namespace llminfer::cpu::isa_avxvnni {
namespace {
constexpr const char* kLevelName = "avxvnni";
}

// In this order: each stands on those before it.
#include "backends/cpu/kernels/linear_avx2-inl.hpp"
//
#include "backends/cpu/kernels/dot_bytes-inl.hpp"
//
#include "backends/cpu/kernels/linear-inl.hpp"

const LinearKernels& linear_kernels() { return kLinearKernels; }

}  // namespace llminfer::cpu::isa_avxvnni
