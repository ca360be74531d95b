// Linear layers of more than a few rows, by mma.sync with copies that nobody waits for (sm_80 and later): blocks of 16,
// 32 or 64 rows by 128 output features, of which a warp has 32. Several stages of columns are on their way into shared
// memory while one is multiplied. Weights stay packed there and are decoded straight into the fragments of the warp
// that multiplies them, each once per block (Frantar et al. 2024, "MARLIN").
//
// The order of columns in a product is free if both factors have the same: of a stage, lane 4 g + t has for itself the
// t-th quarter of the columns of four features, so that what it copies, decodes and multiplies lies together, in
// weights that lie row after row. Weights are the left factor, whose registers decoding can choose; those of the right
// one are as 16 bytes of a row come.
//
// Where there are few tiles, several blocks share one by columns. Their sums are added by the last one to come, in the
// order of the columns.
//
// Rows and weights of bytes, int8 both, come as those of halves would, two bytes for each, and are multiplied as they
// are.
//
// So are those of E4M3 both (sm_89, sm_120), 64 rows at a time. Each stage's sums are added to floats, with the scales
// of its columns where these are not the same for whole rows.
#include "backends/gpu/kernels/copies.hpp"
#include "backends/gpu/kernels/kernels.hpp"
#include "backends/gpu/kernels/mma.hpp"

#if defined(LLMINFER_GPU_COPIES)

namespace llminfer::gpu::LLMINFER_GPU_TARGET {
namespace {

constexpr int kThreads = 128;
constexpr int kEightTiles = 4;          ///< eights of features of a warp
constexpr int kSharedLimit = 99 << 10;  ///< of a block, on the machines that have least
static_assert(kSplitFeatures == kThreads / 32 * kEightTiles * 8);

/// What a stage holds of `kTiles` times 16 rows and of the weight's parts, which lie by thread. Sum int32_t: of
/// bytes_as_halves(), whose form is f16.
template <Form kForm, int kTiles, class Sum = float>
struct Stage {
  static constexpr bool kCodes = kForm != Form::f16;
  static constexpr bool kBytes = kForm == Form::codes8 || kForm == Form::e4m3;
  static constexpr int kOwn = kForm == Form::f16 ? 8 : kBytes ? 16 : 32;  ///< columns of a lane
  static constexpr int kEights = kOwn / 8;
  static constexpr int kColumns = 4 * 8 * kEights;
  // Bytes of a thread's eight-tile.
  static constexpr int kHigh = kForm == Form::codes2 || kForm == Form::codes3 ? 0 : 16;
  static constexpr int kPairs = kForm == Form::codes2 || kForm == Form::codes3 || kForm == Form::codes6 ? kOwn / 4 : 0;
  static constexpr int kBits = kForm == Form::codes3 || kForm == Form::codes5 ? kOwn / 8 : 0;
  static constexpr int kScale = kCodes ? 4 : 0;  ///< the word that it is in, or both
  static constexpr int kMinimum = kCodes && kForm != Form::e4m3 && kForm != Form::table4 ? 4 : 0;
  static constexpr int kAll = kEightTiles * kThreads;
  static constexpr int kPairsAt = kAll * kHigh, kBitsAt = kPairsAt + kAll * kPairs, kScaleAt = kBitsAt + kAll * kBits,
                       kMinimumAt = kScaleAt + kAll * kScale, kRowsAt = kMinimumAt + kAll * kMinimum;
  static constexpr int kSize = kRowsAt + 16 * kTiles * kColumns * 2;
  /// Few rows wait for memory, many for the units, of which more blocks keep more busy. Bytes are multiplied in half
  /// the time that halves take.
  static constexpr int kCount = kTiles == 4 && !kOfBytes<Sum> ? 2 : 4;
  static_assert(kCount * kSize <= kSharedLimit);
};

struct StagesArgs {
  LinearArgs linear;
  int stages;  ///< of each part of the columns
  bool early;  ///< weights may be read before after_former()
};

/// Where eight columns of a row are in a stage: the lanes that read together find theirs in different banks.
template <class S>
__device__ __forceinline__ int row_place(int row, int lane, int eight) {
  const int place = (eight * 4 + lane) ^ (S::kEights > 1 ? row % 2 * 4 : 0);
  return S::kRowsAt + row * S::kColumns * 2 + place * 16;
}

#if defined(LLMINFER_GPU_COPY_CODE)

/// A thread's part of the copies of a block's stages.
template <Form kForm, int kTiles, class Sum>
struct Filler {
  using S = Stage<kForm, kTiles, Sum>;
  const LinearArgs& l;
  unsigned char* memory;
  int first_row;
  int at[kEightTiles];        ///< of its part of its features' first stage, in eights of elements
  int scale_at[kEightTiles];  ///< likewise, in words of scales

