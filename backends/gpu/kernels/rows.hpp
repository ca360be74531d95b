// What a block of the kernels that go over rows does: lookup, norm and preparation of activations, angles, rotation,
// sums. One block per row where a row is reduced, one thread per element elsewhere.
#pragma once

#include "backends/gpu/kernels/kernels.hpp"

namespace llminfer::gpu::LLMINFER_GPU_TARGET {

constexpr int kRowThreads = 256;

__host__ __device__ __forceinline__ int blocks_of_items(int64_t items) {
  return static_cast<int>((items + kRowThreads - 1) / kRowThreads);
}
__host__ __device__ __forceinline__ int blocks_of(const EmbedArgs& a) { return a.rows; }
__host__ __device__ __forceinline__ int blocks_of(const PrepareArgs& a) { return a.rows; }
__host__ __device__ __forceinline__ int blocks_of(const AnglesArgs& a) {
  return blocks_of_items(int64_t{a.rows} * a.pairs);
}
__host__ __device__ __forceinline__ int blocks_of(const RotateArgs& a) {
  return blocks_of_items(int64_t{a.rows} * a.heads * a.head_dim);
}
__host__ __device__ __forceinline__ int blocks_of(const GluArgs& a) {
  return blocks_of_items(int64_t{a.rows} * a.width);
}
__host__ __device__ __forceinline__ int blocks_of(const AddArgs& a) {
  return blocks_of_items(int64_t{a.rows} * a.width);
}
__host__ __device__ __forceinline__ int blocks_of(const GatherArgs& a) {
  return blocks_of_items(int64_t{a.count} * a.width);
}
/// The thread's element, of a kernel that has one thread for each.
__device__ __forceinline__ int64_t item_of(int block) {
  return static_cast<int64_t>(block) * kRowThreads + threadIdx.x;
}

template <Form kForm>
__device__ __forceinline__ void embed_block(const EmbedArgs& a, int block) {
  const int row = block, token = a.tokens[row];
  float* out = a.out.data + row * a.out.stride;
  if (token < 0) {
    for (int i = static_cast<int>(threadIdx.x); i < a.width; i += kRowThreads) {
      out[i] = a.embeddings[static_cast<int64_t>(row) * a.width + i];
    }
    return;
  }
  const float factor = a.table.factors[token];
  for (int chunk = static_cast<int>(threadIdx.x); chunk * 8 < a.width; chunk += kRowThreads) {
    const Eight e = decode<kForm>(a.table, token, chunk, a.table.table);
    for (int i = 0; i < 8 && chunk * 8 + i < a.width; ++i) {
      const int column = chunk * 8 + i;
      out[a.table.order ? a.table.order[column] : column] = (e.value[i] * e.scale - e.offset) * factor;
    }
  }
}

/// The scale of values whose largest magnitude, finite and not subnormal, is `most`.
__device__ __forceinline__ float dynamic_scale(const RoundingArgs& r, float most) {
  const float scale = (most < r.limit ? most : r.limit) / (r.kind == 1 ? 127.5f : 448.0f);
  return r.powers ? bits_to_float((float_to_bits(scale) + 0x7fffffu) & 0x7f800000u) : scale;
}

/// The scale of values whose largest magnitude is `most`, which is finite; 0: they are all taken for zeros.
__device__ __forceinline__ float scale_of(const RoundingArgs& r, float most) {
  if (!r.dynamic) return r.scale;
  return most < 0x1p-126f ? 0.0f : dynamic_scale(r, most);
}

/// The integer -128 … 127, with the zero point, of a value under a scale.
__device__ __forceinline__ float int8_code(const RoundingArgs& r, float x, float scale) {
  const float code = rint(x / scale) + r.zero;
  return code < -128.0f ? -128.0f : code > 127.0f ? 127.0f : code;
}

/// Whether rows become integers or E4M3 numbers under one scale. Halves hold these as they are, but not their products
/// with a scale.
__device__ __forceinline__ bool one_scale(const RoundingArgs& r) { return r.kind != 0 && (!r.dynamic || r.group == 0); }

/// One value rounded as InputQuantization says, but for the scale where one_scale(); `most` is the largest magnitude of
/// those that share its scale.
__device__ __forceinline__ float round_input(const RoundingArgs& r, float x, float most) {
  if (!finite(most)) return bits_to_float(0x7fc00000u);
  const float scale = scale_of(r, most);
  if (scale == 0.0f) return 0.0f;
  const float code = r.kind == 2 ? e4m3_to_float(float_to_e4m3(x / scale)) : int8_code(r, x, scale) - r.zero;
  return one_scale(r) ? code : scale * code;
}

/// What RMSNorm multiplies a row by, beside its weights. All threads of the block call it.
__device__ __forceinline__ float norm_factor(const float* in, int width, float epsilon,
                                             float (&shared)[kRowThreads / 32]) {
  float squares = 0.0f;
  for (int i = static_cast<int>(threadIdx.x); i < width; i += kRowThreads) squares += in[i] * in[i];
  squares = sum_of_block<kRowThreads>(squares, shared);
  return 1.0f / sqrtf(squares / static_cast<float>(width) + epsilon);
}

__device__ __forceinline__ void prepare_block(const PrepareArgs& a, int block, float (&shared)[kRowThreads / 32]) {
  const int row = block, thread = static_cast<int>(threadIdx.x);
  const int expert = a.expert_of ? a.expert_of[row] : 0;
  if (expert < 0) return;
  const RoundingArgs rounding = a.expert_of ? a.experts[expert].rounding : a.rounding;
  const int32_t* const order = a.expert_of ? a.experts[expert].weight.order : a.order;
  const float* in = a.in.data + (a.indices ? a.indices[row] : row) * a.in.stride;
  const float factor = a.norm ? norm_factor(in, a.width, a.epsilon, shared) : 1.0f;
  const auto normed = [&](int i) {
    const int column = order ? order[i] : i;
    return a.norm ? in[column] * factor * a.norm[column] : in[column];
  };
  float* out = a.out.data ? a.out.data + row * a.out.stride : nullptr;
  float scale = 1.0f;
  if (rounding.kind != 0) {
    // 32 lanes per group of values that share a scale; a scale for all of them takes the whole block.
    if (!one_scale(rounding)) {
      for (int begin = thread / 32 * rounding.group; begin < a.width; begin += kRowThreads / 32 * rounding.group) {
        const int end = begin + rounding.group < a.width ? begin + rounding.group : a.width;
        float most = 0.0f;
        for (int i = begin + thread % 32; i < end; i += 32) {
          most = largest(most, finite(normed(i)) ? absolute(normed(i)) : infinity());
        }
        most = largest_of_lanes(most);
        for (int i = begin + thread % 32; i < end; i += 32) out[i] = round_input(rounding, normed(i), most);
      }
    } else {
      float most = 0.0f;
      for (int i = thread; i < a.width; i += kRowThreads) {
        most = largest(most, finite(normed(i)) ? absolute(normed(i)) : infinity());
      }
      most = largest_of_block<kRowThreads>(most, shared);
      if (finite(most)) scale = scale_of(rounding, most);
      for (int i = thread; i < a.width; i += kRowThreads) out[i] = round_input(rounding, normed(i), most);
    }
    __syncthreads();
  } else if (out) {
    for (int i = thread; i < a.width; i += kRowThreads) out[i] = normed(i);
  }
  if (thread == 0 && a.scales && !a.halves) a.scales[row] = scale;
  if (!a.halves) return;
  const auto value = [&](int i) { return rounding.kind != 0 ? out[i] : normed(i); };
  float most = 0.0f;
  for (int i = thread; i < a.width; i += kRowThreads) most = largest(most, absolute(value(i)));
  most = largest_of_block<kRowThreads>(most, shared);
  // Magnitudes below 2^15, so that next to nothing is subnormal: MI200's matrix units take that for zero. Infinities
  // and NaN stay what they are.
  const int exponent = most < 0x1p-100f || !finite(most) ? 0 : exponent_of(most) - 14;
  const float down = power_of_two(-exponent);
  uint16_t* halves = a.halves + static_cast<int64_t>(row) * a.padded;
  for (int i = thread; i < a.padded; i += kRowThreads)
    halves[i] = i < a.width ? float_to_half(value(i) * down) : uint16_t{0};
  if (thread == 0) a.scales[row] = power_of_two(exponent) * scale;
}

__device__ __forceinline__ void angles_block(const AnglesArgs& a, int block) {
  const int item = static_cast<int>(item_of(block));
  if (item >= a.rows * a.pairs) return;
  const int row = item / a.pairs, pair = item % a.pairs;
  // Turns are taken off in double precision: positions reach a million.
  const double angle = static_cast<double>(a.positions[row]) * static_cast<double>(a.frequencies[pair]);
  const float rest = static_cast<float>(angle - 6.283185307179586 * rint(angle * 0.15915494309189535));
  float* out = a.angles + static_cast<int64_t>(row) * 2 * a.pairs;
  out[pair] = cosf(rest) * a.magnitude;
  out[a.pairs + pair] = sinf(rest) * a.magnitude;
}

__device__ __forceinline__ void rotate_block(const RotateArgs& a, int block) {
  const int width = a.heads * a.head_dim;
  const int64_t item = item_of(block);
  if (item >= static_cast<int64_t>(a.rows) * width) return;
  const int row = static_cast<int>(item / width), i = static_cast<int>(item % width),
            begin = i / a.head_dim * a.head_dim;
  a.out.data[row * a.out.stride + i] = rotated(a.rope, row, a.in.data + row * a.in.stride + begin, i - begin);
}

__device__ __forceinline__ void glu_block(const GluArgs& a, int block) {
  const int64_t item = item_of(block);
  if (item >= static_cast<int64_t>(a.rows) * a.width) return;
  const int64_t row = item / a.width, i = item % a.width;
  a.out.data[row * a.out.stride + i] =
      gated(a.activation, a.gate.data[row * a.gate.stride + i], a.up.data[row * a.up.stride + i]);
}

__device__ __forceinline__ void add_block(const AddArgs& a, int block) {
  const int64_t item = item_of(block);
  if (item >= static_cast<int64_t>(a.rows) * a.width) return;
  const int64_t row = item / a.width, i = item % a.width;
  a.out.data[row * a.out.stride + i] = a.a.data[row * a.a.stride + i] + a.b.data[row * a.b.stride + i];
}

__device__ __forceinline__ void gather_block(const GatherArgs& a, int block) {
  const int64_t item = item_of(block);
  if (item >= static_cast<int64_t>(a.count) * a.width) return;
  const int64_t row = item / a.width, i = item % a.width;
  a.out.data[row * a.out.stride + i] = a.in.data[(a.indices ? a.indices[row] : row) * a.in.stride + i];
}

}  // namespace llminfer::gpu::LLMINFER_GPU_TARGET
