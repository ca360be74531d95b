// Hopper's own means of multiplying (sm_90a): tiles that are copied into shared memory by the copy engine, barriers in
// shared memory that count what has come, and products of four warps that read both factors there. Other machines have
// none of it; LLMINFER_GPU_WARPGROUPS says that a target may have it, LLMINFER_GPU_WARPGROUP_CODE that this pass does.
//
// Tiles are rows of 64 halves, 128 E4M3 numbers or 128 integers, 128 bytes, swizzled: in row r the piece of 16 bytes
// number p lies where p ^ (r % 8) would. They begin on multiples of 1024 bytes. A product is 64 x 128 x 16, of bytes x
// 32; both factors have k in consecutive places.
#pragma once

#include "backends/gpu/kernels/copies.hpp"

#if defined(LLMINFER_GPU_EMULATED)
#if defined(LLMINFER_GPU_MMA_PTX)
#include "backends/gpu/emulator/asynchronous.hpp"
#define LLMINFER_GPU_WARPGROUPS
#define LLMINFER_GPU_WARPGROUP_CODE
#define __grid_constant__
#endif
#elif !defined(__HIP__)
#include <cuda.h>
#define LLMINFER_GPU_WARPGROUPS
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define LLMINFER_GPU_WARPGROUP_CODE
#endif
#endif

#if defined(LLMINFER_GPU_WARPGROUPS)

namespace llminfer::gpu::LLMINFER_GPU_TARGET {

inline constexpr int kTileColumns = 64;    ///< halves
inline constexpr int kTileRowBytes = 128;  ///< what they take
inline constexpr int kProductRows = 64, kProductColumns = 128;
inline constexpr int kProductDepth = 16;

/// A matrix of halves or bytes as the copy engine knows it (CUtensorMap).
struct alignas(128) TileMap {
  uint64_t words[16];
};

/// A tile of 128 bytes of `tile_rows` rows of the map, by a thread's copy_tile; zeros where the matrix has none.
/// Matrices lie on multiples of 16 bytes, and so do their rows.
template <class Element>
int make_tile_map(TileMap& map, const Element* data, int columns, int rows, int tile_rows);

// Products. Sums of a warpgroup's 64 x 128 lie in 64 registers of each thread: element (row, column) is that of the
// thread and the register for which sum_row and sum_column say so.
__device__ __forceinline__ int sum_row(int i) {
  const int thread = static_cast<int>(threadIdx.x) % 128;
  return thread / 32 * 16 + thread % 32 / 4 + i / 2 % 2 * 8;
}
__device__ __forceinline__ int sum_column(int i) { return i / 4 * 8 + static_cast<int>(threadIdx.x) % 4 * 2 + i % 2; }

#if defined(LLMINFER_GPU_EMULATED)

static_assert(sizeof(emulator::TensorMap) <= sizeof(TileMap));
template <class Element>
int make_tile_map(TileMap& map, const Element* data, int columns, int rows, int tile_rows) {
  const emulator::TensorMap tensor{reinterpret_cast<const std::byte*>(data),
                                   static_cast<uint64_t>(columns),
                                   static_cast<uint64_t>(rows),
                                   static_cast<uint64_t>(columns) * sizeof(Element),
                                   kTileRowBytes / sizeof(Element),
                                   static_cast<uint32_t>(tile_rows),
                                   sizeof(Element)};
  __builtin_memcpy(&map, &tensor, sizeof tensor);
  return emulator::is_valid(tensor) ? 0 : 1;
}
using emulator::barrier_arrive;
using emulator::barrier_expect;
using emulator::barrier_fence;
using emulator::barrier_init;
using emulator::barrier_wait;
using emulator::operand_fence;
using emulator::product_commit;
using emulator::product_fence;
using emulator::shared_address;
inline void copy_tile(void* to, const TileMap& map, int column, int row, uint64_t* barrier) {
  emulator::TensorMap tensor;
  __builtin_memcpy(&tensor, &map, sizeof tensor);
  emulator::copy_tile(to, tensor, column, row, barrier);
}
inline void store_operand(void* to, const uint4& halves) { emulator::store_operand(to, &halves); }
inline void product(float (&sums)[64], uint64_t a, uint64_t b, bool accumulate) {
  emulator::product(sums, a, b, accumulate);
}
inline void product_e4m3(float (&sums)[64], uint64_t a, uint64_t b, bool accumulate) {
  emulator::product(sums, a, b, accumulate, emulator::Factors::e4m3);
}
inline void product(int32_t (&sums)[64], uint64_t a, uint64_t b, bool accumulate) {
  emulator::product(sums, a, b, accumulate, emulator::Factors::bytes);
}
inline void sync_lanes() {
  bool none = true;
  emulator::collective(&none, 32, [](void* const*) {});
}
template <int kLeft>
void product_wait() {
  emulator::product_wait(kLeft);
}
template <class Sum>
void settle_sums(Sum (&)[64]) {}
template <int kCount>
void fewer_registers() {}
template <int kCount>
void more_registers() {}

#else

/// The driver's cuTensorMapEncodeTiled, which the runtime finds: nothing is linked.
struct TileMapEncoder {
  decltype(&cuTensorMapEncodeTiled) encode;
  cudaError_t error;
};
inline TileMapEncoder find_tile_map_encoder() {
  void* entry = nullptr;
  cudaDriverEntryPointQueryResult found{};
#if CUDART_VERSION >= 12050
  const cudaError_t error =
      cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry, 12000, cudaEnableDefault, &found);
#else
  const cudaError_t error = cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &entry, cudaEnableDefault, &found);
