#include "backends/gpu/weight.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <mutex>
#include <numeric>
#include <span>
#include <utility>
#include <vector>

#include "backends/common/w8a8.hpp"
#include "core/error.hpp"
#include "core/half.hpp"
#include "quant/format.hpp"
#include "quant/traits_w.hpp"

namespace llminfer::gpu {
namespace {

using core::fail;

std::int64_t round_up(std::int64_t value, std::int64_t to) { return (value + to - 1) / to * to; }

/// Tables as floats, so that those that are no integers stay exact.
struct Table {
  float values[16];
};
Table floats_of(const std::int8_t* integers) {
  Table table{};
  for (int i = 0; i < 16; ++i) table.values[i] = integers[i];
  return table;
}
const float* table_of(WeightType type, const quant::GroupedShape& shape) {
  if (type == WeightType::nf4) return quant::kNf4Values;
  if (type == WeightType::fp4) return quant::kFp4Values;
  static const Table iq4 = floats_of(quant::format(WeightType::iq4_nl).shape.table);
  static const Table e2m1 = floats_of(quant::format(WeightType::mxfp4).shape.table);
  return shape.table == quant::format(WeightType::iq4_nl).shape.table ? iq4.values : e2m1.values;
}

Form form_of(const quant::GroupedShape& shape) {
  if (shape.table) return Form::table4;
  switch (shape.bits) {
    case 2:
      return Form::codes2;
    case 3:
      return Form::codes3;
    case 4:
      return Form::codes4;
    case 5:
      return Form::codes5;
    case 6:
      return Form::codes6;
    default:
      return Form::codes8;
  }
}

/// 2^n such that x / 2^n lies in [2^13, 2^14), where halves are finite even if doubled, and seldom subnormal, which
/// MI200's matrix units take for zero; 1 for zeros and for what is no number.
float power_of(float x) {
  if (!(x >= 0x1p-100f) || !std::isfinite(x)) return 1.0f;
  return std::ldexp(1.0f, std::ilogb(x) - 13);
}

/// Where one row goes, in host memory.
struct RowOut {
  std::byte *high, *pairs, *bits;
  std::uint16_t *scales, *minimums;
  float* factor;
  std::int32_t* sum;
};

void write_halves(const std::vector<float>& values, std::int64_t padded, const RowOut& out) {
  float most = 0.0f;
  for (const float x : values) most = std::max(most, std::isfinite(x) ? std::abs(x) : 0.0f);
  *out.factor = power_of(most);
  auto* halves = reinterpret_cast<std::uint16_t*>(out.high);
  for (std::size_t i = 0; i < values.size(); ++i) halves[i] = core::float_to_half(values[i] / *out.factor);
  std::fill(halves + values.size(), halves + padded, std::uint16_t{0});
}

/// Codes of a whole row, and the scale and minimum of each group, as floats.
struct RowCodes {
  std::vector<std::uint8_t> code;
  std::vector<float> scale, minimum;
};

void decompose_row(const quant::Format& format, const std::uint8_t* data, std::int64_t cols, RowCodes& row) {
  const std::int64_t blocks = cols / format.block_values;
  std::size_t group = 0;
  for (std::int64_t b = 0; b < blocks; ++b, data += format.block_bytes) {
    std::uint8_t* const codes = row.code.data() + b * format.block_values;
    if (!format.decompose) {  // FP8: a float and 32 bytes
      std::memcpy(&row.scale[group++], data, sizeof(float));
      std::memcpy(codes, data + sizeof(float), static_cast<std::size_t>(format.block_values));
      continue;
    }
    quant::GroupedBlock block;
    format.decompose(data, block);
    std::memcpy(codes, block.code, static_cast<std::size_t>(format.block_values));
    // Tables of values beyond integers are decomposed to 127ths.
    const float unit = format.shape.exact ? 1.0f : 127.0f;
    for (int g = 0; g < format.block_values / format.shape.group; ++g, ++group) {
      row.scale[group] = block.scale[g] * unit;
      row.minimum[group] = format.shape.minimum ? block.minimum[g] : 0.0f;
    }
  }
}

void write_codes(const MatrixLayout& layout, const RowCodes& row, const RowOut& out) {
  // The largest magnitude that a group can have, so that halves hold the element itself, too.
  float range = 1.0f;
  switch (layout.form) {
    case Form::codes2:
      range = 3;
      break;
    case Form::codes3:
      range = 7;
      break;
    case Form::codes4:
      range = 15;
      break;
    case Form::codes5:
      range = 31;
      break;
    case Form::codes6:
      range = 63;
      break;
    case Form::codes8:
      range = 255;
      break;
    case Form::table4:
      for (int i = 0; i < 16; ++i) range = std::max(range, std::abs(layout.table[i]));
      break;
    default:
      range = 448;
  }
  const bool one_scale = !out.minimums && std::all_of(row.scale.begin(), row.scale.end(),
                                                      [&](float scale) { return scale == row.scale.front(); });
  if (one_scale) {
    *out.factor = row.scale.front() * power_of(range);
  } else {
    float most = 0.0f;
    for (std::size_t g = 0; g < row.scale.size(); ++g) {
      const float bound = std::max(std::abs(row.scale[g]) * range, std::abs(row.minimum[g]));
      most = std::max(most, std::isfinite(bound) ? bound : 0.0f);
    }
    *out.factor = power_of(most);
  }
  for (std::size_t g = 0; g < row.scale.size(); ++g) {
    out.scales[g] = core::float_to_half(one_scale ? 1.0f / power_of(range) : row.scale[g] / *out.factor);
    if (out.minimums) out.minimums[g] = core::float_to_half(row.minimum[g] / *out.factor);
  }
  if (out.sum) {
    *out.sum = std::accumulate(row.code.begin(), row.code.begin() + layout.cols, 0) -
               static_cast<std::int32_t>(layout.cols) * static_cast<std::int32_t>(layout.zero);
  }
  const auto eights = row.code.size() / 8;
  for (std::size_t e = 0; e < eights; ++e) {
    const std::uint8_t* code = row.code.data() + 8 * e;
    if (layout.form == Form::codes8 || layout.form == Form::e4m3) {
      std::memcpy(out.high + 8 * e, code, 8);
      continue;
    }
    std::uint32_t nibbles = 0, pairs = 0, bits = 0;
    const bool narrow = layout.form == Form::codes2 || layout.form == Form::codes3;
    for (int i = 0; i < 8; ++i) {
      const int place = layout.form == Form::table4 ? i : i / 2 + i % 2 * 4;
      nibbles |= (code[i] & 15u) << (4 * place);
      pairs |= ((narrow ? code[i] : code[i] >> 4) & 3u) << (2 * place);
      bits |= (static_cast<std::uint32_t>(code[i] >> (narrow ? 2 : 4)) & 1u) << place;
    }
    if (layout.high_row) std::memcpy(out.high + 4 * e, &nibbles, 4);
    if (layout.pairs_row) std::memcpy(out.pairs + 2 * e, &pairs, 2);
    if (layout.bits_row) std::memcpy(out.bits + e, &bits, 1);
  }
}

/// A part of a prepared matrix that has some bytes of each row, or none.
struct Plane {
  std::int64_t offset, row_bytes;
};
constexpr std::size_t kPlanes = 7;
std::array<Plane, kPlanes> planes_of(const MatrixLayout& l) {
  return {{{l.high, l.high_row},
           {l.pairs, l.pairs_row},
           {l.bits, l.bits_row},
           {l.scale, l.scales_row},
           {l.minimum, l.minimums ? l.scales_row : 0},
           {l.factor, sizeof(float)},
           {l.sum, l.sums ? std::int64_t{sizeof(std::int32_t)} : 0}}};
}

/// Writes rows of a weight in their prepared form, with all threads of a team.
class RowWriter {
 public:
  /// All of them outlive the writer.
  RowWriter(const WeightView& view, const MatrixLayout& layout, core::Team& team)
      : view_(view), layout_(layout), format_(quant::format(view.type)), planes_(planes_of(layout)), team_(team) {
    scratch_.resize(static_cast<std::size_t>(team.threads()));
    for (Scratch& scratch : scratch_) {
      if (layout.form == Form::f16) {
        scratch.values.resize(static_cast<std::size_t>(view.cols));
        continue;
      }
      scratch.codes.code.assign(static_cast<std::size_t>(layout.padded_cols), 0);
      scratch.codes.scale.assign(static_cast<std::size_t>(layout.padded_cols / layout.group), 0.0f);
      scratch.codes.minimum = scratch.codes.scale;
    }
  }

