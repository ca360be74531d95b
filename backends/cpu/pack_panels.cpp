// Writes the panels of a weight from blocks of a file. Runs once per weight; knows no SIMD, but its loops are plain
// enough to become vector instructions, since loading a model is mostly these.
#include "backends/cpu/pack_panels.hpp"

#include <algorithm>
#include <bit>
#include <cstring>

#include "core/half.hpp"
#include "core/transpose.hpp"
#include "quant/traits_k.hpp"
#include "quant/traits_q.hpp"
#include "quant/traits_small.hpp"

namespace llminfer::cpu {
namespace {

void put_u16(std::uint8_t* to, std::uint16_t v) { std::memcpy(to, &v, sizeof v); }
void put_float(std::uint8_t* to, float v) { std::memcpy(to, &v, sizeof v); }

/// Asks for `bytes` of the next panel's rows, which lie behind one another; a panel takes a little of each row at a
/// time, which the processor does not find out by itself. Returns where they end.
inline const std::uint8_t* prefetch(const std::uint8_t* from, std::int64_t bytes) {
  for (std::int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(from + i, 0, 2);
  return from + bytes;
}

/// `Width` bits, from bit `shift` on, of each byte of word `i`: parts of the codes of quad `i`.
template <int Width>
inline std::uint32_t bits_of(const std::uint8_t* bytes, int i, int shift) {
  return quant::load_le<std::uint32_t>(bytes + 4 * i) >> shift & (0x01010101u * ((1u << Width) - 1));
}

/// The planes of a group whose 8 quads are words of `bytes`, in the bits from `shift` on: those of 4 bits, 2 and 1.
inline void nibble_planes(const std::uint8_t* bytes, int shift, std::uint32_t* planes) {
  for (int p = 0; p < 4; ++p) planes[p] = bits_of<4>(bytes, p, shift) | bits_of<4>(bytes, p + 4, shift) << 4;
}
inline void pair_planes(const std::uint8_t* bytes, int shift, std::uint32_t* planes) {
  for (int p = 0; p < 2; ++p) {
    planes[p] = bits_of<2>(bytes, p, shift) | bits_of<2>(bytes, p + 2, shift) << 2 |
                bits_of<2>(bytes, p + 4, shift) << 4 | bits_of<2>(bytes, p + 6, shift) << 6;
  }
}
inline void bit_plane(const std::uint8_t* bytes, int shift, std::uint32_t* plane) {
  *plane = 0;
  for (int q = 0; q < 8; ++q) *plane |= bits_of<1>(bytes, q, shift) << q;
}

template <int Bits>
void put_planes(std::uint8_t* row, const std::uint32_t* planes) {
  for (int p = 0; p < Bits; ++p) std::memcpy(row + p * 64, planes + p, 4);
}

/// Writes 32 codes of one row, 8 quads of 4, into its group of a panel: 4 bytes to each plane. The inverse of
/// panel_codes.
template <int Bits>
void put_codes(std::uint8_t* row, const std::uint8_t* codes) {
  std::uint32_t planes[Bits];
  if constexpr (Bits == 8) std::memcpy(planes, codes, sizeof planes);
  if constexpr (Bits == 4) nibble_planes(codes, 0, planes);
  if constexpr (Bits < 4) pair_planes(codes, 0, planes);
  if constexpr (Bits == 3) bit_plane(codes, 2, planes + 2);
  put_planes<Bits>(row, planes);
}

/// put_codes for a group of a sparse panel: of each quad the two codes that are not zero, or fewer and a zero.
void put_pairs(std::uint8_t* group, int lane, const std::uint8_t* codes) {
  for (int quad = 0; quad < 8; ++quad, codes += 4) {
    // The two columns, or for fewer some that are zero.
    constexpr std::uint8_t kTwo[13] = {3, 3, 3, 3, 5, 5, 6, 0, 9, 9, 10, 0, 12};
    const unsigned mask = kTwo[nonzero_codes(codes)];
    std::uint8_t* const to = group + quad * 32 + pair_at(lane);
    to[0] = codes[std::countr_zero(mask)];
    to[1] = codes[std::bit_width(mask) - 1];
    group[kPairMasks + quad * 8 + lane / 2] |= static_cast<std::uint8_t>(mask << lane % 2 * 4);
  }
}

/// Packs one block of row `lane`, whose first value is column `col`.
template <int Bits>
void put_block(const PanelShape& shape, const PanelLayout& layout, const quant::Format& format,
               const quant::GroupedBlock& block, std::uint8_t* panel, std::int64_t col, int lane) {
  std::uint8_t* const group = panel + col / kGroupValues * layout.code_bytes;
  for (int i = 0; i < format.block_values / kGroupValues; ++i) {
    const std::uint8_t* const codes = block.code + i * kGroupValues;
    if (shape.sparse) {
      put_pairs(group + i * layout.code_bytes, lane, codes);
    } else {
      put_codes<Bits>(group + i * layout.code_bytes + lane * 4, codes);
    }
  }
  // A block of formats with 2 levels is one super-block; others repeat their scale where the kind's groups are finer.
  // Minimums that are halves or of two levels are those of formats with a way of their own, see direct().
  for (int i = 0; i < format.block_values; i += shape.group) {
    const int g = i / format.shape.group;
    const std::int64_t at = ((col + i) / shape.group >> layout.scale_shift) * kPanelRows + lane;
    std::uint8_t* const scale = panel + layout.scale;
    std::uint8_t* const minimum = panel + layout.minimum;
    switch (shape.scale) {
      case PanelScale::f32:
        put_float(scale + at * 4, block.scale[g]);
        if (layout.float_minimums) {
          put_float(minimum + at * 4, block.minimum[g]);
        } else if (shape.minimum) {
          minimum[at] = static_cast<std::uint8_t>(block.zero_point[g]);
        }
        break;
      case PanelScale::f16:
        put_u16(scale + at * 2, core::float_to_half(block.scale[g]));
        break;
      case PanelScale::two_level:
        scale[at] = static_cast<std::uint8_t>(block.sub_scale[g]);
        break;
    }
  }
  if (shape.scale == PanelScale::two_level) {
    const std::int64_t at = (col / (kGroupValues * kSuperGroups) * kPanelRows + lane) * 2;
    put_u16(panel + layout.super_scale + at, core::float_to_half(block.d));
  }
}

/// Packs `lanes` rows into a panel, some columns at a time: those of one row lie one after another in memory, and their
/// part of the panel stays in the cache until all rows are in it.
template <int Bits>
void put_rows(const PanelShape& shape, const PanelLayout& layout, const quant::Format& format, const std::uint8_t* rows,
              std::int64_t row_bytes, int lanes, std::int64_t cols, std::uint8_t* panel) {
  constexpr std::int64_t kColumns = 1024;  // whole blocks of every format
  quant::GroupedBlock decomposed;
  for (std::int64_t begin = 0; begin < cols; begin += kColumns) {
    const std::int64_t end = std::min(begin + kColumns, cols);
    for (int lane = 0; lane < lanes; ++lane) {
      const std::uint8_t* block = rows + lane * row_bytes + begin / format.block_values * format.block_bytes;
      for (std::int64_t col = begin; col < end; col += format.block_values, block += format.block_bytes) {
        format.decompose(block, decomposed);
        put_block<Bits>(shape, layout, format, decomposed, panel, col, lane);
      }
    }
  }
}

/// A word of each row of a panel.
using Words = std::uint32_t[kPanelRows];
static_assert(sizeof(Words) == 64, "a row of a plane");

/// Words of a block of each row of a panel, or bytes of them: to[i] is element i of all rows; rows that are missing are
/// zeros. `Count` elements, whole 16 bytes.
template <int Count, class T>
void gather(const std::uint8_t* rows, std::int64_t row_bytes, int lanes, T (*to)[kPanelRows]) {
  constexpr int kSquare = core::Vector16<T>::kCount;
  static_assert(Count % kSquare == 0);
  if (lanes < kPanelRows) std::memset(to, 0, Count * sizeof *to);
  for (int i = 0; i < Count; i += kSquare) {
    for (int lane = 0; lane < lanes; lane += kSquare) {
      const std::uint8_t* const from = rows + lane * row_bytes + i * static_cast<int>(sizeof(T));
      if (lane + kSquare <= lanes) {
        core::transpose_square<T>(from, row_bytes, reinterpret_cast<std::uint8_t*>(to[i] + lane), sizeof *to);
        continue;
      }
      for (int l = lane; l < lanes; ++l) {
        for (int e = 0; e < kSquare; ++e)
          std::memcpy(to[i + e] + l, from + (l - lane) * row_bytes + e * sizeof(T), sizeof(T));
      }
    }
  }
}

/// Puts a row of a plane, f(lane) of each lane, at `to`.
template <class F>
inline void put_plane(std::uint8_t* to, const F& f) {
  Words plane;
  for (int lane = 0; lane < kPanelRows; ++lane) plane[lane] = f(lane);
  std::memcpy(to, plane, sizeof plane);
}

/// As nibble_planes and pair_planes, of all rows: words[i] has quad i of each; and the plane of one more bit.
inline void put_nibble_planes(const Words* words, int shift, std::uint8_t* to) {
  for (int p = 0; p < 4; ++p) {
    put_plane(to + p * 64, [&](int lane) {
      return (words[p][lane] >> shift & 0x0f0f0f0f) | (words[p + 4][lane] >> shift & 0x0f0f0f0f) << 4;
    });
  }
}
inline void put_pair_planes(const Words* words, int shift, std::uint8_t* to) {
  for (int p = 0; p < 2; ++p) {
    put_plane(to + p * 64, [&](int lane) {
      const auto pair = [&](int i) { return words[p + i][lane] >> shift & 0x03030303; };
      return pair(0) | pair(2) << 2 | pair(4) << 4 | pair(6) << 6;
    });
  }
}
inline void put_bit_plane(const Words* words, int shift, std::uint8_t* to) {
  put_plane(to, [&](int lane) {
    std::uint32_t plane = 0;
    for (int q = 0; q < 8; ++q) plane |= (words[q][lane] >> shift & 0x01010101) << q;
    return plane;
  });
}

/// Where the words of a format's codes begin.
template <class Format>
inline constexpr int kCodesAt = 0;
template <>
inline constexpr int kCodesAt<quant::Q2_K> = 16;
template <>
inline constexpr int kCodesAt<quant::Q4_K> = 16;
template <>
inline constexpr int kCodesAt<quant::Q5_K> = 16;

/// The planes of group `g` of super-blocks, from where the format has the bits of its codes.
inline void put_group(quant::Q2_K, const Words* words, int g, std::uint8_t* to) {
  put_pair_planes(words + g / 4 * 8, g % 4 * 2, to);
}
inline void put_group(quant::Q3_K, const Words* words, int g, std::uint8_t* to) {
  put_pair_planes(words + 8 + g / 4 * 8, g % 4 * 2, to);
  put_bit_plane(words, g, to + 2 * 64);
}
inline void put_group(quant::Q4_K, const Words* words, int g, std::uint8_t* to) {
  put_nibble_planes(words + g / 2 * 8, g % 2 * 4, to);
}
inline void put_group(quant::Q5_K, const Words* words, int g, std::uint8_t* to) {
  put_nibble_planes(words + 8 + g / 2 * 8, g % 2 * 4, to);
  put_bit_plane(words, g, to + 4 * 64);
}
inline void put_group(quant::Q6_K, const Words* words, int g, std::uint8_t* to) {
  put_nibble_planes(words + g / 4 * 16 + g % 2 * 8, g % 4 / 2 * 4, to);
  put_pair_planes(words + 32 + g / 4 * 8, g % 4 * 2, to + 4 * 64);
}

/// put_rows for the formats of super-blocks: their words are transposed, and all rows decoded at once.
template <class Format>
void put_super_blocks(const PanelLayout& layout, const std::uint8_t* rows, std::int64_t row_bytes, int lanes,
                      std::int64_t cols, std::uint8_t* panel) {
  constexpr int kBits = Format::shape.bits, kScales = Format::block_values / Format::shape.group;
  constexpr std::int64_t kCodeBytes = kBits * 64;
  constexpr int kWords = Format::block_values * kBits / 32;
  const std::int64_t supers = cols / Format::block_values;
  Words words[kWords];
  quant::GroupedBlock levels;
  const std::uint8_t* next = rows + kPanelRows * row_bytes;
  for (std::int64_t super = 0; super < supers; ++super, rows += Format::block_bytes) {
    next = prefetch(next, kPanelRows * Format::block_bytes);
    gather<kWords>(rows + kCodesAt<Format>, row_bytes, lanes, words);
    for (int g = 0; g < kSuperGroups; ++g)
      put_group(Format(), words, g, panel + (super * kSuperGroups + g) * kCodeBytes);
    for (int lane = 0; lane < lanes; ++lane) {
      const std::uint8_t* const block = rows + lane * row_bytes;
      Format::sub_levels(block, levels);
      std::uint8_t* const scales = panel + layout.scale + super * kScales * kPanelRows + lane;
      std::uint8_t* const minimums = panel + layout.minimum + super * kScales * kPanelRows + lane;
      for (int i = 0; i < kScales; ++i) {
        scales[i * kPanelRows] = static_cast<std::uint8_t>(levels.sub_scale[i]);
        if (Format::shape.minimum) minimums[i * kPanelRows] = levels.sub_minimum[i];
      }
      const std::int64_t at = (super * kPanelRows + lane) * 2;
      std::memcpy(panel + layout.super_scale + at, block + Format::d_at, 2);
      if (Format::shape.minimum) std::memcpy(panel + layout.super_minimum + at, block + Format::d_at + 2, 2);
    }
  }
}

/// The plane of fifth bits of 32 codes, which are bits of a word: bit q of byte j is bit 4 q + j.
std::uint32_t fifth_plane(std::uint32_t high) {
  std::uint32_t plane = 0;
  for (int q = 0; q < 8; ++q) plane |= quant::bits_to_bytes(high >> 4 * q & 15) << q;
  return plane;
}

/// put_rows for blocks of 32 with half scales. Their codes lie as panels have them, but for the fifth bits, so nothing
/// needs to be decoded.
template <class Format>
void put_plain_rows(const PanelLayout& layout, const std::uint8_t* rows, std::int64_t row_bytes, int lanes,
                    std::int64_t cols, std::uint8_t* panel) {
  constexpr int kBits = Format::shape.bits, kPlanes = kBits == 5 ? 4 : kBits;
  constexpr int kCodes = Format::block_bytes - kPlanes * 4;       // where they begin
  constexpr std::uint32_t kSigns = kBits == 8 ? 0x80808080u : 0;  // two's complement to offset 128
  constexpr std::int64_t kSome = 32;                              // groups whose part of the panel stays in the cache
  const std::int64_t groups = cols / kGroupValues;
  const std::uint8_t* next = rows + kPanelRows * row_bytes;
  for (std::int64_t begin = 0; begin < groups; begin += kSome) {
    const std::int64_t end = std::min(begin + kSome, groups);
    for (int lane = 0; lane < lanes; ++lane) {
      next = prefetch(next, (end - begin) * Format::block_bytes);
      const std::uint8_t* block = rows + lane * row_bytes + begin * Format::block_bytes;
      for (std::int64_t g = begin; g < end; ++g, block += Format::block_bytes) {
        std::uint32_t planes[kBits];
        std::memcpy(planes, block + kCodes, kPlanes * 4);
        for (int p = 0; p < kPlanes; ++p) planes[p] ^= kSigns;
        if constexpr (kBits == 5) planes[4] = fifth_plane(quant::load_le<std::uint32_t>(block + kCodes - 4));
        put_planes<kBits>(panel + g * (kBits * 64) + lane * 4, planes);
        const std::int64_t at = ((g >> layout.scale_shift) * kPanelRows + lane) * 2;
        std::memcpy(panel + layout.scale + at, block, 2);
        if constexpr (Format::shape.minimum) {  // these formats add it, panels subtract it: the other sign
          put_u16(panel + layout.minimum + at, quant::load_le<std::uint16_t>(block + 2) ^ 0x8000u);
        }
      }
    }
  }
}

/// Transposes `lanes` rows of `cols` elements into a panel [cols][16].
template <class T>
void put_dense(const std::uint8_t* rows, std::int64_t row_bytes, std::int64_t lanes, std::int64_t cols,
               std::uint8_t* panel) {
  constexpr std::int64_t kSize = sizeof(T), kCount = core::Vector16<T>::kCount;
  const std::int64_t squares = lanes == kPanelRows ? cols / kCount * kCount : 0;
  for (std::int64_t k = 0; k < squares; k += kCount) {
    for (std::int64_t lane = 0; lane < kPanelRows; lane += kCount) {
      core::transpose_square<T>(rows + lane * row_bytes + k * kSize, row_bytes, panel + (k * kPanelRows + lane) * kSize,
                                kPanelRows * kSize);
    }
  }
  for (std::int64_t k = squares; k < cols; ++k) {
    for (std::int64_t lane = 0; lane < lanes; ++lane) {
      std::memcpy(panel + (k * kPanelRows + lane) * kSize, rows + lane * row_bytes + k * kSize, kSize);
    }
  }
}

/// Packs rows of which at least two of four neighbours are zero.
void put_sparse(const std::uint8_t* rows, std::int64_t row_bytes, std::int64_t lanes, std::int64_t cols,
                const PanelLayout& layout, std::uint8_t* panel) {
  for (std::int64_t quad = 0; quad < cols / 4; ++quad) {
    std::uint32_t choices[2] = {0, 0};
    for (std::int64_t lane = 0; lane < lanes; ++lane) {
      std::uint16_t four[4];
      std::memcpy(four, rows + lane * row_bytes + quad * 8, sizeof four);
      for (unsigned column = 0, entry = 0; column < 4 && entry < 2; ++column) {
        if ((four[column] & 0x7fffu) == 0) continue;
        put_u16(panel + ((quad * 2 + entry) * kPanelRows + lane) * 2, four[column]);
        choices[entry++] |= column << 2 * lane;
      }
    }
    std::memcpy(panel + layout.scale + quad * 8, choices, sizeof choices);
  }
}

/// Packs rows of FP8 blocks: bytes [cols][16], and the scales.
void put_fp8(const std::uint8_t* rows, std::int64_t row_bytes, std::int64_t lanes, std::int64_t cols,
             const PanelLayout& layout, std::uint8_t* panel) {
  constexpr std::int64_t kBlockBytes = 4 + kGroupValues;
  for (std::int64_t g = 0; g < cols / kGroupValues; ++g) {
    for (std::int64_t lane = 0; lane < lanes; ++lane) {
      const std::uint8_t* const block = rows + lane * row_bytes + g * kBlockBytes;
      std::memcpy(panel + layout.scale + ((g >> layout.scale_shift) * kPanelRows + lane) * 4, block, 4);
    }
    put_dense<std::uint8_t>(rows + g * kBlockBytes + 4, row_bytes, lanes, kGroupValues,
                            panel + g * kGroupValues * kPanelRows);
  }
}

/// The sums of a w8a8 panel's codes.
void put_sums(const PanelLayout& layout, std::int64_t cols, std::uint8_t* panel) {
  const std::uint8_t* codes = panel;
  std::int32_t sums[kPanelRows] = {};
  for (std::int64_t quad = 0; quad < cols / 4; ++quad, codes += kPanelRows * 4) {
    for (int lane = 0; lane < kPanelRows; ++lane) {
      for (int i = 0; i < 4; ++i) sums[lane] += codes[lane * 4 + i] - 128;
    }
  }
  std::memcpy(panel + layout.minimum, sums, sizeof sums);
}

/// The way without decoding into panels of a kind, if it has one; then it is of one format only.
using PutRows = void (*)(const PanelLayout& layout, const std::uint8_t* rows, std::int64_t row_bytes, int lanes,
                         std::int64_t cols, std::uint8_t* panel);
PutRows direct(PanelKind kind) {
  switch (kind) {
    case PanelKind::q4_0:
      return put_plain_rows<quant::Q4_0>;
    case PanelKind::q4_1:
      return put_plain_rows<quant::Q4_1>;
    case PanelKind::q5_0:
      return put_plain_rows<quant::Q5_0>;
    case PanelKind::q5_1:
      return put_plain_rows<quant::Q5_1>;
    case PanelKind::q8_0:
      return put_plain_rows<quant::Q8_0>;
    case PanelKind::iq4_nl:
      return put_plain_rows<quant::IQ4_NL>;
    case PanelKind::q2_k:
      return put_super_blocks<quant::Q2_K>;
    case PanelKind::q3_k:
      return put_super_blocks<quant::Q3_K>;
    case PanelKind::q4_k:
      return put_super_blocks<quant::Q4_K>;
    case PanelKind::q5_k:
      return put_super_blocks<quant::Q5_K>;
    case PanelKind::q6_k:
      return put_super_blocks<quant::Q6_K>;
    default:
      return nullptr;
  }
}

}  // namespace

unsigned nonzero_codes(const std::uint8_t* codes) {
  std::uint32_t quad;
  std::memcpy(&quad, codes, sizeof quad);
  quad ^= 0x80808080u;
  // Adding 127 carries into the highest bit of each byte whose others are not all 0, and no further.
  const std::uint32_t high = (((quad & 0x7f7f7f7fu) + 0x7f7f7f7fu) | quad) & 0x80808080u;
  return (high >> 7) * 0x01020408u >> 24 & 15;
}

void write_panels(const PackedWeightView& view, WeightType type, const std::uint8_t* source, std::int32_t begin,
                  std::int32_t end, std::uint8_t* panels) {
  const quant::Format& format = quant::format(type);
  const PanelShape shape = panel_shape(view.kind);
  const PanelLayout& layout = view.layout;
  const std::int64_t cols = view.cols, row_bytes = cols / format.block_values * format.block_bytes;
  for (std::int32_t p = begin; p < end; ++p) {
    const std::int64_t first = std::int64_t{p} * kPanelRows;
    const auto lanes = static_cast<int>(std::min<std::int64_t>(kPanelRows, view.rows - first));
    const std::uint8_t* const rows = source + first * row_bytes;
    std::uint8_t* const panel = panels + p * layout.bytes;
    if (shape.bits == 0) {
      if (view.kind == PanelKind::fp8) {
        put_fp8(rows, row_bytes, lanes, cols, layout, panel);
      } else if (sparse_floats(view.kind)) {
        put_sparse(rows, row_bytes, lanes, cols, layout, panel);
      } else if (format.block_bytes == 4) {
        put_dense<std::uint32_t>(rows, row_bytes, lanes, cols, panel);
      } else {
        put_dense<std::uint16_t>(rows, row_bytes, lanes, cols, panel);
      }
    } else if (const auto put = direct(view.kind)) {
      put(layout, rows, row_bytes, lanes, cols, panel);
    } else {
      const auto put_some = shape.bits == 2   ? put_rows<2>
                            : shape.bits == 3 ? put_rows<3>
                            : shape.bits == 4 ? put_rows<4>
                                              : put_rows<8>;
      put_some(shape, layout, format, rows, row_bytes, lanes, cols, panel);
      if (view.kind == PanelKind::w8a8) put_sums(layout, cols, panel);
    }
  }
}
}  // namespace llminfer::cpu