  __device__ __forceinline__ void weights(int stage, int slot) const {
    const int thread = static_cast<int>(threadIdx.x), column = stage * S::kColumns + thread % 4 * S::kOwn;
    const bool exists = column < l.weight.cols;
    unsigned char* const to = memory + slot * S::kSize;
    const auto copy = [&]<int kBytes>(int part, int j, const void* from, int64_t offset) {
      copy_piece<kBytes>(to + part + (j * kThreads + thread) * kBytes, static_cast<const unsigned char*>(from) + offset,
                         exists);
    };
#pragma unroll
    for (int j = 0; j < kEightTiles; ++j) {
      const int64_t eight = at[j] + stage * (S::kColumns / 8);
      if constexpr (S::kHigh > 0)
        copy.template operator()<S::kHigh>(0, j, l.weight.high, eight * (S::kHigh / S::kEights));
      if constexpr (S::kPairs > 0) copy.template operator()<S::kPairs>(S::kPairsAt, j, l.weight.pairs, eight * 2);
      if constexpr (S::kBits > 0) copy.template operator()<S::kBits>(S::kBitsAt, j, l.weight.bits, eight);
      const int64_t word = int64_t{scale_at[j] + stage * (S::kColumns / 2 >> l.weight.group_shift)} * 4;
      if constexpr (S::kScale > 0) copy.template operator()<S::kScale>(S::kScaleAt, j, l.weight.scales, word);
      if constexpr (S::kMinimum > 0) {
        if (l.weight.minimums) copy.template operator()<S::kMinimum>(S::kMinimumAt, j, l.weight.minimums, word);
      }
    }
  }

