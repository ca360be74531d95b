// Mixtures of experts: which expert a row goes to, and rows by expert. Nothing depends on who comes first.
#include "backends/gpu/kernels/kernels.hpp"

namespace llminfer::gpu::LLMINFER_GPU_TARGET {
namespace {

constexpr int kThreads = 128;
constexpr int kSoftmax = 0;  ///< llminfer::Scoring

/// Of a row: its experts and their factors. `shared` has kThreads / 32 floats.
__device__ __forceinline__ void choose(const RouteArgs& a, int row, float* shared) {
  const int thread = static_cast<int>(threadIdx.x);
  const float* const logits = a.logits.data + row * a.logits.stride;
  const int64_t begin = static_cast<int64_t>(row) * a.used;
  int32_t* const ranked = a.ranked + begin;
  const auto number = [&](int e) { return logits[e] == logits[e] ? logits[e] : -infinity(); };
  for (int e = thread; e < a.experts; e += kThreads) {
    const float mine = number(e);
    int rank = 0;
    for (int f = 0; f < a.experts; ++f) {
      const float other = number(f);
      rank += other > mine || (other == mine && f < e) ? 1 : 0;
    }
    if (rank < a.used) ranked[rank] = e;
  }
  __syncthreads();
  const float highest = logits[ranked[0]];
  const auto score = [&](int e) {
    return a.scoring == kSoftmax ? exp(logits[e] - highest) : 1.0f / (1.0f + exp(-logits[e]));
  };
  float sum = 1.0f;
  if (a.normalize || a.scoring == kSoftmax) {
    sum = 0.0f;
    const int count = a.normalize ? a.used : a.experts;
    for (int j = thread; j < count; j += kThreads) sum += score(a.normalize ? ranked[j] : j);
    sum = sum_of_block<kThreads>(sum, shared);
  }
  for (int j = thread; j < a.used; j += kThreads) {
    const int e = ranked[j];
    int at = 0;
    for (int i = 0; i < a.used; ++i) at += ranked[i] < e ? 1 : 0;
    a.chosen[begin + at] = e;
    a.factors[begin + at] = score(e) / sum * a.scale;
  }
}

__global__ void __launch_bounds__(kThreads) route_kernel(RouteArgs a) {
  __shared__ float shared[kThreads / 32];
  after_former();
  const int row = static_cast<int>(blockIdx.x), thread = static_cast<int>(threadIdx.x);
  int32_t* const chosen = a.chosen + static_cast<int64_t>(row) * a.used;
  if (a.positions[row] < 0) {
    for (int j = thread; j < a.used; j += kThreads) {
      chosen[j] = a.experts;
      a.factors[static_cast<int64_t>(row) * a.used + j] = 0.0f;
    }
  } else {
    choose(a, row, shared);
  }
  if (a.rows > 1) return;
  __syncthreads();
  for (int j = thread; j < a.used; j += kThreads) {
    const bool none = chosen[j] == a.experts;
    a.sort.places[j] = j;
    a.sort.rows[j] = 0;
    a.sort.expert_of[j] = none ? -1 : chosen[j];
    a.sort.tiles[j] = {chosen[j], j, none ? 0 : 1, 0};
  }
}

/// A block for each expert, and one for the pairs that have none: counts the pairs before its own, and places these.
__global__ void __launch_bounds__(kThreads) sort_pairs_kernel(SortArgs a) {
  __shared__ int32_t before[kThreads], own[kThreads];
  after_former();
  const int expert = static_cast<int>(blockIdx.x), thread = static_cast<int>(threadIdx.x);
  before[thread] = own[thread] = 0;
  for (int pair = thread; pair < a.pairs; pair += kThreads) {
    before[thread] += a.chosen[pair] < expert ? 1 : 0;
    own[thread] += a.chosen[pair] == expert ? 1 : 0;
  }
  __syncthreads();
  int begin = 0, count = 0, place = 0;
  for (int t = 0; t < kThreads; ++t) {
    begin += before[t];
    count += own[t];
    place += t < thread ? own[t] : 0;
  }
  place += begin;
  const bool none = expert == a.experts;
  for (int pair = thread; pair < a.pairs; pair += kThreads) {
    if (a.chosen[pair] != expert) continue;
    a.places[pair] = place;
    a.rows[place] = pair / a.used;
    a.expert_of[place] = none ? -1 : expert;
    ++place;
  }
  const auto tile_at = [&](int e, int p) { return a.tile_count == a.pairs ? p : p / a.tile_rows + e; };
  const int first = tile_at(expert, begin), end = tile_at(expert + 1, begin + count);
  for (int tile = first + thread; tile < end; tile += kThreads) {
    const int done = (tile - first) * a.tile_rows, rest = none || done > count ? 0 : count - done;
    a.tiles[tile] = {expert, begin + done, rest < a.tile_rows ? rest : a.tile_rows, 0};
  }
}

}  // namespace

int route(void* stream, const RouteArgs& args) {
  return launch(stream, {static_cast<unsigned>(args.rows)}, kThreads, route_kernel, args);
}
int sort_pairs(void* stream, const SortArgs& args) {
  return launch(stream, {static_cast<unsigned>(args.experts + 1)}, kThreads, sort_pairs_kernel, args);
}

}  // namespace llminfer::gpu::LLMINFER_GPU_TARGET