#endif
  const bool missing = error == cudaSuccess && found != cudaDriverEntryPointSuccess;
  return {reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(entry), missing ? cudaErrorNotSupported : error};
}

template <class Element>
int make_tile_map(TileMap& map, const Element* data, int columns, int rows, int tile_rows) {
  static_assert(sizeof(CUtensorMap) == sizeof(TileMap) && alignof(CUtensorMap) <= alignof(TileMap));
  static const TileMapEncoder encoder = find_tile_map_encoder();
  if (encoder.error != cudaSuccess) return encoder.error;
  const cuuint64_t size[2] = {static_cast<cuuint64_t>(columns), static_cast<cuuint64_t>(rows)};
  const cuuint64_t stride[1] = {static_cast<cuuint64_t>(columns) * sizeof(Element)};
  const cuuint32_t box[2] = {kTileRowBytes / sizeof(Element), static_cast<cuuint32_t>(tile_rows)}, steps[2] = {1, 1};
  constexpr auto kType = sizeof(Element) == 1 ? CU_TENSOR_MAP_DATA_TYPE_UINT8 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
  void* const address = const_cast<Element*>(data);
  const CUresult result = encoder.encode(reinterpret_cast<CUtensorMap*>(&map), kType, 2, address, size, stride, box,
                                         steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                                         CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

__device__ __forceinline__ uint32_t shared_address(const void* at) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(at));
}

__device__ __forceinline__ void barrier_init(uint64_t* barrier, uint32_t count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(count) : "memory");
}
/// Barriers that were made are seen by the copy engine.
__device__ __forceinline__ void barrier_fence() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
__device__ __forceinline__ void barrier_arrive(uint64_t* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}
/// Arrives, and lets the phase end only when so many bytes have come.
__device__ __forceinline__ void barrier_expect(uint64_t* barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
               : "memory");
}
/// Until the phase of that parity has ended; the first phase's is 0.
__device__ __forceinline__ void barrier_wait(uint64_t* barrier, uint32_t parity) {
  uint32_t done;
  do {
    asm volatile(
        "{\n"
        ".reg .pred done;\n"
        "mbarrier.try_wait.parity.shared::cta.b64 done, [%1], %2;\n"
        "selp.u32 %0, 1, 0, done;\n"
        "}\n"
        : "=r"(done)
        : "r"(shared_address(barrier)), "r"(parity)
        : "memory");
  } while (!done);
}

/// The tile whose first element is (column, row) of the map's matrix; its bytes count at the barrier.
__device__ __forceinline__ void copy_tile(void* to, const TileMap& map, int column, int row, uint64_t* barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];" ::"r"(
          shared_address(to)),
      "l"(reinterpret_cast<uint64_t>(&map)), "r"(shared_address(barrier)), "r"(column), "r"(row)
      : "memory");
}
/// Eight halves of a tile, which products read after this thread's operand_fence.
__device__ __forceinline__ void store_operand(void* to, const uint4& halves) { *static_cast<uint4*>(to) = halves; }
__device__ __forceinline__ void operand_fence() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

