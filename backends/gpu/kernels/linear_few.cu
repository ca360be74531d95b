// Linear layers of few rows (decode): a group of 32 lanes computes two output features for all rows. Bound by the
// reading of weights: each lane reads eight columns at a time, so that a group's reads are consecutive.
#include "backends/gpu/kernels/kernels.hpp"

namespace llminfer::gpu::LLMINFER_GPU_TARGET {
namespace {

constexpr int kThreads = 128;
constexpr int kFeatures = 2;  ///< per group of lanes, so that the activations are unpacked once for both
constexpr int kBlockFeatures = kThreads / 32 * kFeatures;

/// Of __launch_bounds__, by which registers are given out: blocks per multiprocessor, but for HIP waves per SIMD.
#if defined(__HIP__)
template <int kRows>
inline constexpr int kResident = kRows == kFewRows ? 3 : 4;
#else
template <int kRows>
inline constexpr int kResident = 4;
#endif

/// sums[f][r] = in[r] * m[first + f]^T, in all lanes. What lies past the end is computed as the last one.
template <Form kForm, int kRows>
__device__ __forceinline__ void multiply(const MatrixArgs& m, const uint16_t* in, int rows, int first,
                                         const float* table, float (&sums)[kFeatures][kRows]) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int f = 0; f < kFeatures; ++f) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) sums[f][r] = 0.0f;
  }
  const int last = m.rows - 1;
  // Reads under way at once; more would not fit the registers. g++ knows no such pragma.
  [[maybe_unused]] constexpr int kTurns = kRows == 1 ? 2 : 1;
#pragma unroll kTurns
  for (int chunk = lane; chunk < m.cols / 8; chunk += 32) {
    Eight w[kFeatures];
#pragma unroll
    for (int f = 0; f < kFeatures; ++f) w[f] = decode<kForm>(m, first + f < last ? first + f : last, chunk, table);
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      float x[8], all = 0.0f;
      const int64_t row = r < rows ? r : rows - 1;
      unpack_halves(reinterpret_cast<const uint4*>(in)[row * (m.cols / 8) + chunk], x);
#pragma unroll
      for (int i = 0; i < 8; ++i) all += x[i];
#pragma unroll
      for (int f = 0; f < kFeatures; ++f) {
        float dot = 0.0f;
#pragma unroll
        for (int i = 0; i < 8; ++i) dot += w[f].value[i] * x[i];
        sums[f][r] += w[f].scale * dot - w[f].offset * all;
      }
    }
  }
#pragma unroll
  for (int f = 0; f < kFeatures; ++f) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) sums[f][r] = sum_of_lanes(sums[f][r]);
  }
}

template <Form kForm, int kRows>
__global__ void __launch_bounds__(kThreads, kResident<kRows>) linear_few_kernel(LinearArgs a) {
  __shared__ float table[16];
  if constexpr (kForm == Form::table4) {
    if (threadIdx.x < 16) table[threadIdx.x] = a.weight.table[threadIdx.x];
    __syncthreads();
  }
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int first = static_cast<int>(blockIdx.x) * kBlockFeatures + static_cast<int>(threadIdx.x) / 32 * kFeatures;
  for (int f = first; f < first + kFeatures && f < a.weight.rows; ++f) {
    prefetch_row<kForm>(a.weight, f, lane);
    if (a.up.rows > 0) prefetch_row<kForm>(a.up, f, lane);
  }
  after_former();
  if (first >= a.weight.rows) return;
  float sums[kFeatures][kRows], ups[kFeatures][kRows];
  multiply<kForm, kRows>(a.weight, a.in, a.rows, first, table, sums);
  if (a.up.rows > 0) multiply<kForm, kRows>(a.up, a.in, a.rows, first, table, ups);
    // Every lane has all sums; lane r finishes row r.
#pragma unroll
  for (int f = 0; f < kFeatures; ++f) {
    const int feature = first + f;
    if (feature >= a.weight.rows) break;
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      if (r >= a.rows || lane != r) continue;
      float value = sums[f][r] * a.in_scales[r] * a.weight.factors[feature] + (a.bias ? a.bias[feature] : 0.0f);
      if (a.up.rows > 0) {
        const float up = ups[f][r] * a.in_scales[r] * a.up.factors[feature] + (a.up_bias ? a.up_bias[feature] : 0.0f);
        value = gated(a.activation, value, up);
      }
      if (a.residual.data) value += a.residual.data[r * a.residual.stride + feature];
      a.out.data[r * a.out.stride + feature] = value;
    }
  }
}

}  // namespace

int linear_few(void* stream, const LinearArgs& args) {
  const Grid grid{static_cast<unsigned>((args.weight.rows + kBlockFeatures - 1) / kBlockFeatures)};
  return with_form(args.weight.form, [&]<Form kForm>() {
    if (args.rows == 1) return launch(stream, grid, kThreads, linear_few_kernel<kForm, 1>, args);
    if (args.rows <= 4) return launch(stream, grid, kThreads, linear_few_kernel<kForm, 4>, args);
    return launch(stream, grid, kThreads, linear_few_kernel<kForm, kFewRows>, args);
  });
}

}  // namespace llminfer::gpu::LLMINFER_GPU_TARGET
