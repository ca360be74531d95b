// One kernel that runs the steps of a pass of one row (docs/adr/0039): its blocks, all on the device at once, share out
// the blocks that each step's own kernel would have, and wait for each other before a step that depends on others.
// While they wait they fetch the next step's first weights.
#include "backends/gpu/kernels/attention.hpp"
#include "backends/gpu/kernels/linear_few.hpp"
#include "backends/gpu/kernels/rows.hpp"
#include "backends/gpu/kernels/together.hpp"

namespace llminfer::gpu::LLMINFER_GPU_TARGET {
namespace {

constexpr int kThreads = kRowThreads;
constexpr int kStepWords = sizeof(PersistentStep) / sizeof(uint4);
static_assert(sizeof(PersistentStep) % sizeof(uint4) == 0 && kStepWords <= kThreads);

/// Of __launch_bounds__: blocks per multiprocessor; for HIP waves per SIMD, which comes to the same.
[[maybe_unused]] constexpr int kResident = 2;

struct Memory {
  PersistentStep steps[2];  ///< the present one and the next one, by turns
  union {
    float sums[kThreads / 32];
    float table[16];
    AttendMemory attend;
  };
};

/// f.template operator()<form>()
template <class F>
__device__ __forceinline__ void on_form(Form form, F f) {
  switch (form) {
    case Form::f16:
      return f.template operator()<Form::f16>();
    case Form::codes2:
      return f.template operator()<Form::codes2>();
    case Form::codes3:
      return f.template operator()<Form::codes3>();
    case Form::codes4:
      return f.template operator()<Form::codes4>();
    case Form::codes5:
      return f.template operator()<Form::codes5>();
    case Form::codes6:
      return f.template operator()<Form::codes6>();
    case Form::codes8:
      return f.template operator()<Form::codes8>();
    case Form::table4:
      return f.template operator()<Form::table4>();
    case Form::e4m3:
      return f.template operator()<Form::e4m3>();
  }
}
template <class F>
__device__ __forceinline__ void on_element(CacheElement element, F f) {
  switch (element) {
    case CacheElement::f16:
      return f.template operator()<CacheElement::f16>();
    case CacheElement::f32:
      return f.template operator()<CacheElement::f32>();
    case CacheElement::bf16:
      return f.template operator()<CacheElement::bf16>();
    case CacheElement::int8:
      return f.template operator()<CacheElement::int8>();
    case CacheElement::int4:
      return f.template operator()<CacheElement::int4>();
    case CacheElement::e4m3:
      return f.template operator()<CacheElement::e4m3>();
  }
}

/// The first of a step's blocks that is this one's, where `before` were given out since the last barrier.
__device__ __forceinline__ int first_block(int before) {
  const int grid = static_cast<int>(gridDim.x);
  return (static_cast<int>(blockIdx.x) + grid - before % grid) % grid;
}

/// f(block) for those of a step's blocks that are this one's.
template <class F>
__device__ __forceinline__ void each_block(int blocks, int& before, F f) {
  for (int block = first_block(before); block < blocks; block += static_cast<int>(gridDim.x)) {
    f(block);
    __syncthreads();  // shared memory is used again
  }
  before += blocks;
}
template <class F>
__device__ __forceinline__ void each_place(const Grid& grid, int& before, F f) {
  const int x = static_cast<int>(grid.x), y = static_cast<int>(grid.y);
  each_block(x * y * static_cast<int>(grid.z), before, [&](int block) {
    f(Grid{static_cast<unsigned>(block % x), static_cast<unsigned>(block / x % y),
           static_cast<unsigned>(block / x / y)});
  });
}

__device__ __forceinline__ void multiply_layers(const LayersArgs& layers, float (&table)[16], int& before) {
  on_form(layers.layers[0].weight.form, [&]<Form kForm>() {
    each_block(blocks_of<kThreads>(layers), before, [&](int block) {
      const LinearArgs& a = take_layer<kThreads>(layers, block);
      if constexpr (kForm == Form::table4) {
        if (threadIdx.x < 16) table[threadIdx.x] = a.weight.table[threadIdx.x];
        __syncthreads();
      }
      compute_features<kForm, 1, kThreads>(a, block, table);
    });
  });
}

__device__ __forceinline__ void run(const PersistentStep& step, Memory& memory, int& before) {
  const auto& args = step.args;
  switch (step.kind) {
    case StepKind::embed:
      return on_form(args.embed.table.form, [&]<Form kForm>() {
        each_block(blocks_of(args.embed), before, [&](int block) { embed_block<kForm>(args.embed, block); });
      });
    case StepKind::prepare:
      return each_block(blocks_of(args.prepare), before,
                        [&](int block) { prepare_block(args.prepare, block, memory.sums); });
    case StepKind::linear_few:
      return multiply_layers(args.layers, memory.table, before);
    case StepKind::angles:
      return each_block(blocks_of(args.angles), before, [&](int block) { angles_block(args.angles, block); });
    case StepKind::rotate:
      return each_block(blocks_of(args.rotate), before, [&](int block) { rotate_block(args.rotate, block); });
    case StepKind::store:
      return each_place(grid_of<kThreads>(args.store), before,
                        [&](const Grid& at) { store_block<kThreads>(args.store, static_cast<int>(at.x)); });
    case StepKind::seal:
      return each_place(grid_of(args.seal), before, [&](const Grid& at) {
        seal_block<kThreads>(args.seal, static_cast<int>(at.x), static_cast<int>(at.y));
      });
    case StepKind::attend:
      return on_element(args.attend.cache.element, [&]<CacheElement kElement>() {
        each_place(grid_of(args.attend), before,
                   [&](const Grid& at) { attend_block<kElement, kThreads>(args.attend, at, memory.attend); });
      });
    case StepKind::combine_parts:
      return each_place(combine_grid_of(args.attend), before, [&](const Grid& at) {
        combine_block<kThreads>(args.attend, static_cast<int>(at.x), static_cast<int>(at.y));
      });
    case StepKind::glu:
      return each_block(blocks_of(args.glu), before, [&](int block) { glu_block(args.glu, block); });
    case StepKind::add:
      return each_block(blocks_of(args.add), before, [&](int block) { add_block(args.add, block); });
    case StepKind::gather:
      return each_block(blocks_of(args.gather), before, [&](int block) { gather_block(args.gather, block); });
  }
}

/// What the step will read first, and nothing writes.
__device__ __forceinline__ void prefetch_step(const PersistentStep& step) {
  if (step.kind != StepKind::linear_few) return;
  const LayersArgs& layers = step.args.layers;
  int block = first_block(0);
  if (block >= blocks_of<kThreads>(layers)) return;
  const LinearArgs& a = take_layer<kThreads>(layers, block);
  on_form(a.weight.form, [&]<Form kForm>() { prefetch_layer<kForm, 1, kThreads>(a, block); });
}

__device__ __forceinline__ void load_step(PersistentStep& to, const PersistentStep& from) {
  const int i = static_cast<int>(threadIdx.x);
  if (i < kStepWords) reinterpret_cast<uint4*>(&to)[i] = reinterpret_cast<const uint4*>(&from)[i];
}

__global__ void __launch_bounds__(kThreads, kResident) persistent_kernel(PersistentArgs a) {
  Memory& memory = memory_of_block<Memory>();
  after_former();
  load_step(memory.steps[0], a.steps[0]);
  __syncthreads();
  int before = 0;
  for (int i = 0;; ++i) {
    run(memory.steps[i % 2], memory, before);
    if (i + 1 == a.count) return;
    PersistentStep& next = memory.steps[(i + 1) % 2];
    load_step(next, a.steps[i + 1]);
    __syncthreads();
    if (!next.waits) continue;
    const uint32_t arrival = arrive(a.barrier);
    prefetch_step(next);
    wait_for_all(a.barrier, arrival);
    before = 0;
  }
}

}  // namespace

int persistent(void* stream, const PersistentArgs& args) {
  return launch_together(stream, args.blocks, kThreads, persistent_kernel, args);
}

}  // namespace llminfer::gpu::LLMINFER_GPU_TARGET
