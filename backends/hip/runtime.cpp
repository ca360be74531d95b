// make_hip_backend: the GPU backend on the HIP runtime. Knows nothing of what the backend does.
#include <hip/hip_runtime.h>

#include <cstdlib>
#include <string>
#include <vector>

#include <llminfer/hip.hpp>

#include "backends/gpu/amd_gpus.hpp"
#include "backends/gpu/backend.hpp"
#include "backends/gpu/runtime_device.hpp"

namespace llminfer::gpu {
namespace hip {
const KernelTable& kernel_table();
}

namespace {

struct Api {
  using Stream = hipStream_t;
  using Event = hipEvent_t;
  using Graph = hipGraph_t;
  using Node = hipGraphNode_t;
  using ReadyGraph = hipGraphExec_t;
  static constexpr const char* kVendor = "AMD";
  static constexpr int kOutOfMemory = hipErrorOutOfMemory;
  static constexpr int kNotReady = hipErrorNotReady;

  static const KernelTable& kernels() noexcept { return hip::kernel_table(); }
  static const char* message(int error) { return hipGetErrorString(static_cast<hipError_t>(error)); }
  static int take_error() { return hipGetLastError(); }

  static int device_count(int* count) { return hipGetDeviceCount(count); }
  static int get_device(int* index) { return hipGetDevice(index); }
  static int set_device(int index) { return hipSetDevice(index); }
  static int describe(int index, DeviceInfo& info) {
    hipDeviceProp_t properties{};
    const int error = hipGetDeviceProperties(&properties, index);
    info.kind = "hip";
    info.collectives = "librccl.so.1";
    info.name = properties.name;
    info.architecture = properties.gcnArchName;
    info.memory = static_cast<std::int64_t>(properties.totalGlobalMem);
    info.units = properties.multiProcessorCount;
    return error;
  }

  static int allocate(void** memory, std::size_t bytes) { return hipMalloc(memory, bytes); }
  static int release(void* memory) { return hipFree(memory); }
  static int allocate_host(void** memory, std::size_t bytes) {
    return hipHostMalloc(memory, bytes, hipHostMallocDefault);
  }
  static int release_host(void* memory) { return hipHostFree(memory); }

  static int copy(void* to, const void* from, std::size_t bytes, Stream stream) {
    return hipMemcpyAsync(to, from, bytes, hipMemcpyDefault, stream);
  }
  static int copy_pieces(void* to, const void* from, std::size_t bytes, std::size_t pitch, std::size_t height,
                         Stream stream) {
    return hipMemcpy2DAsync(to, pitch, from, pitch, bytes, height, hipMemcpyDefault, stream);
  }
  static int clear(void* memory, std::size_t bytes, Stream stream) { return hipMemsetAsync(memory, 0, bytes, stream); }

  static int make_stream(Stream* stream) { return hipStreamCreateWithFlags(stream, hipStreamNonBlocking); }
  static int destroy_stream(Stream stream) { return hipStreamDestroy(stream); }
  static int wait(Stream stream) { return hipStreamSynchronize(stream); }
  static int make_event(Event* event, bool timed) {
    return hipEventCreateWithFlags(event, timed ? hipEventDefault : hipEventDisableTiming);
  }
  static int destroy_event(Event event) { return hipEventDestroy(event); }
  static int record(Event event, Stream stream) { return hipEventRecord(event, stream); }
  static int wait_event(Event event) { return hipEventSynchronize(event); }
  static int query_event(Event event) { return hipEventQuery(event); }
  static int elapsed(float* milliseconds, Event earlier, Event later) {
    return hipEventElapsedTime(milliseconds, earlier, later);
  }
  static int follow_event(Stream stream, Event event) { return hipStreamWaitEvent(stream, event, 0); }