/// Before the first product, and after sums were read or written.
__device__ __forceinline__ void product_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void product_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
/// Until at most so many of the groups that were committed last are under way.
template <int kLeft>
__device__ __forceinline__ void product_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kLeft) : "memory");
}
/// Sums are read only after the wait that is before it: the compiler knows nothing of who writes them.
__device__ __forceinline__ void settle_sums(float (&sums)[64]) {
#pragma unroll
  for (int i = 0; i < 64; ++i) asm volatile("" : "+f"(sums[i])::"memory");
}
__device__ __forceinline__ void settle_sums(int32_t (&sums)[64]) {
#pragma unroll
  for (int i = 0; i < 64; ++i) asm volatile("" : "+r"(sums[i])::"memory");
}
#define LLMINFER_8_SUMS(r, i)                                                                                 \
  r(sums[i]), r(sums[i + 1]), r(sums[i + 2]), r(sums[i + 3]), r(sums[i + 4]), r(sums[i + 5]), r(sums[i + 6]), \
      r(sums[i + 7])
#define LLMINFER_PRODUCT(shape_and_types, r, how)                                                      \
  asm volatile(                                                                                        \
      "{\n"                                                                                            \
      ".reg .pred accumulate;\n"                                                                       \
      "setp.ne.b32 accumulate, %66, 0;\n"                                                              \
      "wgmma.mma_async.sync.aligned." shape_and_types                                                  \
      " {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                       \
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "               \
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "               \
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "              \
      "%64, %65, accumulate" how                                                                       \
      ";\n"                                                                                            \
      "}\n"                                                                                            \
      : LLMINFER_8_SUMS(r, 0), LLMINFER_8_SUMS(r, 8), LLMINFER_8_SUMS(r, 16), LLMINFER_8_SUMS(r, 24),  \
        LLMINFER_8_SUMS(r, 32), LLMINFER_8_SUMS(r, 40), LLMINFER_8_SUMS(r, 48), LLMINFER_8_SUMS(r, 56) \
      : "l"(a), "l"(b), "r"(static_cast<int>(accumulate)))
/// sums = a * b^T, or + the sums that there were.
__device__ __forceinline__ void product(float (&sums)[64], uint64_t a, uint64_t b, bool accumulate) {
  LLMINFER_PRODUCT("m64n128k16.f32.f16.f16", "+f", ", 1, 1, 0, 0");
}
/// The same of E4M3 numbers. Sums keep 14 bits.
__device__ __forceinline__ void product_e4m3(float (&sums)[64], uint64_t a, uint64_t b, bool accumulate) {
  LLMINFER_PRODUCT("m64n128k32.f32.e4m3.e4m3", "+f", ", 1, 1");
}
/// Of signed bytes by unsigned ones, 64 x 128 x 32.
__device__ __forceinline__ void product(int32_t (&sums)[64], uint64_t a, uint64_t b, bool accumulate) {
  LLMINFER_PRODUCT("m64n128k32.s32.s8.u8", "+r", "");
}
/// What lanes of a warp did before it comes before what any of them does after it.
__device__ __forceinline__ void sync_lanes() { __syncwarp(); }
#undef LLMINFER_PRODUCT
#undef LLMINFER_8_SUMS

/// Of a warpgroup's threads; together they have no more than the kernel began with.
template <int kCount>
__device__ __forceinline__ void fewer_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kCount));
}
template <int kCount>
__device__ __forceinline__ void more_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kCount));
}

#endif

/// The matrix that lies in a tile from that address on, as products take it: PTX ISA, "Matrix Descriptor Format". Eight
/// rows are 1024 bytes; the other distance is not used where rows are as wide as the swizzle.
__device__ __forceinline__ uint64_t tile_descriptor(uint32_t address) {
  constexpr uint64_t kSwizzle128 = uint64_t{1} << 62, kStride = uint64_t{8 * kTileRowBytes / 16} << 32,
                     kUnused = uint64_t{1} << 16;
  return kSwizzle128 | kStride | kUnused | (address & 0x3ffffu) >> 4;
}
/// What is added to it for the columns after the first kProductDepth, or of E4M3 after twice as many.
inline constexpr uint64_t kNextDepth = kProductDepth * 2 / 16;

}  // namespace llminfer::gpu::LLMINFER_GPU_TARGET

#endif
