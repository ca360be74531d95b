// Cached keys and values: where they lie, how the element types are read and written, and what a softmax is divided by.
#pragma once

#include "backends/gpu/kernels/decode.hpp"

namespace llminfer::gpu::LLMINFER_GPU_TARGET {

/// Where a page's keys of one KV head lie.
__device__ __forceinline__ unsigned char* head_of(const CacheArgs& cache, int page, int kv_head) {
  return cache.data + page * cache.page_bytes + kv_head * cache.head_bytes;
}
/// The same in an open page, which has floats.
__device__ __forceinline__ unsigned char* open_head_of(const CacheArgs& cache, uint64_t page, int kv_head) {
  return reinterpret_cast<unsigned char*>(page) + cache.open_offset +
         static_cast<int64_t>(kv_head) * 2 * kPageSlots * cache.padded_dim * 4;
}

/// A page of one KV head, as the rows of one page read it.
struct HeadPage {
  unsigned char *keys, *values, *scales;
  int padded_dim;
  bool open;  ///< of an int4 cache: floats
};
/// Page `index` of the row's sequence.
__device__ __forceinline__ HeadPage page_of(const CacheArgs& cache, const TablesArgs& tables, int row, int index,
                                            int kv_head) {
  HeadPage page;
  page.padded_dim = cache.padded_dim;
  page.open = cache.element == CacheElement::int4 && index == tables.positions[row] / kPageSlots;
  page.keys = page.open ? open_head_of(cache, tables.open[row], kv_head)
                        : head_of(cache, tables.pages[tables.begins[row] + index], kv_head);
  page.values = page.keys + (page.open ? int64_t{kPageSlots} * cache.padded_dim * 4 : cache.value_offset);
  page.scales = page.keys + cache.scale_offset;
  return page;
}

__device__ __forceinline__ void load_floats(const unsigned char* data, float* out) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const uint4 words = *reinterpret_cast<const uint4*>(data + 16 * half);
    out[4 * half] = bits_to_float(words.x);
    out[4 * half + 1] = bits_to_float(words.y);
    out[4 * half + 2] = bits_to_float(words.z);
    out[4 * half + 3] = bits_to_float(words.w);
  }
}

/// What a code of 4 bits means in its range.
__device__ __forceinline__ float of_code(uint32_t range, uint32_t code) {
  return static_cast<float>(code & 15u) * bits_to_float(range & 0xffff0000u) + bits_to_float(range << 16);
}

/// Elements [d, d + 8) of a slot's key, or of its value; d is a multiple of eight.
template <CacheElement kElement>
__device__ __forceinline__ void load_eight(const HeadPage& page, bool is_value, int slot, int d, float* out) {
  const unsigned char* data = is_value ? page.values : page.keys;
  const int at = slot * page.padded_dim + d;
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
    load_floats(data + 4 * at, out);
  } else if constexpr (kElement == CacheElement::int4) {
    if (page.open) return load_floats(data + 4 * at, out);
    const uint32_t codes = *reinterpret_cast<const uint32_t*>(data + at / 2);
    const uint32_t* ranges = reinterpret_cast<const uint32_t*>(page.scales);
    if (is_value) {
      const uint32_t range = ranges[page.padded_dim + slot];
#pragma unroll
      for (int i = 0; i < 8; ++i) out[i] = of_code(range, codes >> (4 * i));
    } else {
      const uint4 low = *reinterpret_cast<const uint4*>(ranges + d),
                  high = *reinterpret_cast<const uint4*>(ranges + d + 4);
      const uint32_t range[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
      for (int i = 0; i < 8; ++i) out[i] = of_code(range[i], codes >> (4 * i));
    }
  } else {
    const float scale = reinterpret_cast<const float*>(page.scales)[(is_value ? kPageSlots : 0) + slot];
    const uint2 words = *reinterpret_cast<const uint2*>(data + at);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const uint32_t byte = ((i < 4 ? words.x : words.y) >> (8 * (i % 4))) & 255u;
      const float x = kElement == CacheElement::e4m3 ? e4m3_number(byte)
                                                     : static_cast<float>(static_cast<int>(byte ^ 128u) - 128);
      out[i] = x * scale;
    }
  }
}

