// The table of elementwise kernels of an instruction set level. Included by ISA files: plain data only.
#pragma once

#include <cstdint>

#include "backends/cpu/int4.hpp"

namespace llminfer::cpu {

/// Counts need not be multiples of anything; pointers need no alignment. `out` may be `in` (or `a`, `gate`).
struct ElementwiseKernels {
  /// out // (n) = in / sqrt(mean(in^2) + epsilon) * weight
  void (*rms_norm)(const float* in, const float* weight, float epsilon, std::int64_t n, float* out);
  /// out // (head_dim) = scale * the head, with pair i of `pairs` rotated by the angle of cosine[i], sine[i]
  void (*rope)(const float* in, const float* cosine, const float* sine, std::int32_t pairs, bool interleaved,
               std::int32_t head_dim, float scale, float* out);
  /// out = activation(gate) * up, by llminfer::Activation, which says more of the last one
  void (*glu[4])(const float* gate, const float* up, std::int64_t n, float* out);
  void (*add)(const float* a, const float* b, std::int64_t n, float* out);
  /// out = a + factor * b, in one rounding
  void (*add_scaled)(const float* a, float factor, const float* b, std::int64_t n, float* out);
  /// keys // (head_dim, 64), values // (64, padded_dim) -> out // (layout.bytes); unpack_int4 is the way back
  void (*pack_int4)(const Int4Layout& layout, const float* keys, const float* values, std::uint8_t* out);
};

namespace isa_scalar {
const ElementwiseKernels& elementwise_kernels();
}
namespace isa_avx2 {
const ElementwiseKernels& elementwise_kernels();
}
namespace isa_avx512 {
const ElementwiseKernels& elementwise_kernels();
}
namespace isa_neon {
const ElementwiseKernels& elementwise_kernels();
}

}  // namespace llminfer::cpu
