// Linear layers of many rows (prefill): blocks of 64 rows by 64 output features on matrix units. Weights are decoded to
// halves on their way into shared memory; the next tiles are read while the present ones are multiplied.
#include "backends/gpu/kernels/experts.hpp"
#include "backends/gpu/kernels/kernels.hpp"
#include "backends/gpu/kernels/mma.hpp"

namespace llminfer::gpu::LLMINFER_GPU_TARGET {
namespace {

constexpr int kThreads = 128;
constexpr int kTile = kBlockRows;    ///< rows, and features
constexpr int kDepth = 32;           ///< columns at a time
constexpr int kStride = kDepth + 8;  ///< halves; keeps 16-byte writes and fragment reads off each other's banks
constexpr int kChunks = kTile * (kDepth / 8) / kThreads;  ///< eights of columns per thread and tile

/// A tile of rows and output features. `kWaits`: nothing has been read yet but `a`, and former kernels may still run.
template <Form kForm, bool kWaits>
__device__ __forceinline__ void compute(const LinearArgs& a, int first_row, int first_feature, const float* table) {
  __shared__ LLMINFER_ALIGNED uint16_t left[kTile * kStride];
  __shared__ LLMINFER_ALIGNED uint16_t right[kTile * kStride];
  constexpr int kWaves = kThreads / kMmaLanes;
  constexpr int kRowTiles = 2, kColTiles = 2 * 4 / kWaves;  // of 16; two waves side by side in rows
  const int thread = static_cast<int>(threadIdx.x), wave = thread / kMmaLanes;
  const int wave_row = wave % 2 * 32, wave_col = wave / 2 * kColTiles * 16;
  Accumulator sums[kRowTiles][kColTiles];
#pragma unroll
  for (int i = 0; i < kRowTiles; ++i) {
#pragma unroll
    for (int j = 0; j < kColTiles; ++j) clear(sums[i][j]);
  }
  uint4 next_left[kChunks], next_right[kChunks];
  // Lines past the end are read from the last one and never written out.
  const auto fetch_features = [&](int column) {
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      const int item = thread + c * kThreads, line = item / (kDepth / 8), chunk = column / 8 + item % (kDepth / 8);
      const int feature = first_feature + line < a.weight.rows ? first_feature + line : a.weight.rows - 1;
      if constexpr (kForm == Form::f16) {
        next_right[c] =
            static_cast<const uint4*>(a.weight.high)[static_cast<int64_t>(feature) * (a.weight.cols / 8) + chunk];
      } else {
        Eight e = decode<kForm>(a.weight, feature, chunk, table);
#pragma unroll
        for (int i = 0; i < 8; ++i) e.value[i] = e.value[i] * e.scale - e.offset;
        next_right[c] = pack_halves(e.value);
      }
    }
  };
  const auto fetch_rows = [&](int column) {
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      const int item = thread + c * kThreads, line = item / (kDepth / 8), chunk = column / 8 + item % (kDepth / 8);
      const int row = first_row + line < a.rows ? first_row + line : a.rows - 1;
      next_left[c] = reinterpret_cast<const uint4*>(a.in)[static_cast<int64_t>(row) * (a.weight.cols / 8) + chunk];
    }
  };
  fetch_features(0);
  if constexpr (kWaits) after_former();
  fetch_rows(0);
  for (int column = 0; column < a.weight.cols; column += kDepth) {
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      const int item = thread + c * kThreads, at = item / (kDepth / 8) * kStride + item % (kDepth / 8) * 8;
      *reinterpret_cast<uint4*>(left + at) = next_left[c];
      *reinterpret_cast<uint4*>(right + at) = next_right[c];
    }
    __syncthreads();
    if (column + kDepth < a.weight.cols) {
      fetch_features(column + kDepth);
      fetch_rows(column + kDepth);
    }
#pragma unroll
    for (int k = 0; k < kDepth; k += 16) {
      FragmentA rows[kRowTiles];
#pragma unroll
      for (int i = 0; i < kRowTiles; ++i) load(rows[i], left + (wave_row + 16 * i) * kStride + k, kStride);
#pragma unroll
      for (int j = 0; j < kColTiles; ++j) {
        FragmentB features;
        load(features, right + (wave_col + 16 * j) * kStride + k, kStride);
#pragma unroll
        for (int i = 0; i < kRowTiles; ++i) mma(sums[i][j], rows[i], features);
      }
    }
    __syncthreads();
  }
#pragma unroll
  for (int i = 0; i < kRowTiles; ++i) {
#pragma unroll
    for (int j = 0; j < kColTiles; ++j) {
      for_each(sums[i][j], [&](int r, int c, float value) {
        const int row = first_row + wave_row + 16 * i + r, feature = first_feature + wave_col + 16 * j + c;
        if (row >= a.rows || feature >= a.weight.rows) return;
        value = value * a.in_scales[row] * a.weight.factors[feature] + (a.bias ? a.bias[feature] : 0.0f);
        if (a.residual.data) value += a.residual.data[row * a.residual.stride + feature];
        a.out.data[row * a.out.stride + feature] = value;
      });
    }
  }
}

template <Form kForm>
__global__ void __launch_bounds__(kThreads) linear_many_kernel(LinearArgs a) {
  __shared__ float table[16];
  if constexpr (kForm == Form::table4) {
    if (threadIdx.x < 16) table[threadIdx.x] = a.weight.table[threadIdx.x];
    __syncthreads();
  }
  compute<kForm, true>(a, static_cast<int>(blockIdx.y) * kTile, static_cast<int>(blockIdx.x) * kTile, table);
}

template <Form kForm>
__global__ void __launch_bounds__(kThreads) experts_many_kernel(ExpertsArgs a) {
  __shared__ LinearArgs layer;
  __shared__ float table[16];
  after_former();
  if (take_tile<kForm>(a, layer, table)) compute<kForm, false>(layer, 0, static_cast<int>(blockIdx.y) * kTile, table);
}

}  // namespace

int linear_many(void* stream, const LinearArgs& args) {
  const Grid grid{static_cast<unsigned>((args.weight.rows + kTile - 1) / kTile),
                  static_cast<unsigned>((args.rows + kTile - 1) / kTile)};
  return with_form(args.weight.form,
                   [&]<Form kForm>() { return launch(stream, grid, kThreads, linear_many_kernel<kForm>, args); });
}
int experts_many(void* stream, const ExpertsArgs& args) {
  const Grid grid{static_cast<unsigned>(args.tile_count), static_cast<unsigned>((args.features + kTile - 1) / kTile)};
  return with_form(args.form,
                   [&]<Form kForm>() { return launch(stream, grid, kThreads, experts_many_kernel<kForm>, args); });
}

}  // namespace llminfer::gpu::LLMINFER_GPU_TARGET
