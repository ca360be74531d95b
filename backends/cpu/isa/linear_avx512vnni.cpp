// Linear kernels of level "avx512vnni".
#include <immintrin.h>

#include "backends/cpu/panel.hpp"

namespace llminfer::cpu::isa_avx512vnni {
namespace {
constexpr const char* kLevelName = "avx512vnni";
}

// In this order: each stands on those before it.
#include "backends/cpu/kernels/linear_avx512-inl.hpp"
//
#include "backends/cpu/kernels/dot_bytes-inl.hpp"
//
#include "backends/cpu/kernels/linear-inl.hpp"

const LinearKernels& linear_kernels() { return kLinearKernels; }

}  // namespace llminfer::cpu::isa_avx512vnni
