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

/// How an element of a key or value is stored. int8: one scale per token, for its key and for its value.
enum class CacheElement : std::uint8_t { f32, f16, bf16, int8 };

/// Where one layer and KV head of some pages lie.
struct AttentionPages {
  std::byte* data;            ///< page 0's keys of this layer and head
  std::int64_t page_stride;   ///< in bytes
  std::int64_t value_offset;  ///< in bytes, from keys to values
  std::int64_t scale_offset;  ///< in bytes, from keys to the floats [2][64] that scale int8 keys and values
  std::int32_t head_dim;
  std::int32_t padded_dim;  ///< head_dim, up to a multiple of 16; the padding is zero
  CacheElement element;
};

/// Queries that share a KV head: some tokens times the query heads of the group.
struct AttentionTile {
  const float* q;             ///< [rows, head_dim], scaled
  const std::int32_t* first;  ///< [rows] first position that the row sees
  const std::int32_t* last;   ///< [rows] last position that it sees
  std::int32_t rows;
};

/// Some of a sequence's pages: entries [begin, end) of its block table. Those before `known` are there to be
/// prefetched.
struct PageRange {
  const std::int32_t* table;
  std::int32_t begin, end, known;
};

/// Attention over a part of the keys, before division by the sum (Milakov and Gimelshein 2018; Dao et al. 2022).
struct AttentionState {
  float* max;  ///< [rows], -infinity where a row has seen no key
  float* sum;  ///< [rows]
  float* out;  ///< [rows, padded_dim]
};

struct AttentionKernels {
  /// Appends one token's key and value // (head_dim) to slot `slot` of page `page`. Halves saturate; int8 is rounded to
  /// multiples of a scale that is the largest magnitude / 127, rounded up to 17 bits: so 127 * scale is exact, and what
  /// was read from a cache is written back with the same bits.
  void (*write)(const AttentionPages& pages, std::int32_t page, std::int32_t slot, const float* k, const float* v);
  /// `state` = attention of the tile over the pages of `range`. `scratch` holds attend_scratch_floats(), 64-byte
  /// aligned. A row's bits depend on its own query and on the range's begin and end within a chunk of kChunkPages, not
  /// on the tile's other rows. All levels give the same bits.
  void (*attend)(const AttentionPages& pages, const AttentionTile& tile, const PageRange& range,
                 const AttentionState& state, float* scratch);
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
namespace isa_neon {
const AttentionKernels& attention_kernels();
}

}  // namespace llminfer::cpu
