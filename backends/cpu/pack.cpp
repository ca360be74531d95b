// Packed weights: their kinds and sizes, their memory, reading rows back, and exact mode. Knows no SIMD.
#include <algorithm>
#include <bit>
#include <cstdlib>
#include <cstring>
#include <type_traits>

#include "backends/common/w8a8.hpp"
#include "backends/cpu/arena.hpp"
#include "backends/cpu/linear.hpp"
#include "backends/cpu/pack_panels.hpp"
#include "core/checked.hpp"
#include "core/error.hpp"
#include "core/half.hpp"
#include "quant/format.hpp"

namespace llminfer::cpu {
namespace {

using backend::is_w8a8;

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

/// Whether more than two bits are set.
bool more_than_two(std::uint64_t bits) {
  bits &= bits - 1;
  return (bits & (bits - 1)) != 0;
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
  return {input.kind == InputQuantization::Kind::fp8,
          input.dynamic,
          input.group,
          input.scale,
          input.zero,
          input.limit,
          input.powers};
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

InputForm packed_form(WeightType type, std::int64_t cols, const WeightDetails& details,
                      ActivationCodes wanted) noexcept {
  const auto kind = kind_of(type, cols, details);
  return kind ? form_of(*kind, details.input, wanted) : InputForm::floats;
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

Result<std::unique_ptr<PackedWeight>> PackedWeight::pack_later(const WeightView& weight, WeightArena* arena,
                                                               bool sparse, ReleaseBytes release) {
  LLMINFER_TRY(check_source(weight));
  auto packed = LLMINFER_TRY(allocate(weight.type, weight.rows, weight.cols, weight.details, arena, sparse));
  packed->pending_ = std::make_unique<PendingPanels>(packed->view_, packed->panels_, weight, std::move(release));
  return packed;
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
  write_panels(view_, weight.type, reinterpret_cast<const std::uint8_t*>(weight.data.data()), begin, end, panels_);
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

void PackedWeight::read_row(std::int64_t row, float* out, const PanelRoom& room) const noexcept {
  if (PendingPanels* const panels = pending()) {
    return cpu::read_row(panels->unit(static_cast<std::int32_t>(row / kUnitFeatures), room), row % kUnitFeatures, out);
  }
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
