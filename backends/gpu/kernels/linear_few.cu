// Linear layers of few rows, and those of experts.
#include "backends/gpu/kernels/linear_few.hpp"

#include "backends/gpu/kernels/experts.hpp"

namespace llminfer::gpu::LLMINFER_GPU_TARGET {
namespace {

constexpr int kThreads = 128;

/// Of __launch_bounds__, by which registers are given out: blocks per multiprocessor, but for HIP waves per SIMD.
#if defined(__HIP__)
template <int kRows>
inline constexpr int kResident = kRows == kFewRows ? 3 : 4;
#else
template <int kRows>
[[maybe_unused]] inline constexpr int kResident = 4;  // the emulator has no bounds
#endif

template <Form kForm, int kRows>
__global__ void __launch_bounds__(kThreads, kResident<kRows>) linear_few_kernel(LayersArgs all) {
  __shared__ float table[16];
  int block = static_cast<int>(blockIdx.x);
  const LinearArgs& a = take_layer<kThreads>(all, block);
  if constexpr (kForm == Form::table4) {
    if (threadIdx.x < 16) table[threadIdx.x] = a.weight.table[threadIdx.x];
    __syncthreads();
  }
  prefetch_layer<kForm, kRows, kThreads>(a, block);
  after_former();
  compute_features<kForm, kRows, kThreads>(a, block, table);
}

template <Form kForm, int kRows>
__global__ void __launch_bounds__(kThreads, kResident<kRows>) experts_few_kernel(ExpertsArgs a) {
  __shared__ LinearArgs layer;
  __shared__ float table[16];
  after_former();
  if (!take_tile<kForm>(a, layer, table)) return;
  compute_features<kForm, kRows, kThreads>(layer, static_cast<int>(blockIdx.y), table);
}

}  // namespace

int linear_few(void* stream, const LayersArgs& args) {
  const Grid grid{static_cast<unsigned>(blocks_of<kThreads>(args))};
  const int rows = args.layers[0].rows;
  return with_form(args.layers[0].weight.form, [&]<Form kForm>() {
    if (rows == 1) return launch(stream, grid, kThreads, linear_few_kernel<kForm, 1>, args);
    if (rows <= 4) return launch(stream, grid, kThreads, linear_few_kernel<kForm, 4>, args);
    return launch(stream, grid, kThreads, linear_few_kernel<kForm, kFewRows>, args);
  });
}
int experts_few(void* stream, const ExpertsArgs& args) {
  const Grid grid{static_cast<unsigned>(args.tile_count),
                  static_cast<unsigned>(blocks_of_features<kThreads>(args.features))};
  return with_form(args.form, [&]<Form kForm>() {
    if (args.tile_rows == 1) return launch(stream, grid, kThreads, experts_few_kernel<kForm, 1>, args);
    return launch(stream, grid, kThreads, experts_few_kernel<kForm, kFewExpertRows>, args);
  });
}

}  // namespace llminfer::gpu::LLMINFER_GPU_TARGET
