// Packing of checkpoint weights into panels, reading rows back, and exact mode. Runs once per weight; knows no SIMD.
#include <algorithm>
#include <bit>
#include <cstdlib>
#include <cstring>
#include <type_traits>

#include "backends/cpu/arena.hpp"
#include "backends/cpu/linear.hpp"
#include "core/checked.hpp"
#include "core/error.hpp"
#include "core/half.hpp"
#include "quant/format.hpp"

namespace llminfer::cpu {
namespace {

#include "backends/cpu/kernels/panel_read-inl.hpp"

bool known(WeightType type) { return static_cast<std::size_t>(type) < quant::formats().size(); }

/// Bytes of the data that a view of this type and shape must have, if the shape is one.
std::optional<std::uint64_t> source_bytes(WeightType type, std::int64_t rows, std::int64_t cols) {
  if (!known(type)) return std::nullopt;
  const quant::Format& f = quant::format(type);
  if (rows <= 0 || cols <= 0 || cols % f.block_values != 0) return std::nullopt;
  const auto row =
      core::checked_mul(static_cast<std::uint64_t>(cols / f.block_values), static_cast<std::uint64_t>(f.block_bytes));
  return row ? core::checked_mul(*row, static_cast<std::uint64_t>(rows)) : row;
}

Result<void> check_source(const WeightView& weight) {
  const auto expected = source_bytes(weight.type, weight.rows, weight.cols);
  if (!expected) {
    return core::fail(ErrorCode::invalid_argument, "weight ", weight.name, ": shape [", weight.rows, ", ", weight.cols,
                      "] is not whole blocks of ", weight_type_info(weight.type).name);
  }
  if (weight.data.size() != *expected) {
    return core::fail(ErrorCode::invalid_argument, "weight ", weight.name, ": ", weight.data.size(),
                      " bytes, expected ", *expected);
  }
  return {};
}

/// Without an arena: memory that sanitizers watch. Empty if there is none.
std::shared_ptr<std::uint8_t> zeroed_heap(std::int64_t bytes) {
  const auto size = static_cast<std::size_t>((bytes + 63) / 64 * 64);
  auto* const memory = static_cast<std::uint8_t*>(std::aligned_alloc(64, size));
  if (!memory) return nullptr;
  std::memset(memory, 0, size);
  return {memory, std::free};
}

void put_u16(std::uint8_t* to, std::uint16_t v) { std::memcpy(to, &v, sizeof v); }
void put_float(std::uint8_t* to, float v) { std::memcpy(to, &v, sizeof v); }

/// Writes 32 codes of one row, 8 quads of 4, into its group of a panel: 4 bytes to each plane. The inverse of
/// panel_codes. Works on 4 codes at a time as the bytes of a word.
template <int Bits>
void put_codes(std::uint8_t* row, const std::uint8_t* codes) {
  std::uint32_t quad[8];
  std::memcpy(quad, codes, sizeof quad);
  const auto put = [&](int plane, std::uint32_t word) { std::memcpy(row + plane * 64, &word, sizeof word); };
  if constexpr (Bits == 8) {
    for (int q = 0; q < 8; ++q) put(q, quad[q]);
  } else if constexpr (Bits >= 4) {
    constexpr std::uint32_t kLow = 0x0f0f0f0f;
    for (int p = 0; p < 4; ++p) put(p, (quad[p] & kLow) | (quad[p + 4] & kLow) << 4);
  } else {
    constexpr std::uint32_t kLow = 0x03030303;
    for (int p = 0; p < 2; ++p) {
      put(p, (quad[p] & kLow) | (quad[p + 2] & kLow) << 2 | (quad[p + 4] & kLow) << 4 | (quad[p + 6] & kLow) << 6);
    }
  }
  if constexpr (Bits == 5 || Bits == 3) {
    std::uint32_t high = 0;
    for (int q = 0; q < 8; ++q) high |= (quad[q] >> (Bits - 1) & 0x01010101) << q;
    put(Bits - 1, high);
  }
  if constexpr (Bits == 6) {
    for (int p = 0; p < 2; ++p) {
      std::uint32_t high = 0;
      for (int j = 0; j < 4; ++j) high |= (quad[p + 2 * j] >> 4 & 0x03030303) << 2 * j;
      put(4 + p, high);
    }
  }
}

/// Bit i: code i of four is not that of zero, 128.
unsigned nonzero_codes(const std::uint8_t* codes) {
  std::uint32_t quad;
  std::memcpy(&quad, codes, sizeof quad);
  quad ^= 0x80808080u;
  // Adding 127 carries into the highest bit of each byte whose others are not all 0, and no further.
  const std::uint32_t high = (((quad & 0x7f7f7f7fu) + 0x7f7f7f7fu) | quad) & 0x80808080u;
  return (high >> 7) * 0x01020408u >> 24 & 15;
}

/// Whether more than two bits are set.
bool more_than_two(std::uint64_t bits) {
  bits &= bits - 1;
  return (bits & (bits - 1)) != 0;
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
        if (shape.minimum) put_u16(minimum + at * 2, core::float_to_half(block.minimum[g]));
        break;
      case PanelScale::two_level:
        scale[at] = static_cast<std::uint8_t>(block.sub_scale[g]);
        if (shape.minimum) minimum[at] = block.sub_minimum[g];
        break;
    }
  }
  if (shape.scale == PanelScale::two_level) {
    const std::int64_t at = (col / (kGroupValues * kSuperGroups) * kPanelRows + lane) * 2;
    put_u16(panel + layout.super_scale + at, core::float_to_half(block.d));
    if (shape.minimum) put_u16(panel + layout.super_minimum + at, core::float_to_half(block.d_min));
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

/// put_rows for Q4_0, Q4_1 (4 planes) and Q8_0 (8), the commonest formats of small models: a block's codes already lie
/// as panels have them, after one or two halves, so nothing needs to be decoded.
template <int Planes>
void put_plain_rows(const PanelLayout& layout, const quant::Format& format, const std::uint8_t* rows,
                    std::int64_t row_bytes, int lanes, std::int64_t cols, std::uint8_t* panel) {
  const bool minimum = format.shape.minimum;
  const std::int64_t groups = cols / kGroupValues, codes = minimum ? 4 : 2;
  constexpr std::uint32_t kSigns = Planes == 8 ? 0x80808080u : 0;  // two's complement to offset 128
  for (int lane = 0; lane < lanes; ++lane) {
    const std::uint8_t* block = rows + lane * row_bytes;
    for (std::int64_t g = 0; g < groups; ++g, block += format.block_bytes) {
      std::uint8_t* const row = panel + g * layout.code_bytes + lane * 4;
      std::uint32_t words[Planes];
      std::memcpy(words, block + codes, sizeof words);
      for (int plane = 0; plane < Planes; ++plane) {
        words[plane] ^= kSigns;
        std::memcpy(row + plane * 64, words + plane, 4);
      }
      const std::int64_t at = ((g >> layout.scale_shift) * kPanelRows + lane) * 2;
      std::memcpy(panel + layout.scale + at, block, 2);
      if (minimum) {  // Q4_1 adds it, panels subtract it: the other sign
        std::uint16_t half;
        std::memcpy(&half, block + 2, sizeof half);
        put_u16(panel + layout.minimum + at, half ^ 0x8000u);
      }
    }
  }
}

/// Calls `f` with the width of a panel's codes as a constant.
template <class F>
void with_bits(int bits, F&& f) {
  switch (bits) {
    case 2:
      return f(std::integral_constant<int, 2>());
    case 3:
      return f(std::integral_constant<int, 3>());
    case 4:
      return f(std::integral_constant<int, 4>());
    case 5:
      return f(std::integral_constant<int, 5>());
    case 6:
      return f(std::integral_constant<int, 6>());
    default:
      return f(std::integral_constant<int, 8>());
  }
}

/// Transposes `lanes` rows of `cols` elements into a panel [cols][16].
template <class T>
void put_dense(const std::uint8_t* rows, std::int64_t row_bytes, std::int64_t lanes, std::int64_t cols,
               std::uint8_t* panel) {
  constexpr std::int64_t kSize = sizeof(T), kBlock = 64;  // columns whose part of the panel stays in the cache
  for (std::int64_t begin = 0; begin < cols; begin += kBlock) {
    for (std::int64_t lane = 0; lane < lanes; ++lane) {
      for (std::int64_t k = begin; k < std::min(begin + kBlock, cols); ++k) {
        std::memcpy(panel + (k * kPanelRows + lane) * kSize, rows + lane * row_bytes + k * kSize, kSize);
      }
    }
  }
}

bool sparse_floats(PanelKind kind) { return kind == PanelKind::f16_sparse || kind == PanelKind::bf16_sparse; }

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
      std::uint8_t* const to = panel + g * kGroupValues * kPanelRows + lane;
      for (int i = 0; i < kGroupValues; ++i) to[i * kPanelRows] = block[4 + i];
    }
  }
}

