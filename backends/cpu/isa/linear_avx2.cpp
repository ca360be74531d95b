// Linear kernels of level "avx2".
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // gcc 12's own undefined vectors in immintrin.h
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#include <immintrin.h>

#include "backends/cpu/panel.hpp"

namespace llminfer::cpu::isa_avx2 {

#include "backends/cpu/kernels/linear_avx2-inl.hpp"

// After the vector operations that it is written in.
#include "backends/cpu/kernels/linear-inl.hpp"

const LinearKernels& linear_kernels() {
  static constexpr LinearKernels kKernels{"avx2", quantize_row, linear, dot_rows};
  return kKernels;
}

}  // namespace llminfer::cpu::isa_avx2
