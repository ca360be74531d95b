// Attention kernels for the avx512 level.
#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "backends/cpu/attention.hpp"

namespace llminfer::cpu::isa_avx512 {
// In this order: each stands on those before it.
#include "backends/cpu/kernels/vec_avx512-inl.hpp"
//
#include "backends/cpu/kernels/math-inl.hpp"
//
#include "backends/cpu/kernels/words_avx512-inl.hpp"
//
#include "backends/cpu/kernels/cache_element-inl.hpp"
//
#include "backends/cpu/kernels/product-inl.hpp"
//
#include "backends/cpu/kernels/attention-inl.hpp"
}  // namespace llminfer::cpu::isa_avx512