/// log2 of the groups of 32 whose scales can be stored as one.
int scale_shift_of(const WeightDetails& details, std::int64_t cols) {
  if (details.scale_columns <= 0) return 0;
  int shift = 0;
  while (kGroupValues << shift < cols &&
         (details.scale_columns >= cols || details.scale_columns % (kGroupValues << (shift + 1)) == 0)) {
    ++shift;
  }
  return shift;
}

PanelLayout layout_of(PanelKind kind, WeightType type, std::int64_t cols, const WeightDetails& details) {
  const PanelShape shape = panel_shape(kind);
  const int shift = scale_shift_of(details, cols);
  if (shape.bits != 0) {
    const bool shares = shape.group == kGroupValues && shape.scale != PanelScale::two_level;
    const bool floats =
        shape.minimum && shape.scale == PanelScale::f32 && quant::format(type).shape.scales != quant::ScaleKind::shared;
    PanelLayout layout = panel_layout(shape, cols, shares ? shift : 0, floats);
    if (kind == PanelKind::w8a8) layout.bytes = layout.minimum + kPanelRows * 4;
    return layout;
  }
  const auto align = [](std::int64_t bytes) { return (bytes + 63) / 64 * 64; };
  PanelLayout layout{};
  const bool byte = kind == PanelKind::fp8 || sparse_floats(kind);  // a column, on the average
  layout.scale = align(cols * kPanelRows * (kind == PanelKind::f32 ? 4 : byte ? 1 : 2));
  layout.bytes = layout.scale;
  if (sparse_floats(kind)) layout.bytes += align(cols / 4 * 8);
  if (kind == PanelKind::fp8) {
    layout.scale_shift = shift;
    layout.bytes += (((cols / kGroupValues - 1) >> shift) + 1) * kPanelRows * 4;
  }
  return layout;
}