  __device__ __forceinline__ void rows(int stage, int slot) const {
    constexpr int kItems = 16 * kTiles * S::kColumns / 8;
#pragma unroll
    for (int begin = 0; begin < kItems; begin += kThreads) {
      const int item = begin + static_cast<int>(threadIdx.x);
      if (kItems % kThreads != 0 && item >= kItems) break;
      const int row = item / (S::kColumns / 8), eight = item % (S::kColumns / 8);
      const int column = stage * S::kColumns + eight * 8;
      const bool exists = first_row + row < l.rows && column < l.weight.cols;
      const int64_t from = exists ? static_cast<int64_t>(first_row + row) * l.weight.cols + column : 0;
      copy_piece<16>(memory + slot * S::kSize + row_place<S>(row, eight / S::kEights, eight % S::kEights), l.in + from,
                     exists);
    }
  }
};

/// How halves are taken out of the words that hold groups' scales: selectors of pick_bytes.
struct ScalePlaces {
  uint32_t of[kEightTiles];
  uint32_t later;    ///< added for the second half of a lane's columns
  uint32_t minimum;  ///< joined for minimums, so that zeros are taken where there are none
};

/// sums += the stage's weights * its rows^T.
template <Form kForm, int kTiles, class Sum>
__device__ __forceinline__ void multiply(const unsigned char* stage, const ScalePlaces& places, const ZeroPoint& zero,
                                         const float* table, Sum (&sums)[2 * kTiles][kEightTiles / 2][4]) {
  using S = Stage<kForm, kTiles, Sum>;
  const int thread = static_cast<int>(threadIdx.x), g = thread % 32 / 4, t = thread % 4;
  const auto part = [&](int at, int bytes, int j) { return stage + at + (j * kThreads + thread) * bytes; };
  const auto word = [](const unsigned char* from, int i) { return reinterpret_cast<const uint32_t*>(from)[i]; };
  uint4 high[kEightTiles];
  if constexpr (S::kHigh > 0) {
#pragma unroll
    for (int j = 0; j < kEightTiles; ++j) high[j] = *reinterpret_cast<const uint4*>(part(0, S::kHigh, j));
  }
  uint32_t scales[kEightTiles] = {}, minimums[kEightTiles] = {};
#pragma unroll
  for (int e = 0; e < S::kEights; ++e) {
    Halves w[kEightTiles];
#pragma unroll
    for (int j = 0; j < kEightTiles; ++j) {
      Packed packed{};
      if constexpr (kForm == Form::f16) {
        packed.halves = high[j];
      } else {
        if constexpr (S::kBytes) {
          packed.low = e == 0 ? high[j].x : high[j].z;
          packed.high = e == 0 ? high[j].y : high[j].w;
        } else if constexpr (S::kHigh > 0) {
          packed.low = e == 0 ? high[j].x : e == 1 ? high[j].y : e == 2 ? high[j].z : high[j].w;
        }
        if constexpr (S::kPairs > 0) {
          packed.pairs = word(part(S::kPairsAt, S::kPairs, j), e / 2) >> (e % 2 * 16) & 0xffffu;
        }
        if constexpr (S::kBits > 0) packed.bits = word(part(S::kBitsAt, S::kBits, j), 0) >> (8 * e) & 0xffu;
        if (e % 2 == 0) {
          const uint32_t place = places.of[j] + (e >= 2 ? places.later : 0);
          scales[j] = pick_bytes(word(part(S::kScaleAt, S::kScale, j), 0), 0, place);
          minimums[j] = 0x80008000u;
          if constexpr (S::kMinimum > 0) {
            minimums[j] ^= pick_bytes(word(part(S::kMinimumAt, S::kMinimum, j), 0), 0, place | places.minimum);
          }
        }
      }
      if constexpr (kOfBytes<Sum>) {
        const uint4& codes = packed.halves;
        w[j] = {{{signed_bytes(codes.x), signed_bytes(codes.y)}, {signed_bytes(codes.z), signed_bytes(codes.w)}}};
      } else {
        w[j] = decode_halves<kForm>(packed, scales[j], minimums[j], zero, table);
      }
    }
#pragma unroll
    for (int i = 0; i < 2 * kTiles; ++i) {
      const uint4 row = *reinterpret_cast<const uint4*>(stage + row_place<S>(8 * i + g, t, e));
      const uint32_t b[2][2] = {{row.x, row.y}, {row.z, row.w}};
#pragma unroll
      for (int step = 0; step < 2; ++step) {
#pragma unroll
        for (int j = 0; j < kEightTiles; j += 2) {
          const uint32_t a[4] = {w[j].word[step][0], w[j + 1].word[step][0], w[j].word[step][1],
                                 w[j + 1].word[step][1]};
          if constexpr (kOfBytes<Sum>) {
            mma_m16n8k32_s8(sums[i][j / 2], a, b[step]);
          } else {
            mma_m16n8k16(sums[i][j / 2], a, b[step]);
          }
        }
      }
    }
  }
}

/// The sums of all blocks of a tile, in the last of them to come. False: this is another one.
template <int kTiles, class Sum>
__device__ __forceinline__ bool add_parts(const LinearArgs& l, Sum (&sums)[2 * kTiles][kEightTiles / 2][4]) {
  struct LLMINFER_ALIGNED Four {
    Sum x, y, z, w;
  };
  __shared__ uint32_t before;
  constexpr int kVectors = kTiles * kEightTiles;
  const int thread = static_cast<int>(threadIdx.x), parts = static_cast<int>(gridDim.z);
  const auto tile = static_cast<int>(blockIdx.y * gridDim.x + blockIdx.x);
  const auto at = [&](int part, int vector) {
    return reinterpret_cast<Four*>(l.parts) + ((tile * parts + part) * kVectors + vector) * kThreads + thread;
  };
#pragma unroll
  for (int v = 0; v < kVectors; ++v) {
    const Sum(&s)[4] = sums[v / 2][v % 2];
    *at(static_cast<int>(blockIdx.z), v) = {s[0], s[1], s[2], s[3]};
  }
  publish();
  __syncthreads();
  if (thread == 0) before = count_up(l.counters + tile);
  __syncthreads();
  if (before != static_cast<uint32_t>(parts - 1)) return false;
  publish();
  if (thread == 0) l.counters[tile] = 0;  // for the next layer
#pragma unroll
  for (int v = 0; v < kVectors; ++v) {
    Four all = *at(0, v);
    for (int part = 1; part < parts; ++part) {
      const Four more = *at(part, v);
      all = {all.x + more.x, all.y + more.y, all.z + more.z, all.w + more.w};
    }
    Sum(&s)[4] = sums[v / 2][v % 2];
    s[0] = all.x, s[1] = all.y, s[2] = all.z, s[3] = all.w;
  }
  return true;
}

/// `end_of(feature)`: what is made of its sums, with `scale_of(row)`.
template <int kTiles, class Sum, class End, class Scale>
__device__ __forceinline__ void write(const LinearArgs& l, const Sum (&sums)[2 * kTiles][kEightTiles / 2][4],
                                      int first_row, int first_feature, End end_of, Scale scale_of) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  int features[kEightTiles];
  SumEnd<Sum> ends[kEightTiles];
  float biases[kEightTiles];
#pragma unroll
  for (int j = 0; j < kEightTiles; ++j) {
    const int f = first_feature + 8 * j + lane / 4, feature = f < l.weight.rows ? f : l.weight.rows - 1;
    features[j] = f;
    ends[j] = end_of(feature);
    biases[j] = l.bias ? l.bias[feature] : 0.0f;
  }
#pragma unroll
  for (int i = 0; i < 4 * kTiles; ++i) {  // a row each
    const int row = first_row + i / 2 * 8 + lane % 4 * 2 + i % 2;
    if (row >= l.rows) continue;
    const float scale = scale_of(row);
    float values[kEightTiles];
#pragma unroll
    for (int j = 0; j < kEightTiles; ++j) {
      values[j] = ends[j].value(sums[i / 2][j / 2][j % 2 * 2 + i % 2], scale) + biases[j];
      if (l.residual.data && features[j] < l.weight.rows) {
        values[j] += l.residual.data[row * l.residual.stride + features[j]];
      }
    }
#pragma unroll
    for (int j = 0; j < kEightTiles; ++j) {
      if (features[j] < l.weight.rows) l.out.data[row * l.out.stride + features[j]] = values[j];
    }
  }
}

#endif

template <Form kForm, int kTiles, class Sum = float>
__global__ void __launch_bounds__(kThreads, kTiles == 1 ? 3 : 2) linear_stages_kernel(StagesArgs a) {
#if defined(LLMINFER_GPU_COPY_CODE)
  using S = Stage<kForm, kTiles, Sum>;
  __shared__ float table[16];
  const LinearArgs& l = a.linear;
  const int thread = static_cast<int>(threadIdx.x);
  const int first_row = static_cast<int>(blockIdx.y) * 16 * kTiles,
            first_feature = static_cast<int>(blockIdx.x) * kSplitFeatures + thread / 32 * kEightTiles * 8;
  if (kForm == Form::table4 && thread < 16) table[thread] = l.weight.table[thread];
  Filler<kForm, kTiles, Sum> filler{l, dynamic_shared_memory(), first_row, {}, {}};
  ScalePlaces places{{}, S::kOwn == 32 && l.weight.group_shift == 4 ? 0x2222u : 0, l.weight.minimums ? 0 : 0x4444u};
#pragma unroll
  for (int j = 0; j < kEightTiles; ++j) {
    const int f = first_feature + 8 * j + thread % 32 / 4, feature = f < l.weight.rows ? f : l.weight.rows - 1;
    filler.at[j] = feature * (l.weight.cols / 8) + thread % 4 * S::kEights;
    // The scale is the lower half of its word or the upper one, in all stages, which begin on whole words.
    const int group = S::kCodes ? filler.at[j] >> (l.weight.group_shift - 3) : 0;
    filler.scale_at[j] = group / 2;
    places.of[j] = group % 2 ? 0x3232u : 0x1010u;
  }
  const ZeroPoint zero = zero_point(l.weight.zero);
  const int all = (l.weight.cols + S::kColumns - 1) / S::kColumns, begin = static_cast<int>(blockIdx.z) * a.stages,
            end = begin + a.stages < all ? begin + a.stages : all;
  // A group of copies for each stage, also where there is none, so that their number tells which have come.
  if (!a.early) after_former();
#pragma unroll
  for (int ahead = 0; ahead < S::kCount - 1; ++ahead) {
    if (begin + ahead < end) filler.weights(begin + ahead, ahead);
  }
  if (a.early) after_former();
#pragma unroll
  for (int ahead = 0; ahead < S::kCount - 1; ++ahead) {
    if (begin + ahead < end) filler.rows(begin + ahead, ahead);
    copies_commit();
  }
  Sum sums[2 * kTiles][kEightTiles / 2][4] = {};
  int slot = 0;
  for (int stage = begin; stage < end; ++stage) {
    copies_wait<S::kCount - 2>();
    __syncthreads();  // this stage has come, and the one before was read, of all threads
    const int next = stage + S::kCount - 1, next_slot = slot == 0 ? S::kCount - 1 : slot - 1;
    if (next < end) {
      filler.weights(next, next_slot);
      filler.rows(next, next_slot);
    }
    copies_commit();
    multiply<kForm, kTiles>(filler.memory + slot * S::kSize, places, zero, table, sums);
    slot = slot + 1 == S::kCount ? 0 : slot + 1;
  }
  if (gridDim.z > 1 && !add_parts<kTiles>(l, sums)) return;
  write<kTiles>(
      l, sums, first_row, first_feature, [&](int feature) { return end_of_sums<Sum>(l, feature); },
      [&](int row) { return l.in_scales[row]; });
#endif
}

/// A stage of E4M3 numbers: 128 features and 64 rows, 128 columns of each. Lane t of four has 16 bytes of either half
/// of a row.
struct E4m3Stage {
  static constexpr int kTiles = 4;
  static constexpr int kRowsAt = kSplitFeatures * kScaleColumns;
  static constexpr int kSize = kRowsAt + 16 * kTiles * kScaleColumns;
  static constexpr int kCount = 2;
  static_assert(kCount * kSize <= kSharedLimit);
};

#if defined(LLMINFER_GPU_E4M3_CODE)

/// Where 16 bytes are in a stage. Weights lie by thread.
__device__ __forceinline__ int e4m3_weight_place(int j, int half) {
  return ((j * 2 + half) * kThreads + static_cast<int>(threadIdx.x)) * 16;
}
/// The lanes that read together find theirs in different banks.
__device__ __forceinline__ int e4m3_row_place(int row, int piece) {
  return E4m3Stage::kRowsAt + row * kScaleColumns + (piece ^ row % 2 * 4) * 16;
}

/// A thread's part of the copies of a stage.
__device__ __forceinline__ void fill_e4m3(const LinearArgs& l, unsigned char* stage, int column, int first_row,
                                          const int (&features)[kEightTiles]) {
  const int thread = static_cast<int>(threadIdx.x);
  const auto copy = [&](int place, const void* matrix, int64_t row, bool exists, int at) {
    exists = exists && column + at < l.weight.cols;
    copy_piece<16>(stage + place,
                   static_cast<const unsigned char*>(matrix) + (exists ? row * l.weight.cols + column + at : 0),
                   exists);
  };
#pragma unroll
  for (int j = 0; j < kEightTiles; ++j) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      copy(e4m3_weight_place(j, half), l.weight.high, features[j], true, half * 64 + thread % 4 * 16);
    }
  }
