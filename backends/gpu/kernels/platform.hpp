// The language of the kernels: CUDA C++ as nvcc, hipcc and the host emulator understand it. Everything that differs
// between the three is in this file and in mma.hpp. Kernels use no std.
//
// Reductions work on groups of 32 lanes on every machine, also where a wave has 64.
//
// after_former(): a kernel may begin before those before it have ended (docs/adr/0033). Every thread of every kernel
// calls it once, before it returns; it lets the next kernel begin likewise, and comes back when all former ones have
// ended and what they wrote is there. Before it a kernel reads nothing of global memory but weights, which no kernel
// writes, and writes none. prefetch() is for these: it brings what lies at an address nearer, where kernels overlap.
#pragma once

#include <stdint.h>

#include "backends/gpu/args.hpp"

#if defined(LLMINFER_GPU_EMULATED)
#include <bit>
#include <cmath>

#include "backends/gpu/emulator/emulator.hpp"
#include "core/half.hpp"
#define __global__ static
#define __device__
#define __host__
#define __shared__ static thread_local
#define __launch_bounds__(...)
#define __forceinline__ inline
#elif defined(__HIP__)
#include <hip/hip_runtime.h>
#define LLMINFER_GPU_TARGET hip
#else
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#define LLMINFER_GPU_TARGET cuda
#endif

#define LLMINFER_ALIGNED __attribute__((aligned(16)))  // shared memory that is read 16 bytes at a time

namespace llminfer::gpu::LLMINFER_GPU_TARGET {

struct Grid {
  unsigned x = 1, y = 1, z = 1;
};

#if defined(LLMINFER_GPU_EMULATED)

struct alignas(8) uint2 {
  uint32_t x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};

#define threadIdx (emulator::place.thread)
#define blockIdx (emulator::place.block)
#define gridDim (emulator::place.grid)

inline void __syncthreads() { emulator::sync_block(); }
inline void after_former() { emulator::after_former(); }
inline void prefetch(const void* address) { (void)*static_cast<const volatile unsigned char*>(address); }

struct Exchange {
  float in, out;
  int mask;
};
/// The value of the lane whose number differs by `mask`, within 32 lanes.
inline float shuffle_xor(float value, int mask) {
  Exchange mine{value, 0.0f, mask};
  emulator::collective(&mine, 32, [](void* const* all) {
    for (int lane = 0; lane < 32; ++lane) {
      auto* to = static_cast<Exchange*>(all[lane]);
      to->out = static_cast<Exchange*>(all[lane ^ to->mask])->in;
    }
  });
  return mine.out;
}

inline float half_to_float(uint16_t bits) { return core::half_to_float(bits); }
inline uint16_t float_to_half(float x) { return core::float_to_half(x); }
inline float bits_to_float(uint32_t bits) { return std::bit_cast<float>(bits); }
inline uint32_t float_to_bits(float x) { return std::bit_cast<uint32_t>(x); }
using std::ceil;
using std::erf;
using std::exp;
using std::rint;

template <class Args>
int launch(void* stream, Grid grid, int threads, void (*kernel)(Args), const Args& args) {
  return emulator::launch(*static_cast<emulator::Machine*>(stream), {grid.x, grid.y, grid.z}, threads,
                          [kernel, args] { kernel(args); });
}

#elif defined(__HIP__)

__device__ __forceinline__ void after_former() {}
__device__ __forceinline__ void prefetch(const void*) {}
__device__ __forceinline__ float shuffle_xor(float value, int mask) { return __shfl_xor(value, mask, 32); }
__device__ __forceinline__ float half_to_float(uint16_t bits) {
  return static_cast<float>(__builtin_bit_cast(_Float16, bits));
}
__device__ __forceinline__ uint16_t float_to_half(float x) {
  return __builtin_bit_cast(uint16_t, static_cast<_Float16>(x));
}
__device__ __forceinline__ float bits_to_float(uint32_t bits) { return __uint_as_float(bits); }
__device__ __forceinline__ uint32_t float_to_bits(float x) { return __float_as_uint(x); }

#else

__device__ __forceinline__ void after_former() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
__device__ __forceinline__ void prefetch(const void* address) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("prefetch.global.L2 [%0];" ::"l"(address));
#endif
}
__device__ __forceinline__ float shuffle_xor(float value, int mask) {
  return __shfl_xor_sync(0xffffffffu, value, mask);
}
__device__ __forceinline__ float half_to_float(uint16_t bits) { return __half2float(__ushort_as_half(bits)); }
__device__ __forceinline__ uint16_t float_to_half(float x) { return __half_as_ushort(__float2half_rn(x)); }
__device__ __forceinline__ float bits_to_float(uint32_t bits) { return __uint_as_float(bits); }
__device__ __forceinline__ uint32_t float_to_bits(float x) { return __float_as_uint(x); }

#endif

#if !defined(LLMINFER_GPU_EMULATED)
template <class Args>
int launch(void* stream, Grid grid, int threads, void (*kernel)(Args), const Args& args, unsigned shared_bytes = 0) {
  const Queue& queue = *static_cast<const Queue*>(stream);
  return queue.put(queue.owner, {reinterpret_cast<const void*>(kernel),
                                 {grid.x, grid.y, grid.z},
                                 static_cast<unsigned>(threads),
                                 shared_bytes,
                                 &args,
                                 sizeof(Args),
                                 false});
}
#endif

// What follows is the same for all three.

__device__ __forceinline__ float largest(float a, float b) { return a > b ? a : b; }
__device__ __forceinline__ float absolute(float x) { return x < 0.0f ? -x : x; }
__device__ __forceinline__ bool finite(float x) { return (float_to_bits(x) & 0x7f800000u) != 0x7f800000u; }
__device__ __forceinline__ float infinity() { return bits_to_float(0x7f800000u); }

