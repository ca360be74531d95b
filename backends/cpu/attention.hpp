// The table of attention kernels of an instruction set level, and the layout of cache pages. Included by ISA files:
// plain data only. Knows nothing of batches, plans or threads.
//
// A page holds 64 tokens of every layer and KV head. Keys of one head lie transposed, [head_dim][64], so that one query
// value meets 64 keys at once; values lie as [64][padded_dim]. Both products of attention are then the same small
// matrix product with a row-major right side.
#pragma once

#include <cstddef>
#include <cstdint>

namespace llminfer::cpu {

inline constexpr std::int32_t kPageSlots = 64;
/// Pages are folded into chunks of this many, and the chunks merged in order. That fixes the order of every sum,
/// whoever computes a chunk: a long context is split over threads without a change of bits.
inline constexpr std::int32_t kChunkPages = 4;

/// Where one layer and KV head of some pages lie.
struct AttentionPages {
  std::byte* data;            ///< page 0's keys of this layer and head
  std::int64_t page_stride;   ///< in bytes
  std::int64_t value_offset;  ///< in bytes, from keys to values
  std::int32_t head_dim;
  std::int32_t padded_dim;  ///< head_dim, up to a multiple of 16; the padding is zero
  bool half;                ///< elements are half-precision, otherwise float
};

/// Queries that share a KV head: some tokens times the query heads of the group.
struct AttentionTile {
  const float* q;             ///< [rows, head_dim], scaled
  const std::int32_t* first;  ///< [rows] first position that the row sees
  const std::int32_t* last;   ///< [rows] last position that it sees
  std::int32_t rows;
};

/// Attention over a part of the keys, before division by the sum (Milakov and Gimelshein 2018; Dao et al. 2022).
struct AttentionState {
  float* max;  ///< [rows], -infinity where a row has seen no key
  float* sum;  ///< [rows]
  float* out;  ///< [rows, padded_dim]
};

struct AttentionKernels {
  /// Appends one token's key and value // (head_dim) to slot `slot` of page `page`. Halves saturate.
  void (*write)(const AttentionPages& pages, std::int32_t page, std::int32_t slot, const float* k, const float* v);
  /// `state` = attention of the tile over table[i], i in [page_begin, page_end). `scratch` holds
  /// attend_scratch_floats(), 64-byte aligned.
  void (*attend)(const AttentionPages& pages, const AttentionTile& tile, const std::int32_t* table,
                 std::int32_t page_begin, std::int32_t page_end, const AttentionState& state, float* scratch);
  /// `into` = the two states together; `from` follows `into`.
  void (*merge)(std::int32_t rows, std::int32_t padded_dim, const AttentionState& into, const AttentionState& from);
  /// out // (head_dim) = accumulated / sum
  void (*finish)(const float* accumulated, float sum, std::int32_t head_dim, float* out);
};

constexpr std::int64_t attend_scratch_floats(std::int64_t rows, std::int64_t padded_dim) {
  return rows * kPageSlots + kPageSlots * padded_dim;
}

namespace isa_scalar {
const AttentionKernels& attention_kernels();
}
namespace isa_avx2 {
const AttentionKernels& attention_kernels();
}
namespace isa_avx512 {
const AttentionKernels& attention_kernels();
}

}  // namespace llminfer::cpu
