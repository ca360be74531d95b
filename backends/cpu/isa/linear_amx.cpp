// Linear kernels of level "amx": tiles for many rows, AVX512-BF16 for few, and for floats.
#include <immintrin.h>

#include "backends/cpu/panel.hpp"

namespace llminfer::cpu::isa_avx512bf16 {
const LinearKernels& linear_kernels();
}

namespace llminfer::cpu::isa_amx {
namespace {
constexpr const char* kLevelName = "amx";
const LinearKernels& few_rows_kernels() { return isa_avx512bf16::linear_kernels(); }
}  // namespace

// In this order: each stands on those before it.
#include "backends/cpu/kernels/linear_avx512-inl.hpp"
//
#include "backends/cpu/kernels/dot_bytes-inl.hpp"
//
#include "backends/cpu/kernels/unpack-inl.hpp"
//
#include "backends/cpu/kernels/grouped-inl.hpp"
//
#include "backends/cpu/kernels/byte_result-inl.hpp"
//
#include "backends/cpu/kernels/tile_config-inl.hpp"
//
#include "backends/cpu/kernels/tiles_amx-inl.hpp"
//
#include "backends/cpu/kernels/linear_tiles-inl.hpp"

const LinearKernels& linear_kernels() { return kLinearKernels; }

}  // namespace llminfer::cpu::isa_amx
