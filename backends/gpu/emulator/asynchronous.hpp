// What threads start and do not wait for: pieces that are copied into shared memory (cp.async), and of sm_90a tiles
// that are copied into shared memory (cp.async.bulk.tensor), products of warpgroups (wgmma), and the mbarriers that
// tell who is done. By the PTX ISA alone: addresses, swizzles and layouts are worked out here, and kernels work them
// out for themselves.
//
// Everything happens as late, as piecemeal and as much out of order as the PTX ISA allows, by the schedule's seed, so
// that what is read or overwritten too early shows. What it leaves undefined ends the launch with `misused`.
#pragma once

#include <cstddef>
#include <cstdint>

namespace llminfer::gpu::emulator {

/// A matrix of elements of 16 bits or a byte, and the box that is copied of it: what cuTensorMapEncodeTiled encodes,
/// with a swizzle of 128 bytes and zeros for what is out of bounds.
struct TensorMap {
  const std::byte* data;
  std::uint64_t columns, rows;
  std::uint64_t stride;  ///< bytes from row to row
  std::uint32_t box_columns, box_rows;
  std::uint32_t element_bytes;  ///< 2 or 1
};
/// Whether the driver would encode it.
bool is_valid(const TensorMap& map);

// What follows is for the threads of a kernel.

/// The block's dynamic shared memory, at 16 bytes.
std::byte* shared_memory();
/// In the shared window.
std::uint32_t shared_address(const void* at);

/// mbarriers, 8 bytes of shared memory each.
void barrier_init(void* barrier, std::uint32_t count);
/// fence.mbarrier_init: copies may now complete on those that were made.
void barrier_fence();
void barrier_arrive(void* barrier);
/// mbarrier.arrive.expect_tx
void barrier_expect(void* barrier, std::uint32_t bytes);
/// Returns once the phase of that parity is complete.
void barrier_wait(void* barrier, std::uint32_t parity);

/// The map's box whose first element is (column, row).
void copy_tile(void* to, const TensorMap& map, std::int32_t column, std::int32_t row, void* barrier);

/// 16 bytes that products will read: they see them after the same thread's operand_fence (fence.proxy.async).
void store_operand(void* to, const void* bytes);
void operand_fence();

/// cp.async: 4, 8 or 16 bytes of global memory into shared memory, or zeros if they don't exist; commit_group, and
/// wait_group. What is copied is there when the thread has waited, and until then nothing that means something.
void copy_piece(void* to, const void* from, std::size_t bytes, bool exists);
void copies_commit();
void copies_wait(int groups);

enum class Factors { halves, e4m3, bytes };
/// wgmma.fence, m64n128k16.f32.f16.f16, m64n128k32.f32.e4m3.e4m3 or m64n128k32.s32.s8.u8 of two matrices in shared
/// memory, commit_group, and wait_group. `d`: floats, or int32_t.
void product_fence();
void product(void* d, std::uint64_t a, std::uint64_t b, bool accumulate, Factors factors = Factors::halves);
void product_commit();
void product_wait(int groups);

// What follows is for the scheduler.

void begin_asynchronous(std::uint64_t seed, std::size_t shared_bytes, int threads);
/// Lets some of what was started go on. False: nothing is under way.
bool run_asynchronous();
/// The same, if the schedule happens to choose it.
bool maybe_run_asynchronous();
/// Whether the block did what is undefined.
bool asynchronous_misused();
/// Whether something is under way that the block should have waited for.
bool asynchronous_pending();

}  // namespace llminfer::gpu::emulator
