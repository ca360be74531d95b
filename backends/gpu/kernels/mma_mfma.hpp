// mma.hpp by MFMA of CDNA.
#pragma once

#include "backends/gpu/kernels/decode.hpp"

namespace llminfer::gpu::LLMINFER_GPU_TARGET {

// v_mfma_f32_16x16x16_f16: lane = 16 q + r. A: row r, k = 4q … 4q+3. B: the same of column r. C: rows 4q … 4q+3 of
// column r.
inline constexpr int kMmaLanes = 64;

struct FragmentA {
  uint32_t word[2];
};
struct FragmentB {
  uint32_t word[2];
};
template <class Sum>
struct Accumulator {
  Sum value[4];
};

__device__ __forceinline__ int mma_lane() { return static_cast<int>(threadIdx.x) % 64; }
template <class Fragment>
__device__ __forceinline__ void load(Fragment& f, const uint16_t* tile, int stride) {
  const uint16_t* at = tile + mma_lane() % 16 * stride + mma_lane() / 16 * 4;
  f.word[0] = two_halves(at);
  f.word[1] = two_halves(at + 2);
}

// Products of bytes: gfx942's v_mfma_i32_16x16x32_i8 has k = 8q … 8q+7 in two words, v_mfma_i32_16x16x16i8 before it 4q
// … 4q+3 in one. The order of k is free if both factors have the same, so that two of these are as good.
#if defined(LLMINFER_GPU_EMULATED)
struct MmaLane {
  float* c;
  const uint32_t *a, *b;
};
/// As on MI200, whose products of halves take subnormal ones for zeros.
inline void mma(Accumulator<float>& acc, const FragmentA& a, const FragmentB& b) {
  MmaLane mine{acc.value, a.word, b.word};
  emulator::collective(&mine, 64, [](void* const* all) {
    float left[16][16], right[16][16], sums[16][16];  // [row][k], [k][column], [row][column]
    for (int lane = 0; lane < 64; ++lane) {
      const auto* from = static_cast<const MmaLane*>(all[lane]);
      for (int i = 0; i < 4; ++i) {
        const auto half_of = [i](const uint32_t* words) {
          const auto half = static_cast<uint16_t>(words[i / 2] >> (16 * (i % 2)) & 0xffffu);
          return half_to_float((half & 0x7c00u) != 0 ? half : static_cast<uint16_t>(half & 0x8000u));
        };
        left[lane % 16][lane / 16 * 4 + i] = half_of(from->a);
        right[lane / 16 * 4 + i][lane % 16] = half_of(from->b);
        sums[lane / 16 * 4 + i][lane % 16] = from->c[i];
      }
    }
    for (int row = 0; row < 16; ++row) {
      for (int k = 0; k < 16; ++k) {
        for (int column = 0; column < 16; ++column) sums[row][column] += left[row][k] * right[k][column];
      }
    }
    for (int lane = 0; lane < 64; ++lane) {
      for (int i = 0; i < 4; ++i) static_cast<MmaLane*>(all[lane])->c[i] = sums[lane / 16 * 4 + i][lane % 16];
    }
  });
}
struct ByteLane {
  int32_t* c;
  const uint32_t *a, *b;
};
/// As on MI200: two v_mfma_i32_16x16x16i8, for which lanes meet once.
inline void mma(Accumulator<int32_t>& acc, const FragmentA& a, const FragmentB& b) {
  ByteLane mine{acc.value, a.word, b.word};
  emulator::collective(&mine, 64, [](void* const* all) {
    for (int word = 0; word < 2; ++word) {
      int32_t left[16][16], right[16][16];  // [row][k], [column][k]
      for (int lane = 0; lane < 64; ++lane) {
        const auto* from = static_cast<const ByteLane*>(all[lane]);
        for (int i = 0; i < 4; ++i) {
          const auto byte_of = [i](uint32_t bytes) { return static_cast<int8_t>(bytes >> (8 * i) & 0xffu); };
          left[lane % 16][lane / 16 * 4 + i] = byte_of(from->a[word]);
          right[lane % 16][lane / 16 * 4 + i] = byte_of(from->b[word]);
        }
      }
      for (int lane = 0; lane < 64; ++lane) {
        for (int i = 0; i < 4; ++i) {
          int32_t sum = 0;
          for (int k = 0; k < 16; ++k) sum += left[lane / 16 * 4 + i][k] * right[lane % 16][k];
          static_cast<ByteLane*>(all[lane])->c[i] += sum;
        }
      }
    }
  });
}
#else
__device__ __forceinline__ void mma(Accumulator<float>& acc, const FragmentA& a, const FragmentB& b) {
  typedef _Float16 Halves __attribute__((ext_vector_type(4)));
  typedef float Floats __attribute__((ext_vector_type(4)));
  Halves left, right;
  __builtin_memcpy(&left, a.word, sizeof left);
  __builtin_memcpy(&right, b.word, sizeof right);
  Floats sum = {acc.value[0], acc.value[1], acc.value[2], acc.value[3]};
  sum = __builtin_amdgcn_mfma_f32_16x16x16f16(left, right, sum, 0, 0, 0);
#pragma unroll
  for (int i = 0; i < 4; ++i) acc.value[i] = sum[i];
}
__device__ __forceinline__ void mma(Accumulator<int32_t>& acc, const FragmentA& a, const FragmentB& b) {
  typedef int32_t Integers __attribute__((ext_vector_type(4)));
  Integers sum = {acc.value[0], acc.value[1], acc.value[2], acc.value[3]};
#if defined(__gfx940__) || defined(__gfx941__) || defined(__gfx942__)
  long left, right;
  __builtin_memcpy(&left, a.word, sizeof left);
  __builtin_memcpy(&right, b.word, sizeof right);
  sum = __builtin_amdgcn_mfma_i32_16x16x32_i8(left, right, sum, 0, 0, 0);
#else
#pragma unroll
  for (int word = 0; word < 2; ++word) {
    sum = __builtin_amdgcn_mfma_i32_16x16x16i8(static_cast<int>(a.word[word]), static_cast<int>(b.word[word]), sum, 0,
                                               0, 0);
  }
#endif
#pragma unroll
  for (int i = 0; i < 4; ++i) acc.value[i] = sum[i];
}
#endif

template <class Sum>
__device__ __forceinline__ void clear(Accumulator<Sum>& acc) {
#pragma unroll
  for (int i = 0; i < 4; ++i) acc.value[i] = 0;
}
template <class Sum, class F>
__device__ __forceinline__ void for_each(Accumulator<Sum>& acc, F f) {
#pragma unroll
  for (int i = 0; i < 4; ++i) f(mma_lane() / 16 * 4 + i, mma_lane() % 16, acc.value[i]);
}

}  // namespace llminfer::gpu::LLMINFER_GPU_TARGET