/// The sums of a w8a8 panel's codes.
void put_sums(const PanelLayout& layout, std::int64_t cols, std::uint8_t* panel) {
  std::int32_t sums[kPanelRows] = {};
  for (std::int64_t i = 0; i < cols * kPanelRows; ++i) sums[i / 4 % kPanelRows] += panel[i] - 128;
  std::memcpy(panel + layout.minimum, sums, sizeof sums);
}

/// One scale for each row of the weight and each row of activations, which is rounded to 8 bits.
bool is_w8a8(WeightType type, std::int64_t cols, const WeightDetails& details) {
  const InputQuantization& input = details.input;
  return type == WeightType::w8_sym && input.kind == InputQuantization::Kind::int8 &&
         (!input.dynamic || input.group == 0) && details.scale_columns >= cols && !details.permutation &&
         cols <= kMaxByteCols;
}

std::optional<PanelKind> kind_of(WeightType type, std::int64_t cols, const WeightDetails& details,
                                 bool sparse = false) {
  if (!sparse) return is_w8a8(type, cols, details) ? PanelKind::w8a8 : panel_kind(type);
  switch (type) {
    case WeightType::f16:
      return PanelKind::f16_sparse;
    case WeightType::bf16:
      return PanelKind::bf16_sparse;
    case WeightType::q8_0:
      return PanelKind::q8_0_sparse;
    default:
      return PanelKind::grid32_sparse;
  }
}

/// Whether there are sparse panels for such weights, smaller than dense ones. Of W8A8 they do not pay (docs/adr/0024).
bool may_be_sparse(WeightType type, std::int64_t cols, const WeightDetails& details) {
  if (type == WeightType::f16 || type == WeightType::bf16) return cols % 4 == 0 && cols >= 8;
  return type == WeightType::q8_0 || (type == WeightType::w8_sym && !is_w8a8(type, cols, details));
}

}  // namespace

