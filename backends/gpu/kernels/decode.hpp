// Reading matrices: eight elements at a time out of any form.
#pragma once

#include "backends/gpu/kernels/platform.hpp"

namespace llminfer::gpu::LLMINFER_GPU_TARGET {

constexpr int kLineBytes = 128;  ///< of the caches; a prefetch brings one

/// Eight consecutive elements of a row: value[i] * scale - offset.
struct Eight {
  float value[8];
  float scale, offset;
};

/// Eight halves that lie together.
__device__ __forceinline__ void unpack_halves(const uint4& words, float* out) {
  const uint32_t word[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    out[2 * i] = half_to_float(static_cast<uint16_t>(word[i] & 0xffffu));
    out[2 * i + 1] = half_to_float(static_cast<uint16_t>(word[i] >> 16));
  }
}
__device__ __forceinline__ uint4 pack_halves(const float* x) {
  uint32_t word[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    word[i] = float_to_half(x[2 * i]) | static_cast<uint32_t>(float_to_half(x[2 * i + 1])) << 16;
  }
  return {word[0], word[1], word[2], word[3]};
}

/// Elements [8 * chunk, 8 * chunk + 8) of a row. `table` is m.table or a copy of it.
template <Form kForm>
__device__ __forceinline__ Eight decode(const MatrixArgs& m, int row, int chunk, const float* table) {
  Eight out;
  const int64_t at = static_cast<int64_t>(row) * (m.cols / 8) + chunk;  // in units of eight
  if constexpr (kForm == Form::f16) {
    unpack_halves(static_cast<const uint4*>(m.high)[at], out.value);
    out.scale = 1.0f;
    out.offset = 0.0f;
  } else {
    uint32_t low = 0, high = 0;  // eight nibbles, or four bytes and four
    uint32_t pairs = 0, bits = 0;
    if constexpr (kForm == Form::codes8 || kForm == Form::e4m3) {
      const uint2 words = static_cast<const uint2*>(m.high)[at];
      low = words.x;
      high = words.y;
    } else if constexpr (kForm == Form::codes4 || kForm == Form::codes5 || kForm == Form::codes6 ||
                         kForm == Form::table4) {
      low = static_cast<const uint32_t*>(m.high)[at];
    }
    if constexpr (kForm == Form::codes2 || kForm == Form::codes3 || kForm == Form::codes6) pairs = m.pairs[at];
    if constexpr (kForm == Form::codes3 || kForm == Form::codes5) bits = m.bits[at];
    const int64_t group = static_cast<int64_t>(row) * (m.cols >> m.group_shift) + (chunk >> (m.group_shift - 3));
    out.scale = half_to_float(m.scales[group]);
    out.offset = out.scale * m.zero + (m.minimums ? half_to_float(m.minimums[group]) : 0.0f);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      uint32_t code = 0;
      if constexpr (kForm == Form::codes8 || kForm == Form::e4m3) {
        code = (i < 4 ? low >> (8 * i) : high >> (8 * (i - 4))) & 255u;
      } else if constexpr (kForm == Form::codes2) {
        code = (pairs >> (2 * i)) & 3u;
      } else if constexpr (kForm == Form::codes3) {
        code = ((pairs >> (2 * i)) & 3u) | ((bits >> i) & 1u) << 2;
      } else {
        code = (low >> (4 * i)) & 15u;
        if constexpr (kForm == Form::codes5) code |= ((bits >> i) & 1u) << 4;
        if constexpr (kForm == Form::codes6) code |= ((pairs >> (2 * i)) & 3u) << 4;
      }
      if constexpr (kForm == Form::table4) {
        out.value[i] = table[code];
      } else if constexpr (kForm == Form::e4m3) {
        out.value[i] = e4m3_to_float(code);
      } else {
        out.value[i] = static_cast<float>(code);
      }
    }
  }
  return out;
}

/// Brings the beginning of a row nearer: 32 lines of what is read of it, one for each lane.
template <Form kForm>
__device__ __forceinline__ void prefetch_row(const MatrixArgs& m, int row, int lane) {
  const auto plane = [&](const void* data, int64_t bytes) {
    const int64_t at = lane * kLineBytes;
    if (at < bytes) prefetch(static_cast<const unsigned char*>(data) + row * bytes + at);
  };
  constexpr bool kPairs = kForm == Form::codes2 || kForm == Form::codes3 || kForm == Form::codes6;
  constexpr bool kBits = kForm == Form::codes3 || kForm == Form::codes5;
  constexpr int kHighBytes = kForm == Form::f16                               ? 16
                             : kForm == Form::codes8 || kForm == Form::e4m3   ? 8
                             : kForm == Form::codes2 || kForm == Form::codes3 ? 0
                                                                              : 4;
  const int eights = m.cols / 8, groups = m.cols >> m.group_shift;
  if constexpr (kHighBytes > 0) plane(m.high, eights * kHighBytes);
  if constexpr (kPairs) plane(m.pairs, eights * 2);
  if constexpr (kBits) plane(m.bits, eights);
  if constexpr (kForm != Form::f16) {
    plane(m.scales, groups * 2);
    if (m.minimums) plane(m.minimums, groups * 2);
  }
}

/// On the host: calls f.template operator()<form>() for a form that is known at run time only.
template <class F>
auto with_form(Form form, F f) {
  switch (form) {
    case Form::codes2:
      return f.template operator()<Form::codes2>();
    case Form::codes3:
      return f.template operator()<Form::codes3>();
    case Form::codes4:
      return f.template operator()<Form::codes4>();
    case Form::codes5:
      return f.template operator()<Form::codes5>();
    case Form::codes6:
      return f.template operator()<Form::codes6>();
    case Form::codes8:
      return f.template operator()<Form::codes8>();
    case Form::table4:
      return f.template operator()<Form::table4>();
    case Form::e4m3:
      return f.template operator()<Form::e4m3>();
    case Form::f16:
      break;
  }
  return f.template operator()<Form::f16>();
}

}  // namespace llminfer::gpu::LLMINFER_GPU_TARGET
