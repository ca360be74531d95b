// What a block does of linear layers of few rows (decode): a group of 32 lanes computes two output features for all
// rows. Bound by the reading of weights: each lane reads eight columns at a time, so that a group's reads are
// consecutive. A single row is read as floats and, if nothing rounds it, normed on the way: its factor is known at the
// end, and is one of the sum's. How many threads a block has changes nothing in the results.
#pragma once

#include <stddef.h>

#include "backends/gpu/kernels/kernels.hpp"

namespace llminfer::gpu::LLMINFER_GPU_TARGET {

constexpr int kLaneFeatures = 2;  ///< per group of lanes, so that the activations are unpacked once for both
template <int kThreads>
constexpr int kBlockFeatures = kThreads / 32 * kLaneFeatures;

__device__ __forceinline__ void read_floats(const float* from, float* x) {
#pragma unroll
  for (int i = 0; i < 8; i += 4) {
    const uint4 words = *reinterpret_cast<const uint4*>(from + i);
    x[i] = bits_to_float(words.x);
    x[i + 1] = bits_to_float(words.y);
    x[i + 2] = bits_to_float(words.z);
    x[i + 3] = bits_to_float(words.w);
  }
}

/// Eight columns of LinearArgs::row, times the norm, and 0 past the end; their squares, without the norm, to `squares`.
__device__ __forceinline__ void read_row(const LinearArgs& a, int chunk, float* x, float& squares) {
  const int at = 8 * chunk;
  const float* const norms = a.norm;
  float norm[8];
  if (at + 8 <= a.width) {
    read_floats(a.row + at, x);
    if (norms) read_floats(norms + at, norm);
  } else {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      x[i] = at + i < a.width ? a.row[at + i] : 0.0f;
      norm[i] = norms && at + i < a.width ? norms[at + i] : 0.0f;
    }
  }
  if (!norms) return;
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    squares += x[i] * x[i];
    x[i] *= norm[i];
  }
}

/// sums[f][r] = in[r] * m[first + f]^T, in all lanes. What lies past the end is computed as the last one. `squares`
/// gets those of a single row that this lane has read.
template <Form kForm, int kRows>
__device__ __forceinline__ void multiply_few(const LinearArgs& a, const MatrixArgs& m, int first, const float* table,
                                             float (&sums)[kLaneFeatures][kRows], float& squares) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int f = 0; f < kLaneFeatures; ++f) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) sums[f][r] = 0.0f;
  }
  const int last = m.rows - 1;
  // Reads under way at once; more would not fit the registers. g++ knows no such pragma.
  [[maybe_unused]] constexpr int kTurns = kRows == 1 ? 2 : 1;
#pragma unroll kTurns
  for (int chunk = lane; chunk < m.cols / 8; chunk += 32) {
    Eight w[kLaneFeatures];
#pragma unroll
    for (int f = 0; f < kLaneFeatures; ++f) w[f] = decode<kForm>(m, first + f < last ? first + f : last, chunk, table);
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      float x[8], all = 0.0f;
      if constexpr (kRows == 1) {
        read_row(a, chunk, x, squares);
      } else {
        const int64_t row = r < a.rows ? r : a.rows - 1;
        unpack_halves(reinterpret_cast<const uint4*>(a.in)[row * (m.cols / 8) + chunk], x);
      }
#pragma unroll
      for (int i = 0; i < 8; ++i) all += x[i];
#pragma unroll
      for (int f = 0; f < kLaneFeatures; ++f) {
        float dot = 0.0f;
#pragma unroll
        for (int i = 0; i < 8; ++i) dot += w[f].value[i] * x[i];
        sums[f][r] += w[f].scale * dot - w[f].offset * all;
      }
    }
  }
#pragma unroll
  for (int f = 0; f < kLaneFeatures; ++f) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) sums[f][r] = sum_of_lanes(sums[f][r]);
  }
}

/// The first of the output features of the thread's group of lanes.
template <int kThreads>
__device__ __forceinline__ int first_feature(int block) {
  return block * kBlockFeatures<kThreads> + static_cast<int>(threadIdx.x) / 32 * kLaneFeatures;
}