InputRounding rounding_of(const InputQuantization& input) noexcept {
  return {input.kind == InputQuantization::Kind::fp8, input.dynamic, input.group, input.scale, input.zero};
}

std::optional<PanelKind> panel_kind(WeightType type) noexcept {
  switch (type) {
    case WeightType::f32:
      return PanelKind::f32;
    case WeightType::f16:
      return PanelKind::f16;
    case WeightType::bf16:
      return PanelKind::bf16;
    case WeightType::fp8:
      return PanelKind::fp8;
    default:
      break;
  }
  if (!known(type)) return std::nullopt;
  const quant::GroupedShape& want = quant::format(type).shape;
  for (int i = static_cast<int>(PanelKind::q4_0); i < kPanelKinds; ++i) {
    const auto kind = static_cast<PanelKind>(i);
    const PanelShape has = panel_shape(kind);
    const bool table = want.table != nullptr;
    const bool two_level = want.scales == quant::ScaleKind::two_level;
    const bool scales = has.scale == PanelScale::f32 ||
                        (want.half_scales && has.scale == (two_level ? PanelScale::two_level : PanelScale::f16));
    if (has.bits == want.bits && has.group == want.group && has.table == table && (table || has.zero == want.zero) &&
        has.minimum == want.minimum && scales) {
      return kind;
    }
  }
  return std::nullopt;
}

bool two_of_four(const WeightView& weight) noexcept {
  if (!may_be_sparse(weight.type, weight.cols, weight.details)) return false;
  const quant::Format& format = quant::format(weight.type);
  const auto* const data = reinterpret_cast<const std::uint8_t*>(weight.data.data());
  if (format.shape.bits == 8) {
    quant::GroupedBlock block;
    for (std::size_t at = 0; at < weight.data.size(); at += static_cast<std::size_t>(format.block_bytes)) {
      format.decompose(data + at, block);
      for (int quad = 0; quad < format.block_values; quad += 4) {
        if (more_than_two(nonzero_codes(block.code + quad))) return false;
      }
    }
    return true;
  }
  constexpr std::uint64_t kMagnitudes = 0x7fff7fff7fff7fff;
  for (std::size_t at = 0; at < weight.data.size(); at += 8) {
    std::uint64_t four;
    std::memcpy(&four, data + at, sizeof four);
    // Adding the largest magnitude carries into the sign of each number that is not zero, and no further.
    if (more_than_two(((four & kMagnitudes) + kMagnitudes) & ~kMagnitudes)) return false;
  }
  return true;
}

std::int64_t packed_bytes(WeightType type, std::int64_t rows, std::int64_t cols,
                          const WeightDetails& details) noexcept {
  const auto kind = kind_of(type, cols, details);
  if (!kind || rows <= 0 || cols <= 0) return 0;
  return (rows + kPanelRows - 1) / kPanelRows * layout_of(*kind, type, cols, details).bytes;
}

InputForm packed_form(WeightType type, std::int64_t cols, const WeightDetails& details) noexcept {
  const auto kind = kind_of(type, cols, details);
  return kind ? form_of(*kind) : InputForm::floats;
}

Result<std::unique_ptr<PackedWeight>> PackedWeight::describe(WeightType type, std::int64_t rows, std::int64_t cols,
                                                             const WeightDetails& details, bool sparse) {
  const auto kind = kind_of(type, cols, details, sparse);
  if (!kind)
    return core::fail(ErrorCode::unsupported, "the CPU backend has no kernel for weights of type ",
                      weight_type_info(type).name);
  const auto source = source_bytes(type, rows, cols);
  if (!source || *source > std::uint64_t{1} << 48) {
    return core::fail(ErrorCode::invalid_argument, "a weight [", rows, ", ", cols, "] of type ",
                      weight_type_info(type).name, " is not possible");
  }
  std::unique_ptr<PackedWeight> weight(new PackedWeight);
  weight->view_.rows = rows;
  weight->view_.cols = cols;
  weight->view_.kind = *kind;
  weight->view_.layout = layout_of(*kind, type, cols, details);
  weight->details_ = details;
  if (const std::int8_t* table = quant::format(type).shape.table) {
    for (int i = 0; i < 16; ++i) weight->view_.table[i] = static_cast<std::uint8_t>(table[i] + 128);
  }
  weight->bytes_ = weight->panels() * weight->view_.layout.bytes;
  return weight;
}

