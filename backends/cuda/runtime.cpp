// make_cuda_backend: the GPU backend on the CUDA runtime. Knows nothing of what the backend does.
#include <cuda_runtime.h>

#include <llminfer/cuda.hpp>

#include "backends/gpu/backend.hpp"
#include "backends/gpu/runtime_device.hpp"

namespace llminfer::gpu {
namespace cuda {
const KernelTable& kernel_table();
}

namespace {

struct Api {
  using Stream = cudaStream_t;
  using Event = cudaEvent_t;
  using Graph = cudaGraph_t;
  using Node = cudaGraphNode_t;
  using ReadyGraph = cudaGraphExec_t;
  static constexpr const char* kVendor = "NVIDIA";
  static constexpr int kOutOfMemory = cudaErrorMemoryAllocation;
  static constexpr int kNotReady = cudaErrorNotReady;

  static const KernelTable& kernels() noexcept { return cuda::kernel_table(); }
  static const char* message(int error) { return cudaGetErrorString(static_cast<cudaError_t>(error)); }
  static int take_error() { return cudaGetLastError(); }

  static int device_count(int* count) { return cudaGetDeviceCount(count); }
  static int get_device(int* index) { return cudaGetDevice(index); }
  static int set_device(int index) { return cudaSetDevice(index); }
  static int describe(int index, DeviceInfo& info) {
    cudaDeviceProp properties{};
    const int error = cudaGetDeviceProperties(&properties, index);
    info.kind = "cuda";
    info.collectives = "libnccl.so.2";
    info.name = properties.name;
    info.architecture = "sm_" + std::to_string(properties.major) + std::to_string(properties.minor);
    info.memory = static_cast<std::int64_t>(properties.totalGlobalMem);
    info.units = properties.multiProcessorCount;
    return error;
  }

  static int allocate(void** memory, std::size_t bytes) { return cudaMalloc(memory, bytes); }
  static int release(void* memory) { return cudaFree(memory); }
  static int allocate_host(void** memory, std::size_t bytes) {
    return cudaHostAlloc(memory, bytes, cudaHostAllocDefault);
  }
  static int release_host(void* memory) { return cudaFreeHost(memory); }

  static int copy(void* to, const void* from, std::size_t bytes, Stream stream) {
    return cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, stream);
  }
  static int copy_pieces(void* to, const void* from, std::size_t bytes, std::size_t pitch, std::size_t height,
                         Stream stream) {
    return cudaMemcpy2DAsync(to, pitch, from, pitch, bytes, height, cudaMemcpyDefault, stream);
  }
  static int clear(void* memory, std::size_t bytes, Stream stream) { return cudaMemsetAsync(memory, 0, bytes, stream); }

  static int make_stream(Stream* stream) { return cudaStreamCreateWithFlags(stream, cudaStreamNonBlocking); }
  static int destroy_stream(Stream stream) { return cudaStreamDestroy(stream); }
  static int wait(Stream stream) { return cudaStreamSynchronize(stream); }
  static int make_event(Event* event, bool timed) {
    return cudaEventCreateWithFlags(event, timed ? cudaEventDefault : cudaEventDisableTiming);
  }
  static int destroy_event(Event event) { return cudaEventDestroy(event); }
  static int record(Event event, Stream stream) { return cudaEventRecord(event, stream); }
  static int wait_event(Event event) { return cudaEventSynchronize(event); }
  static int query_event(Event event) { return cudaEventQuery(event); }
  static int elapsed(float* milliseconds, Event earlier, Event later) {
    return cudaEventElapsedTime(milliseconds, earlier, later);
  }
  static int follow_event(Stream stream, Event event) { return cudaStreamWaitEvent(stream, event, 0); }

