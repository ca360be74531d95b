// The tile kernels of level "amx" on emulated tiles, among vectors of level "avx512".
#include <immintrin.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "backends/cpu/panel.hpp"

namespace llminfer::cpu::isa_scalar {
const LinearKernels& linear_kernels();
}

namespace llminfer::cpu::emulated_tiles_avx512 {
namespace {
constexpr const char* kLevelName = "tiles emulated on avx512";
}

// In this order: each stands on those before it.
#include "backends/cpu/kernels/linear_avx512-inl.hpp"
//
#include "backends/cpu/kernels/dot_words-inl.hpp"
//
#include "backends/cpu/kernels/unpack-inl.hpp"
//
#include "backends/cpu/kernels/grouped-inl.hpp"
//
#include "backends/cpu/kernels/byte_result-inl.hpp"
//
#include "tests/cpu/emulated_tiles-inl.hpp"

const LinearKernels& linear_kernels() { return kLinearKernels; }

}  // namespace llminfer::cpu::emulated_tiles_avx512
