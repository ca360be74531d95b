// The table of all launchers.
#include "backends/gpu/kernels/copies.hpp"
#include "backends/gpu/kernels/kernels.hpp"
#include "backends/gpu/kernels/mma.hpp"
#include "backends/gpu/kernels/warpgroup.hpp"

namespace llminfer::gpu::LLMINFER_GPU_TARGET {
namespace {

__global__ void probe_kernel(ProbeArgs a) {
#if defined(LLMINFER_GPU_WARPGROUP_CODE)
  constexpr int32_t kWarpgroups = 1;
#else
  constexpr int32_t kWarpgroups = 0;
#endif
#if defined(LLMINFER_GPU_COPY_CODE)
  constexpr int32_t kCopies = 1;
#else
  constexpr int32_t kCopies = 0;
#endif
#if defined(LLMINFER_GPU_E4M3_CODE)
  constexpr int32_t kE4m3 = 1;
#else
  constexpr int32_t kE4m3 = 0;
#endif
  after_former();
  if (threadIdx.x == 0) a.found[0] = kWarpgroups, a.found[1] = kCopies, a.found[2] = kE4m3;
}

int probe(void* stream, const ProbeArgs& args) { return launch(stream, {}, 32, probe_kernel, args); }

#if defined(LLMINFER_GPU_WARPGROUPS)
constexpr auto kLinearWarpgroups = linear_warpgroups, kE4m3Warpgroups = linear_e4m3_warpgroups;
#else
constexpr auto kLinearWarpgroups = nullptr, kE4m3Warpgroups = nullptr;
#endif
#if defined(LLMINFER_GPU_COPIES)
constexpr auto kLinearStages = linear_stages, kE4m3Stages = linear_e4m3_stages;
#else
constexpr auto kLinearStages = nullptr, kE4m3Stages = nullptr;
#endif

}  // namespace

const KernelTable& kernel_table() {
  static constexpr KernelTable table = {
      probe,    embed,           prepare,     linear_few, linear_many, kLinearWarpgroups, kLinearStages,
      quantize, kE4m3Warpgroups, kE4m3Stages, route,      sort_pairs,  experts_few,       experts_many,
      angles,   rotate,          store,       seal,       attend,      attend_tiles,      glu,
      add,      gather,          combine,     candidates, persistent};
  return table;
}

}  // namespace llminfer::gpu::LLMINFER_GPU_TARGET