/// A block's output features.
template <Form kForm, int kRows, int kThreads>
__device__ __forceinline__ void compute_features(const LinearArgs& a, int block, const float* table) {
  const int lane = static_cast<int>(threadIdx.x) % 32, first = first_feature<kThreads>(block);
  if (first >= a.weight.rows) return;
  // By `up` first, if there is one, then by the weight, in a loop, so that the code that multiplies is there once.
  float sums[kLaneFeatures][kRows], ups[kLaneFeatures][kRows] = {}, squares = 0.0f;
  const unsigned char* const layer = reinterpret_cast<const unsigned char*>(&a);
#pragma unroll 1
  for (bool up = a.up.rows > 0;; up = false) {
    const auto offset = up ? offsetof(LinearArgs, up) : offsetof(LinearArgs, weight);
    squares = 0.0f;
    multiply_few<kForm, kRows>(a, *reinterpret_cast<const MatrixArgs*>(layer + offset), first, table, sums, squares);
    if (!up) break;
#pragma unroll
    for (int f = 0; f < kLaneFeatures; ++f) {
#pragma unroll
      for (int r = 0; r < kRows; ++r) ups[f][r] = sums[f][r];
    }
  }
  float factor = 1.0f;
  if (kRows == 1 && a.norm) factor = 1.0f / sqrtf(sum_of_lanes(squares) / static_cast<float>(a.width) + a.epsilon);
    // Every lane has all sums; lane r finishes row r.
#pragma unroll
  for (int f = 0; f < kLaneFeatures; ++f) {
    const int feature = first + f;
    if (feature >= a.weight.rows) break;
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      if (r >= a.rows || lane != r) continue;
      const float scale = kRows > 1 || a.in_scales ? a.in_scales[r] : factor;
      const auto value_of = [&](const MatrixArgs& m, float sum) {
        return rounded_product(sum * m.factors[feature], scale);
      };
      float value = value_of(a.weight, sums[f][r]) + (a.bias ? a.bias[feature] : 0.0f);
      if (a.up.rows > 0) {
        const float up = value_of(a.up, ups[f][r]) + (a.up_bias ? a.up_bias[feature] : 0.0f);
        value = gated(a.activation, value, up);
      }
      if (a.residual.data) value += a.residual.data[r * a.residual.stride + feature];
      a.out.data[r * a.out.stride + feature] = value;
    }
  }
}

template <int kThreads>
__host__ __device__ __forceinline__ int blocks_of_features(int features) {
  return (features + kBlockFeatures<kThreads> - 1) / kBlockFeatures<kThreads>;
}
template <int kThreads>
__host__ __device__ __forceinline__ int blocks_of(const LayersArgs& all) {
  int blocks = 0;
  for (int i = 0; i < all.count; ++i) blocks += blocks_of_features<kThreads>(all.layers[i].weight.rows);
  return blocks;
}

/// The layer that a block of them all belongs to; `block` becomes its number there.
template <int kThreads>
__device__ __forceinline__ const LinearArgs& take_layer(const LayersArgs& all, int& block) {
  int layer = 0;
  while (layer + 1 < all.count && block >= blocks_of_features<kThreads>(all.layers[layer].weight.rows)) {
    block -= blocks_of_features<kThreads>(all.layers[layer++].weight.rows);
  }
  return all.layers[layer];
}

/// Brings nearer what a block of a layer reads first.
template <Form kForm, int kRows, int kThreads>
__device__ __forceinline__ void prefetch_layer(const LinearArgs& a, int block) {
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, first = first_feature<kThreads>(block);
  if (kRows == 1 && a.norm && block == 0) {
    for (int i = thread * kLineFloats; i < a.width; i += kThreads * kLineFloats) prefetch(a.norm + i);
  }
  for (int f = first; f < first + kLaneFeatures && f < a.weight.rows; ++f) {
    prefetch_row<kForm>(a.weight, f, lane);
    if (a.up.rows > 0) prefetch_row<kForm>(a.up, f, lane);
  }
}

}  // namespace llminfer::gpu::LLMINFER_GPU_TARGET
