// Attention kernels for the neon level.
#include <arm_neon.h>

#include <cstddef>
#include <cstdint>

#include "backends/cpu/attention.hpp"

namespace llminfer::cpu::isa_neon {
// In this order: each stands on those before it.
#include "backends/cpu/kernels/vec_neon-inl.hpp"
//
#include "backends/cpu/kernels/math-inl.hpp"
//
#include "backends/cpu/kernels/words_neon-inl.hpp"
//
#include "backends/cpu/kernels/cache_element-inl.hpp"
//
#include "backends/cpu/kernels/product-inl.hpp"
//
#include "backends/cpu/kernels/attention-inl.hpp"
}  // namespace llminfer::cpu::isa_neon