  static bool waits_for_former(const void*) { return false; }
  /// Per multiprocessor, of a kernel whose blocks are all on the device at once. 0: the device has no such launches.
  static int resident_blocks(const KernelLaunch& launch) {
    int device = 0, cooperative = 0, blocks = 0;
    const bool known = hipGetDevice(&device) == hipSuccess &&
                       hipDeviceGetAttribute(&cooperative, hipDeviceAttributeCooperativeLaunch, device) == hipSuccess &&
                       hipOccupancyMaxActiveBlocksPerMultiprocessor(
                           &blocks, launch.kernel, static_cast<int>(launch.threads), launch.shared_bytes) == hipSuccess;
    return known && cooperative ? blocks : 0;
  }
  static int launch(const KernelLaunch& launch, void** args, Stream stream, bool) {
    if (launch.together) {
      return hipLaunchCooperativeKernel(launch.kernel, grid_of(launch), dim3(launch.threads), args, launch.shared_bytes,
                                        stream);
    }
    return hipLaunchKernel(launch.kernel, grid_of(launch), dim3(launch.threads), args, launch.shared_bytes, stream);
  }
  static int make_graph(Graph* graph) { return hipGraphCreate(graph, 0); }
  /// `args` stay where they are as long as the graph. `former`: null for the first kernel.
  static int add_kernel(Node* node, Graph graph, Node former, const KernelLaunch& launch, void** args, bool) {
    hipKernelNodeParams params{};
    params.func = const_cast<void*>(launch.kernel);
    params.gridDim = grid_of(launch);
    params.blockDim = dim3(launch.threads);
    params.sharedMemBytes = launch.shared_bytes;
    params.kernelParams = args;
    return hipGraphAddKernelNode(node, graph, &former, former ? 1 : 0, &params);
  }
  static int instantiate(ReadyGraph* ready, Graph graph) {
    return hipGraphInstantiate(ready, graph, nullptr, nullptr, 0);
  }
  static int launch_graph(ReadyGraph graph, Stream stream) { return hipGraphLaunch(graph, stream); }
  static int destroy_graph(Graph graph) { return hipGraphDestroy(graph); }
  static int destroy_ready_graph(ReadyGraph graph) { return hipGraphExecDestroy(graph); }

 private:
  static dim3 grid_of(const KernelLaunch& launch) { return {launch.grid[0], launch.grid[1], launch.grid[2]}; }
};

}  // namespace

namespace hip {
/// The GPU that the options name; tests and benchmarks declare it.
Result<std::shared_ptr<Device>> make_device(const GpuOptions& options) {
#if HIP_VERSION < 50700000  // which ends the process where it has no code for a GPU
  const std::vector<std::string> architectures = {LLMINFER_HIP_ARCHITECTURES};
  const char* const visible = std::getenv("HIP_VISIBLE_DEVICES");
  LLMINFER_TRY(check_amd_gpus({.rocr_visible = std::getenv("ROCR_VISIBLE_DEVICES"),
                               .hip_visible = visible && *visible ? visible : std::getenv("CUDA_VISIBLE_DEVICES"),
                               .gfx_version = std::getenv("HSA_OVERRIDE_GFX_VERSION")},
                              architectures));
#endif
  return RuntimeDevice<Api>::make(options);
}

/// What all processes have taken of the current GPU's memory, -1 if that cannot be said; tests declare it.
std::int64_t memory_in_use() {
  std::size_t free = 0, total = 0;
  if (hipMemGetInfo(&free, &total) != hipSuccess) return -1;
  return static_cast<std::int64_t>(total - free);
}
}  // namespace hip
}  // namespace llminfer::gpu

namespace llminfer::inline v0 {

Result<std::shared_ptr<Backend>> make_hip_backend(const GpuOptions& options) {
  return core::guarded([&]() -> Result<std::shared_ptr<Backend>> {
    std::shared_ptr<gpu::Device> device = LLMINFER_TRY(gpu::hip::make_device(options));
    return gpu::make_backend(std::move(device), options);
  });
}

}  // namespace llminfer::inline v0
