// Products of 16x16 tiles of halves on matrix units, summed in floats. What a lane holds of a tile is each machine's
// own business: kernels fill fragments from shared memory, multiply, and visit the elements of the sum with for_each.
//
//   PTX   mma.sync of sm_75 and later: 32 lanes
//   MFMA  gfx908 and later of CDNA: 64 lanes
//   FMA   any machine: 32 lanes, each of which sums eight elements by itself
#pragma once

#include "backends/gpu/kernels/platform.hpp"

#if defined(LLMINFER_GPU_EMULATED)
#include "backends/gpu/emulator/e4m3.hpp"
#endif

#if !defined(LLMINFER_GPU_MMA_PTX) && !defined(LLMINFER_GPU_MMA_MFMA) && !defined(LLMINFER_GPU_MMA_FMA)
#if defined(__CUDA_ARCH__)
#define LLMINFER_GPU_MMA_PTX
#elif defined(__gfx908__) || defined(__gfx90a__) || defined(__gfx940__) || defined(__gfx941__) || defined(__gfx942__)
#define LLMINFER_GPU_MMA_MFMA
#else
#define LLMINFER_GPU_MMA_FMA  // and the host's pass over the file, which runs nothing
#endif
#endif

namespace llminfer::gpu::LLMINFER_GPU_TARGET {

/// Tiles of halves in shared memory: element (row, k) at tile[row * stride + k]; both factors have k in consecutive
/// places. Rows lie on multiples of four bytes.
__device__ __forceinline__ uint32_t two_halves(const uint16_t* at) { return *reinterpret_cast<const uint32_t*>(at); }

#if defined(LLMINFER_GPU_MMA_PTX)

// PTX ISA, "Matrix Fragments for mma.m16n8k16": lane = 4 g + t. A: rows g and g + 8, columns 2t, 2t+1 and those + 8.
// B: k = 2t, 2t+1 and those + 8 of column g. C: rows g and g + 8, columns 2t, 2t+1.
inline constexpr int kMmaLanes = 32;

struct FragmentA {
  uint32_t word[4];
};
struct FragmentB {
  uint32_t word[2][2];  ///< two halves of eight columns
};
struct Accumulator {
  float value[2][4];
};

__device__ __forceinline__ void load(FragmentA& f, const uint16_t* tile, int stride) {
  const int lane = static_cast<int>(threadIdx.x) % 32, g = lane / 4, t = lane % 4;
  f.word[0] = two_halves(tile + g * stride + 2 * t);
  f.word[1] = two_halves(tile + (g + 8) * stride + 2 * t);
  f.word[2] = two_halves(tile + g * stride + 2 * t + 8);
  f.word[3] = two_halves(tile + (g + 8) * stride + 2 * t + 8);
}
__device__ __forceinline__ void load(FragmentB& f, const uint16_t* tile, int stride) {
  const int lane = static_cast<int>(threadIdx.x) % 32, g = lane / 4, t = lane % 4;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    f.word[half][0] = two_halves(tile + (8 * half + g) * stride + 2 * t);
    f.word[half][1] = two_halves(tile + (8 * half + g) * stride + 2 * t + 8);
  }
}

