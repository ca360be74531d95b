// Linear layers of many rows on Hopper (sm_90a): blocks of 128 or 256 rows by 128 output features. One warpgroup fills
// a ring of tiles in shared memory, activations and halves by the copy engine, other weights by decoding them; two
// multiply what is there. Blocks go on with the next tile while the sums of the last one are written.
//
// Rows and weights of bytes, int8 both, come as those of halves would, two bytes for each. Products are of the rows'
// signed integers by the weights' codes as they are, which are too large by kByteZero: at the end the sums have that
// many times those of the rows' integers taken off.
//
// Rows and weights of E4M3 both come by the copy engine and are multiplied as they are, 128 rows and features by 128
// columns at a time. What such products add up is added to floats after each stage, with the scales of its columns
// where these are not the same for whole rows.
#include "backends/gpu/kernels/kernels.hpp"
#include "backends/gpu/kernels/warpgroup.hpp"

#if defined(LLMINFER_GPU_WARPGROUPS)

namespace llminfer::gpu::LLMINFER_GPU_TARGET {
namespace {

constexpr int kGroup = 128;           ///< threads of a warpgroup
constexpr int kThreads = 3 * kGroup;  ///< the first one fills, the others multiply
constexpr int kFeatures = kProductColumns;
constexpr int kBoxRows = 128;
constexpr int kBoxBytes = kBoxRows * kTileRowBytes;
constexpr int kPattern = 8 * kTileRowBytes;  ///< on multiples of which tiles begin

/// Of a block with kHigh products of 64 rows per consumer.
template <int kHigh>
struct Ring {
  static constexpr int kRows = 2 * kHigh * kProductRows;
  static constexpr int kStages = kHigh == 1 ? 6 : 4;
  static constexpr int kInputBytes = kRows * kTileRowBytes;
  static constexpr int kStageBytes = kBoxBytes + kInputBytes;  ///< the weight's tile first
  static constexpr int kSharedBytes = kPattern + kStages * (kStageBytes + 2 * static_cast<int>(sizeof(uint64_t)));
};

/// Of products of E4M3 by E4M3. The scales of a stage's rows and features are behind all tiles.
struct E4m3Ring {
  static constexpr int kRows = 2 * kProductRows;
  static constexpr int kStages = 6;
  static constexpr int kStageBytes = 2 * kBoxBytes;  ///< the weight's tile first
  static constexpr int kScales = kFeatures + kRows;  ///< the features' first
  static constexpr int kSharedBytes = kPattern + kStages * (kStageBytes + kScales * static_cast<int>(sizeof(float)) +
                                                            2 * static_cast<int>(sizeof(uint64_t)));
};
static_assert(kScaleColumns == kTileRowBytes && kBoxRows == E4m3Ring::kRows && kBoxRows == kFeatures);

struct WarpgroupArgs {
  TileMap in, weight;
  LinearArgs linear;
  int row_tiles, tiles;  ///< tiles lie row tile after row tile, then feature after feature
};

#if defined(LLMINFER_GPU_WARPGROUP_CODE)

constexpr int kConsumerWarps = 8;

struct Stages {
  unsigned char* tiles;
  uint64_t *full, *empty;
};

/// Each stage in turn: waits until it is empty, and has it filled.
template <Form kForm, int kHigh>
__device__ __forceinline__ void fill(const WarpgroupArgs& a, const Stages& stages, const float* table) {
  using R = Ring<kHigh>;
  const LinearArgs& l = a.linear;
  const int thread = static_cast<int>(threadIdx.x);
  uint32_t turn = 0;
  for (int tile = static_cast<int>(blockIdx.x); tile < a.tiles; tile += static_cast<int>(gridDim.x)) {
    const int first_row = tile % a.row_tiles * R::kRows, first_feature = tile / a.row_tiles * kFeatures;
    for (int column = 0; column < l.weight.cols; column += kTileColumns, ++turn) {
      const uint32_t stage = turn % R::kStages;
      unsigned char* const to = stages.tiles + stage * R::kStageBytes;
      uint64_t* const full = stages.full + stage;
      // A thread's eights of a tile are read together, and before the stage is empty.
      constexpr int kItems = kForm == Form::f16 ? 1 : kBoxBytes / 16 / kGroup;
      [[maybe_unused]] Packed packed[kItems];
      const int chunks = l.weight.cols / 8, chunk = column / 8 + thread % 8;
      if constexpr (kForm != Form::f16) {
#pragma unroll
        for (int item = 0; item < kItems; ++item) {
          const int f = first_feature + thread / 8 + item * (kGroup / 8);
          packed[item] = read_eight<kForm>(l.weight, f < l.weight.rows ? f : l.weight.rows - 1,
                                           chunk < chunks ? chunk : chunks - 1);
        }
      }
      barrier_wait(stages.empty + stage, turn / R::kStages % 2 ^ 1);
      if (thread == 0) {
        barrier_expect(full, kForm == Form::f16 ? R::kStageBytes : R::kInputBytes);
        if (kForm == Form::f16) copy_tile(to, a.weight, column, first_feature, full);
#pragma unroll
        for (int box = 0; box < kHigh; ++box) {
          copy_tile(to + (1 + box) * kBoxBytes, a.in, column, first_row + box * kBoxRows, full);
        }
      }
      if constexpr (kForm != Form::f16) {
#pragma unroll
        for (int item = 0; item < kItems; ++item) {
          const int line = thread / 8 + item * (kGroup / 8);
          Eight e = decode<kForm>(l.weight, packed[item], table);
#pragma unroll
          for (int i = 0; i < 8; ++i) e.value[i] = e.value[i] * e.scale - e.offset;
          // Columns past the end count nothing, whatever the rows have there; rows past it are not written out.
          const uint4 halves = chunk < chunks ? pack_halves(e.value) : uint4{0, 0, 0, 0};
          store_operand(to + line * kTileRowBytes + (thread % 8 ^ line % 8) * 16, halves);
        }
        operand_fence();
        barrier_arrive(full);
      }
    }
  }
}

/// Finishes sums and writes them, so many at a time that their reads seldom wait for each other's writes. What lies
/// past the end is read as the last one. `scale_of(row)`: what sums are multiplied by beside the weight's factors.
template <class Sum, int kHigh, class Scale>
__device__ __forceinline__ void write(const LinearArgs& l, const Sum (&sums)[kHigh][64], int first_row,
                                      int first_feature, Scale scale_of) {
  constexpr int kTogether = 4;  // more need registers that the sums have
#pragma unroll
  for (int part = 0; part < 2 * kHigh; ++part) {  // of a row each
    const Sum* const from = sums[part / 2] + part % 2 * 2;
    const int r = first_row + part / 2 * kProductRows + sum_row(part % 2 * 2), row = r < l.rows ? r : l.rows - 1;
    const float scale = scale_of(row);
    Sum less = 0;
    if constexpr (kOfBytes<Sum>) less = kByteZero * l.in_sums[row];
    const float* const residual = l.residual.data ? l.residual.data + row * l.residual.stride : nullptr;
    float* const out = l.out.data + row * l.out.stride;
#pragma unroll
    for (int begin = 0; begin < 32; begin += kTogether) {
      float values[kTogether];
#pragma unroll
      for (int j = 0; j < kTogether; ++j) {
        const int i = (begin + j) / 2 * 4 + j % 2, f = first_feature + sum_column(i);
        const int feature = f < l.weight.rows ? f : l.weight.rows - 1;
        values[j] = end_of_sums<Sum>(l, feature).value(from[i] - less, scale) + (l.bias ? l.bias[feature] : 0.0f);
        if (residual) values[j] += residual[feature];
      }
#pragma unroll
      for (int j = 0; j < kTogether; ++j) {
        const int feature = first_feature + sum_column((begin + j) / 2 * 4 + j % 2);
        if (r < l.rows && feature < l.weight.rows) out[feature] = values[j];
      }
      asm volatile("" ::: "memory");  // what comes later takes no registers now
    }
  }
}

/// Multiplies what the stages hold, one after the other. A stage is given back when the products of the next one were
/// started, since only then is it waited for.
template <int kHigh, class Sum>
__device__ __forceinline__ void multiply(const WarpgroupArgs& a, const Stages& stages) {
  using R = Ring<kHigh>;
  const LinearArgs& l = a.linear;
  const int group_row = (static_cast<int>(threadIdx.x) / kGroup - 1) * kHigh * kProductRows;
  const bool first_lane = threadIdx.x % 32 == 0;
  const uint64_t tiles = tile_descriptor(shared_address(stages.tiles));
  uint32_t turn = 0;
  for (int tile = static_cast<int>(blockIdx.x); tile < a.tiles; tile += static_cast<int>(gridDim.x)) {
    Sum sums[kHigh][64];
    for (int column = 0; column < l.weight.cols; column += kTileColumns, ++turn) {
      const uint32_t stage = turn % R::kStages;
      const uint64_t weight = tiles + stage * (R::kStageBytes / 16),
                     in = weight + (kBoxBytes + group_row * kTileRowBytes) / 16;
      barrier_wait(stages.full + stage, turn / R::kStages % 2);
      product_fence();
#pragma unroll
      for (int step = 0; step < kTileColumns / kProductDepth; ++step) {
#pragma unroll
        for (int high = 0; high < kHigh; ++high) {
          product(sums[high], in + high * (kProductRows * kTileRowBytes / 16) + step * kNextDepth,
                  weight + step * kNextDepth, column > 0 || step > 0);
        }
      }
      product_commit();
      product_wait<1>();
      if (first_lane && column > 0) barrier_arrive(stages.empty + (turn - 1) % R::kStages);
    }
    product_wait<0>();
#pragma unroll
    for (int high = 0; high < kHigh; ++high) settle_sums(sums[high]);
    if (first_lane) barrier_arrive(stages.empty + (turn - 1) % R::kStages);
    write(l, sums, tile % a.row_tiles * R::kRows + group_row, tile / a.row_tiles * kFeatures,
          [&](int row) { return l.in_scales[row]; });
  }
}

constexpr int kScalers = 64;  ///< threads that bring the scales of E4M3

struct E4m3Stages {
  Stages ring;
  float* scales;
};

/// Calls f(stage, parity of its turn, first row, first feature, first column) for all stages of a block in turn.
template <class F>
__device__ __forceinline__ void for_e4m3_stages(const WarpgroupArgs& a, F f) {
  uint32_t turn = 0;
  for (int tile = static_cast<int>(blockIdx.x); tile < a.tiles; tile += static_cast<int>(gridDim.x)) {
    for (int column = 0; column < a.linear.weight.cols; column += kScaleColumns, ++turn) {
      f(turn % E4m3Ring::kStages, turn / E4m3Ring::kStages % 2, tile % a.row_tiles * E4m3Ring::kRows,
        tile / a.row_tiles * kFeatures, column);
    }
  }
}

/// One thread has the tiles copied, others bring the scales, each at their own pace.
template <bool kGroups>
__device__ __forceinline__ void fill_e4m3(const WarpgroupArgs& a, const E4m3Stages& stages) {
  using R = E4m3Ring;
  const LinearArgs& l = a.linear;
  const int thread = static_cast<int>(threadIdx.x);
  if (thread == 0) {
    for_e4m3_stages(a, [&](uint32_t stage, uint32_t parity, int first_row, int first_feature, int column) {
      uint64_t* const full = stages.ring.full + stage;
      unsigned char* const to = stages.ring.tiles + stage * R::kStageBytes;
      barrier_wait(stages.ring.empty + stage, parity ^ 1);
      barrier_expect(full, R::kStageBytes);
      copy_tile(to, a.weight, column, first_feature, full);
      copy_tile(to + kBoxBytes, a.in, column, first_row, full);
    });
  }
  if (!kGroups || thread < kGroup - kScalers) return;
  const int scaler = thread - (kGroup - kScalers), groups = l.weight.cols >> l.weight.group_shift;
  for_e4m3_stages(a, [&](uint32_t stage, uint32_t parity, int first_row, int first_feature, int column) {
    float scales[R::kScales / kScalers];
#pragma unroll
    for (int i = 0; i < R::kScales / kScalers; ++i) {
      const int place = scaler + i * kScalers;
      if (place < kFeatures) {
        const int f = first_feature + place, feature = f < l.weight.rows ? f : l.weight.rows - 1;
        scales[i] =
            half_to_float(l.weight.scales[static_cast<int64_t>(feature) * groups + (column >> l.weight.group_shift)]);
      } else {
        const int r = first_row + place - kFeatures, row = r < l.rows ? r : l.rows - 1;
        scales[i] = l.in_scales[static_cast<int64_t>(l.in_group > 0 ? column / l.in_group : 0) * l.rows + row];
      }
    }
    barrier_wait(stages.ring.empty + stage, parity ^ 1);
#pragma unroll
    for (int i = 0; i < R::kScales / kScalers; ++i) {
      stages.scales[stage * R::kScales + scaler + i * kScalers] = scales[i];
    }
    barrier_arrive(stages.ring.full + stage);
  });
}

/// While one of the two warpgroups adds its products to floats, those of the other are computed.
template <bool kGroups>
__device__ __forceinline__ void multiply_e4m3(const WarpgroupArgs& a, const E4m3Stages& stages) {
  using R = E4m3Ring;
  const LinearArgs& l = a.linear;
  const int group_row = (static_cast<int>(threadIdx.x) / kGroup - 1) * kProductRows;
  const bool first_lane = threadIdx.x % 32 == 0;
  const uint64_t tiles = tile_descriptor(shared_address(stages.ring.tiles));
  uint32_t turn = 0;
  for (int tile = static_cast<int>(blockIdx.x); tile < a.tiles; tile += static_cast<int>(gridDim.x)) {
    float sums[1][64] = {};
    for (int column = 0; column < l.weight.cols; column += kScaleColumns, ++turn) {
      const uint32_t stage = turn % R::kStages;
      const uint64_t weight = tiles + stage * (R::kStageBytes / 16),
                     in = weight + (kBoxBytes + group_row * kTileRowBytes) / 16;
      float products[64];
      barrier_wait(stages.ring.full + stage, turn / R::kStages % 2);
      product_fence();
#pragma unroll
      for (int step = 0; step < kTileRowBytes / 32; ++step) {
        product_e4m3(products, in + step * kNextDepth, weight + step * kNextDepth, step > 0);
      }
      product_commit();
      [[maybe_unused]] float features[32], rows[2];
      if constexpr (kGroups) {
        const float* const scales = stages.scales + stage * R::kScales;
#pragma unroll
        for (int i = 0; i < 32; ++i) features[i] = scales[sum_column(i / 2 * 4 + i % 2)];
#pragma unroll
        for (int i = 0; i < 2; ++i) rows[i] = scales[kFeatures + group_row + sum_row(2 * i)];
        sync_lanes();  // all have read them
      }
      product_wait<0>();
      settle_sums(products);
      if (first_lane) barrier_arrive(stages.ring.empty + stage);
#pragma unroll
      for (int i = 0; i < 64; ++i) {
        if constexpr (kGroups) products[i] *= features[i / 4 * 2 + i % 2] * rows[i / 2 % 2];
        sums[0][i] += products[i];
      }
    }
    const int first_feature = tile / a.row_tiles * kFeatures;
    if constexpr (!kGroups) {  // not in write(), which has no registers left
#pragma unroll
      for (int i = 0; i < 32; ++i) {
        const int at = i / 2 * 4 + i % 2, f = first_feature + sum_column(at);
        const int64_t feature = f < l.weight.rows ? f : l.weight.rows - 1;
        const float scale = half_to_float(l.weight.scales[feature * (l.weight.cols >> l.weight.group_shift)]);
        sums[0][at] *= scale;
        sums[0][at + 2] *= scale;
        if (i % 4 == 3) asm volatile("" ::: "memory");
      }
    }
    write(l, sums, tile % a.row_tiles * R::kRows + group_row, first_feature,
          [&](int row) { return kGroups ? 1.0f : l.in_scales[row]; });
  }
}

#endif

/// Sum int32_t: of bytes_as_halves().
template <Form kForm, int kHigh, class Sum = float>
__global__ void __launch_bounds__(kThreads, 1) linear_warpgroups_kernel(const __grid_constant__ WarpgroupArgs a) {
#if defined(LLMINFER_GPU_WARPGROUP_CODE)
  using R = Ring<kHigh>;
  __shared__ float table[16];
  const int thread = static_cast<int>(threadIdx.x);
  unsigned char* const memory = dynamic_shared_memory();
  Stages stages;
  stages.tiles = memory + (kPattern - shared_address(memory) % kPattern) % kPattern;
  stages.full = reinterpret_cast<uint64_t*>(stages.tiles + R::kStages * R::kStageBytes);
  stages.empty = stages.full + R::kStages;
  if (kForm == Form::table4 && thread < 16) table[thread] = a.linear.weight.table[thread];
  if (thread == 0) {
    for (int stage = 0; stage < R::kStages; ++stage) {
      barrier_init(stages.full + stage, kForm == Form::f16 ? 1 : 1 + kGroup);
      barrier_init(stages.empty + stage, kConsumerWarps);
    }
    barrier_fence();
  }
  __syncthreads();
  after_former();
  // Registers move to where the sums are; a block begins with its threads' share of 65536, in eights per thread.
  constexpr int kFiller = kForm == Form::f16 ? 40 : 88, kMultiplier = kForm == Form::f16 ? 232 : 208;
  static_assert(kGroup * (kFiller + 2 * kMultiplier) <= kThreads * (65536 / kThreads / 8 * 8));
  if (thread < kGroup) {
    fewer_registers<kFiller>();
    if (kForm != Form::f16 || thread == 0) fill<kForm, kHigh>(a, stages, table);
  } else {
    more_registers<kMultiplier>();
    multiply<kHigh, Sum>(a, stages);
  }
#endif
}

template <bool kGroups>
__global__ void __launch_bounds__(kThreads, 1) linear_e4m3_warpgroups_kernel(const __grid_constant__ WarpgroupArgs a) {
#if defined(LLMINFER_GPU_WARPGROUP_CODE)
  using R = E4m3Ring;
  const int thread = static_cast<int>(threadIdx.x);
  unsigned char* const memory = dynamic_shared_memory();
  E4m3Stages stages;
  stages.ring.tiles = memory + (kPattern - shared_address(memory) % kPattern) % kPattern;
  stages.scales = reinterpret_cast<float*>(stages.ring.tiles + R::kStages * R::kStageBytes);
  stages.ring.full = reinterpret_cast<uint64_t*>(stages.scales + R::kStages * R::kScales);
  stages.ring.empty = stages.ring.full + R::kStages;
  if (thread == 0) {
    for (int stage = 0; stage < R::kStages; ++stage) {
      barrier_init(stages.ring.full + stage, kGroups ? 1 + kScalers : 1);
      barrier_init(stages.ring.empty + stage, kConsumerWarps);
    }
    barrier_fence();
  }
  __syncthreads();
  after_former();
  constexpr int kFiller = 40, kMultiplier = 232;
  if (thread < kGroup) {
    fewer_registers<kFiller>();
    fill_e4m3<kGroups>(a, stages);
  } else {
    more_registers<kMultiplier>();
    multiply_e4m3<kGroups>(a, stages);
  }
#endif
}

template <int kHigh>
int launch_high(void* stream, WarpgroupArgs& args) {
  const LinearArgs& l = args.linear;
  args.row_tiles = (l.rows + Ring<kHigh>::kRows - 1) / Ring<kHigh>::kRows;
  args.tiles = args.row_tiles * ((l.weight.rows + kFeatures - 1) / kFeatures);
  const auto blocks = static_cast<unsigned>(args.tiles < l.units ? args.tiles : l.units);
  if (l.codes) {
    return launch_with_shared(stream, {blocks}, kThreads, Ring<kHigh>::kSharedBytes,
                              linear_warpgroups_kernel<Form::f16, kHigh, int32_t>, args);
  }
  return with_form(l.weight.form, [&]<Form kForm>() {
    return launch_with_shared(stream, {blocks}, kThreads, Ring<kHigh>::kSharedBytes,
                              linear_warpgroups_kernel<kForm, kHigh>, args);
  });
}

}  // namespace

int linear_warpgroups(void* stream, const LinearArgs& layer) {
  const LinearArgs args = layer.codes ? bytes_as_halves(layer) : layer;
  WarpgroupArgs a{};
  a.linear = args;
  if (const int error = make_tile_map(a.in, args.in, args.weight.cols, args.rows, kBoxRows)) return error;
  if (args.weight.form == Form::f16) {
    if (const int error = make_tile_map(a.weight, static_cast<const uint16_t*>(args.weight.high), args.weight.cols,
                                        args.weight.rows, kBoxRows)) {
      return error;
    }
  }
  // Higher tiles read less, but only if there are enough of them for all multiprocessors.
  const int64_t tiles =
      static_cast<int64_t>((args.rows + 255) / 256) * ((args.weight.rows + kFeatures - 1) / kFeatures);
  return args.rows > kBoxRows && tiles >= args.units ? launch_high<2>(stream, a) : launch_high<1>(stream, a);
}

int linear_e4m3_warpgroups(void* stream, const LinearArgs& args) {
  const MatrixArgs& w = args.weight;
  WarpgroupArgs a{};
  a.linear = args;
  if (const int error = make_tile_map(a.in, args.codes, w.cols, args.rows, kBoxRows)) return error;
  if (const int error = make_tile_map(a.weight, static_cast<const uint8_t*>(w.high), w.cols, w.rows, kBoxRows)) {
    return error;
  }
  a.row_tiles = (args.rows + E4m3Ring::kRows - 1) / E4m3Ring::kRows;
  a.tiles = a.row_tiles * ((w.rows + kFeatures - 1) / kFeatures);
  const auto blocks = static_cast<unsigned>(a.tiles < args.units ? a.tiles : args.units);
  const bool groups = args.in_group > 0 || args.weight_group > 0;
  return launch_with_shared(stream, {blocks}, kThreads, E4m3Ring::kSharedBytes,
                            groups ? linear_e4m3_warpgroups_kernel<true> : linear_e4m3_warpgroups_kernel<false>, a);
}

}  // namespace llminfer::gpu::LLMINFER_GPU_TARGET

#endif
