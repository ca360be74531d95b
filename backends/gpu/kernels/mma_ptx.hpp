// mma.hpp by mma.sync of sm_75 and later.
#pragma once

#include "backends/gpu/kernels/decode.hpp"

#if defined(LLMINFER_GPU_EMULATED)
#include "backends/gpu/emulator/e4m3.hpp"
#endif

namespace llminfer::gpu::LLMINFER_GPU_TARGET {

// PTX ISA, "Matrix Fragments for mma.m16n8k16": lane = 4 g + t. A: rows g and g + 8, columns 2t, 2t+1 and those + 8.
// B: k = 2t, 2t+1 and those + 8 of column g. C: rows g and g + 8, columns 2t, 2t+1.
inline constexpr int kMmaLanes = 32;

struct FragmentA {
  uint32_t word[4];
};
struct FragmentB {
  uint32_t word[2][2];  ///< two halves of eight columns
};
template <class Sum>
struct Accumulator {
  Sum value[2][4];
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

// Products of bytes. m16n8k32 (sm_80) has the layout of E4M3's. m8n8k16 (sm_75), "Matrix Fragments for mma.m8n8k16":
// row g of A and column g of B, k = 4t … 4t+3; of C row g, columns 2t, 2t+1.
#if defined(LLMINFER_GPU_EMULATED)
struct ByteLane {
  int32_t* c;
  const uint32_t *a, *b;
};
inline int32_t byte_of(uint32_t word, int i) { return static_cast<int8_t>(word >> (8 * i) & 0xffu); }
inline void mma_m16n8k32_s8(int32_t (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  ByteLane mine{c, a, b};
  emulator::collective(&mine, 32, [](void* const* all) {
    int32_t left[16][32], right[8][32];  // [row][k], [column][k]
    for (int lane = 0; lane < 32; ++lane) {
      const auto* from = static_cast<const ByteLane*>(all[lane]);
      const int g = lane / 4, t = lane % 4;
      for (int i = 0; i < 4; ++i) {
        for (int w = 0; w < 4; ++w) left[g + 8 * (w % 2)][4 * t + i + 16 * (w / 2)] = byte_of(from->a[w], i);
        for (int w = 0; w < 2; ++w) right[g][4 * t + i + 16 * w] = byte_of(from->b[w], i);
      }
    }
    for (int lane = 0; lane < 32; ++lane) {
      for (int i = 0; i < 4; ++i) {
        int32_t sum = 0;
        for (int k = 0; k < 32; ++k) sum += left[lane / 4 + 8 * (i / 2)][k] * right[lane % 4 * 2 + i % 2][k];
        static_cast<ByteLane*>(all[lane])->c[i] += sum;
      }
    }
  });
}
/// As on sm_75: the products of eight m8n8k16, for which lanes meet once.
inline void mma(Accumulator<int32_t>& acc, const FragmentA& a, const FragmentB& b) {
  ByteLane mine{acc.value[0], a.word, b.word[0]};
  emulator::collective(&mine, 32, [](void* const* all) {
    const auto m8n8k16 = [all](int c_at, int a_at, int b_at) {
      int32_t left[8][16], right[8][16];  // [row][k], [column][k]
      for (int lane = 0; lane < 32; ++lane) {
        const auto* from = static_cast<const ByteLane*>(all[lane]);
        for (int i = 0; i < 4; ++i) {
          left[lane / 4][lane % 4 * 4 + i] = byte_of(from->a[a_at], i);
          right[lane / 4][lane % 4 * 4 + i] = byte_of(from->b[b_at], i);
        }
      }
      for (int lane = 0; lane < 32; ++lane) {
        for (int i = 0; i < 2; ++i) {
          int32_t sum = 0;
          for (int k = 0; k < 16; ++k) sum += left[lane / 4][k] * right[lane % 4 * 2 + i][k];
          static_cast<ByteLane*>(all[lane])->c[c_at + i] += sum;
        }
      }
    };
    for (int half = 0; half < 2; ++half) {
      for (int word = 0; word < 4; ++word) m8n8k16(4 * half + word % 2 * 2, word, 2 * half + word / 2);
    }
  });
}
#elif __CUDA_ARCH__ >= 800
__device__ __forceinline__ void mma_m16n8k32_s8(int32_t (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
__device__ __forceinline__ void mma(Accumulator<int32_t>& acc, const FragmentA& a, const FragmentB& b) {
  mma_m16n8k32_s8(acc.value[0], a.word, b.word[0]);
  mma_m16n8k32_s8(acc.value[1], a.word, b.word[1]);
}
#else
__device__ __forceinline__ void mma(Accumulator<int32_t>& acc, const FragmentA& a, const FragmentB& b) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
#pragma unroll
    for (int word = 0; word < 4; ++word) {
      int32_t* const c = acc.value[half] + word % 2 * 2;
      asm("mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%0,%1}, {%2}, {%3}, {%0,%1};"
          : "+r"(c[0]), "+r"(c[1])
          : "r"(a.word[word]), "r"(b.word[half][word / 2]));
    }
  }
}
#endif

template <class Sum>
__device__ __forceinline__ void clear(Accumulator<Sum>& acc) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
#pragma unroll
    for (int i = 0; i < 4; ++i) acc.value[half][i] = 0;
  }
}
__device__ __forceinline__ void mma(Accumulator<float>& acc, const FragmentA& a, const FragmentB& b) {
#if defined(LLMINFER_GPU_EMULATED)
  multiply_tiles<2>(acc.value[0], a.word, b.word[0]);
#else
  mma_m16n8k16(acc.value[0], a.word, b.word[0]);
  mma_m16n8k16(acc.value[1], a.word, b.word[1]);
#endif
}
/// Calls f(row, column, value) for the elements that this lane has.
template <class Sum, class F>
__device__ __forceinline__ void for_each(Accumulator<Sum>& acc, F f) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
#pragma unroll
    for (int i = 0; i < 4; ++i) f(lane / 4 + 8 * (i / 2), 8 * half + lane % 4 * 2 + i % 2, acc.value[half][i]);
  }
}

}  // namespace llminfer::gpu::LLMINFER_GPU_TARGET