#pragma unroll
  for (int begin = 0; begin < 16 * E4m3Stage::kTiles * 8; begin += kThreads) {
    const int row = (begin + thread) / 8, piece = thread % 8;
    copy(e4m3_row_place(row, piece), l.codes, first_row + row, first_row + row < l.rows, piece * 16);
  }
}

/// sums += the stage's weights * its rows^T, times the scales of both if there are any.
template <bool kGroups>
__device__ __forceinline__ void multiply_e4m3(const unsigned char* stage, const float (&features)[kEightTiles],
                                              const float (&rows)[4 * E4m3Stage::kTiles],
                                              float (&sums)[2 * E4m3Stage::kTiles][kEightTiles / 2][4]) {
  const int lane = static_cast<int>(threadIdx.x) % 32, g = lane / 4, t = lane % 4;
  const auto read = [stage](int place) { return *reinterpret_cast<const uint4*>(stage + place); };
  uint4 weights[kEightTiles][2];
#pragma unroll
  for (int j = 0; j < kEightTiles; ++j) {
#pragma unroll
    for (int half = 0; half < 2; ++half) weights[j][half] = read(e4m3_weight_place(j, half));
  }
#pragma unroll
  for (int i = 0; i < 2 * E4m3Stage::kTiles; ++i) {
    float products[kEightTiles / 2][4] = {};
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const uint4 row = read(e4m3_row_place(8 * i + g, 4 * half + t));
#pragma unroll
      for (int j = 0; j < kEightTiles; j += 2) {
        const uint4 &low = weights[j][half], &high = weights[j + 1][half];
        mma_m16n8k32_e4m3(products[j / 2], {low.x, high.x, low.y, high.y}, {row.x, row.y});
        mma_m16n8k32_e4m3(products[j / 2], {low.z, high.z, low.w, high.w}, {row.z, row.w});
      }
    }
#pragma unroll
    for (int j = 0; j < kEightTiles; ++j) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const float product = products[j / 2][j % 2 * 2 + c];
        sums[i][j / 2][j % 2 * 2 + c] += kGroups ? product * (features[j] * rows[2 * i + c]) : product;
      }
    }
  }
}

