// mma.hpp by plain arithmetic.
#pragma once

#include "backends/gpu/kernels/decode.hpp"

namespace llminfer::gpu::LLMINFER_GPU_TARGET {

// Lane l has columns l % 16 of rows 8 (l / 16) … + 7. Fragments are the tiles themselves.
inline constexpr int kMmaLanes = 32;

struct FragmentA {
  const uint16_t* tile;
  int stride;
};
struct FragmentB {
  const uint16_t* tile;
  int stride;
};
template <class Sum>
struct Accumulator {
  Sum value[8];
};

template <class Fragment>
__device__ __forceinline__ void load(Fragment& f, const uint16_t* tile, int stride) {
  f.tile = tile;
  f.stride = stride;
}
template <class Sum>
__device__ __forceinline__ void clear(Accumulator<Sum>& acc) {
#pragma unroll
  for (int i = 0; i < 8; ++i) acc.value[i] = 0;
}
__device__ __forceinline__ void mma(Accumulator<float>& acc, const FragmentA& a, const FragmentB& b) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const uint16_t* column = b.tile + lane % 16 * b.stride;
  const uint16_t* rows = a.tile + lane / 16 * 8 * a.stride;
  for (int k = 0; k < 16; ++k) {
    const float right = half_to_float(column[k]);
#pragma unroll
    for (int i = 0; i < 8; ++i) acc.value[i] += half_to_float(rows[i * a.stride + k]) * right;
  }
}
/// sum + the products of four signed bytes each.
__device__ __forceinline__ int32_t add_products_of_bytes(uint32_t a, uint32_t b, int32_t sum) {
#if defined(__gfx1030__) || defined(__gfx1031__) || defined(__gfx1032__) || defined(__gfx1034__)
  return __builtin_amdgcn_sdot4(static_cast<int>(a), static_cast<int>(b), sum, false);
#else
  for (int i = 0; i < 32; i += 8) {
    sum += static_cast<int32_t>(static_cast<int8_t>(a >> i & 0xffu)) * static_cast<int8_t>(b >> i & 0xffu);
  }
  return sum;
#endif
}
__device__ __forceinline__ void mma(Accumulator<int32_t>& acc, const FragmentA& a, const FragmentB& b) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const uint16_t* column = b.tile + lane % 16 * b.stride;
  const uint16_t* rows = a.tile + lane / 16 * 8 * a.stride;
  for (int k = 0; k < 16; k += 2) {
    const uint32_t right = two_halves(column + k);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      acc.value[i] = add_products_of_bytes(two_halves(rows + i * a.stride + k), right, acc.value[i]);
    }
  }
}
template <class Sum, class F>
__device__ __forceinline__ void for_each(Accumulator<Sum>& acc, F f) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int i = 0; i < 8; ++i) f(lane / 16 * 8 + i, lane % 16, acc.value[i]);
}

}  // namespace llminfer::gpu::LLMINFER_GPU_TARGET
