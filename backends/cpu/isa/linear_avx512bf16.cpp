// Linear kernels of level "avx512bf16": those of avx512vnni, but BF16 and FP8 weights times rows of BF16 numbers by
// products of pairs.
#include <immintrin.h>

#include "backends/cpu/panel.hpp"

namespace llminfer::cpu::isa_avx512vnni {
const LinearKernels& linear_kernels();
}

namespace llminfer::cpu::isa_avx512bf16 {
namespace {

#include "backends/cpu/kernels/unroll-inl.hpp"
//
#include "backends/cpu/kernels/bfloat_pairs-inl.hpp"

void linear(const PackedWeightView& w, std::int32_t panel_begin, std::int32_t panel_end, const ActivationView& x,
            std::int32_t row_begin, std::int32_t row_end, float* out, std::int64_t out_stride, void* scratch) {
  if (x.bfloats) {
    auto* const slice = static_cast<std::uint8_t*>(scratch);
    return bfloat_linear(w, panel_begin, panel_end, x, row_begin, row_end, out, out_stride, slice);
  }
  isa_avx512vnni::linear_kernels().linear(w, panel_begin, panel_end, x, row_begin, row_end, out, out_stride, scratch);
}

}  // namespace

const LinearKernels& linear_kernels() {
  static const LinearKernels kKernels = [] {
    LinearKernels kernels = isa_avx512vnni::linear_kernels();
    kernels.level = "avx512bf16";
    kernels.linear = linear;
    return kernels;
  }();
  return kKernels;
}

}  // namespace llminfer::cpu::isa_avx512bf16