#endif

template <bool kGroups>
__global__ void __launch_bounds__(kThreads, 2) linear_e4m3_stages_kernel(LinearArgs l) {
#if defined(LLMINFER_GPU_E4M3_CODE)
  constexpr int kTiles = E4m3Stage::kTiles;
  const int lane = static_cast<int>(threadIdx.x) % 32, groups = l.weight.cols >> l.weight.group_shift;
  const int first_row = static_cast<int>(blockIdx.y) * 16 * kTiles,
            first_feature =
                static_cast<int>(blockIdx.x) * kSplitFeatures + static_cast<int>(threadIdx.x) / 32 * kEightTiles * 8;
  unsigned char* const memory = dynamic_shared_memory();
  const auto weight_scale = [&](int feature, int column) {
    const int64_t at = static_cast<int64_t>(feature) * groups + (column >> l.weight.group_shift);
    return half_to_float(l.weight.scales[at]);
  };
  int features[kEightTiles];
#pragma unroll
  for (int j = 0; j < kEightTiles; ++j) {
    const int f = first_feature + 8 * j + lane / 4;
    features[j] = f < l.weight.rows ? f : l.weight.rows - 1;
  }
  after_former();
  fill_e4m3(l, memory, 0, first_row, features);
  copies_commit();
  float sums[2 * kTiles][kEightTiles / 2][4] = {};
  for (int column = 0, slot = 0; column < l.weight.cols; column += kScaleColumns, slot ^= 1) {
    float feature_scales[kEightTiles] = {}, row_scales[4 * kTiles] = {};
    if constexpr (kGroups) {
#pragma unroll
      for (int j = 0; j < kEightTiles; ++j) feature_scales[j] = weight_scale(features[j], column);
      const float* const scales = l.in_scales + static_cast<int64_t>(l.in_group > 0 ? column / l.in_group : 0) * l.rows;
#pragma unroll
      for (int i = 0; i < 4 * kTiles; ++i) {
        const int row = first_row + i / 2 * 8 + lane % 4 * 2 + i % 2;
        row_scales[i] = scales[row < l.rows ? row : l.rows - 1];
      }
    }
    copies_wait<0>();
    __syncthreads();  // this stage has come, and the one before was read, of all threads
    if (column + kScaleColumns < l.weight.cols) {
      fill_e4m3(l, memory + (slot ^ 1) * E4m3Stage::kSize, column + kScaleColumns, first_row, features);
    }
    copies_commit();
    multiply_e4m3<kGroups>(memory + slot * E4m3Stage::kSize, feature_scales, row_scales, sums);
  }
  write<kTiles>(
      l, sums, first_row, first_feature,
      [&](int feature) {
        const float factor = l.weight.factors[feature];
        return SumEnd<float>{0.0f, kGroups ? factor : factor * weight_scale(feature, 0)};
      },
      [&](int row) { return kGroups ? 1.0f : l.in_scales[row]; });
#endif
}

