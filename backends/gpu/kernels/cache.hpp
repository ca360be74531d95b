// Cached keys and values: how the element types are read and written.
#pragma once

#include "backends/gpu/kernels/decode.hpp"

namespace llminfer::gpu::LLMINFER_GPU_TARGET {

__device__ __forceinline__ int bytes_of(CacheElement element) {
  return element == CacheElement::f32 ? 4 : element == CacheElement::int8 ? 1 : 2;
}

/// Where a page's keys of one KV head lie.
__device__ __forceinline__ unsigned char* head_of(const CacheArgs& cache, int page, int kv_head) {
  return cache.data + page * cache.page_bytes + kv_head * cache.head_bytes;
}

/// Eight elements from index `at` on, a multiple of eight, times `scale` (int8 only).
template <CacheElement kElement>
__device__ __forceinline__ void load_eight(const unsigned char* data, int at, float scale, float* out) {
  if constexpr (kElement == CacheElement::f16) {
    unpack_halves(*reinterpret_cast<const uint4*>(data + 2 * at), out);
  } else if constexpr (kElement == CacheElement::bf16) {
    const uint4 words = *reinterpret_cast<const uint4*>(data + 2 * at);
    const uint32_t word[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      out[2 * i] = bits_to_float(word[i] << 16);
      out[2 * i + 1] = bits_to_float(word[i] & 0xffff0000u);
    }
  } else if constexpr (kElement == CacheElement::f32) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const uint4 words = *reinterpret_cast<const uint4*>(data + 4 * at + 16 * half);
      out[4 * half] = bits_to_float(words.x);
      out[4 * half + 1] = bits_to_float(words.y);
      out[4 * half + 2] = bits_to_float(words.z);
      out[4 * half + 3] = bits_to_float(words.w);
    }
  } else {
    const uint2 words = *reinterpret_cast<const uint2*>(data + at);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const uint32_t byte = ((i < 4 ? words.x : words.y) >> (8 * (i % 4))) & 255u;
      out[i] = static_cast<float>(static_cast<int>(byte ^ 128u) - 128) * scale;
    }
  }
}

template <CacheElement kElement>
__device__ __forceinline__ float load_one(const unsigned char* data, int at, float scale) {
  if constexpr (kElement == CacheElement::f16) return half_to_float(reinterpret_cast<const uint16_t*>(data)[at]);
  if constexpr (kElement == CacheElement::bf16) return bfloat_to_float(reinterpret_cast<const uint16_t*>(data)[at]);
  if constexpr (kElement == CacheElement::f32) return reinterpret_cast<const float*>(data)[at];
  return static_cast<float>(reinterpret_cast<const signed char*>(data)[at]) * scale;
}

__device__ __forceinline__ void store_one(CacheElement element, unsigned char* data, int at, float x,
                                          float inverse_scale) {
  switch (element) {
    case CacheElement::f16:
      reinterpret_cast<uint16_t*>(data)[at] = float_to_half_saturated(x);
      break;
    case CacheElement::bf16:
      reinterpret_cast<uint16_t*>(data)[at] = float_to_bfloat(x);
      break;
    case CacheElement::f32:
      reinterpret_cast<float*>(data)[at] = x;
      break;
    case CacheElement::int8: {
      const float scaled = x * inverse_scale, clamped = scaled > 127.0f ? 127.0f : scaled > -127.0f ? scaled : -127.0f;
      reinterpret_cast<signed char*>(data)[at] = static_cast<signed char>(rint(clamped));
      break;
    }
  }
}

/// The scale of a vector in int8 by its largest magnitude. Rounded up to 17 bits, so that 127 * scale is exact and what
/// was read is written back with the same bits.
__device__ __forceinline__ float int8_scale(float most) {
  if (!(most >= 1e-30f)) return 0.0f;
  const uint32_t bits = float_to_bits((most < 1e38f ? most : 1e38f) / 127.0f);
  return bits_to_float((bits + 0x7fu) & ~0x7fu);
}

/// What a head's values are divided by, given the largest of its scores and the sum of their weights under that. A sink
/// joins as one more key, whose value is zero; one that is far above all keys leaves next to nothing of them.
__device__ __forceinline__ float divisor_of(const float* sinks, int head, float most, float sum) {
  if (!sinks) return sum;
  const float above = sinks[head] - most;
  return sum + exp(above > 80.0f ? 80.0f : above);
}

template <class F>
auto with_element(CacheElement element, F f) {
  switch (element) {
    case CacheElement::f32:
      return f.template operator()<CacheElement::f32>();
    case CacheElement::bf16:
      return f.template operator()<CacheElement::bf16>();
    case CacheElement::int8:
      return f.template operator()<CacheElement::int8>();
    case CacheElement::f16:
      break;
  }
  return f.template operator()<CacheElement::f16>();
}

}  // namespace llminfer::gpu::LLMINFER_GPU_TARGET
