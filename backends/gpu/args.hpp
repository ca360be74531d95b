// What the host hands to kernels: plain structs of device pointers and sizes, and the table of functions that launch
// the kernels. Read by nvcc, hipcc and the host's compiler alike: no std, no llminfer types.
#pragma once

#include <stdint.h>

namespace llminfer::gpu {

/// Rows of matrices and of prepared activations are padded with zeros to a multiple of this many columns.
inline constexpr int kColumnBlock = 32;
inline constexpr int kPageSlots = 64;  ///< tokens of a cache page
inline constexpr int kMaxHeadDim = 2048;
inline constexpr int kFewRows = 8;         ///< activations of up to so many rows are multiplied without matrix units
inline constexpr int kFewExpertRows = 4;   ///< likewise, of one expert
inline constexpr int kMostLayers = 4;      ///< linear layers of few rows that are launched together
inline constexpr int kBlockRows = 64;      ///< rows of a block of linear_many
inline constexpr int kManyRows = 64;       ///< of more rows warpgroups multiply, where the device has them
inline constexpr int kScaleColumns = 128;  ///< products of E4M3 by E4M3 are scaled once in so many columns
inline constexpr int kByteZero = 128;      ///< of weights that are multiplied by int8
inline constexpr float kByteScale = 64;    ///< their half-precision scale; what remains is MatrixArgs::factors
inline constexpr int kTileRows = 64;       ///< queries of an attention tile
inline constexpr int kMaxTileDim = 128;    ///< widest head for which attention has tiles

/// How the elements of a matrix lie. Every weight format is turned into one of these.
enum class Form : int {
  f16,
  codes2,  ///< element = scale * code - offset, offset = scale * zero + minimum
  codes3,
  codes4,
  codes5,
  codes6,
  codes8,
  table4,  ///< element = scale * table[code]
  e4m3,    ///< element = scale * E4M3 number
};
inline constexpr int kForms = 9;

/// A matrix [rows, cols] on the device; the true element is factors[row] times what Form says. The factors keep a row's
/// elements in the range of half-precision numbers. They are powers of two; but of codes under one scale for a row,
/// which then is a power of two, they have what remains of the scale.
///
/// Codes lie in planes, so that each width takes no more than its bits: 2 = pairs; 3 = pairs and bits; 4 = nibbles; 5 =
/// nibbles and bits; 6 = nibbles and pairs; 8 = bytes. Plane by plane the lowest bits come first, eight columns in one
/// word: its even elements from the low end, then the odd ones, so that a shift brings two neighbours to the same place
/// in both halves of the word. Bytes, and nibbles of a table, lie in the elements' order.
struct MatrixArgs {
  Form form;
  int rows;
  int cols;         ///< padded
  int group_shift;  ///< log2 of the columns that share a scale: 4 or 5
  float zero;
  const void* high;  ///< halves, bytes or nibbles
  const uint16_t* pairs;
  const uint8_t* bits;
  const uint16_t* scales;    ///< halves [rows, cols >> group_shift]; null for f16
  const uint16_t* minimums;  ///< halves, or null
  const float* factors;      ///< [rows]
  const float* table;        ///< [16], or null
  const int32_t* order;      ///< column i is of input feature order[i]; null: of feature i
};

/// Rows of floats.
struct RowsArgs {
  float* data;
  int64_t stride;  ///< floats from row to row
};

/// out[row] = table[tokens[row]], or the row's embedding where the token is -1.
struct EmbedArgs {
  MatrixArgs table;
  const int32_t* tokens;
  const float* embeddings;  ///< [rows, width]
  int rows, width;
  RowsArgs out;
};

/// How a linear layer's input is rounded first (llminfer::InputQuantization).
struct RoundingArgs {
  int kind;  ///< 0 none, 1 int8, 2 fp8
  int dynamic;
  int group;
  float scale;
  float zero;   ///< 0 if dynamic
  float limit;  ///< dynamic: no larger value counts
  int powers;   ///< dynamic: scales are rounded up to powers of two
};

/// A matrix of one of the experts of a mixture. Tables of them lie in device memory and are never written by kernels.
struct ExpertMatrix {
  MatrixArgs weight;
  const float* bias;  ///< or null
  RoundingArgs rounding;
};

/// Normed, rounded, in the order of columns and turned to halves: what linear layers read. Any output may be null.
struct PrepareArgs {
  RowsArgs in;
  const int32_t* indices;    ///< row i is that of this number; null: the i-th
  const int32_t* expert_of;  ///< [rows] row i is rounded for this one of `experts`; -1: it is none; null: `rounding`
  const ExpertMatrix* experts;
  const float* norm;  ///< [width], or null
  float epsilon;
  RoundingArgs rounding;
  const int32_t* order;  ///< [width] of the columns that come out (MatrixArgs), or null; an expert's with `experts`
  int rows, width;
  RowsArgs out;      ///< floats; needed where there is a rounding, or no halves
  uint16_t* halves;  ///< [rows, padded], each row times 1 / scales[row]
  int padded;
  /// [rows], powers of two, but of rows that are rounded with one scale times that one: `out` has their integers less
  /// the zero point, or their E4M3 numbers. Without halves what `out` is to be multiplied by; needed where there is a
  /// rounding.
  float* scales;
};

/// Normed and rounded to bytes: what products of E4M3 by E4M3, and of int8 by int8, read.
struct QuantizeArgs {
  RowsArgs in;
  const float* norm;  ///< [width], or null
  float epsilon;
  RoundingArgs rounding;  ///< to fp8, or to int8 with one scale for a row
  int rows, width;
  /// [rows, width] E4M3 numbers, or signed integers, of which those of static inputs have the zero point.
  uint8_t* codes;
  float* scales;  ///< [groups, rows], which the codes are to be multiplied by
  int32_t* sums;  ///< [rows] of a row's integers, or null
};

/// out = in * weight^T + bias, then + residual or activation(that) * up.
struct LinearArgs {
  MatrixArgs weight;
  MatrixArgs up;           ///< gated activation: of the same form as `weight`; rows == 0: none
  const uint16_t* in;      ///< halves [rows, weight.cols]
  const float* in_scales;  ///< [rows]; null: 1, of a single `row` alone
  /// linear_few of one row reads this instead: floats [width], from a multiple of 16 bytes on, which it norms.
  const float* row;
  const float* norm;  ///< [width], likewise, or null
  float epsilon;
  int width;
  int rows;
  const float* bias;
  const float* up_bias;
  RowsArgs residual;  ///< data null: none
  int activation;     ///< llminfer::Activation
  RowsArgs out;
  /// [rows, weight.cols], on a multiple of 16 bytes, in place of `in`. linear_many, linear_stages and
  /// linear_warpgroups: signed integers, and the weight is codes8 whose zero is kByteZero, with one scale for a row
  /// (kByteScale).
  const uint8_t* codes;
  int in_zero;                 ///< the zero point of `codes`
  const int32_t* in_sums;      ///< [rows] of codes
  const int32_t* weight_sums;  ///< [weight.rows] of codes less kByteZero; not read if in_zero is 0
  // linear_e4m3_stages and linear_e4m3_warpgroups alone. The weight is e4m3, and so are the rows.
  int in_group;      ///< columns of a scale in in_scales [groups, rows]: 0 all, or a multiple of kScaleColumns
  int weight_group;  ///< columns of the weight's rows that have the same scale, likewise
  int units;         ///< multiprocessors; linear_warpgroups and linear_e4m3_warpgroups alone
  // linear_stages alone:
  int splits;          ///< blocks that share a tile by columns, at most; the order of sums depends on it
  int split_blocks;    ///< if splits > 1: there is memory for so many blocks, at least for a tile of each feature
  float* parts;        ///< [split_blocks][kSplitRows][kSplitFeatures]
  uint32_t* counters;  ///< [split_blocks], zeros before and after
};

/// linear_stages: tiles of so many features and up to so many rows.
inline constexpr int kSplitFeatures = 128;
inline constexpr int kSplitRows = 64;
inline constexpr int kSplitBlocks = 256;   ///< that tiles are split into, if they are fewer: two per multiprocessor
inline constexpr int kSplitColumns = 512;  ///< of a block at least
inline constexpr int kMaxSplits = 8;
/// LinearArgs::splits of a weight: the same whatever the rows, so that these do not change the order of sums.
inline constexpr int column_splits(int rows, int cols) {
  const int by_tiles = kSplitBlocks / ((rows + kSplitFeatures - 1) / kSplitFeatures), by_columns = cols / kSplitColumns;
  const int splits = by_tiles < by_columns ? by_tiles : by_columns;
  return splits < 1 ? 1 : splits > kMaxSplits ? kMaxSplits : splits;
}

/// Rows [first, first + count) of what is sorted by expert are this expert's. Where `count` is 0 there is nothing.
struct ExpertTile {
  int32_t expert, first, count, unused;
};

/// Gives each pair of a row and one of its experts a place, by expert, and cuts the places into tiles of at most
/// `tile_rows` of the same expert. These lie among the `tile_count` ones, the others have nothing: an expert whose
/// places begin at p has its tiles from p on, or from p / tile_rows + expert, where those before cannot reach.
struct SortArgs {
  const int32_t* chosen;  ///< [pairs]
  int pairs, experts, used;
  int32_t* places;     ///< [pairs]
  int32_t* rows;       ///< [places]
  int32_t* expert_of;  ///< [places]; -1: none
  ExpertTile* tiles;
  int tile_rows;
  int tile_count;  ///< pairs, or where that is less pairs / tile_rows + experts + 1
};

/// Chooses the experts of each row as backend::choose_experts does: the `used` highest logits, of equal ones the lower
/// index; NaN counts as -infinity. A row whose position is negative has `experts`, which is none, instead of each.
struct RouteArgs {
  RowsArgs logits;
  const int32_t* positions;
  int rows, experts, used;
  int scoring;  ///< llminfer::Scoring
  int normalize;
  float scale;
  int32_t* ranked;  ///< [rows, used] highest first
  int32_t* chosen;  ///< [rows, used] ascending
  float* factors;   ///< [rows, used]
  SortArgs sort;    ///< of one row alone the pairs, which are by expert already, get their places here
};

/// A linear layer whose rows, sorted by expert, have each its expert's matrix: out[row] = in[row] * weight^T + bias, or
/// activation(that) * (in[row] * up^T + up bias).
struct ExpertsArgs {
  Form form;                    ///< tiles of experts of another form are left out
  const ExpertMatrix* experts;  ///< [experts]
  const ExpertMatrix* ups;      ///< of the same forms; null: no gated activation
  const ExpertTile* tiles;
  int tile_count;
  int tile_rows;  ///< experts_few: up to kFewExpertRows; experts_many: kBlockRows
  int features;
  const uint16_t* in;      ///< halves [places, weight.cols]
  const float* in_scales;  ///< [places], or null as LinearArgs::in_scales
  RowsArgs floats;         ///< [places, width]: what experts_few with tiles of one row reads, as LinearArgs::row
  int width;
  int activation;
  RowsArgs out;
};

/// Linear layers of the same rows and form.
struct LayersArgs {
  LinearArgs layers[kMostLayers];
  int count;
};

/// cos and sin of position * frequency, times magnitude: angles [rows][cosines [pairs], sines [pairs]].
struct AnglesArgs {
  const int32_t* positions;
  const float* frequencies;
  int pairs, rows;
  float magnitude;
  float* angles;
};

struct RopeArgs {
  const float* angles;  ///< null: no rotation
  int pairs;
  int interleaved;
};

/// out = in with each head rotated.
struct RotateArgs {
  RowsArgs in, out;
  RopeArgs rope;
  int rows, heads, head_dim;
};

enum class CacheElement : int { f16, f32, bf16, int8, int4, e4m3 };

/// The pages of a layer: [page][layer][kv_head] of keys [64][padded_dim], values the same, and for int8 and e4m3 the
/// float scales of 64 keys and of 64 values.
///
/// With int4 such are the pages that are sealed: of eight elements each one word of codes, the lowest bits first; then
/// the ranges of codes, a word per dimension of keys [padded_dim] and per value [64]: the minimum in the low half, the
/// scale in the high one, both bfloat16; element = scale * code + minimum. The page that a row is in is open
/// (docs/adr/0017): it lies elsewhere, as one of an f32 cache.
struct CacheArgs {
  unsigned char* data;  ///< page 0's first head of the layer
  int64_t page_bytes, head_bytes, value_offset, scale_offset;
  int64_t open_offset;  ///< int4: of the layer in an open page
  CacheElement element;
  int kv_heads, head_dim, padded_dim;
};

/// Which pages a row's sequence has.
struct TablesArgs {
  const int32_t* pages;      ///< all block tables, one after the other
  const int32_t* begins;     ///< [rows] where the row's begins
  const int32_t* positions;  ///< [rows]; negative: no row, which attention passes over
  const uint64_t* open;      ///< int4: [rows] addresses of the open pages that they are in; else null
};

/// Rotates and scales the queries, rotates the keys, and appends keys and values to the cache.
struct StoreArgs {
  CacheArgs cache;
  TablesArgs tables;
  RowsArgs q, k, v;
  RopeArgs q_rope, k_rope;
  float scale;
  int rows, heads;
  RowsArgs q_out;  ///< [rows, heads * head_dim]
};

/// A page that has become full, to be packed in 4 bits.
struct SealTask {
  uint64_t open;  ///< its address; 0: no task
  int32_t page, unused;
};
struct SealArgs {
  CacheArgs cache;
  const SealTask* tasks;  ///< null: `task` alone
  SealTask task;
  int count;
};

/// Attention of single rows (decode): keys are split over blocks, whose parts combine() puts together.
struct AttendArgs {
  CacheArgs cache;
  TablesArgs tables;
  RowsArgs q;
  int first_row, rows, heads, window;
  int splits, pages_per_split;
  const float* sinks;  ///< [heads], or null (op::Attention)
  float* parts;        ///< [rows][heads][splits][2 + head_dim]: largest score, sum, values; not read for one split
  RowsArgs out;
};

/// A block of an attention tile: consecutive rows of one run, with int4 of one page.
struct TileTask {
  int32_t first_row, rows;
};

/// Attention of many rows of a sequence (prefill), on matrix units.
struct AttendTilesArgs {
  CacheArgs cache;
  TablesArgs tables;
  RowsArgs q;
  const TileTask* tasks;
  int task_count, heads, window;
  const float* sinks;
  RowsArgs out;
};

struct GluArgs {
  RowsArgs gate, up, out;
  int rows, width, activation;
};

struct AddArgs {
  RowsArgs a, b, out;
  int rows, width;
};

/// out[i] = in[indices[i]]. `in` and `out` do not overlap.
struct GatherArgs {
  RowsArgs in;
  const int32_t* indices;  ///< null: the first rows
  int count, width;
  RowsArgs out;
};

/// out[row] = sum over j of factors[row, j] * in[places[row, j]], + sigmoid(shared_gate[row]) * shared[row].
struct CombineArgs {
  RowsArgs in;
  const int32_t* places;  ///< [rows, used]
  const float* factors;   ///< [rows, used]
  int used;
  RowsArgs shared;  ///< data null: none
  RowsArgs shared_gate;
  int rows, width;
  RowsArgs out;
};

inline constexpr int kMaxCandidates = 128;
inline constexpr int kCandidateSlice = 4096;  ///< logits of which a block finds the highest

/// What is wanted of a row: the `count` highest logits at out[first], their sum at sums[sum], and a token at
/// draws[draw]. Doubles are halves, the lower one first: tasks lie on multiples of 4 bytes.
struct CandidateTask {
  int32_t count;  ///< up to kMaxCandidates; 0: nothing
  int32_t first;
  int32_t sum;   ///< -1: none
  int32_t draw;  ///< -1: none
  uint32_t temperature[2], place[2];
};
/// As llminfer::TokenLogit.
struct CandidateOut {
  int32_t token;
  float logit;
};
/// As llminfer::DrawnToken.
struct DrawOut {
  int32_t token;
  float logit;
  double below, weight, sum;
};
/// Of each row's first `tokens` logits the highest, as Batch::candidates, candidate_sums and draws say.
struct CandidatesArgs {
  RowsArgs in;
  const CandidateTask* tasks;  ///< [rows]
  int rows, tokens;
  uint64_t* parts;    ///< [rows][slices][kMaxCandidates]: the best of each slice
  double* part_sums;  ///< [rows][slices][3]: the sum, that of weights at the draw's temperature, and the highest logit
                      ///< that both are relative to
  CandidateOut* out;
  double* sums;
  DrawOut* draws;
};

/// The kernels that run as steps of one kernel (docs/adr/0039).
enum class StepKind : int {
  embed,
  prepare,
  linear_few,  ///< of one row
  angles,
  rotate,
  store,
  seal,
  attend,
  combine_parts,  ///< of AttendArgs, if there are several splits
  glu,
  add,
  gather,
};
/// A step, in device memory that no kernel writes.
struct alignas(16) PersistentStep {
  StepKind kind;
  int waits;  ///< for all steps before it; otherwise it has nothing to do with those since the last one that waits
  union Args {
    EmbedArgs embed;
    PrepareArgs prepare;
    LayersArgs layers;
    AnglesArgs angles;
    RotateArgs rotate;
    StoreArgs store;
    SealArgs seal;
    AttendArgs attend;
    GluArgs glu;
    AddArgs add;
    GatherArgs gather;
  } args;
};
struct PersistentArgs {
  const PersistentStep* steps;
  int count;
  int blocks;         ///< up to DeviceInfo::resident_blocks
  uint32_t* barrier;  ///< once zero, and then what the kernel leaves there
};

/// What the code for the device has.
struct ProbeArgs {
  /// [3], of which each becomes 1 or 0: products of warpgroups (sm_90a), copies that go on (sm_80), products of E4M3 by
  /// E4M3 that mma.sync makes (sm_89, sm_120)
  int32_t* found;
};

/// A launch as the runtimes take it.
struct KernelLaunch {
  const void* kernel;
  unsigned grid[3];
  unsigned threads;
  unsigned shared_bytes;  ///< of dynamic shared memory
  const void* args;       ///< the struct that is the kernel's only argument; read during the call
  uint64_t arg_bytes;
  bool together;  ///< all blocks are on the device at once (a cooperative launch)
};
/// Where launches go: into a stream, or into a graph that is being built.
struct Queue {
  void* owner;
  int (*put)(void* owner, const KernelLaunch& launch);
};

/// Launches on a stream; each gives the runtime's error code, 0 for success. `stream` comes from a Device: a Queue,
/// or the emulator's machine.
struct KernelTable {
  int (*probe)(void* stream, const ProbeArgs& args);  ///< fails where there is no code for the device
  int (*embed)(void* stream, const EmbedArgs& args);
  int (*prepare)(void* stream, const PrepareArgs& args);
  int (*linear_few)(void* stream, const LayersArgs& args);   ///< rows <= kFewRows
  int (*linear_many)(void* stream, const LinearArgs& args);  ///< no gated activation
  /// The same where ProbeArgs finds warpgroups. Null: the target has no such devices.
  int (*linear_warpgroups)(void* stream, const LinearArgs& args);
  /// The same where it finds copies, for any number of rows.
  int (*linear_stages)(void* stream, const LinearArgs& args);
  int (*quantize)(void* stream, const QuantizeArgs& args);
  /// linear_warpgroups of LinearArgs::codes.
  int (*linear_e4m3_warpgroups)(void* stream, const LinearArgs& args);
  /// linear_stages of LinearArgs::codes, for many rows, where ProbeArgs finds such products.
  int (*linear_e4m3_stages)(void* stream, const LinearArgs& args);
  int (*route)(void* stream, const RouteArgs& args);
  int (*sort_pairs)(void* stream, const SortArgs& args);
  int (*experts_few)(void* stream, const ExpertsArgs& args);
  int (*experts_many)(void* stream, const ExpertsArgs& args);  ///< no gated activation
  int (*angles)(void* stream, const AnglesArgs& args);
  int (*rotate)(void* stream, const RotateArgs& args);
  int (*store)(void* stream, const StoreArgs& args);
  int (*seal)(void* stream, const SealArgs& args);      ///< one layer of pages of an int4 cache
  int (*attend)(void* stream, const AttendArgs& args);  ///< and the combination of its parts
  int (*attend_tiles)(void* stream, const AttendTilesArgs& args);
  int (*glu)(void* stream, const GluArgs& args);
  int (*add)(void* stream, const AddArgs& args);
  int (*gather)(void* stream, const GatherArgs& args);
  int (*combine)(void* stream, const CombineArgs& args);
  int (*candidates)(void* stream, const CandidatesArgs& args);
  int (*persistent)(void* stream, const PersistentArgs& args);  ///< the steps in turn; into no graph
};

}  // namespace llminfer::gpu
