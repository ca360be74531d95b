// Rows for products of E4M3 by E4M3: normed, and rounded to a byte per element under a scale per row or per group of
// columns. The numbers are those that prepare() makes of the same rounding. One block per row.
#include "backends/gpu/kernels/kernels.hpp"
#include "backends/gpu/kernels/rows.hpp"

namespace llminfer::gpu::LLMINFER_GPU_TARGET {
namespace {

constexpr int kThreads = kRowThreads;
constexpr uint8_t kNan = 0x7f;

/// What values whose largest magnitude is `most` are divided by; 0: they are all taken for zeros.
__device__ __forceinline__ float scale_of(const RoundingArgs& rounding, float most) {
  if (!finite(most)) return 1.0f;
  if (!rounding.dynamic) return rounding.scale;
  return most < 0x1p-126f ? 0.0f : dynamic_scale(rounding, most);
}
__device__ __forceinline__ uint8_t code_of(float x, float scale, float most) {
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
  const bool whole = !a.rounding.dynamic || a.rounding.group == 0;
  const int size = whole ? a.width : a.rounding.group, lanes = whole ? kThreads : 32, lane = thread % lanes;
  for (int group = thread / lanes; group * size < a.width; group += kThreads / lanes) {
    const int begin = group * size, end = begin + size < a.width ? begin + size : a.width;
    float most = 0.0f;
    for (int i = begin + lane; i < end; i += lanes) {
      const float x = normed(i);
      most = largest(most, finite(x) ? absolute(x) : infinity());
    }
    most = whole ? largest_of_block<kThreads>(most, shared) : largest_of_lanes(most);
    const float scale = scale_of(a.rounding, most);
    for (int i = begin + lane; i < end; i += lanes) codes[i] = code_of(normed(i), scale, most);
    if (lane == 0) a.scales[static_cast<int64_t>(group) * a.rows + row] = scale;
  }
}

}  // namespace

int quantize(void* stream, const QuantizeArgs& args) {
  return launch(stream, {static_cast<unsigned>(args.rows)}, kThreads, quantize_kernel, args);
}

}  // namespace llminfer::gpu::LLMINFER_GPU_TARGET
