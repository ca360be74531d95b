// Copies into shared memory that a thread starts and does not wait for (cp.async, sm_80 and later), pairs of halves in
// words, and weights that become such pairs. LLMINFER_GPU_COPIES says that a target may have the copies,
// LLMINFER_GPU_COPY_CODE that this pass does.
#pragma once

#include "backends/gpu/kernels/decode.hpp"

#if defined(LLMINFER_GPU_EMULATED)
#if defined(LLMINFER_GPU_MMA_PTX)
#include "backends/gpu/emulator/asynchronous.hpp"
#define LLMINFER_GPU_COPIES
#define LLMINFER_GPU_COPY_CODE
#endif
#elif !defined(__HIP__)
#define LLMINFER_GPU_COPIES
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
#define LLMINFER_GPU_COPY_CODE
#endif
#endif

#if defined(LLMINFER_GPU_COPIES)

namespace llminfer::gpu::LLMINFER_GPU_TARGET {

#if defined(LLMINFER_GPU_EMULATED)

template <class Args>
int launch_with_shared(void* stream, Grid grid, int threads, int shared_bytes, void (*kernel)(Args), const Args& args) {
  return emulator::launch(
      *static_cast<emulator::Machine*>(stream), {grid.x, grid.y, grid.z}, threads, [kernel, args] { kernel(args); },
      static_cast<std::size_t>(shared_bytes));
}
inline unsigned char* dynamic_shared_memory() { return reinterpret_cast<unsigned char*>(emulator::shared_memory()); }

template <int kBytes>
void copy_piece(void* to, const void* from, bool exists) {
  emulator::copy_piece(to, from, kBytes, exists);
}
inline void copies_commit() { emulator::copies_commit(); }
template <int kLeft>
void copies_wait() {
  emulator::copies_wait(kLeft);
}
/// Blocks run one after the other.
inline uint32_t count_up(uint32_t* counter) { return (*counter)++; }
inline void publish() {}

inline uint32_t each_half(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t out = 0;
  for (int shift = 0; shift < 32; shift += 16) {
    const auto at = [shift](uint32_t word) { return half_to_float(static_cast<uint16_t>(word >> shift & 0xffffu)); };
    out |= static_cast<uint32_t>(float_to_half(std::fma(at(a), at(b), at(c)))) << shift;
  }
  return out;
}
inline uint32_t halves_fma(uint32_t a, uint32_t b, uint32_t c) { return each_half(a, b, c); }
inline uint32_t some_bits(uint32_t word, uint32_t mask, uint32_t more) { return (word & mask) | more; }
inline uint32_t pick_bytes(uint32_t a, uint32_t b, uint32_t selector) {
  uint32_t out = 0;
  for (int i = 0; i < 4; ++i) {
    const uint32_t from = selector >> (4 * i) & 7u;
    out |= ((from < 4 ? a : b) >> (8 * (from % 4)) & 255u) << (8 * i);
  }
  return out;
}

#else

/// More shared memory than 48 KB has to be asked for.
template <class Args>
int launch_with_shared(void* stream, Grid grid, int threads, int shared_bytes, void (*kernel)(Args), const Args& args) {
  const cudaError_t error = cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                                 cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes);
  return error != cudaSuccess ? error
                              : launch(stream, grid, threads, kernel, args, static_cast<unsigned>(shared_bytes));
}
__device__ __forceinline__ unsigned char* dynamic_shared_memory() {
  extern __shared__ __align__(16) unsigned char memory[];
  return memory;
}

#if defined(LLMINFER_GPU_COPY_CODE)
/// 4, 8 or 16 bytes, which lie on a multiple of that; zeros if they don't exist.
template <int kBytes>
__device__ __forceinline__ void copy_piece(void* to, const void* from, bool exists) {
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(to));
  if constexpr (kBytes == 16) {
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(address), "l"(from),
                 "r"(exists ? kBytes : 0)
                 : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global.L2::128B [%0], [%1], %2, %3;" ::"r"(address), "l"(from), "n"(kBytes),
                 "r"(exists ? kBytes : 0)
                 : "memory");
  }
}
/// Makes a group of this thread's copies since the last one.
__device__ __forceinline__ void copies_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
/// Until at most so many of this thread's groups that were made last are under way.
template <int kLeft>
__device__ __forceinline__ void copies_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kLeft) : "memory");
}
#endif

/// What it was before.
__device__ __forceinline__ uint32_t count_up(uint32_t* counter) { return atomicAdd(counter, 1u); }
/// What this thread wrote is seen by whoever sees what it writes later; and the other way round.
__device__ __forceinline__ void publish() { __threadfence(); }

/// a * b + c of both halves, each rounded once.
__device__ __forceinline__ uint32_t halves_fma(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t out;
  asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(out) : "r"(a), "r"(b), "r"(c));
  return out;
}
/// (word & mask) | more. Compilers take two instructions for it where both of these are constants.
__device__ __forceinline__ uint32_t some_bits(uint32_t word, uint32_t mask, uint32_t more) {
  uint32_t out;
  asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(out) : "r"(word), "r"(mask), "r"(more));
  return out;
}
/// Byte i is the one whose number, of b's and a's together, is nibble i of the selector; a's come first.
__device__ __forceinline__ uint32_t pick_bytes(uint32_t a, uint32_t b, uint32_t selector) {
  return __byte_perm(a, b, selector);
}

