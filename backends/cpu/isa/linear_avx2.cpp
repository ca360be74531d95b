// Linear kernels of level "avx2".
#include <immintrin.h>

#include "backends/cpu/panel.hpp"

namespace llminfer::cpu::isa_avx2 {
namespace {
constexpr const char* kLevelName = "avx2";
}

// In this order: each stands on those before it.
#include "backends/cpu/kernels/linear_avx2-inl.hpp"
//
#include "backends/cpu/kernels/dot_words-inl.hpp"
//
#include "backends/cpu/kernels/linear-inl.hpp"
//
#include "backends/cpu/kernels/byte_pairs-inl.hpp"

const LinearKernels& linear_kernels() { return kLinearKernels; }

}  // namespace llminfer::cpu::isa_avx2