#if defined(LLMINFER_GPU_EMULATED)
struct MmaLane {
  float* c;
  const uint32_t *a, *b;
};
/// What the instruction does, by the layout above; kCount of them with the same A, for which lanes need to meet once
/// only. c is kCount times four elements, b kCount times two.
template <int kCount>
void multiply_tiles(float* c, const uint32_t* a, const uint32_t* b) {
  MmaLane mine{c, a, b};
  emulator::collective(&mine, 32, [](void* const* all) {
    const auto half_of = [](uint32_t word, int i) {
      return half_to_float(static_cast<uint16_t>(word >> (16 * i) & 0xffffu));
    };
    float left[16][16], right[16][8 * kCount], sums[16][8 * kCount];  // [row][k], [k][column], [row][column]
    const auto each_sum = [&](auto f) {
      for (int lane = 0; lane < 32; ++lane) {
        for (int i = 0; i < 4 * kCount; ++i) {
          f(static_cast<const MmaLane*>(all[lane])->c[i],
            sums[lane / 4 + 8 * (i / 2 % 2)][8 * (i / 4) + lane % 4 * 2 + i % 2]);
        }
      }
    };
    for (int lane = 0; lane < 32; ++lane) {
      const auto* from = static_cast<const MmaLane*>(all[lane]);
      const int g = lane / 4, t = lane % 4;
      for (int i = 0; i < 2; ++i) {
        for (int w = 0; w < 4; ++w) left[g + 8 * (w % 2)][2 * t + i + 8 * (w / 2)] = half_of(from->a[w], i);
        for (int w = 0; w < 2 * kCount; ++w) right[2 * t + i + 8 * (w % 2)][8 * (w / 2) + g] = half_of(from->b[w], i);
      }
    }
    each_sum([](float& c_of_lane, float& sum) { sum = c_of_lane; });
    for (int row = 0; row < 16; ++row) {
      for (int k = 0; k < 16; ++k) {
        for (int column = 0; column < 8 * kCount; ++column) sums[row][column] += left[row][k] * right[k][column];
      }
    }
    each_sum([](float& c_of_lane, float& sum) { c_of_lane = sum; });
  });
}
inline void mma_m16n8k16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) { multiply_tiles<1>(c, a, b); }
#else
__device__ __forceinline__ void mma_m16n8k16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#if __CUDA_ARCH__ >= 800
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else  // sm_75 has half of it: k = 0 … 7, then 8 … 15
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[2 * half]), "r"(a[2 * half + 1]), "r"(b[half]));
  }
#endif
}
#endif

// Products of E4M3 by E4M3, where they are an instruction: for sm_90 and sm_100 ptxas makes products of halves of them.
// PTX ISA, "Matrix Fragments for mma.m16n8k32": as those of halves, with four bytes in place of two halves, and columns
// + 16 in place of + 8.
#if defined(LLMINFER_GPU_EMULATED)
#define LLMINFER_GPU_E4M3_CODE
inline void mma_m16n8k32_e4m3(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  MmaLane mine{c, a, b};
  emulator::collective(&mine, 32, [](void* const* all) {
    float left[16][32], right[8][32];  // [row][k], [column][k]
    for (int lane = 0; lane < 32; ++lane) {
      const auto* from = static_cast<const MmaLane*>(all[lane]);
      const int g = lane / 4, t = lane % 4;
      for (int i = 0; i < 4; ++i) {
        const auto number = [i](uint32_t word) {
          return core::e4m3_to_float(static_cast<uint8_t>(word >> (8 * i) & 0xffu));
        };
        for (int w = 0; w < 4; ++w) left[g + 8 * (w % 2)][4 * t + i + 16 * (w / 2)] = number(from->a[w]);
        for (int w = 0; w < 2; ++w) right[g][4 * t + i + 16 * w] = number(from->b[w]);
      }
    }
    for (int lane = 0; lane < 32; ++lane) {
      auto* to = static_cast<MmaLane*>(all[lane]);
      for (int i = 0; i < 4; ++i) {
        const int row = lane / 4 + 8 * (i / 2), column = lane % 4 * 2 + i % 2;
        float products[32];
        for (int k = 0; k < 32; ++k) products[k] = left[row][k] * right[column][k];
        to->c[i] = emulator::add_products(to->c[i], products);
      }
    }
  });
}
#elif __CUDA_ARCH__ == 890 || __CUDA_ARCH__ >= 1200
#define LLMINFER_GPU_E4M3_CODE
__device__ __forceinline__ void mma_m16n8k32_e4m3(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
#endif

__device__ __forceinline__ void clear(Accumulator& acc) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
#pragma unroll
    for (int i = 0; i < 4; ++i) acc.value[half][i] = 0.0f;
  }
}
__device__ __forceinline__ void mma(Accumulator& acc, const FragmentA& a, const FragmentB& b) {
#if defined(LLMINFER_GPU_EMULATED)
  multiply_tiles<2>(acc.value[0], a.word, b.word[0]);
#else
  mma_m16n8k16(acc.value[0], a.word, b.word[0]);
  mma_m16n8k16(acc.value[1], a.word, b.word[1]);
#endif
}
/// Calls f(row, column, value) for the elements that this lane has.
template <class F>
__device__ __forceinline__ void for_each(Accumulator& acc, F f) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
#pragma unroll
    for (int i = 0; i < 4; ++i) f(lane / 4 + 8 * (i / 2), 8 * half + lane % 4 * 2 + i % 2, acc.value[half][i]);
  }
}