template <Form kForm, int kTiles, class Sum = float>
int launch_tiles(void* stream, const LinearArgs& args, bool early) {
  using S = Stage<kForm, kTiles, Sum>;
  const int stages = (args.weight.cols + S::kColumns - 1) / S::kColumns,
            per_part = (stages + args.splits - 1) / args.splits;
  const Grid grid{static_cast<unsigned>((args.weight.rows + kSplitFeatures - 1) / kSplitFeatures),
                  static_cast<unsigned>((args.rows + 16 * kTiles - 1) / (16 * kTiles)),
                  static_cast<unsigned>((stages + per_part - 1) / per_part)};
  return launch_with_shared(stream, grid, kThreads, S::kCount * S::kSize, linear_stages_kernel<kForm, kTiles, Sum>,
                            StagesArgs{args, per_part, early});
}

int launch_bytes(void* stream, const LinearArgs& args, bool early) {
  const LinearArgs halves = bytes_as_halves(args);
  return args.rows <= 16 ? launch_tiles<Form::f16, 1, int32_t>(stream, halves, early)
                         : launch_tiles<Form::f16, 4, int32_t>(stream, halves, early);
}

}  // namespace

int linear_stages(void* stream, const LinearArgs& args) {
  // So many rows at a time as there is memory for.
  const int features = (args.weight.rows + kSplitFeatures - 1) / kSplitFeatures;
  const int most = args.splits > 1 ? args.split_blocks / (features * args.splits) * kSplitRows : args.rows;
  LinearArgs some = args;
  for (int row = 0; row < args.rows; row += most) {
    some.rows = args.rows - row < most ? args.rows - row : most;
    const bool early = row == 0;  // what follows would not see weights that were copied before the first (ADR 0033)
    const int error = args.codes ? launch_bytes(stream, some, early) : with_form(args.weight.form, [&]<Form kForm>() {
      if (some.rows <= 16) return launch_tiles<kForm, 1>(stream, some, early);
      if (some.rows <= 32) return launch_tiles<kForm, 2>(stream, some, early);
      return launch_tiles<kForm, 4>(stream, some, early);
    });
    if (error != 0) return error;
    const int64_t columns = static_cast<int64_t>(most) * args.weight.cols;
    if (args.codes) {
      some.codes += columns;
    } else {
      some.in += columns;
    }
    some.in_scales += most;
    some.out.data += most * args.out.stride;
    if (some.residual.data) some.residual.data += most * args.residual.stride;
  }
  return 0;
}

int linear_e4m3_stages(void* stream, const LinearArgs& args) {
  constexpr int kRows = 16 * E4m3Stage::kTiles;
  const Grid grid{static_cast<unsigned>((args.weight.rows + kSplitFeatures - 1) / kSplitFeatures),
                  static_cast<unsigned>((args.rows + kRows - 1) / kRows)};
  const bool groups = args.in_group > 0 || args.weight_group > 0;
  return launch_with_shared(stream, grid, kThreads, E4m3Stage::kCount * E4m3Stage::kSize,
                            groups ? linear_e4m3_stages_kernel<true> : linear_e4m3_stages_kernel<false>, args);
}

}  // namespace llminfer::gpu::LLMINFER_GPU_TARGET

#endif