Result<std::unique_ptr<PackedWeight>> PackedWeight::allocate(WeightType type, std::int64_t rows, std::int64_t cols,
                                                             const WeightDetails& details, WeightArena* arena,
                                                             bool sparse) {
  auto weight = LLMINFER_TRY(describe(type, rows, cols, details, sparse));
  std::shared_ptr<std::uint8_t> data = arena ? arena->allocate(weight->bytes_) : zeroed_heap(weight->bytes_);
  if (!data) return core::fail(ErrorCode::out_of_memory, "no memory for a packed weight of ", weight->bytes_, " bytes");
  weight->view_.data = weight->panels_ = data.get();
  weight->keep_ = std::move(data);
  return weight;
}

Result<std::unique_ptr<PackedWeight>> PackedWeight::adopt(const WeightView& weight, std::span<const std::byte> panels,
                                                          std::shared_ptr<const void> keep) {
  auto packed = LLMINFER_TRY(describe(weight.type, weight.rows, weight.cols, weight.details, false));
  if (may_be_sparse(weight.type, weight.cols, weight.details) &&
      static_cast<std::int64_t>(panels.size()) < packed->bytes_) {
    packed = LLMINFER_TRY(describe(weight.type, weight.rows, weight.cols, weight.details, true));
  }
  if (static_cast<std::int64_t>(panels.size()) != packed->bytes_ ||
      reinterpret_cast<std::uintptr_t>(panels.data()) % 64) {
    return core::fail(ErrorCode::corrupt, weight.name, ": ", panels.size(), " stored bytes, expected ", packed->bytes_,
                      " on a cache line");
  }
  packed->view_.data = reinterpret_cast<const std::uint8_t*>(panels.data());
  packed->keep_ = std::move(keep);
  return packed;
}

void PackedWeight::pack_panels(const WeightView& weight, std::int32_t begin, std::int32_t end) {
  const quant::Format& format = quant::format(weight.type);
  const PanelShape shape = panel_shape(view_.kind);
  const PanelLayout& layout = view_.layout;
  const std::int64_t row_bytes = view_.cols / format.block_values * format.block_bytes;
  const auto* const source = reinterpret_cast<const std::uint8_t*>(weight.data.data());
  for (std::int32_t p = begin; p < end; ++p) {
    const std::int64_t first = std::int64_t{p} * kPanelRows;
    const auto lanes = static_cast<int>(std::min<std::int64_t>(kPanelRows, view_.rows - first));
    const std::uint8_t* const rows = source + first * row_bytes;
    std::uint8_t* const panel = panels_ + p * layout.bytes;
    if (shape.bits == 0) {
      if (view_.kind == PanelKind::fp8) {
        put_fp8(rows, row_bytes, lanes, view_.cols, layout, panel);
      } else if (sparse_floats(view_.kind)) {
        put_sparse(rows, row_bytes, lanes, view_.cols, layout, panel);
      } else if (format.block_bytes == 4) {
        put_dense<std::uint32_t>(rows, row_bytes, lanes, view_.cols, panel);
      } else {
        put_dense<std::uint16_t>(rows, row_bytes, lanes, view_.cols, panel);
      }
    } else if (weight.type == WeightType::q4_0 || weight.type == WeightType::q4_1) {
      put_plain_rows<4>(layout, format, rows, row_bytes, lanes, view_.cols, panel);
    } else if (view_.kind == PanelKind::q8_0) {
      put_plain_rows<8>(layout, format, rows, row_bytes, lanes, view_.cols, panel);
    } else {
      with_bits(shape.bits,
                [&](auto bits) { put_rows<bits()>(shape, layout, format, rows, row_bytes, lanes, view_.cols, panel); });
      if (view_.kind == PanelKind::w8a8) put_sums(layout, view_.cols, panel);
    }
  }
}

