// Products of 16x16 tiles on matrix units: of halves, summed in floats, and of signed bytes, summed in integers. What a
// lane holds of a tile is each machine's own business: kernels fill fragments from shared memory, multiply, and visit
// the elements of the sum with for_each.
//
// A fragment of bytes is that of halves with two bytes, k in consecutive places, where a half would be: 32 columns
// instead of 16.
//
//   PTX   mma.sync of sm_75 and later: 32 lanes
//   MFMA  gfx908 and later of CDNA: 64 lanes
//   WMMA  gfx11 and gfx12 of RDNA: 32 lanes
//   FMA   any machine: 32 lanes, each of which sums eight elements by itself
#pragma once

#include "backends/gpu/kernels/platform.hpp"

#if !defined(LLMINFER_GPU_MMA_PTX) && !defined(LLMINFER_GPU_MMA_MFMA) && !defined(LLMINFER_GPU_MMA_WMMA) && \
    !defined(LLMINFER_GPU_MMA_FMA)
#if defined(__CUDA_ARCH__)
#define LLMINFER_GPU_MMA_PTX
#elif defined(__gfx908__) || defined(__gfx90a__) || defined(__gfx940__) || defined(__gfx941__) || defined(__gfx942__)
#define LLMINFER_GPU_MMA_MFMA
#elif defined(__GFX11__)
#define LLMINFER_GPU_MMA_WMMA 11
#elif defined(__GFX12__)
#define LLMINFER_GPU_MMA_WMMA 12
#else
#define LLMINFER_GPU_MMA_FMA  // and the host's pass over the file, which runs nothing
#endif
#endif

#if defined(LLMINFER_GPU_MMA_PTX)
#include "backends/gpu/kernels/mma_ptx.hpp"
#elif defined(LLMINFER_GPU_MMA_MFMA)
#include "backends/gpu/kernels/mma_mfma.hpp"
#elif defined(LLMINFER_GPU_MMA_WMMA)
#include "backends/gpu/kernels/mma_wmma.hpp"
#else
#include "backends/gpu/kernels/mma_fma.hpp"
#endif
