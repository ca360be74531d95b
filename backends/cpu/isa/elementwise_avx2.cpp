// Elementwise kernels for the avx2 level.
#include <immintrin.h>

#include <cstdint>

#include "backends/cpu/elementwise.hpp"

namespace llminfer::cpu::isa_avx2 {
// In this order: each stands on those before it.
#include "backends/cpu/kernels/vec_avx2-inl.hpp"
//
#include "backends/cpu/kernels/math-inl.hpp"
//
#include "backends/cpu/kernels/int4-inl.hpp"
//
#include "backends/cpu/kernels/elementwise-inl.hpp"
}  // namespace llminfer::cpu::isa_avx2
