// Kernels that go over rows.
#include "backends/gpu/kernels/rows.hpp"

namespace llminfer::gpu::LLMINFER_GPU_TARGET {
namespace {

template <Form kForm>
__global__ void __launch_bounds__(kRowThreads) embed_kernel(EmbedArgs a) {
  after_former();
  embed_block<kForm>(a, static_cast<int>(blockIdx.x));
}

__global__ void __launch_bounds__(kRowThreads) prepare_kernel(PrepareArgs a) {
  __shared__ float shared[kRowThreads / 32];
  const int thread = static_cast<int>(threadIdx.x);
  if (a.norm && thread * kLineFloats < a.width) prefetch(a.norm + thread * kLineFloats);
  after_former();
  prepare_block(a, static_cast<int>(blockIdx.x), shared);
}

__global__ void __launch_bounds__(kRowThreads) angles_kernel(AnglesArgs a) {
  after_former();
  angles_block(a, static_cast<int>(blockIdx.x));
}

__global__ void __launch_bounds__(kRowThreads) rotate_kernel(RotateArgs a) {
  after_former();
  rotate_block(a, static_cast<int>(blockIdx.x));
}

__global__ void __launch_bounds__(kRowThreads) glu_kernel(GluArgs a) {
  after_former();
  glu_block(a, static_cast<int>(blockIdx.x));
}

__global__ void __launch_bounds__(kRowThreads) add_kernel(AddArgs a) {
  after_former();
  add_block(a, static_cast<int>(blockIdx.x));
}

__global__ void __launch_bounds__(kRowThreads) gather_kernel(GatherArgs a) {
  after_former();
  gather_block(a, static_cast<int>(blockIdx.x));
}

__global__ void __launch_bounds__(kRowThreads) combine_kernel(CombineArgs a) {
  after_former();
  const int64_t item = item_of(static_cast<int>(blockIdx.x));
  if (item >= static_cast<int64_t>(a.rows) * a.width) return;
  const int64_t row = item / a.width, i = item % a.width;
  float sum = 0.0f;
  for (int j = 0; j < a.used; ++j) {
    sum += a.factors[row * a.used + j] * a.in.data[a.places[row * a.used + j] * a.in.stride + i];
  }
  if (a.shared.data) {
    const float gate = a.shared_gate.data[row * a.shared_gate.stride];
    sum += a.shared.data[row * a.shared.stride + i] / (1.0f + exp(-gate));
  }
  a.out.data[row * a.out.stride + i] = sum;
}

Grid grid_of(int blocks) { return {static_cast<unsigned>(blocks)}; }

}  // namespace

int embed(void* stream, const EmbedArgs& args) {
  return with_form(args.table.form, [&]<Form kForm>() {
    return launch(stream, grid_of(blocks_of(args)), kRowThreads, embed_kernel<kForm>, args);
  });
}
int prepare(void* stream, const PrepareArgs& args) {
  return launch(stream, grid_of(blocks_of(args)), kRowThreads, prepare_kernel, args);
}
int angles(void* stream, const AnglesArgs& args) {
  return launch(stream, grid_of(blocks_of(args)), kRowThreads, angles_kernel, args);
}
int rotate(void* stream, const RotateArgs& args) {
  return launch(stream, grid_of(blocks_of(args)), kRowThreads, rotate_kernel, args);
}
int glu(void* stream, const GluArgs& args) {
  return launch(stream, grid_of(blocks_of(args)), kRowThreads, glu_kernel, args);
}
int add(void* stream, const AddArgs& args) {
  return launch(stream, grid_of(blocks_of(args)), kRowThreads, add_kernel, args);
}
int gather(void* stream, const GatherArgs& args) {
  return launch(stream, grid_of(blocks_of(args)), kRowThreads, gather_kernel, args);
}
int combine(void* stream, const CombineArgs& args) {
  return launch(stream, grid_of(blocks_of_items(int64_t{args.rows} * args.width)), kRowThreads, combine_kernel, args);
}

}  // namespace llminfer::gpu::LLMINFER_GPU_TARGET
