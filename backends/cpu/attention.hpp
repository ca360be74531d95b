// The table of attention kernels of an instruction set level, and the layout of cache pages. Included by ISA files:
// plain data only. Knows nothing of batches, plans or threads.
//
// A page holds 64 tokens of every layer and KV head. Keys of one head lie transposed, so that one query value meets 64
// keys at once. Both products of attention are then the same small matrix product with a row-major right side:
//   floats:   keys [head_dim][64], values [64][padded_dim]
//   integers: keys [even_dim / 2][64][2], values [32][padded_dim][2], with a scale per token for each. Two factors of
//             a sum lie together, since instructions multiply integers so; one token is still appended in place.
//   codes:    as integers, but a word holds those of four pairs in 4 bits each (int4.hpp); packed when the page is
//   full.
// Queries and weights are rounded to 16-bit integers, and products of integers are exact: every level, and every way to
// compute them, has the same bits (docs/adr/0016).
//
// To add a form of integers: an element type that write_token (cache_element-inl.hpp) puts and load_words
// (words_*-inl.hpp) reads as 16-bit words of at most kMostWord; a case in `attend` and `write` (attention-inl.hpp), and
// in CpuCache where pages are copied and exported.
#pragma once

#include <cstddef>
#include <cstdint>

namespace llminfer::cpu {

inline constexpr std::int32_t kPageSlots = 64;
/// Pages whose keys and values of a layer and head lie one after the other: memory is read faster from end to end
/// (docs/adr/0041).
inline constexpr std::int32_t kBlockPages = 4;
/// Pages are folded into chunks of this many, and the chunks merged in order. That fixes the order of every sum,
/// whoever computes a chunk: a long context is split over threads without a change of bits.
inline constexpr std::int32_t kChunkPages = 4;

/// How an element of a key or value is stored. The integers have a scale per token, for its key and for its value.
/// Codes have scales and minima instead, per dimension of keys and per token of values.
enum class CacheElement : std::uint8_t { f32, int16, int8, code4 };

/// The largest magnitude of an element in int16. With kMostSum it keeps sums of products in 32 bits.
inline constexpr std::int32_t kMostWord = 16383;
/// So many elements of a query are rounded together, with a scale of their own.
inline constexpr std::int32_t kRunDims = 64;
/// 64 elements of a query, or a page's weights, are scaled so that no magnitude exceeds 32767, nor the sum of all this,
/// before they are rounded. Rounding adds 1/2 to each at most: (131000 + 32) * 16383 < 2^31.
inline constexpr std::int32_t kMostSum = 131000;

/// Where one layer and KV head of some pages lie.
struct AttentionPages {
  std::byte* data;            ///< page 0's keys of this layer and head
  std::int64_t page_stride;   ///< in bytes, from a page to the next one of its block
  std::int64_t block_stride;  ///< in bytes, from a block to the next
  std::int32_t block_pages = 1;
  std::int64_t value_offset;  ///< in bytes, from keys to values
  std::int64_t scale_offset;  ///< in bytes, from keys to the floats [2][64] that scale integer keys and values, or to
                              ///< the ranges of codes
  std::int32_t head_dim;
  std::int32_t padded_dim;  ///< head_dim, up to a multiple of 16; the padding is zero
  CacheElement element;
};

/// Where a page's keys of the layer and head lie.
[[gnu::always_inline]] constexpr std::byte* keys_of_page(const AttentionPages& pages, std::int32_t page) {
  const auto index = static_cast<std::uint32_t>(page), block_pages = static_cast<std::uint32_t>(pages.block_pages);
  return pages.data + index / block_pages * pages.block_stride + index % block_pages * pages.page_stride;
}

constexpr std::int32_t even_dim(std::int32_t head_dim) { return (head_dim + 1) / 2 * 2; }
/// Words of a rounded query, which zeros fill up, and its scales.
constexpr std::int32_t query_words(std::int32_t head_dim) { return (head_dim + 31) / 32 * 32; }
constexpr std::int32_t query_runs(std::int32_t head_dim) { return (head_dim + kRunDims - 1) / kRunDims; }

/// The index of element `i` of a token's key, and of its value, among a page's.
constexpr std::int64_t key_index(CacheElement element, std::int32_t slot, std::int32_t i) {
  if (element == CacheElement::f32) return std::int64_t{i} * kPageSlots + slot;
  return (std::int64_t{i / 2} * kPageSlots + slot) * 2 + i % 2;
}
constexpr std::int64_t value_index(CacheElement element, std::int32_t padded_dim, std::int32_t slot, std::int32_t i) {
  if (element == CacheElement::f32) return std::int64_t{slot} * padded_dim + i;
  return (std::int64_t{slot / 2} * padded_dim + i) * 2 + slot % 2;
}

/// Queries that share a KV head: some tokens times the query heads of the group.
struct AttentionTile {
  const float* q;             ///< [rows, head_dim], scaled; for pages of floats and of codes
  const std::int16_t* words;  ///< [rows, query_words(head_dim)], for pages of integers: q as round_queries leaves it
  const float* scales;        ///< [query_runs(head_dim), rows], likewise
  const std::int32_t* first;  ///< [rows] first position that the row sees
  const std::int32_t* last;   ///< [rows] last position that it sees
  std::int32_t rows;
};

/// Some of a sequence's pages: entries [begin, end) of its block table.
struct PageRange {
  const std::int32_t* table;
  std::int32_t begin, end;
  const std::byte* after;  ///< keys of the page that is read after these, which is prefetched, or null
};

/// Attention over a part of the keys, before division by the sum (Milakov and Gimelshein 2018; Dao et al. 2022).
struct AttentionState {
  float* max;  ///< [rows], -infinity where a row has seen no key
  float* sum;  ///< [rows]
  float* out;  ///< [rows, padded_dim]
};

struct AttentionKernels {
  /// Appends one token's key and value // (head_dim) to slot `slot` of page `page`. Integers are multiples of a scale
  /// that is the largest magnitude / 127 or / kMostWord, rounded up to 17 bits: so what was read from a cache is
  /// written back with the same bits.
  void (*write)(const AttentionPages& pages, std::int32_t page, std::int32_t slot, const float* k, const float* v);
  /// Rounds a tile's queries // (rows, head_dim) for pages of integers.
  void (*round_queries)(std::int32_t rows, std::int32_t head_dim, const float* q, std::int16_t* words, float* scales);
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

/// Scores; for integers also weights in words, their scales, and a page's keys or values in words; for codes also the
/// queries in words, their scales, and two sums per row.
constexpr std::int64_t attend_scratch_floats(std::int64_t rows, std::int64_t padded_dim) {
  return rows * kPageSlots + rows * kPageSlots / 2 + 4 * ((rows + 15) / 16 * 16) + kPageSlots * padded_dim / 2 +
         rows * kRunDims / 2;
}

namespace isa_scalar {
const AttentionKernels& attention_kernels();
}
namespace isa_avx2 {
const AttentionKernels& attention_kernels();
}
namespace isa_avxvnni {
const AttentionKernels& attention_kernels();
}
namespace isa_avx512 {
const AttentionKernels& attention_kernels();
}
namespace isa_avx512vnni {
const AttentionKernels& attention_kernels();
}
namespace isa_neon {
const AttentionKernels& attention_kernels();
}

}  // namespace llminfer::cpu
