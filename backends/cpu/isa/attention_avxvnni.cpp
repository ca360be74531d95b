// Attention kernels for the avxvnni level.
#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "backends/cpu/attention.hpp"

namespace llminfer::cpu::isa_avxvnni {
// In this order: each stands on those before it.
#include "backends/cpu/kernels/vec_avx2-inl.hpp"
//
#include "backends/cpu/kernels/math-inl.hpp"
//
#include "backends/cpu/kernels/words_avx2-inl.hpp"
//
#include "backends/cpu/kernels/cache_element-inl.hpp"
//
#include "backends/cpu/kernels/product-inl.hpp"
//
#include "backends/cpu/kernels/attention-inl.hpp"
}  // namespace llminfer::cpu::isa_avxvnni