/// Element d of a slot's value.
template <CacheElement kElement>
__device__ __forceinline__ float load_value(const HeadPage& page, int slot, int d) {
  const unsigned char* data = page.values;
  const int at = slot * page.padded_dim + d;
  if constexpr (kElement == CacheElement::f16) return half_to_float(reinterpret_cast<const uint16_t*>(data)[at]);
  if constexpr (kElement == CacheElement::bf16) return bfloat_to_float(reinterpret_cast<const uint16_t*>(data)[at]);
  if constexpr (kElement == CacheElement::f32) return reinterpret_cast<const float*>(data)[at];
  if constexpr (kElement == CacheElement::int4) {
    if (page.open) return reinterpret_cast<const float*>(data)[at];
    return of_code(reinterpret_cast<const uint32_t*>(page.scales)[page.padded_dim + slot],
                   static_cast<uint32_t>(data[at / 2] >> (at % 2 * 4)));
  }
  const float scale = reinterpret_cast<const float*>(page.scales)[kPageSlots + slot];
  if constexpr (kElement == CacheElement::e4m3) return e4m3_number(data[at]) * scale;
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
    case CacheElement::int4:  // the page is open
      reinterpret_cast<float*>(data)[at] = x;
      break;
    case CacheElement::int8: {
      const float scaled = x * inverse_scale, clamped = scaled > 127.0f ? 127.0f : scaled > -127.0f ? scaled : -127.0f;
      reinterpret_cast<signed char*>(data)[at] = static_cast<signed char>(rint(clamped));
      break;
    }
    case CacheElement::e4m3:
      data[at] = static_cast<unsigned char>(float_to_e4m3(x * inverse_scale));
      break;
  }
}

__device__ __forceinline__ bool has_scales(CacheElement element) {
  return element == CacheElement::int8 || element == CacheElement::e4m3;
}
/// The scale of a vector in int8 or E4M3 by its largest magnitude. Rounded up to 17 bits, so that the largest element
/// times it is exact and what was read is written back with the same bits.
__device__ __forceinline__ float scale_of(CacheElement element, float most) {
  if (!(most >= 1e-30f)) return 0.0f;
  const uint32_t bits =
      float_to_bits((most < 1e38f ? most : 1e38f) / (element == CacheElement::e4m3 ? 448.0f : 127.0f));
  return bits_to_float((bits + 0x7fu) & ~0x7fu);
}

/// Smallest and largest of what shares a range of codes. What is no number is ignored.
struct Extent {
  float low = 1e38f, high = -1e38f;
  __device__ __forceinline__ void add(float x) {
    low = x < low ? x : low;
    high = x > high ? x : high;
  }
};
/// Their range. The minimum is rounded down, so that no code is negative, and the scale to nearest, so that the largest
/// one is 15, and what was unpacked packs to the same again.
__device__ __forceinline__ uint32_t range_of(Extent e) {
  if (e.low > e.high) e.low = e.high = 0.0f;  // no numbers at all
  const float low = e.low > -1e38f ? e.low : -1e38f, high = e.high < 1e38f ? e.high : 1e38f;
  const uint32_t low_bits = float_to_bits(low);
  const uint32_t minimum = ((low_bits >> 16) + (low < 0.0f && (low_bits & 0xffffu) != 0 ? 1u : 0u)) & 0xffffu;
  const float extent = high - bits_to_float(minimum << 16);
  return minimum | (extent < 1e-30f ? 0u : static_cast<uint32_t>(float_to_bfloat(extent / 15.0f)) << 16);
}
__device__ __forceinline__ uint32_t code_of(uint32_t range, float x) {
  const float scale = bits_to_float(range & 0xffff0000u), inverse = scale > 0.0f ? 1.0f / scale : 0.0f;
  const float code = (x - bits_to_float(range << 16)) * inverse;
  return static_cast<uint32_t>((code > 0.0f ? (code < 15.0f ? code : 15.0f) : 0.0f) + 0.5f);
}

/// What a head's values are divided by, given the largest of its scores and the sum of their weights under that. A sink
/// joins as one more key, whose value is zero; one that is far above all keys leaves next to nothing of them.
__device__ __forceinline__ float divisor_of(const float* sinks, int head, float most, float sum) {
  if (!sinks) return sum;
  const float above = sinks[head] - most;
  return sum + exp(above > 80.0f ? 80.0f : above);
}

/// On the host: calls f.template operator()<element>().
template <class F>
auto with_element(CacheElement element, F f) {
  switch (element) {
    case CacheElement::f32:
      return f.template operator()<CacheElement::f32>();
    case CacheElement::bf16:
      return f.template operator()<CacheElement::bf16>();
    case CacheElement::int8:
      return f.template operator()<CacheElement::int8>();
    case CacheElement::int4:
      return f.template operator()<CacheElement::int4>();
    case CacheElement::e4m3:
      return f.template operator()<CacheElement::e4m3>();
    case CacheElement::f16:
      break;
  }
  return f.template operator()<CacheElement::f16>();
}

}  // namespace llminfer::gpu::LLMINFER_GPU_TARGET
