// Linear kernels of level "avx512vnni".
#include <immintrin.h>

#include <utility>

#include "backends/cpu/panel.hpp"

namespace llminfer::cpu::isa_avx512vnni {

#include "backends/cpu/kernels/linear_avx512-inl.hpp"

// After the vector operations that it is written in.
#include "backends/cpu/kernels/linear-inl.hpp"

const LinearKernels& linear_kernels() {
  static constexpr LinearKernels kKernels{"avx512vnni", quantize_row, linear, dot_rows};
  return kKernels;
}

}  // namespace llminfer::cpu::isa_avx512vnni
