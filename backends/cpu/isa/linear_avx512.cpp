// Linear kernels of level "avx512".
#include <immintrin.h>

#include "backends/cpu/panel.hpp"

namespace llminfer::cpu::isa_avx512 {
namespace {
constexpr const char* kLevelName = "avx512";
}

// In this order: each stands on those before it.
#include "backends/cpu/kernels/linear_avx512-inl.hpp"
//
#include "backends/cpu/kernels/dot_words-inl.hpp"
//
#include "backends/cpu/kernels/linear-inl.hpp"

const LinearKernels& linear_kernels() { return kLinearKernels; }

}  // namespace llminfer::cpu::isa_avx512