#endif

/// Eight consecutive elements as halves, two in a word: four, then four.
struct Halves {
  uint32_t word[2][2];
};

/// Two codes of a word of eight, as halves code + 1024; with 4 bits every other pair as 16 * code + 1024, which saves a
/// shift.
template <Form kForm>
__device__ __forceinline__ uint32_t two_codes(const Packed& from, int pair) {
  constexpr uint32_t kOnes = 0x64006400u;  // halves 1024, whose lowest bit counts 1
  if constexpr (kForm == Form::codes8) {
    return pick_bytes(pair < 2 ? from.low : from.high, kOnes, pair % 2 ? 0x7372u : 0x7170u);
  } else if constexpr (kForm == Form::codes4) {
    return some_bits(from.low >> (pair / 2 * 8), pair % 2 ? 0x00f000f0u : 0x000f000fu, kOnes);
  } else {
    uint32_t word = kOnes;
    constexpr bool kNarrow = kForm == Form::codes2 || kForm == Form::codes3;
    if constexpr (!kNarrow) word = some_bits(from.low >> (4 * pair), 0x000f000fu, word);
    if constexpr (kNarrow || kForm == Form::codes6) {
      const uint32_t pairs = pick_bytes(from.pairs, 0, 0x4140u) << (kNarrow ? 0 : 4);
      word = some_bits(pairs >> (2 * pair), kNarrow ? 0x00030003u : 0x00300030u, word);
    }
    if constexpr (kForm == Form::codes3 || kForm == Form::codes5) {
      constexpr int kAt = kNarrow ? 2 : 4;
      const uint32_t bits = ((from.bits & 0x0fu) | (from.bits & 0xf0u) << 12) << kAt;
      word = some_bits(bits >> pair, 0x00010001u << kAt, word);
    }
    return word;
  }
}

/// What is added to two_codes() so that the zero point remains: twice the half -(1024 + zero), and -(64 + zero) for
/// what is divided by 16.
struct ZeroPoint {
  uint32_t whole, sixteenth;
};
__device__ __forceinline__ ZeroPoint zero_point(float zero) {
  return {float_to_half(-1024.0f - zero) * 0x10001u, float_to_half(-64.0f - zero) * 0x10001u};
}

/// Two E4M3 numbers, of the bytes 2 * pair and the next.
__device__ __forceinline__ uint32_t two_e4m3(const Packed& from, int pair) {
  const uint32_t word = pair < 2 ? from.low : from.high;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 890
  uint32_t out;
  asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(out) : "h"(static_cast<uint16_t>(word >> (pair % 2 * 16))));
  return out;
#else
  // Without the sign, an E4M3 number is a half's bits but for an exponent that is larger by 8, which the product with
  // 256 (0x5c00) makes up for, and for NaN.
  const uint32_t two = pick_bytes(word, 0, pair % 2 ? 0x3424u : 0x1404u), size = two & 0x7f007f00u;
  const uint32_t out = halves_fma((two & 0x80008000u) | size >> 1, 0x5c005c00u, 0x80008000u);
  return out | (((size + 0x01000100u) & 0x80008000u) >> 15) * 0x7e00u;
#endif
}

/// What decode() gives, rounded to halves once more; scale and -minimum are given twice in a word.
template <Form kForm>
__device__ __forceinline__ Halves decode_halves(const Packed& from, uint32_t scale, uint32_t minus_minimum,
                                                const ZeroPoint& zero, const float* table) {
  if constexpr (kForm == Form::f16) {
    return {{{from.halves.x, from.halves.y}, {from.halves.z, from.halves.w}}};
  } else {
    Halves out;
    [[maybe_unused]] float scale_number = 0.0f;
    if constexpr (kForm == Form::table4) scale_number = half_to_float(static_cast<uint16_t>(scale & 0xffffu));
#pragma unroll
    for (int pair = 0; pair < 4; ++pair) {
      uint32_t& word = out.word[pair / 2][pair % 2];
      if constexpr (kForm == Form::table4) {
        const auto element = [&](int i) { return float_to_half(table[from.low >> (4 * i) & 15u] * scale_number); };
        word = element(2 * pair) | static_cast<uint32_t>(element(2 * pair + 1)) << 16;
      } else if constexpr (kForm == Form::e4m3) {
        word = halves_fma(two_e4m3(from, pair), scale, 0x80008000u);
      } else {
        const bool sixteenth = kForm == Form::codes4 && pair % 2 != 0;
        const uint32_t code = halves_fma(two_codes<kForm>(from, pair), sixteenth ? 0x2c002c00u : 0x3c003c00u,
                                         sixteenth ? zero.sixteenth : zero.whole);  // exact
        word = halves_fma(code, scale, minus_minimum);
      }
    }
    return out;
  }
}

}  // namespace llminfer::gpu::LLMINFER_GPU_TARGET

#endif
