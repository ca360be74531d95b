// Candidates: the highest logits of a row, in order, the sum of their exponentials, and a token that is drawn from all of
// them, without sorting the vocabulary. Slices of a row each give their best and their sums; one block per row chooses
// among these. A candidate is a key of 64 bits, no two of them equal, so that nothing depends on who comes first.
#include "backends/gpu/kernels/kernels.hpp"

namespace llminfer::gpu::LLMINFER_GPU_TARGET {
namespace {

constexpr int kSliceThreads = 256, kMergeThreads = 512;
constexpr int kSliceKeys = 16, kMergeKeys = 8;  ///< of a thread
static_assert(kSliceThreads * kSliceKeys == kCandidateSlice);
constexpr int kPartSums = 3;  ///< CandidatesArgs::part_sums of a slice

/// Greater for a higher logit, and among equal ones for a lower token; 0 for NaN and -infinity.
__device__ __forceinline__ uint64_t key_of(float logit, int token) {
  uint32_t bits = float_to_bits(logit);
  if ((bits & 0x7fffffffu) > 0x7f800000u || bits == 0xff800000u) return 0;
  if (bits == 0x80000000u) bits = 0;  // -0 equals 0
  bits = bits >> 31 ? ~bits : bits | 0x80000000u;
  return static_cast<uint64_t>(bits) << 32 | ~static_cast<uint32_t>(token);
}
__device__ __forceinline__ int token_of(uint64_t key) { return static_cast<int>(~static_cast<uint32_t>(key)); }
__device__ __forceinline__ float logit_of(uint64_t key) {
  const uint32_t bits = static_cast<uint32_t>(key >> 32);
  return bits_to_float(bits >> 31 ? bits & 0x7fffffffu : ~bits);
}

/// The greatest key of a block, in all threads. `shared` has kThreads / 32 keys.
template <int kThreads>
__device__ __forceinline__ uint64_t greatest_of_block(uint64_t key, uint64_t* shared) {
  for (int mask = 16; mask > 0; mask /= 2) {
    const uint32_t high = float_to_bits(shuffle_xor(bits_to_float(static_cast<uint32_t>(key >> 32)), mask));
    const uint32_t low = float_to_bits(shuffle_xor(bits_to_float(static_cast<uint32_t>(key)), mask));
    const uint64_t other = static_cast<uint64_t>(high) << 32 | low;
    key = other > key ? other : key;
  }
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = key;
  __syncthreads();
  key = shared[0];
  for (int i = 1; i < kThreads / 32; ++i) key = shared[i] > key ? shared[i] : key;
  __syncthreads();
  return key;
}

/// The sum over a block, in thread 0, always in the same order. `shared` has kThreads numbers.
template <int kThreads>
__device__ __forceinline__ double double_sum_of_block(double x, double* shared) {
  const int thread = static_cast<int>(threadIdx.x);
  shared[thread] = x;
  for (int half = kThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (thread < half) shared[thread] += shared[thread + half];
  }
  if (thread == 0) x = shared[0];
  __syncthreads();
  return x;
}

template <int kThreads>
struct Shared {
  uint64_t greatest[kThreads / 32];
  float counts[kThreads / 32];
  double sums[kThreads];
  int selected[kThreads];
};

/// The lowest of the `count` greatest keys of the block, of which each thread has some; if there are fewer above 0,
/// then 1. Bit by bit from the highest one, until just so many keys are above.
template <int kThreads, int kKeys>
__device__ __forceinline__ uint64_t lowest_of_best(const uint64_t (&keys)[kKeys], int count, Shared<kThreads>& shared) {
  uint64_t lowest = 0;
#pragma unroll 1
  for (int bit = 63; bit >= 0; --bit) {
    const uint64_t next = lowest | uint64_t{1} << bit;
    int above = 0;
#pragma unroll
    for (int i = 0; i < kKeys; ++i) above += keys[i] >= next ? 1 : 0;
    const int all = static_cast<int>(sum_of_block<kThreads>(static_cast<float>(above), shared.counts));
    if (all >= count) lowest = next;
    if (all == count) break;
  }
  return lowest > 0 ? lowest : 1;
}

/// Puts the `count` greatest keys, or as many as there are above 0, at the beginning of `out`, and zeros after them.
template <int kThreads, int kKeys>
__device__ __forceinline__ void write_best(const uint64_t (&keys)[kKeys], int count, uint64_t* out,
                                           Shared<kThreads>& shared) {
  const int thread = static_cast<int>(threadIdx.x);
  const uint64_t lowest = lowest_of_best<kThreads, kKeys>(keys, count, shared);
  int mine = 0;
#pragma unroll
  for (int i = 0; i < kKeys; ++i) mine += keys[i] >= lowest ? 1 : 0;
  shared.selected[thread] = mine;
  const float of_lanes = sum_of_lanes(static_cast<float>(mine));
  if (thread % 32 == 0) shared.counts[thread / 32] = of_lanes;
  __syncthreads();
  int at = 0, all = 0;
  for (int i = 0; i < kThreads / 32; ++i) {
    const int group = static_cast<int>(shared.counts[i]);
    if (i < thread / 32) at += group;
    all += group;
  }
  for (int i = thread / 32 * 32; i < thread; ++i) at += shared.selected[i];
#pragma unroll
  for (int i = 0; i < kKeys; ++i) {
    if (keys[i] >= lowest) out[at++] = keys[i];
  }
  for (int i = all + thread; i < count; i += kThreads) out[i] = 0;
  __syncthreads();
}

template <int kKeys>
__device__ __forceinline__ uint64_t greatest_of(const uint64_t (&keys)[kKeys]) {
  uint64_t most = 0;
#pragma unroll
  for (int i = 0; i < kKeys; ++i) most = keys[i] > most ? keys[i] : most;
  return most;
}

__device__ __forceinline__ double double_of(const uint32_t (&halves)[2]) {
  double x;
  __builtin_memcpy(&x, halves, sizeof x);
  return x;
}

__device__ __forceinline__ int slices_of(const CandidatesArgs& a) {
  return (a.tokens + kCandidateSlice - 1) / kCandidateSlice;
}

/// A block per slice and row.
__global__ void __launch_bounds__(kSliceThreads) slice_kernel(CandidatesArgs a) {
  __shared__ Shared<kSliceThreads> shared;
  const int row = static_cast<int>(blockIdx.y), slice = static_cast<int>(blockIdx.x);
  after_former();
  const CandidateTask task = a.tasks[row];
  if (task.count == 0) return;
  const float* in = a.in.data + row * a.in.stride;
  uint64_t keys[kSliceKeys];
#pragma unroll
  for (int i = 0; i < kSliceKeys; ++i) {
    const int token = slice * kCandidateSlice + i * kSliceThreads + static_cast<int>(threadIdx.x);
    keys[i] = token < a.tokens ? key_of(in[token], token) : 0;
  }
  const int64_t place = static_cast<int64_t>(row) * slices_of(a) + slice;
  uint64_t* out = a.parts + place * kMaxCandidates;
  uint64_t greatest = 0;
  if (task.count == 1 || task.sum >= 0 || task.draw >= 0) {
    greatest = greatest_of_block<kSliceThreads>(greatest_of(keys), shared.greatest);
  }
  if (task.count > 1) {
    write_best<kSliceThreads, kSliceKeys>(keys, task.count, out, shared);
  } else if (threadIdx.x == 0) {
    out[0] = greatest;
  }
  if (task.sum < 0 && task.draw < 0) return;
  const double most = static_cast<double>(logit_of(greatest));
  const auto sum_at = [&](double temperature) {
    double sum = 0.0;
#pragma unroll
    for (int i = 0; i < kSliceKeys; ++i) {
      if (keys[i] != 0) sum += exp((static_cast<double>(logit_of(keys[i])) - most) / temperature);
    }
    return double_sum_of_block<kSliceThreads>(sum, shared.sums);
  };
  double* sums = a.part_sums + kPartSums * place;
  if (threadIdx.x == 0) sums[2] = most;
  if (task.sum >= 0) {
    const double sum = sum_at(1.0);
    if (threadIdx.x == 0) sums[0] = sum;
  }
  if (task.draw >= 0) {
    const double sum = sum_at(double_of(task.temperature));
    if (threadIdx.x == 0) sums[1] = sum;
  }
}

/// The token at the task's place: first its slice, then it. `most` is the highest logit of the row, `in`.
__device__ __forceinline__ void draw_token(const CandidatesArgs& a, const CandidateTask& task, int row, const float* in,
                                           double most, Shared<kMergeThreads>& shared) {
  constexpr int kTokens = kCandidateSlice / kMergeThreads;  ///< of a thread, one after the other
  __shared__ double all, target, before;
  __shared__ int chosen;
  const int thread = static_cast<int>(threadIdx.x), slices = slices_of(a);
  const double temperature = double_of(task.temperature);
  const double* parts = a.part_sums + kPartSums * static_cast<int64_t>(row) * slices;
  const auto weight_of = [&](int slice) {
    const double weight = slice < slices ? parts[kPartSums * slice + 1] : 0.0;
    return weight != 0.0 ? weight * exp((parts[kPartSums * slice + 2] - most) / temperature) : 0.0;
  };
  double sum = 0.0;
  for (int i = thread; i < slices; i += kMergeThreads) sum += weight_of(i);
  sum = double_sum_of_block<kMergeThreads>(sum, shared.sums);
  if (thread == 0) {
    a.draws[task.draw] = {-1, 0.0f, 0.0, 0.0, sum};
    all = sum;
    target = double_of(task.place) * sum;
    before = 0.0;
    chosen = -1;
  }
  for (int first = 0; first < slices; first += kMergeThreads) {
    shared.sums[thread] = weight_of(first + thread);
    __syncthreads();
    for (int i = 0; thread == 0 && chosen < 0 && i < kMergeThreads && first + i < slices; ++i) {
      if (before + shared.sums[i] > target) {
        chosen = first + i;
      } else {
        before += shared.sums[i];
      }
    }
    __syncthreads();
  }
  if (chosen < 0) return;
  const int begin = chosen * kCandidateSlice + thread * kTokens;
  double weights[kTokens], mine = 0.0;
#pragma unroll
  for (int i = 0; i < kTokens; ++i) {
    const bool exists = begin + i < a.tokens && key_of(in[begin + i], begin + i) != 0;
    weights[i] = exists ? exp((static_cast<double>(in[begin + i]) - most) / temperature) : 0.0;
    mine += weights[i];
  }
  // Sums of the threads up to each one (Hillis and Steele 1986).
  shared.sums[thread] = mine;
  for (int step = 1; step < kMergeThreads; step *= 2) {
    __syncthreads();
    const double lower = thread >= step ? shared.sums[thread - step] : 0.0;
    __syncthreads();
    shared.sums[thread] += lower;
  }
  __syncthreads();
  const float passed = before + shared.sums[thread] <= target ? 1.0f : 0.0f;
  if (thread != static_cast<int>(sum_of_block<kMergeThreads>(passed, shared.counts))) return;
  double below = before + (thread > 0 ? shared.sums[thread - 1] : 0.0);
#pragma unroll
  for (int i = 0; i < kTokens; ++i) {
    if (below + weights[i] > target) {
      a.draws[task.draw] = {begin + i, in[begin + i], below, weights[i], all};
      return;
    }
    below += weights[i];
  }
}

/// A block per row.
__global__ void __launch_bounds__(kMergeThreads) merge_kernel(CandidatesArgs a) {
  __shared__ Shared<kMergeThreads> shared;
  __shared__ uint64_t best[kMaxCandidates];
  const int row = static_cast<int>(blockIdx.x), thread = static_cast<int>(threadIdx.x);
  after_former();
  const CandidateTask task = a.tasks[row];
  if (task.count == 0) return;
  const int slices = slices_of(a), all = slices * task.count;
  const int64_t place = static_cast<int64_t>(row) * slices;
  const auto part = [&](int i) { return a.parts[(place + i / task.count) * kMaxCandidates + i % task.count]; };
  if (task.count == 1) {
    uint64_t most = 0;
    for (int i = thread; i < all; i += kMergeThreads) most = part(i) > most ? part(i) : most;
    most = greatest_of_block<kMergeThreads>(most, shared.greatest);
    if (thread == 0) best[0] = most;
    __syncthreads();
  } else {
    // As many keys as the block holds at a time, and with them the best of those before.
    for (int done = 0, kept = 0; done < all; kept = task.count) {
      uint64_t keys[kMergeKeys];
#pragma unroll
      for (int i = 0; i < kMergeKeys; ++i) {
        const int at = i * kMergeThreads + thread;
        keys[i] = at < kept ? best[at] : done + at - kept < all ? part(done + at - kept) : 0;
      }
      __syncthreads();
      write_best<kMergeThreads, kMergeKeys>(keys, task.count, best, shared);
      done += kMergeKeys * kMergeThreads - kept;
    }
  }
  const float* in = a.in.data + row * a.in.stride;
  if (thread < task.count) {
    const uint64_t key = best[thread];
    int rank = 0;  // keys of 0, which are none, stay behind the others in their order
    for (int i = 0; i < task.count; ++i) rank += best[i] > key || (best[i] == key && i < thread) ? 1 : 0;
    CandidateOut& out = a.out[task.first + rank];
    out.token = key != 0 ? token_of(key) : -1;
    out.logit = key != 0 ? in[token_of(key)] : 0.0f;
  }
  if (task.sum < 0 && task.draw < 0) return;
  uint64_t greatest = thread < task.count ? best[thread] : 0;
  greatest = greatest_of_block<kMergeThreads>(greatest, shared.greatest);
  const double most = static_cast<double>(logit_of(greatest));
  if (task.sum >= 0) {
    double sum = 0.0;
    for (int i = thread; i < slices; i += kMergeThreads) {
      const double* part = a.part_sums + kPartSums * (place + i);
      if (part[0] != 0.0) sum += part[0] * exp(part[2] - most);
    }
    sum = double_sum_of_block<kMergeThreads>(sum, shared.sums);
    if (thread == 0) a.sums[task.sum] = sum;
  }
  if (task.draw >= 0) draw_token(a, task, row, in, most, shared);
}

}  // namespace

int candidates(void* stream, const CandidatesArgs& args) {
  const auto slices = static_cast<unsigned>((args.tokens + kCandidateSlice - 1) / kCandidateSlice);
  const auto rows = static_cast<unsigned>(args.rows);
  const int error = launch(stream, {slices, rows}, kSliceThreads, slice_kernel, args);
  return error ? error : launch(stream, {rows}, kMergeThreads, merge_kernel, args);
}

}  // namespace llminfer::gpu::LLMINFER_GPU_TARGET
