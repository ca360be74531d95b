// Writing keys and values, and attention of single rows.
#include "backends/gpu/kernels/attention.hpp"

namespace llminfer::gpu::LLMINFER_GPU_TARGET {
namespace {

constexpr int kThreads = 128;

__global__ void __launch_bounds__(kThreads) store_kernel(StoreArgs a) {
  after_former();
  store_block<kThreads>(a, static_cast<int>(blockIdx.x));
}

__global__ void __launch_bounds__(kThreads) seal_kernel(SealArgs a) {
  after_former();
  seal_block<kThreads>(a, static_cast<int>(blockIdx.x), static_cast<int>(blockIdx.y));
}

template <CacheElement kElement>
__global__ void __launch_bounds__(kThreads) attend_kernel(AttendArgs a) {
  __shared__ AttendMemory memory;
  after_former();
  attend_block<kElement, kThreads>(a, {blockIdx.x, blockIdx.y, blockIdx.z}, memory);
}

__global__ void __launch_bounds__(kThreads) combine_kernel(AttendArgs a) {
  after_former();
  combine_block<kThreads>(a, static_cast<int>(blockIdx.x), static_cast<int>(blockIdx.y));
}

}  // namespace

int store(void* stream, const StoreArgs& args) {
  return launch(stream, grid_of<kThreads>(args), kThreads, store_kernel, args);
}

int seal(void* stream, const SealArgs& args) { return launch(stream, grid_of(args), kThreads, seal_kernel, args); }

int attend(void* stream, const AttendArgs& args) {
  const int error = with_element(args.cache.element, [&]<CacheElement kElement>() {
    return launch(stream, grid_of(args), kThreads, attend_kernel<kElement>, args);
  });
  if (error != 0 || args.splits == 1) return error;
  return launch(stream, combine_grid_of(args), kThreads, combine_kernel, args);
}

}  // namespace llminfer::gpu::LLMINFER_GPU_TARGET
