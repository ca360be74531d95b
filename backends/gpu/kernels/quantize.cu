// Rows for products of E4M3 by E4M3 and of int8 by int8: normed, and rounded to a byte per element under a scale per
// row or, of E4M3, per group of columns. The numbers are those that prepare() makes of the same rounding. One block per
// row.
#include "backends/gpu/kernels/kernels.hpp"
#include "backends/gpu/kernels/rows.hpp"

namespace llminfer::gpu::LLMINFER_GPU_TARGET {
namespace {

constexpr int kThreads = kRowThreads;
constexpr uint8_t kNan = 0x7f;

/// Where not all values are finite, the scale is NaN if the codes are integers, which have none.
__device__ __forceinline__ float scale_of_codes(const RoundingArgs& rounding, float most) {
  if (finite(most)) return scale_of(rounding, most);
  return rounding.kind == 1 ? bits_to_float(0x7fc00000u) : 1.0f;
}
__device__ __forceinline__ uint8_t code_of(const RoundingArgs& rounding, float x, float scale, float most) {
  if (rounding.kind == 1) {
    return finite(most) && scale != 0.0f ? static_cast<uint8_t>(static_cast<int>(int8_code(rounding, x, scale))) : 0;
  }
  if (!finite(most)) return kNan;
  return scale == 0.0f ? uint8_t{0} : static_cast<uint8_t>(float_to_e4m3(x / scale));
}

__global__ void __launch_bounds__(kThreads) quantize_kernel(QuantizeArgs a) {
  __shared__ float shared[kThreads / 32];
  const int row = static_cast<int>(blockIdx.x), thread = static_cast<int>(threadIdx.x);
  if (a.norm && thread * kLineFloats < a.width) prefetch(a.norm + thread * kLineFloats);
  after_former();
  const float* const in = a.in.data + row * a.in.stride;
  const float factor = a.norm ? norm_factor(in, a.width, a.epsilon, shared) : 1.0f;
  const auto normed = [&](int i) { return a.norm ? in[i] * factor * a.norm[i] : in[i]; };
  uint8_t* const codes = a.codes + static_cast<int64_t>(row) * a.width;
  // A scale for the whole row takes the whole block, one for a group of columns 32 lanes.
  const bool whole = one_scale(a.rounding);
  const int size = whole ? a.width : a.rounding.group, lanes = whole ? kThreads : 32, lane = thread % lanes;
  for (int group = thread / lanes; group * size < a.width; group += kThreads / lanes) {
    const int begin = group * size, end = begin + size < a.width ? begin + size : a.width;
    float most = 0.0f;
    for (int i = begin + lane; i < end; i += lanes) {
      const float x = normed(i);
      most = largest(most, finite(x) ? absolute(x) : infinity());
    }
    most = whole ? largest_of_block<kThreads>(most, shared) : largest_of_lanes(most);
    const float scale = scale_of_codes(a.rounding, most);
    float sum = 0.0f;
    for (int i = begin + lane; i < end; i += lanes) {
      codes[i] = code_of(a.rounding, normed(i), scale, most);
      sum += static_cast<float>(static_cast<int8_t>(codes[i]));  // exact: rows that have sums are below 2^17 columns
    }
    if (lane == 0) a.scales[static_cast<int64_t>(group) * a.rows + row] = scale;
    if (!a.sums) continue;
    sum = sum_of_block<kThreads>(sum, shared);  // of the whole row
    if (lane == 0) a.sums[row] = static_cast<int32_t>(sum);
  }
}

}  // namespace

int quantize(void* stream, const QuantizeArgs& args) {
  return launch(stream, {static_cast<unsigned>(args.rows)}, kThreads, quantize_kernel, args);
}

}  // namespace llminfer::gpu::LLMINFER_GPU_TARGET
