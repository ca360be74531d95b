// Linear layers of many rows (prefill): blocks of 64 rows by 64 output features on matrix units. Weights are decoded to
// halves on their way into shared memory; the next tiles are read while the present ones are multiplied. Of rows and
// weights of bytes, two lie where a half would.
#include "backends/gpu/kernels/copies.hpp"
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
/// Sum int32_t: of bytes_as_halves().
template <Form kForm, bool kWaits, class Sum = float>
__device__ __forceinline__ void compute(const LinearArgs& a, int first_row, int first_feature, const float* table) {
  __shared__ LLMINFER_ALIGNED uint16_t left[kTile * kStride];
  __shared__ LLMINFER_ALIGNED uint16_t right[kTile * kStride];
  constexpr int kWaves = kThreads / kMmaLanes;
  constexpr int kRowTiles = 2, kColTiles = 2 * 4 / kWaves;  // of 16; two waves side by side in rows
  const int thread = static_cast<int>(threadIdx.x), wave = thread / kMmaLanes;
  const int wave_row = wave % 2 * 32, wave_col = wave / 2 * kColTiles * 16;
  Accumulator<Sum> sums[kRowTiles][kColTiles];
#pragma unroll
  for (int i = 0; i < kRowTiles; ++i) {
#pragma unroll
    for (int j = 0; j < kColTiles; ++j) clear(sums[i][j]);
  }
  uint4 next_left[kChunks], next_right[kChunks];
  const int chunks = a.weight.cols / 8;
  const auto at = [&](int line, int chunk) { return static_cast<int64_t>(line) * chunks + chunk; };
  const auto exists = [&](int chunk) { return !kOfBytes<Sum> || chunk < chunks; };  // halves have whole kDepths
  // Lines past the end are read from the last one and never written out.
  const auto fetch_features = [&](int column) {
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      const int item = thread + c * kThreads, line = item / (kDepth / 8), chunk = column / 8 + item % (kDepth / 8);
      const int feature = first_feature + line < a.weight.rows ? first_feature + line : a.weight.rows - 1;
      if constexpr (kOfBytes<Sum>) {
        const uint4 codes = exists(chunk) ? static_cast<const uint4*>(a.weight.high)[at(feature, chunk)] : uint4{};
        next_right[c] = {signed_bytes(codes.x), signed_bytes(codes.y), signed_bytes(codes.z), signed_bytes(codes.w)};
      } else if constexpr (kForm == Form::f16) {
        next_right[c] = static_cast<const uint4*>(a.weight.high)[at(feature, chunk)];
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
      next_left[c] = exists(chunk) ? reinterpret_cast<const uint4*>(a.in)[at(row, chunk)] : uint4{};
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
      for_each(sums[i][j], [&](int r, int c, Sum sum) {
        const int row = first_row + wave_row + 16 * i + r, feature = first_feature + wave_col + 16 * j + c;
        if (row >= a.rows || feature >= a.weight.rows) return;
        float value = end_of_sums<Sum>(a, feature).value(sum, a.in_scales[row]) + (a.bias ? a.bias[feature] : 0.0f);
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

__global__ void __launch_bounds__(kThreads) linear_many_bytes_kernel(LinearArgs a) {
#if !defined(LLMINFER_GPU_COPY_CODE) || defined(LLMINFER_GPU_EMULATED)  // else linear_stages has come
  compute<Form::f16, true, int32_t>(a, static_cast<int>(blockIdx.y) * kTile, static_cast<int>(blockIdx.x) * kTile,
                                    nullptr);
#endif
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
  if (args.codes) return launch(stream, grid, kThreads, linear_many_bytes_kernel, bytes_as_halves(args));
  return with_form(args.weight.form,
                   [&]<Form kForm>() { return launch(stream, grid, kThreads, linear_many_kernel<kForm>, args); });
}
int experts_many(void* stream, const ExpertsArgs& args) {
  const Grid grid{static_cast<unsigned>(args.tile_count), static_cast<unsigned>((args.features + kTile - 1) / kTile)};
  return with_form(args.form,
                   [&]<Form kForm>() { return launch(stream, grid, kThreads, experts_many_kernel<kForm>, args); });
}

}  // namespace llminfer::gpu::LLMINFER_GPU_TARGET