Result<std::unique_ptr<PackedWeight>> pack_weight(const WeightView& weight) {
  LLMINFER_TRY(check_source(weight));
  auto packed = LLMINFER_TRY(
      PackedWeight::allocate(weight.type, weight.rows, weight.cols, weight.details, nullptr, two_of_four(weight)));
  packed->pack_panels(weight, 0, packed->panels());
  return packed;
}

namespace {

/// put(k, value) for each column of a row of grouped panels.
template <class Put>
void read_groups(const PackedWeightView& w, const PanelShape& shape, const std::uint8_t* panel, int lane,
                 const Put& put) {
  for (std::int64_t g = 0; g < w.cols / kGroupValues; ++g) {
    std::uint8_t codes[kGroupValues];
    panel_codes(w, shape, panel, g, lane, codes);
    float scale = 0.0f, minimum = 0.0f;
    for (int i = 0; i < kGroupValues; ++i) {
      if (i % shape.group == 0)
        panel_scale(w, shape, panel, (g * kGroupValues + i) / shape.group, lane, &scale, &minimum);
      put(g * kGroupValues + i, scale * static_cast<float>(codes[i] - shape.zero) - minimum);
    }
  }
}

}  // namespace

void read_row(const PackedWeightView& w, std::int64_t row, float* out) noexcept {
  const PanelShape shape = panel_shape(w.kind);
  const std::uint8_t* const panel = w.data + row / kPanelRows * w.layout.bytes;
  const int lane = static_cast<int>(row % kPanelRows);
  if (shape.bits == 0) {
    for (std::int64_t k = 0; k < w.cols; ++k) out[k] = panel_dense(w, panel, k, lane);
    return;
  }
  read_groups(w, shape, panel, lane, [&](std::int64_t k, float value) { out[k] = value; });
}

void PackedWeight::read_row(std::int64_t row, float* out) const noexcept {
  if (!order()) return cpu::read_row(view_, row, out);
  const PanelShape shape = panel_shape(view_.kind);
  const std::uint8_t* const panel = view_.data + row / kPanelRows * view_.layout.bytes;
  read_groups(view_, shape, panel, static_cast<int>(row % kPanelRows),
              [&](std::int64_t k, float value) { out[(*order())[static_cast<std::size_t>(k)]] = value; });
}

std::size_t linear_scratch_bytes(std::int64_t cols) noexcept {
  // Two panels of bytes with float scales and minimums per 16 values; more than the scalar kernels need.
  constexpr PanelShape kWidest{8, 16, 0, false, true, PanelScale::f32};
  return static_cast<std::size_t>(std::max(2 * panel_layout(kWidest, cols).bytes, kSliceBytes));
}

Result<std::unique_ptr<ExactWeight>> ExactWeight::make(const WeightView& weight) {
  LLMINFER_TRY(check_source(weight));
  return std::unique_ptr<ExactWeight>(new ExactWeight(weight));
}

void ExactWeight::read_row(std::int64_t row, float* out) const noexcept {
  const quant::Format& format = quant::format(view_.type);
  const std::int64_t blocks = view_.cols / format.block_values;
  const auto* block = reinterpret_cast<const std::uint8_t*>(view_.data.data()) + row * blocks * format.block_bytes;
  const std::vector<std::int32_t>* const permutation = view_.details.permutation.get();
  for (std::int64_t i = 0; i < blocks; ++i, block += format.block_bytes) {
    if (!permutation) {
      format.unpack(block, out + i * format.block_values);
      continue;
    }
    float values[256];
    format.unpack(block, values);
    const std::int32_t* const columns = permutation->data() + i * format.block_values;
    for (int j = 0; j < format.block_values; ++j) out[columns[j]] = values[j];
  }
}

void linear_exact(const LinearKernels& kernels, const ExactWeight& w, std::int64_t feature_begin,
                  std::int64_t feature_end, const float* x, std::int64_t stride, std::int32_t row_begin,
                  std::int32_t row_end, float* out, std::int64_t out_stride, float* scratch) noexcept {
  for (std::int64_t n = feature_begin; n < feature_end; ++n) {
    w.read_row(n, scratch);
    kernels.dot_rows(scratch, w.cols(), x + row_begin * stride, stride, row_end - row_begin,
                     out + row_begin * out_stride + n, out_stride);
  }
}

}  // namespace llminfer::cpu
