// What a block does of writing keys and values, and of attention of single rows over pages: keys are split over blocks
// ("flash decoding"), so that a long context fills the machine, and a second kernel puts the parts together. Online
// softmax (Milakov and Gimelshein 2018), page by page. How many threads a block has changes nothing in the results.
#pragma once

#include "backends/gpu/kernels/cache.hpp"
#include "backends/gpu/kernels/kernels.hpp"

namespace llminfer::gpu::LLMINFER_GPU_TARGET {

constexpr int kMaxHeads = 8;        ///< query heads of one KV head that a block serves
constexpr int kQueryFloats = 2048;  ///< of all of them: fewer heads where they are wide

template <int kThreads>
__host__ __device__ __forceinline__ Grid grid_of(const StoreArgs& a) {
  const int64_t items = int64_t{a.rows} * (a.heads + 2 * a.cache.kv_heads);
  return {static_cast<unsigned>((items + kThreads / 32 - 1) / (kThreads / 32))};
}

/// 32 lanes per vector: the row's query heads, then its keys, then its values.
template <int kThreads>
__device__ __forceinline__ void store_block(const StoreArgs& a, int block) {
  const int64_t item = static_cast<int64_t>(block) * (kThreads / 32) + threadIdx.x / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32, dim = a.cache.head_dim;
  const int vectors = a.heads + 2 * a.cache.kv_heads;
  if (item >= static_cast<int64_t>(a.rows) * vectors) return;
  const int row = static_cast<int>(item / vectors), vector = static_cast<int>(item % vectors);
  const int position = a.tables.positions[row], slot = position % kPageSlots;
  if (position < 0) return;
  if (vector < a.heads) {
    const float* q = a.q.data + row * a.q.stride + vector * dim;
    float* out = a.q_out.data + row * a.q_out.stride + vector * dim;
    for (int i = lane; i < dim; i += 32) out[i] = rotated(a.q_rope, row, q, i) * a.scale;
    return;
  }
  const bool is_key = vector < a.heads + a.cache.kv_heads;
  const int head = (vector - a.heads) % a.cache.kv_heads;
  const RowsArgs& from = is_key ? a.k : a.v;
  const RopeArgs rope = is_key ? a.k_rope : RopeArgs{nullptr, 0, 0};
  const float* in = from.data + row * from.stride + head * dim;
  const HeadPage page = page_of(a.cache, a.tables, row, position / kPageSlots, head);
  float inverse = 1.0f;
  if (has_scales(a.cache.element)) {
    float most = 0.0f;
    for (int i = lane; i < dim; i += 32) most = largest(most, absolute(rotated(rope, row, in, i)));
    const float scale = scale_of(a.cache.element, largest_of_lanes(most));
    inverse = scale > 0.0f ? 1.0f / scale : 0.0f;
    if (lane == 0) reinterpret_cast<float*>(page.scales)[(is_key ? 0 : kPageSlots) + slot] = scale;
  }
  for (int i = lane; i < a.cache.padded_dim; i += 32) {
    store_one(a.cache.element, is_key ? page.keys : page.values, slot * a.cache.padded_dim + i,
              i < dim ? rotated(rope, row, in, i) : 0.0f, inverse);
  }
}

/// One block per page and KV head: a range for each dimension of the keys and for each value, then the codes.
template <int kThreads>
__device__ __forceinline__ void seal_block(const SealArgs& a, int number, int head) {
  const SealTask task = a.tasks ? a.tasks[number] : a.task;
  if (task.open == 0) return;
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32;
  const int dim = a.cache.head_dim, padded = a.cache.padded_dim;
  const float* keys = reinterpret_cast<const float*>(open_head_of(a.cache, task.open, head));
  const float* values = keys + kPageSlots * padded;
  unsigned char* out = head_of(a.cache, task.page, head);
  uint32_t* key_ranges = reinterpret_cast<uint32_t*>(out + a.cache.scale_offset);
  uint32_t* value_ranges = key_ranges + padded;
  for (int d = thread; d < padded; d += kThreads) {
    Extent extent;
    for (int slot = 0; slot < kPageSlots; ++slot) extent.add(keys[slot * padded + d]);
    key_ranges[d] = range_of(extent);
  }
  for (int slot = thread / 32; slot < kPageSlots; slot += kThreads / 32) {
    Extent extent;
    for (int d = lane; d < dim; d += 32) extent.add(values[slot * padded + d]);
    extent.low = -largest_of_lanes(-extent.low);
    extent.high = largest_of_lanes(extent.high);
    if (lane == 0) value_ranges[slot] = range_of(extent);
  }
  __syncthreads();
  uint32_t* key_codes = reinterpret_cast<uint32_t*>(out);
  uint32_t* value_codes = reinterpret_cast<uint32_t*>(out + a.cache.value_offset);
  for (int i = thread; i < kPageSlots * padded / 8; i += kThreads) {
    const int slot = 8 * i / padded, d = 8 * i % padded;
    uint32_t key = 0, value = 0;
#pragma unroll
    for (int e = 0; e < 8; ++e) {
      key |= code_of(key_ranges[d + e], keys[8 * i + e]) << (4 * e);
      value |= code_of(value_ranges[slot], values[8 * i + e]) << (4 * e);
    }
    key_codes[i] = key;
    value_codes[i] = value;
  }
}

/// Query heads that share a block; the KV head's others go to other blocks.
__device__ __host__ __forceinline__ int heads_of_block(int group, int padded_dim) {
  int heads = kQueryFloats / padded_dim;
  heads = heads < 1 ? 1 : heads > kMaxHeads ? kMaxHeads : heads;
  return heads < group ? heads : group;
}

__host__ __device__ __forceinline__ Grid grid_of(const SealArgs& a) {
  return {static_cast<unsigned>(a.count), static_cast<unsigned>(a.cache.kv_heads)};
}
__host__ __device__ __forceinline__ Grid grid_of(const AttendArgs& a) {
  const int group = a.heads / a.cache.kv_heads, block_heads = heads_of_block(group, a.cache.padded_dim);
  return {static_cast<unsigned>(a.rows),
          static_cast<unsigned>(a.cache.kv_heads * ((group + block_heads - 1) / block_heads)),
          static_cast<unsigned>(a.splits)};
}
/// Of the blocks that put its parts together.
__host__ __device__ __forceinline__ Grid combine_grid_of(const AttendArgs& a) {
  return {static_cast<unsigned>(a.rows), static_cast<unsigned>(a.heads)};
}

/// A block's shared memory.
struct AttendMemory {
  LLMINFER_ALIGNED float q[kQueryFloats];    ///< [heads][padded_dim]
  LLMINFER_ALIGNED float out[kQueryFloats];  ///< likewise
  float scores[kMaxHeads][kPageSlots];
  float most[kMaxHeads], sum[kMaxHeads], rescale[kMaxHeads];
};

/// A split of some heads' attention: Grid's x is the row, y the heads, z the split.
template <CacheElement kElement, int kThreads>
__device__ __forceinline__ void attend_block(const AttendArgs& a, const Grid& place, AttendMemory& memory) {
  auto& [q, out, scores, most, sum, rescale] = memory;
  constexpr int kParts = kThreads / kPageSlots;  // threads per key
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32;
  const int row = a.first_row + static_cast<int>(place.x), split = static_cast<int>(place.z);
  const int dim = a.cache.head_dim, padded = a.cache.padded_dim;
  const int group = a.heads / a.cache.kv_heads, block_heads = heads_of_block(group, padded);
  const int blocks = (group + block_heads - 1) / block_heads;
  const int kv_head = static_cast<int>(place.y) / blocks;
  const int first_head = kv_head * group + static_cast<int>(place.y) % blocks * block_heads;
  const int left = (kv_head + 1) * group - first_head, heads = left < block_heads ? left : block_heads;
  const int last = a.tables.positions[row], first = a.window > 0 && last >= a.window ? last - a.window + 1 : 0;
  if (last < 0) return;
  const int begin = first / kPageSlots + split * a.pages_per_split;
  int end = begin + a.pages_per_split;
  if (end > last / kPageSlots + 1) end = last / kPageSlots + 1;

  for (int i = thread; i < heads * padded; i += kThreads) {
    const int head = i / padded, d = i % padded;
    q[i] = d < dim ? a.q.data[row * a.q.stride + (first_head + head) * dim + d] : 0.0f;
    out[i] = 0.0f;
  }
  if (thread < heads) {
    most[thread] = -infinity();
    sum[thread] = 0.0f;
  }
  __syncthreads();

  for (int index = begin; index < end; ++index) {
    const HeadPage page = page_of(a.cache, a.tables, row, index, kv_head);
    // Scores: the threads of a key share out the heads.
    {
      const int slot = thread % kPageSlots, part = thread / kPageSlots, position = index * kPageSlots + slot;
      const bool seen = position >= first && position <= last;
      float dots[kMaxHeads / kParts] = {};
      if (seen) {
        for (int d = 0; d < padded; d += 8) {
          float key[8];
          load_eight<kElement>(page, false, slot, d, key);
#pragma unroll
          for (int h = 0; h < kMaxHeads / kParts; ++h) {
            if (kParts * h + part >= heads) break;
#pragma unroll
            for (int i = 0; i < 8; ++i) dots[h] += key[i] * q[(kParts * h + part) * padded + d + i];
          }
        }
      }
#pragma unroll
      for (int h = 0; h < kMaxHeads / kParts; ++h) {
        if (kParts * h + part < heads) scores[kParts * h + part][slot] = seen ? dots[h] : -infinity();
      }
    }
    __syncthreads();
    // Softmax so far: 32 lanes per head. Each page has a key that is seen, so that the largest score is a number.
    for (int head = thread / 32; head < heads; head += kThreads / 32) {
      const float a0 = scores[head][lane], a1 = scores[head][lane + 32];
      const float old = most[head], now = largest(old, largest_of_lanes(largest(a0, a1)));
      const float e0 = exp(a0 - now), e1 = exp(a1 - now);
      const float all = sum_of_lanes(e0 + e1);
      scores[head][lane] = e0;
      scores[head][lane + 32] = e1;
      if (lane == 0) {
        rescale[head] = exp(old - now);
        sum[head] = sum[head] * rescale[head] + all;
        most[head] = now;
      }
    }
    __syncthreads();
    for (int i = thread; i < heads * dim; i += kThreads) {
      const int head = i / dim, d = i % dim;
      float value = out[head * padded + d] * rescale[head];
      const int from = index * kPageSlots < first ? first - index * kPageSlots : 0;
      const int to = last - index * kPageSlots < kPageSlots ? last - index * kPageSlots + 1 : kPageSlots;
      for (int slot = from; slot < to; ++slot) value += scores[head][slot] * load_value<kElement>(page, slot, d);
      out[head * padded + d] = value;
    }
    __syncthreads();
  }

  for (int i = thread; i < heads * dim; i += kThreads) {
    const int head = i / dim, d = i % dim;
    if (a.splits == 1) {
      a.out.data[row * a.out.stride + (first_head + head) * dim + d] =
          out[head * padded + d] / divisor_of(a.sinks, first_head + head, most[head], sum[head]);
    } else {
      float* part =
          a.parts + ((static_cast<int64_t>(place.x) * a.heads + first_head + head) * a.splits + split) * (dim + 2);
      part[2 + d] = out[head * padded + d];
      if (d == 0) {
        part[0] = most[head];
        part[1] = sum[head];
      }
    }
  }
}

/// Puts the parts of a row's head together.
template <int kThreads>
__device__ __forceinline__ void combine_block(const AttendArgs& a, int number, int head) {
  const int dim = a.cache.head_dim, row = a.first_row + number;
  if (a.tables.positions[row] < 0) return;
  const float* parts = a.parts + (static_cast<int64_t>(number) * a.heads + head) * a.splits * (dim + 2);
  float most = -infinity();
  for (int s = 0; s < a.splits; ++s) most = largest(most, parts[s * (dim + 2)]);
  for (int d = static_cast<int>(threadIdx.x); d < dim; d += kThreads) {
    float sum = 0.0f, value = 0.0f;
    for (int s = 0; s < a.splits; ++s) {
      const float* part = parts + s * (dim + 2);
      const float weight = exp(part[0] - most);  // 0 for a part that has no keys
      sum += weight * part[1];
      value += weight * part[2 + d];
    }
    a.out.data[row * a.out.stride + head * dim + d] = value / divisor_of(a.sinks, head, most, sum);
  }
}

}  // namespace llminfer::gpu::LLMINFER_GPU_TARGET