/// x = f(x, that of the lane whose number differs by 16, by 8, … by 1)
template <class F>
__device__ __forceinline__ float reduce_by_shuffles(float x, F f) {
  for (int mask = 16; mask > 0; mask /= 2) x = f(x, shuffle_xor(x, mask));
  return x;
}
#if defined(LLMINFER_GPU_EMULATED)
/// The same, for which the lanes meet once instead of five times.
template <class F>
float reduce_lanes(float x, F) {
  emulator::collective(&x, 32, [](void* const* all) {
    float before[32];
    for (int mask = 16; mask > 0; mask /= 2) {
      for (int lane = 0; lane < 32; ++lane) before[lane] = *static_cast<float*>(all[lane]);
      for (int lane = 0; lane < 32; ++lane) *static_cast<float*>(all[lane]) = F()(before[lane], before[lane ^ mask]);
    }
  });
  return x;
}
#else
template <class F>
__device__ __forceinline__ float reduce_lanes(float x, F f) {
  return reduce_by_shuffles(x, f);
}
#endif

/// Over 32 lanes, in all of them; the order of additions is fixed.
__device__ __forceinline__ float sum_of_lanes(float x) {
  return reduce_lanes(x, [](float a, float b) { return a + b; });
}
__device__ __forceinline__ float largest_of_lanes(float x) {
  return reduce_lanes(x, [](float a, float b) { return largest(a, b); });
}

/// Over a block of `kThreads`, in all of them. `shared` has kThreads / 32 floats, which may be used again at once.
template <int kThreads>
__device__ __forceinline__ float sum_of_block(float x, float* shared) {
  x = sum_of_lanes(x);
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = x;
  __syncthreads();
  x = 0.0f;
  for (int i = 0; i < kThreads / 32; ++i) x += shared[i];
  __syncthreads();
  return x;
}
template <int kThreads>
__device__ __forceinline__ float largest_of_block(float x, float* shared) {
  x = largest_of_lanes(x);
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = x;
  __syncthreads();
  x = shared[0];
  for (int i = 1; i < kThreads / 32; ++i) x = largest(x, shared[i]);
  __syncthreads();
  return x;
}

/// Halves never become infinite.
__device__ __forceinline__ uint16_t float_to_half_saturated(float x) {
  return float_to_half(x > 65504.0f ? 65504.0f : x < -65504.0f ? -65504.0f : x);
}
__device__ __forceinline__ float bfloat_to_float(uint16_t bits) {
  return bits_to_float(static_cast<uint32_t>(bits) << 16);
}
__device__ __forceinline__ uint16_t float_to_bfloat(float x) {
  const uint32_t bits = float_to_bits(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x40u);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}
/// Of bits that are not NaN's: those of a float whose exponent is too small by 127 - 7.
__device__ __forceinline__ float e4m3_number(uint32_t bits) {
  return bits_to_float((bits & 0x80u) << 24 | (bits & 0x7fu) << 20) * 0x1p120f;
}
__device__ __forceinline__ float e4m3_to_float(uint32_t bits) {
  return (bits & 0x7fu) == 0x7fu ? bits_to_float((bits & 0x80u) << 24 | 0x7fc00000u) : e4m3_number(bits);
}

/// a * b as it is: what is then added is added to the rounded product, whatever the compiler and the kernel.
__device__ __forceinline__ float rounded_product(float a, float b) {
#if defined(__CUDA_ARCH__)
  return __fmul_rn(a, b);
#else
#if defined(__clang__)
#pragma clang fp contract(off)
#endif
  return a * b;
#endif
}

/// The nearest E4M3 number, ties to even; beyond the largest one, and for NaN, that of the same sign.
__device__ __forceinline__ uint32_t float_to_e4m3(float x) {
  const uint32_t sign = float_to_bits(x) >> 24 & 0x80u;
  const float size = absolute(x) < 448.0f ? absolute(x) : 448.0f;
  if (size < 0x1p-6f) return sign | static_cast<uint32_t>(rint(size * 0x1p9f));
  const uint32_t bits = float_to_bits(size);  // whose exponent is larger by 127 - 7
  return sign | (((bits + 0x7ffffu + (bits >> 20 & 1u)) >> 20) - (120u << 3));
}

/// 2^n for -126 <= n <= 127
__device__ __forceinline__ float power_of_two(int n) { return bits_to_float(static_cast<uint32_t>(n + 127) << 23); }
/// floor(log2(x)) for a positive normal x
__device__ __forceinline__ int exponent_of(float x) { return static_cast<int>(float_to_bits(x) >> 23 & 255u) - 127; }

/// A gated unit by llminfer::Activation.
__device__ __forceinline__ float gated(int activation, float x, float up) {
  if (activation == 0) return x / (1.0f + exp(-x)) * up;
  if (activation == 1) return 0.5f * x * (1.0f + erf(x * 0.70710678f)) * up;
  if (activation == 3) {
    const float gate = x > 7.0f ? 7.0f : x;
    return gate / (1.0f + exp(-1.702f * gate)) * ((up < -7.0f ? -7.0f : up > 7.0f ? 7.0f : up) + 1.0f);
  }
  const float y = 0.7978845608f * (x + 0.044715f * x * x * x);  // 0.5 (1 + tanh y) = 1 / (1 + exp(-2 y))
  return x / (1.0f + exp(-2.0f * y)) * up;
}

}  // namespace llminfer::gpu::LLMINFER_GPU_TARGET