  /// `to`: per plane, of row `first`.
  Result<void> write(std::int64_t first, std::int64_t count, const std::array<std::byte*, kPlanes>& to) {
    const std::int64_t chunk_rows =
        std::max(kChunkValues / layout_.padded_cols, (count + core::Team::kMaxChunks - 1) / core::Team::kMaxChunks);
    const auto chunks = static_cast<int>((count + chunk_rows - 1) / chunk_rows);
    std::mutex mutex;
    Result<void> outcome;
    const auto body = [&](int, int chunk, int thread) {
      const std::int64_t end = std::min(count, (chunk + 1) * chunk_rows);
      for (std::int64_t r = chunk * chunk_rows; r < end; ++r) {
        auto written = write_row(first + r, out_of(to, r), scratch_[static_cast<std::size_t>(thread)]);
        if (written) continue;
        const std::lock_guard lock(mutex);
        outcome = std::move(written);
      }
    };
    LLMINFER_TRY(team_.run(std::span(&chunks, 1), body));
    return outcome;
  }

 private:
  static constexpr std::int64_t kChunkValues = 1 << 14;
  /// Of one thread.
  struct Scratch {
    std::vector<float> values;
    RowCodes codes;
  };

  RowOut out_of(const std::array<std::byte*, kPlanes>& to, std::int64_t row) const noexcept {
    const auto at = [&](std::size_t plane) { return to[plane] + row * planes_[plane].row_bytes; };
    const auto halves = [&](std::size_t plane) { return reinterpret_cast<std::uint16_t*>(at(plane)); };
    return {at(0),
            at(1),
            at(2),
            halves(3),
            layout_.minimums ? halves(4) : nullptr,
            reinterpret_cast<float*>(at(5)),
            layout_.sums ? reinterpret_cast<std::int32_t*>(at(6)) : nullptr};
  }

