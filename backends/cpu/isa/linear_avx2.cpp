// Linear kernels of level "avx2".
#include <immintrin.h>

#include <utility>

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
