// Reading matrices: eight elements at a time out of any form.
#pragma once

#include "backends/gpu/kernels/platform.hpp"

namespace llminfer::gpu::LLMINFER_GPU_TARGET {

constexpr int kLineBytes = 128;  ///< of the caches; a prefetch brings one
constexpr int kLineFloats = kLineBytes / 4;

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

/// Tiles of halves in shared memory: element (row, k) at tile[row * stride + k]; both factors have k in consecutive
/// places. Rows lie on multiples of four bytes.
__device__ __forceinline__ uint32_t two_halves(const uint16_t* at) { return *reinterpret_cast<const uint32_t*>(at); }

/// Eight elements as they lie in memory, without their form.
struct Packed {
  uint4 halves;        ///< f16
  uint32_t low, high;  ///< eight nibbles, or four bytes and four
  uint32_t pairs, bits;
  uint16_t scale, minimum;
};

/// Elements [8 * chunk, 8 * chunk + 8) of a row.
template <Form kForm>
__device__ __forceinline__ Packed read_eight(const MatrixArgs& m, int row, int chunk) {
  Packed out{};
  const int64_t at = static_cast<int64_t>(row) * (m.cols / 8) + chunk;  // in units of eight
  if constexpr (kForm == Form::f16) {
    out.halves = static_cast<const uint4*>(m.high)[at];
  } else {
    if constexpr (kForm == Form::codes8 || kForm == Form::e4m3) {
      const uint2 words = static_cast<const uint2*>(m.high)[at];
      out.low = words.x;
      out.high = words.y;
    } else if constexpr (kForm == Form::codes4 || kForm == Form::codes5 || kForm == Form::codes6 ||
                         kForm == Form::table4) {
      out.low = static_cast<const uint32_t*>(m.high)[at];
    }
    if constexpr (kForm == Form::codes2 || kForm == Form::codes3 || kForm == Form::codes6) out.pairs = m.pairs[at];
    if constexpr (kForm == Form::codes3 || kForm == Form::codes5) out.bits = m.bits[at];
    const int64_t group = static_cast<int64_t>(row) * (m.cols >> m.group_shift) + (chunk >> (m.group_shift - 3));
    out.scale = m.scales[group];
    if (m.minimums) out.minimum = m.minimums[group];
  }
  return out;
}

/// Which of a word's eight nibbles, pairs or bits is element i.
template <Form kForm>
__device__ __forceinline__ constexpr int place_of(int i) {
  return kForm == Form::table4 ? i : i / 2 + i % 2 * 4;
}

/// What they are. `table` is m.table or a copy of it.
template <Form kForm>
__device__ __forceinline__ Eight decode(const MatrixArgs& m, const Packed& from, const float* table) {
  Eight out;
  if constexpr (kForm == Form::f16) {
    unpack_halves(from.halves, out.value);
    out.scale = 1.0f;
    out.offset = 0.0f;
  } else {
    out.scale = half_to_float(from.scale);
    out.offset = out.scale * m.zero + half_to_float(from.minimum);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      uint32_t code = 0;
      [[maybe_unused]] const int place = place_of<kForm>(i);
      if constexpr (kForm == Form::codes8 || kForm == Form::e4m3) {
        code = (i < 4 ? from.low >> (8 * i) : from.high >> (8 * (i - 4))) & 255u;
      } else if constexpr (kForm == Form::codes2) {
        code = (from.pairs >> (2 * place)) & 3u;
      } else if constexpr (kForm == Form::codes3) {
        code = ((from.pairs >> (2 * place)) & 3u) | ((from.bits >> place) & 1u) << 2;
      } else {
        code = (from.low >> (4 * place)) & 15u;
        if constexpr (kForm == Form::codes5) code |= ((from.bits >> place) & 1u) << 4;
        if constexpr (kForm == Form::codes6) code |= ((from.pairs >> (2 * place)) & 3u) << 4;
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
template <Form kForm>
__device__ __forceinline__ Eight decode(const MatrixArgs& m, int row, int chunk, const float* table) {
  return decode<kForm>(m, read_eight<kForm>(m, row, chunk), table);
}

/// Whether such sums are of products of bytes.
template <class Sum>
inline constexpr bool kOfBytes = false;
template <>
inline constexpr bool kOfBytes<int32_t> = true;

/// What is made of the sums of products of a feature.
template <class Sum>
struct SumEnd {
  Sum less;
  float factor;
  /// `scale`: the row's.
  __device__ __forceinline__ float value(Sum sum, float scale) const {
    return rounded_product(static_cast<float>(sum - less) * factor, scale);
  }
};
/// Sum int32_t: of LinearArgs::codes times the weight's codes less kByteZero.
template <class Sum>
__device__ __forceinline__ SumEnd<Sum> end_of_sums(const LinearArgs& l, int feature) {
  const float factor = l.weight.factors[feature];
  if constexpr (kOfBytes<Sum>) {
    return {l.in_zero != 0 ? l.in_zero * l.weight_sums[feature] : 0, factor * kByteScale};
  } else {
    return {0.0f, factor};
  }
}
/// A layer of codes as kernels of halves copy it: two bytes are one of these.
inline LinearArgs bytes_as_halves(LinearArgs layer) {
  layer.in = reinterpret_cast<const uint16_t*>(layer.codes);
  layer.weight.form = Form::f16;
  layer.weight.cols /= 2;
  return layer;
}
/// Four codes of a weight, less kByteZero.
__device__ __forceinline__ uint32_t signed_bytes(uint32_t codes) { return codes ^ 0x80808080u; }

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
