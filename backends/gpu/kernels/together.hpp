// Kernels whose blocks are all on the device at once, and wait for each other: their launch, their shared memory, and
// the barrier between them.
//
// The barrier is a word of global memory. Each round of it adds 2^31 in all, so that its highest bit changes when the
// last block has come, and it never has to be reset. What the blocks' threads wrote before they arrived is there for
// all that have waited: the first thread's fences stand for the block, of which __syncthreads() makes it the last or
// the first. So nothing that a step writes may be read through caches that fences leave alone: no __ldg, and no
// __restrict__ pointers, which become that.
#pragma once

#include "backends/gpu/kernels/platform.hpp"

namespace llminfer::gpu::LLMINFER_GPU_TARGET {

#if defined(LLMINFER_GPU_EMULATED)

template <class Args>
int launch_together(void* stream, int blocks, int threads, void (*kernel)(Args), const Args& args) {
  return emulator::launch_together(*static_cast<emulator::Machine*>(stream), static_cast<unsigned>(blocks), threads,
                                   [kernel, args] { kernel(args); });
}
template <class T>
T& memory_of_block() {
  return *reinterpret_cast<T*>(emulator::block_memory(sizeof(T)));
}
inline void fence() {}
inline uint32_t add_to(uint32_t* word, uint32_t number) {
  const uint32_t before = *word;
  *word += number;
  return before;
}
inline uint32_t look_at(const uint32_t* word) {
  emulator::poll();
  return *word;
}

#else

template <class Args>
int launch_together(void* stream, int blocks, int threads, void (*kernel)(Args), const Args& args) {
  const Queue& queue = *static_cast<const Queue*>(stream);
  return queue.put(queue.owner, {reinterpret_cast<const void*>(kernel),
                                 {static_cast<unsigned>(blocks), 1, 1},
                                 static_cast<unsigned>(threads),
                                 0,
                                 &args,
                                 sizeof(Args),
                                 true});
}
template <class T>
__device__ __forceinline__ T& memory_of_block() {
  __shared__ T memory;
  return memory;
}
__device__ __forceinline__ void fence() { __threadfence(); }
__device__ __forceinline__ uint32_t add_to(uint32_t* word, uint32_t number) { return atomicAdd(word, number); }
__device__ __forceinline__ uint32_t look_at(const uint32_t* word) {
  return *static_cast<const volatile uint32_t*>(word);
}

#endif

/// The block has come. All its threads call it, once between two calls of wait_for_all(), which takes what it gives.
__device__ __forceinline__ uint32_t arrive(uint32_t* barrier) {
  __syncthreads();
  if (threadIdx.x != 0) return 0;
  fence();
  return add_to(barrier, blockIdx.x == 0 ? 0x80000000u - (gridDim.x - 1) : 1u);
}
/// Until all blocks have come.
__device__ __forceinline__ void wait_for_all(const uint32_t* barrier, uint32_t before) {
  if (threadIdx.x == 0) {
    while (((look_at(barrier) ^ before) & 0x80000000u) == 0) {
    }
    fence();
  }
  __syncthreads();
}

}  // namespace llminfer::gpu::LLMINFER_GPU_TARGET