  Result<void> write_row(std::int64_t row, const RowOut& out, Scratch& scratch) const {
    if (layout_.form == Form::f16) {
      LLMINFER_TRY(unpack_rows(view_, row, 1, scratch.values));
      write_halves(scratch.values, layout_.padded_cols, out);
      return {};
    }
    const std::int64_t row_bytes = view_.cols / format_.block_values * format_.block_bytes;
    const auto* data = reinterpret_cast<const std::uint8_t*>(view_.data.data()) + row * row_bytes;
    decompose_row(format_, data, view_.cols, scratch.codes);
    write_codes(layout_, scratch.codes, out);
    return {};
  }

  const WeightView& view_;
  const MatrixLayout& layout_;
  const quant::Format& format_;
  const std::array<Plane, kPlanes> planes_;
  core::Team& team_;
  std::vector<Scratch> scratch_;
};

}  // namespace

MatrixLayout matrix_layout(WeightType type, std::int64_t rows, std::int64_t cols, const WeightDetails& details) {
  const quant::Format& format = quant::format(type);
  MatrixLayout l;
  l.rows = rows;
  l.cols = cols;
  l.padded_cols = padded_columns(cols);
  const bool fp8 = type == WeightType::fp8;
  // Inputs are put in the order of codes. That of others is undone, and where groups of inputs are rounded, too.
  const bool ordered = details.permutation != nullptr, groups = details.input.dynamic && details.input.group > 0;
  const bool codes = ordered ? format.shape.bits > 0 && !groups : format.shape.bits > 0 || fp8;
  l.order = ordered && codes;
  if (codes) {
    l.form = fp8 ? Form::e4m3 : form_of(format.shape);
    l.group = fp8 ? 32 : format.shape.group;
    l.zero = static_cast<float>(format.shape.zero);
    l.minimums = format.shape.minimum;
    l.sums = type == WeightType::w8_sym;
    if (l.form == Form::table4) l.table = table_of(type, format.shape);
    l.scales_row = l.padded_cols / l.group * 2;
  }
  const std::int64_t c = l.padded_cols;
  switch (l.form) {
    case Form::f16:
      l.high_row = 2 * c;
      break;
    case Form::codes8:
    case Form::e4m3:
      l.high_row = c;
      break;
    case Form::codes2:
      l.pairs_row = c / 4;
      break;
    case Form::codes3:
      l.pairs_row = c / 4;
      l.bits_row = c / 8;
      break;
    case Form::codes5:
      l.high_row = c / 2;
      l.bits_row = c / 8;
      break;
    case Form::codes6:
      l.high_row = c / 2;
      l.pairs_row = c / 4;
      break;
    case Form::codes4:
    case Form::table4:
      l.high_row = c / 2;
      break;
  }
  const auto place = [&](std::int64_t bytes) {
    const std::int64_t at = l.bytes;
    l.bytes += round_up(bytes, 256);
    return at;
  };
  l.high = place(l.high_row * rows);
  l.pairs = place(l.pairs_row * rows);
  l.bits = place(l.bits_row * rows);
  l.scale = place(l.scales_row * rows);
  l.minimum = place(l.minimums ? l.scales_row * rows : 0);
  l.factor = place(rows * static_cast<std::int64_t>(sizeof(float)));
  l.sum = place(l.sums ? rows * static_cast<std::int64_t>(sizeof(std::int32_t)) : 0);
  l.table_at = place(l.table ? 16 * sizeof(float) : 0);
  l.order_at = place(l.order ? cols * static_cast<std::int64_t>(sizeof(std::int32_t)) : 0);
  return l;
}

std::int64_t GpuWeight::bytes_of(WeightType type, std::int64_t rows, std::int64_t cols, const WeightDetails& details) {
  return matrix_layout(type, rows, cols, details).bytes +
         (rows == 1 ? cols * static_cast<std::int64_t>(sizeof(float)) : 0);
}

bool GpuWeight::takes_inputs_like(const GpuWeight& other) const noexcept {
  const bool same_order = order_ && other.order_ ? *order_ == *other.order_ : order_ == other.order_;
  return input_ == other.input_ && same_order;
}

int GpuWeight::e4m3_group() const noexcept {
  if (layout_.form != Form::e4m3 || input_.kind != InputQuantization::Kind::fp8) return -1;
  if (scale_columns_ >= layout_.cols) return 0;
  return scale_columns_ > 0 && scale_columns_ % kScaleColumns == 0 ? static_cast<int>(scale_columns_) : -1;
}

Result<std::unique_ptr<GpuWeight>> GpuWeight::make(const WeightView& view, Staging& staging, WeightHome home) {
  const quant::Format& format = quant::format(view.type);
  auto weight = std::make_unique<GpuWeight>();
  const std::shared_ptr<Device>& device = weight->device_ = staging.device();
  weight->input_ = view.details.input;
  weight->scale_columns_ = view.details.scale_columns;
  weight->w8a8_ = backend::is_w8a8(view.type, view.cols, view.details);
  weight->layout_ = matrix_layout(view.type, view.rows, view.cols, view.details);
  if (weight->layout_.order) {
    LLMINFER_TRY(unpack_rows(view, 0, 0, {}));  // checks that it is one
    weight->order_ = view.details.permutation;
  }
  const std::int64_t row_bytes = view.cols / format.block_values * format.block_bytes;
  if (view.cols % format.block_values != 0 || static_cast<std::int64_t>(view.data.size()) != row_bytes * view.rows) {
    return fail(ErrorCode::invalid_argument, view.data.size(), " bytes do not fit a ", format.name,
                " weight of shape [", view.rows, ", ", view.cols, "]");
  }
  if (home.kind == WeightHome::Kind::storage && (!home.storage || home.offset < 0)) {
    return fail(ErrorCode::invalid_argument, "a weight in ", home.storage ? "a" : "no", " storage, at offset ",
                home.offset);
  }
  weight->home_ = std::move(home);
  const std::int64_t bytes = weight->bytes_ = bytes_of(view.type, view.rows, view.cols, view.details);
  if (weight->home_.kind == WeightHome::Kind::host) {
    weight->memory_ = LLMINFER_TRY(Buffer::make_host(device, bytes));
    LLMINFER_TRY(weight->write(view, staging, weight->memory_.at()));
    return weight;
  }
  if (weight->home_.kind == WeightHome::Kind::storage) {
    std::vector<std::byte> packed(static_cast<std::size_t>(bytes));
    LLMINFER_TRY(weight->write(view, staging, packed.data()));
    LLMINFER_TRY(weight->home_.storage->write(weight->home_.offset, packed));
    return weight;
  }
  weight->memory_ = LLMINFER_TRY(Buffer::make(device, bytes));
  auto sent = core::guarded([&] { return weight->send(view, staging); });
  LLMINFER_TRY(staging.finish());  // after an error, too: copies would go to memory that is released
  LLMINFER_TRY(std::move(sent));
  return weight;
}

/// All of it, to host memory.
Result<void> GpuWeight::write(const WeightView& view, Staging& staging, std::byte* to) const {
  std::array<std::byte*, kPlanes> planes{};
  const auto places = planes_of(layout_);
  for (std::size_t i = 0; i < kPlanes; ++i) planes[i] = to + places[i].offset;
  LLMINFER_TRY(RowWriter(view, layout_, staging.team()).write(0, view.rows, planes));
  return write_tail(view, to + layout_.table_at);
}

Result<void> GpuWeight::send(const WeightView& view, Staging& staging) {
  RowWriter writer(view, layout_, staging.team());
  const auto planes = planes_of(layout_);
  constexpr std::int64_t kGaps = kPlanes * 64;
  std::int64_t per_row = 0;
  for (const Plane& plane : planes) per_row += plane.row_bytes;
  const std::int64_t tail_bytes = memory_.bytes() - layout_.table_at;
  LLMINFER_TRY(staging.reserve(std::max(per_row + kGaps, tail_bytes)));
  const std::int64_t most = (staging.part_bytes() - kGaps) / per_row;
  for (std::int64_t first = 0; first < layout_.rows; first += most) {
    const std::int64_t count = std::min(most, layout_.rows - first);
    std::byte* at = LLMINFER_TRY(staging.next());
    std::array<std::byte*, kPlanes> to{};
    for (std::size_t i = 0; i < kPlanes; ++i) {
      to[i] = std::exchange(at, at + round_up(planes[i].row_bytes * count, 64));
    }
    LLMINFER_TRY(writer.write(first, count, to));
    for (std::size_t i = 0; i < kPlanes; ++i) {
      const auto [offset, row_bytes] = planes[i];
      if (row_bytes > 0) LLMINFER_TRY(staging.send(memory_.at(offset + first * row_bytes), to[i], row_bytes * count));
    }
    LLMINFER_TRY(staging.sent());
  }
  if (tail_bytes == 0) return {};
  std::byte* const tail = LLMINFER_TRY(staging.next());
  LLMINFER_TRY(write_tail(view, tail));
  LLMINFER_TRY(staging.send(memory_.at(layout_.table_at), tail, tail_bytes));
  return staging.sent();
}

/// What follows the rows, from the table on.
Result<void> GpuWeight::write_tail(const WeightView& view, std::byte* to) const {
  if (layout_.table) std::memcpy(to, layout_.table, 16 * sizeof(float));
  if (order_)
    std::memcpy(to + (layout_.order_at - layout_.table_at), order_->data(), order_->size() * sizeof(std::int32_t));
  if (layout_.rows > 1) return {};
  auto* const vector = reinterpret_cast<float*>(to + layout_.bytes - layout_.table_at);
  return unpack_rows(view, 0, 1, {vector, static_cast<std::size_t>(view.cols)});
}

MatrixArgs GpuWeight::matrix_at(const std::byte* data) const noexcept {
  const auto halves = [&](std::int64_t offset) { return reinterpret_cast<const std::uint16_t*>(data + offset); };
  const auto floats = [&](std::int64_t offset) { return reinterpret_cast<const float*>(data + offset); };
  MatrixArgs m{};
  m.form = layout_.form;
  m.rows = static_cast<int>(layout_.rows);
  m.cols = static_cast<int>(layout_.padded_cols);
  m.group_shift = layout_.group == 16 ? 4 : 5;
  m.zero = layout_.zero;
  m.high = data + layout_.high;
  m.pairs = halves(layout_.pairs);
  m.bits = reinterpret_cast<const std::uint8_t*>(data + layout_.bits);
  m.scales = layout_.scales_row ? halves(layout_.scale) : nullptr;
  m.minimums = layout_.minimums ? halves(layout_.minimum) : nullptr;
  m.factors = floats(layout_.factor);
  m.table = layout_.table ? floats(layout_.table_at) : nullptr;
  m.order = layout_.order ? reinterpret_cast<const std::int32_t*>(data + layout_.order_at) : nullptr;
  return m;
}

}  // namespace llminfer::gpu