#elif defined(LLMINFER_GPU_MMA_MFMA)

// v_mfma_f32_16x16x16_f16: lane = 16 q + r. A: row r, k = 4q … 4q+3. B: the same of column r. C: rows 4q … 4q+3 of
// column r.
inline constexpr int kMmaLanes = 64;

struct FragmentA {
  uint32_t word[2];
};
struct FragmentB {
  uint32_t word[2];
};
struct Accumulator {
  float value[4];
};

__device__ __forceinline__ int mma_lane() { return static_cast<int>(threadIdx.x) % 64; }
template <class Fragment>
__device__ __forceinline__ void load(Fragment& f, const uint16_t* tile, int stride) {
  const uint16_t* at = tile + mma_lane() % 16 * stride + mma_lane() / 16 * 4;
  f.word[0] = two_halves(at);
  f.word[1] = two_halves(at + 2);
}

#if defined(LLMINFER_GPU_EMULATED)
struct MmaLane {
  float* c;
  const uint32_t *a, *b;
};
/// As on MI200, whose products of halves take subnormal ones for zeros.
inline void mma(Accumulator& acc, const FragmentA& a, const FragmentB& b) {
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
#else
__device__ __forceinline__ void mma(Accumulator& acc, const FragmentA& a, const FragmentB& b) {
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
#endif

__device__ __forceinline__ void clear(Accumulator& acc) {
#pragma unroll
  for (int i = 0; i < 4; ++i) acc.value[i] = 0.0f;
}
template <class F>
__device__ __forceinline__ void for_each(Accumulator& acc, F f) {
#pragma unroll
  for (int i = 0; i < 4; ++i) f(mma_lane() / 16 * 4 + i, mma_lane() % 16, acc.value[i]);
}

#else

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
struct Accumulator {
  float value[8];
};

template <class Fragment>
__device__ __forceinline__ void load(Fragment& f, const uint16_t* tile, int stride) {
  f.tile = tile;
  f.stride = stride;
}
__device__ __forceinline__ void clear(Accumulator& acc) {
#pragma unroll
  for (int i = 0; i < 8; ++i) acc.value[i] = 0.0f;
}
__device__ __forceinline__ void mma(Accumulator& acc, const FragmentA& a, const FragmentB& b) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const uint16_t* column = b.tile + lane % 16 * b.stride;
  const uint16_t* rows = a.tile + lane / 16 * 8 * a.stride;
  for (int k = 0; k < 16; ++k) {
    const float right = half_to_float(column[k]);
#pragma unroll
    for (int i = 0; i < 8; ++i) acc.value[i] += half_to_float(rows[i * a.stride + k]) * right;
  }
}
template <class F>
__device__ __forceinline__ void for_each(Accumulator& acc, F f) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int i = 0; i < 8; ++i) f(lane / 16 * 8 + i, lane % 16, acc.value[i]);
}

#endif

}  // namespace llminfer::gpu::LLMINFER_GPU_TARGET
