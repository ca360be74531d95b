// Attention of many rows of one sequence: a block takes up to 64 queries of one head and goes over the keys 32 at a
// time, both products on matrix units, the softmax online (FlashAttention-2, Dao 2023). Keys and values are rounded to
// halves.
#include "backends/gpu/kernels/cache.hpp"
#include "backends/gpu/kernels/kernels.hpp"
#include "backends/gpu/kernels/mma.hpp"

namespace llminfer::gpu::LLMINFER_GPU_TARGET {
namespace {

constexpr int kThreads = 128;
constexpr int kKeys = 32;  ///< per turn; half a page
/// Of the weights as halves, which are 1 at most, so that few are subnormal: MI200's matrix units take that for zero.
constexpr float kWeightUnit = 0x1p15f;

/// Eight cached elements as halves.
__device__ __forceinline__ uint4 load_halves(CacheElement element, const HeadPage& page, bool is_value, int slot,
                                             int d) {
  float x[8];
  switch (element) {
    case CacheElement::f16:
      return *reinterpret_cast<const uint4*>((is_value ? page.values : page.keys) + 2 * (slot * page.padded_dim + d));
    case CacheElement::bf16:
      load_eight<CacheElement::bf16>(page, is_value, slot, d, x);
      break;
    case CacheElement::int8:
      load_eight<CacheElement::int8>(page, is_value, slot, d, x);
      break;
    case CacheElement::int4:
      load_eight<CacheElement::int4>(page, is_value, slot, d, x);
      break;
    case CacheElement::e4m3:
      load_eight<CacheElement::e4m3>(page, is_value, slot, d, x);
      break;
    case CacheElement::f32:
      load_eight<CacheElement::f32>(page, is_value, slot, d, x);
      break;
  }
#pragma unroll
  for (int i = 0; i < 8; ++i) x[i] = x[i] > 65504.0f ? 65504.0f : x[i] < -65504.0f ? -65504.0f : x[i];
  return pack_halves(x);
}

template <int kDim>
__global__ void __launch_bounds__(kThreads) attend_tiles_kernel(AttendTilesArgs a) {
  constexpr int kStride = kDim + 8, kKeyStride = kKeys + 8, kScoreStride = kKeys + 4;
  constexpr int kKeyHalves = kKeys * kStride > kTileRows * kKeyStride ? kKeys * kStride : kTileRows * kKeyStride;
  __shared__ LLMINFER_ALIGNED uint16_t queries[kTileRows * kStride];
  __shared__ LLMINFER_ALIGNED uint16_t keys[kKeyHalves];  // [kKeys][kStride], then the weights [rows][kKeyStride]
  __shared__ LLMINFER_ALIGNED uint16_t values[kDim * kKeyStride];  // [dim][key]
  __shared__ LLMINFER_ALIGNED float scores[kTileRows * kScoreStride];
  __shared__ float most[kTileRows], sum[kTileRows], rescale[kTileRows];
  constexpr int kWaves = kThreads / kMmaLanes, kRowTiles = kTileRows / 16 / kWaves, kDimTiles = kDim / 16;
  const int thread = static_cast<int>(threadIdx.x), wave_row = thread / kMmaLanes * kRowTiles * 16;
  after_former();
  const TileTask task = a.tasks[blockIdx.x];
  const int head = static_cast<int>(blockIdx.y), kv_head = head / (a.heads / a.cache.kv_heads);
  const int dim = a.cache.head_dim, padded = a.cache.padded_dim;
  const int first_position = a.tables.positions[task.first_row], last_position = first_position + task.rows - 1;

  for (int i = thread; i < kTileRows * kDim; i += kThreads) {
    const int r = i / kDim, d = i % kDim;
    const bool inside = r < task.rows && d < dim;
    queries[r * kStride + d] =
        inside ? float_to_half_saturated(a.q.data[(task.first_row + r) * a.q.stride + head * dim + d]) : uint16_t{0};
  }
  if (thread < kTileRows) {
    most[thread] = -infinity();
    sum[thread] = 0.0f;
  }
  Accumulator<float> out[kRowTiles][kDimTiles];
#pragma unroll
  for (int i = 0; i < kRowTiles; ++i) {
#pragma unroll
    for (int j = 0; j < kDimTiles; ++j) clear(out[i][j]);
  }

  const int first_seen = a.window > 0 && first_position >= a.window ? first_position - a.window + 1 : 0;
  for (int base = first_seen / kKeys * kKeys; base <= last_position; base += kKeys) {
    const HeadPage page = page_of(a.cache, a.tables, task.first_row, base / kPageSlots, kv_head);
    for (int i = thread; i < kKeys * (kDim / 8); i += kThreads) {
      const int key = i / (kDim / 8), d = i % (kDim / 8) * 8, slot = base % kPageSlots + key;
      uint4 k = {0, 0, 0, 0}, v = {0, 0, 0, 0};
      if (base + key <= last_position && d < padded) {  // what lies behind has never been written
        k = load_halves(a.cache.element, page, false, slot, d);
        v = load_halves(a.cache.element, page, true, slot, d);
      }
      *reinterpret_cast<uint4*>(keys + key * kStride + d) = k;
      const uint32_t word[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
      for (int e = 0; e < 8; ++e) {
        values[(d + e) * kKeyStride + key] = static_cast<uint16_t>(word[e / 2] >> (16 * (e % 2)) & 0xffffu);
      }
    }
    __syncthreads();

#pragma unroll
    for (int i = 0; i < kRowTiles; ++i) {
      // Wide fragments of several tiles at once would not fit the registers. g++ knows no such pragma.
      [[maybe_unused]] constexpr int kTurns = sizeof(FragmentA) > 16 ? 1 : kKeys / 16;
#pragma unroll kTurns
      for (int j = 0; j < kKeys / 16; ++j) {
        Accumulator<float> score;
        clear(score);
#pragma unroll
        for (int d = 0; d < kDim; d += 16) {
          FragmentA left;
          FragmentB right;
          load(left, queries + (wave_row + 16 * i) * kStride + d, kStride);
          load(right, keys + 16 * j * kStride + d, kStride);
          mma(score, left, right);
        }
        for_each(score, [&](int r, int c, float value) {
          scores[(wave_row + 16 * i + r) * kScoreStride + 16 * j + c] = value;
        });
      }
    }
    __syncthreads();

    {  // Two threads per row, one half of the keys each.
      const int r = thread / 2, part = thread % 2 * (kKeys / 2), position = first_position + r;
      const int first = a.window > 0 && position >= a.window ? position - a.window + 1 : 0;
      float* row = scores + r * kScoreStride + part;
      float best = -infinity();
#pragma unroll
      for (int i = 0; i < kKeys / 2; ++i) {
        const int key = base + part + i;
        if (key >= first && key <= position) best = largest(best, row[i]);
      }
      const float old = most[r];
      best = largest(old, largest(best, shuffle_xor(best, 1)));
      const float shift = best == -infinity() ? 0.0f : best;  // a row may see none of these keys
      float all = 0.0f;
#pragma unroll
      for (int i = 0; i < kKeys / 2; ++i) {
        const int key = base + part + i;
        const float weight = key >= first && key <= position ? exp(row[i] - shift) : 0.0f;
        all += weight;
        keys[r * kKeyStride + part + i] = float_to_half(weight * kWeightUnit);
      }
      all += shuffle_xor(all, 1);
      if (thread % 2 == 0) {
        rescale[r] = exp(old - shift);
        sum[r] = sum[r] * rescale[r] + all;
        most[r] = best;
      }
    }
    __syncthreads();

#pragma unroll
    for (int i = 0; i < kRowTiles; ++i) {
#pragma unroll
      for (int j = 0; j < kDimTiles; ++j) {
        for_each(out[i][j], [&](int r, int, float& value) { value *= rescale[wave_row + 16 * i + r]; });
#pragma unroll
        for (int k = 0; k < kKeys; k += 16) {
          FragmentA left;
          FragmentB right;
          load(left, keys + (wave_row + 16 * i) * kKeyStride + k, kKeyStride);
          load(right, values + 16 * j * kKeyStride + k, kKeyStride);
          mma(out[i][j], left, right);
        }
      }
    }
    __syncthreads();
  }
  if (thread < kTileRows) sum[thread] = divisor_of(a.sinks, head, most[thread], sum[thread]);
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kRowTiles; ++i) {
#pragma unroll
    for (int j = 0; j < kDimTiles; ++j) {
      for_each(out[i][j], [&](int r, int c, float& value) {
        const int row = wave_row + 16 * i + r, d = 16 * j + c;
        if (row >= task.rows || d >= dim) return;
        a.out.data[(task.first_row + row) * a.out.stride + head * dim + d] = value / sum[row] * (1.0f / kWeightUnit);
      });
    }
  }
}

}  // namespace

int attend_tiles(void* stream, const AttendTilesArgs& args) {
  const Grid grid{static_cast<unsigned>(args.task_count), static_cast<unsigned>(args.heads)};
  const int dim = args.cache.padded_dim;
  if (dim <= 32) return launch(stream, grid, kThreads, attend_tiles_kernel<32>, args);
  if (dim <= 64) return launch(stream, grid, kThreads, attend_tiles_kernel<64>, args);
  if (dim <= 96) return launch(stream, grid, kThreads, attend_tiles_kernel<96>, args);
  return launch(stream, grid, kThreads, attend_tiles_kernel<kMaxTileDim>, args);
}

}  // namespace llminfer::gpu::LLMINFER_GPU_TARGET
