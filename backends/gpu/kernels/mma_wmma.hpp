// mma.hpp by WMMA of RDNA.
#pragma once

#include "backends/gpu/kernels/decode.hpp"

namespace llminfer::gpu::LLMINFER_GPU_TARGET {

// v_wmma_f32_16x16x16_f16 of 32 lanes, lane = 16 h + r.
//   gfx11  A: all of row r, in both lanes alike. B: the same of column r. C: rows h, h + 2, … h + 14 of column r.
//   gfx12  A: row r, k = 8h … 8h+7. B: the same of column r. C: rows 8h … 8h+7 of column r.
// v_wmma_i32_16x16x16_iu8 has bytes where halves are: half of a fragment that has bytes, in whatever order of k.
inline constexpr int kMmaLanes = 32;
inline constexpr bool kWholeRows = LLMINFER_GPU_MMA_WMMA == 11;
inline constexpr int kFragmentWords = kWholeRows ? 8 : 4;

struct FragmentA {
  uint32_t word[kFragmentWords];
};
struct FragmentB {
  uint32_t word[kFragmentWords];
};
template <class Sum>
struct Accumulator {
  Sum value[8];
};

template <class Fragment>
__device__ __forceinline__ void load(Fragment& f, const uint16_t* tile, int stride) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const uint16_t* at = tile + lane % 16 * stride + (kWholeRows ? 0 : lane / 16 * 8);
#pragma unroll
  for (int i = 0; i < kFragmentWords; ++i) f.word[i] = two_halves(at + 2 * i);
}
template <class Sum>
__device__ __forceinline__ void clear(Accumulator<Sum>& acc) {
#pragma unroll
  for (int i = 0; i < 8; ++i) acc.value[i] = 0;
}
template <class Sum, class F>
__device__ __forceinline__ void for_each(Accumulator<Sum>& acc, F f) {
  const int r = static_cast<int>(threadIdx.x) % 16, h = static_cast<int>(threadIdx.x) % 32 / 16;
#pragma unroll
  for (int i = 0; i < 8; ++i) f(kWholeRows ? 2 * i + h : 8 * h + i, r, acc.value[i]);
}

#if defined(LLMINFER_GPU_EMULATED)
/// What the instruction does, by the layout above, of `words` of the fragments, with element(word, i) of `kPerWord`.
/// Where both lanes of a row have to be alike and are not, that is undefined.
template <int kPerWord, class Sum, class Element>
void multiply_tiles(Sum* c, const uint32_t* a, const uint32_t* b, int words, Element element) {
  struct Lane {
    Sum* c;
    const uint32_t *a, *b;
    int words;
    Element element;
  } mine{c, a, b, words, element};
  emulator::collective(&mine, 32, [](void* const* all) {
    const auto lane = [all](int i) { return static_cast<const Lane*>(all[i]); };
    const int count = lane(0)->words;
    const auto element_of = [&](const uint32_t* words_of, int k) {
      return lane(0)->element(words_of[k / kPerWord], k % kPerWord);
    };
    const auto dot = [&](int row, int column) {
      Sum sum = 0;
      for (int h = 0; h < (kWholeRows ? 1 : 2); ++h) {
        for (int k = 0; k < count * kPerWord; ++k) {
          sum += element_of(lane(16 * h + row)->a, k) * element_of(lane(16 * h + column)->b, k);
        }
      }
      return sum;
    };
    bool alike = true;
    for (int i = 0; i < (kWholeRows ? 16 * count : 0); ++i) {
      const Lane *first = lane(i / count), *second = lane(16 + i / count);
      alike = alike && first->a[i % count] == second->a[i % count] && first->b[i % count] == second->b[i % count];
    }
    for (int i = 0; i < 32; ++i) {
      for (int v = 0; v < 8; ++v) {
        lane(i)->c[v] += alike ? dot(kWholeRows ? 2 * v + i / 16 : i / 16 * 8 + v, i % 16) : Sum{1 << 20};
      }
    }
  });
}
inline void mma(Accumulator<float>& acc, const FragmentA& a, const FragmentB& b) {
  multiply_tiles<2>(acc.value, a.word, b.word, kFragmentWords, [](uint32_t word, int i) {
    return half_to_float(static_cast<uint16_t>(word >> (16 * i) & 0xffffu));
  });
}
inline void mma(Accumulator<int32_t>& acc, const FragmentA& a, const FragmentB& b) {
  constexpr int kWords = kFragmentWords / 2;
  for (int at = 0; at < kFragmentWords; at += kWords) {
    multiply_tiles<4>(acc.value, a.word + at, b.word + at, kWords, [](uint32_t word, int i) {
      return static_cast<int32_t>(static_cast<int8_t>(word >> (8 * i) & 0xffu));
    });
  }
}
#else
template <class Sum>
__device__ __forceinline__ void mma(Accumulator<Sum>& acc, const FragmentA& a, const FragmentB& b) {
  typedef _Float16 Halves __attribute__((ext_vector_type(2 * kFragmentWords)));
  typedef int32_t Bytes __attribute__((ext_vector_type(kFragmentWords / 2)));
  typedef Sum Sums __attribute__((ext_vector_type(8)));
  Sums sum;
  __builtin_memcpy(&sum, acc.value, sizeof sum);
  if constexpr (kOfBytes<Sum>) {
#pragma unroll
    for (int part = 0; part < 2; ++part) {
      Bytes left, right;
      __builtin_memcpy(&left, a.word + part * kFragmentWords / 2, sizeof left);
      __builtin_memcpy(&right, b.word + part * kFragmentWords / 2, sizeof right);
#if LLMINFER_GPU_MMA_WMMA == 11
      sum = __builtin_amdgcn_wmma_i32_16x16x16_iu8_w32(true, left, true, right, sum, false);
#else
      sum = __builtin_amdgcn_wmma_i32_16x16x16_iu8_w32_gfx12(true, left, true, right, sum, false);
#endif
    }
  } else {
    Halves left, right;
    __builtin_memcpy(&left, a.word, sizeof left);
    __builtin_memcpy(&right, b.word, sizeof right);
#if LLMINFER_GPU_MMA_WMMA == 11
    sum = __builtin_amdgcn_wmma_f32_16x16x16_f16_w32(left, right, sum);
#else
    sum = __builtin_amdgcn_wmma_f32_16x16x16_f16_w32_gfx12(left, right, sum);
#endif
  }
  __builtin_memcpy(acc.value, &sum, sizeof sum);
}
#endif

}  // namespace llminfer::gpu::LLMINFER_GPU_TARGET