  /// Whether the kernel's code for the current device is of an architecture for which after_former() is compiled.
  static bool waits_for_former(const void* kernel) {
    cudaFuncAttributes attributes{};
    return cudaFuncGetAttributes(&attributes, kernel) == cudaSuccess && attributes.ptxVersion >= 90;
  }
  /// Per multiprocessor, of a kernel whose blocks are all on the device at once. 0: the device has no such launches.
  static int resident_blocks(const KernelLaunch& launch) {
    int device = 0, cooperative = 0, blocks = 0;
    const bool known =
        cudaGetDevice(&device) == cudaSuccess &&
        cudaDeviceGetAttribute(&cooperative, cudaDevAttrCooperativeLaunch, device) == cudaSuccess &&
        cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, launch.kernel, static_cast<int>(launch.threads),
                                                      launch.shared_bytes) == cudaSuccess;
    return known && cooperative ? blocks : 0;
  }
  /// `early`: it may begin before the kernel before it has ended; not with KernelLaunch::together.
  static int launch(const KernelLaunch& launch, void** args, Stream stream, bool early) {
    cudaLaunchAttribute attribute{};
    if (launch.together) {
      attribute.id = cudaLaunchAttributeCooperative;
      attribute.val.cooperative = 1;
    } else {
      attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
      attribute.val.programmaticStreamSerializationAllowed = 1;
    }
    cudaLaunchConfig_t config{};
    config.gridDim = grid_of(launch);
    config.blockDim = dim3(launch.threads);
    config.dynamicSmemBytes = launch.shared_bytes;
    config.stream = stream;
    config.attrs = &attribute;
    config.numAttrs = early || launch.together ? 1 : 0;
    return cudaLaunchKernelExC(&config, launch.kernel, args);
  }
  static int make_graph(Graph* graph) { return cudaGraphCreate(graph, 0); }
  /// `args` stay where they are as long as the graph. `former`: null for the first kernel.
  static int add_kernel(Node* node, Graph graph, Node former, const KernelLaunch& launch, void** args, bool early) {
    cudaKernelNodeParams params{};
    params.func = const_cast<void*>(launch.kernel);
    params.gridDim = grid_of(launch);
    params.blockDim = dim3(launch.threads);
    params.sharedMemBytes = launch.shared_bytes;
    params.kernelParams = args;
    const int error = cudaGraphAddKernelNode(node, graph, nullptr, 0, &params);
    if (error != cudaSuccess || !former) return error;
#if CUDART_VERSION >= 12030
    cudaGraphEdgeData edge{};  // zeros: `former` has ended
    if (early) {
      edge.type = cudaGraphDependencyTypeProgrammatic;
      edge.from_port = cudaGraphKernelNodePortProgrammatic;
    }
#endif
#if CUDART_VERSION >= 13000
    return cudaGraphAddDependencies(graph, &former, node, &edge, 1);
#elif CUDART_VERSION >= 12030
    return cudaGraphAddDependencies_v2(graph, &former, node, &edge, 1);
#else
    (void)early;  // edges of graphs have no kinds yet
    return cudaGraphAddDependencies(graph, &former, node, 1);
#endif
  }
  static int instantiate(ReadyGraph* ready, Graph graph) { return cudaGraphInstantiate(ready, graph, 0); }
  static int launch_graph(ReadyGraph graph, Stream stream) { return cudaGraphLaunch(graph, stream); }
  static int destroy_graph(Graph graph) { return cudaGraphDestroy(graph); }
  static int destroy_ready_graph(ReadyGraph graph) { return cudaGraphExecDestroy(graph); }

 private:
  static dim3 grid_of(const KernelLaunch& launch) { return {launch.grid[0], launch.grid[1], launch.grid[2]}; }
};

}  // namespace

namespace cuda {
/// The GPU that the options name; tests and benchmarks declare it.
Result<std::shared_ptr<Device>> make_device(const GpuOptions& options) { return RuntimeDevice<Api>::make(options); }

/// What all processes have taken of the current GPU's memory, -1 if that cannot be said; tests declare it.
std::int64_t memory_in_use() {
  std::size_t free = 0, total = 0;
  if (cudaMemGetInfo(&free, &total) != cudaSuccess) return -1;
  return static_cast<std::int64_t>(total - free);
}
}  // namespace cuda
}  // namespace llminfer::gpu

namespace llminfer::inline v0 {

Result<std::shared_ptr<Backend>> make_cuda_backend(const GpuOptions& options) {
  return core::guarded([&]() -> Result<std::shared_ptr<Backend>> {
    std::shared_ptr<gpu::Device> device = LLMINFER_TRY(gpu::cuda::make_device(options));
    return gpu::make_backend(std::move(device), options);
  });
}

}  // namespace llminfer::inline v0
