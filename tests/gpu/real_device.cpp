// This machine's GPU, by the runtime whose namespace LLMINFER_TEST_GPU names: the one file of its tests that knows which.
#include "tests/gpu/machines.hpp"

namespace llminfer::gpu::LLMINFER_TEST_GPU {
Result<std::shared_ptr<Device>> make_device(const GpuOptions& options);
std::int64_t memory_in_use();
}

namespace llminfer::test {

Result<std::shared_ptr<gpu::Device>> make_real_device(const GpuOptions& options) {
  return gpu::LLMINFER_TEST_GPU::make_device(options);
}
std::int64_t memory_in_use() { return gpu::LLMINFER_TEST_GPU::memory_in_use(); }

}  // namespace llminfer::test
