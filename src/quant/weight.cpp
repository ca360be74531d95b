// The public functions of llminfer/weight.hpp, on top of the format table.
#include <llminfer/weight.hpp>

#include "core/checked.hpp"
#include "core/error.hpp"
#include "quant/format.hpp"

namespace llminfer::inline v0 {
namespace {

bool known(WeightType type) noexcept { return static_cast<std::size_t>(type) < quant::formats().size(); }

Result<void> check_permutation(const WeightView& view) {
  const std::vector<std::int32_t>& permutation = *view.details.permutation;
  std::vector<bool> seen(static_cast<std::size_t>(view.cols), false);
  for (const std::int32_t column : permutation) {
    const bool known = column >= 0 && column < view.cols;
    if (!known || seen[static_cast<std::size_t>(column)] || permutation.size() != seen.size()) {
      return core::fail(ErrorCode::invalid_argument, "weight '", view.name, "': not a permutation of its ", view.cols,
                        " columns");
    }
    seen[static_cast<std::size_t>(column)] = true;
  }
  return {};
}

/// Does the work of unpack_rows; may throw bad_alloc while it words an error.
Result<void> unpack_checked(const WeightView& view, std::int64_t first_row, std::int64_t rows, std::span<float> out) {
  using core::fail;
  if (!known(view.type)) {
    return fail(ErrorCode::invalid_argument, "weight '", view.name, "': unknown type ", static_cast<int>(view.type));
  }
  const quant::Format& format = quant::format(view.type);
  const auto block_values = static_cast<std::uint64_t>(format.block_values);
  if (view.rows < 0 || view.cols < 0 || static_cast<std::uint64_t>(view.cols) % block_values != 0) {
    return fail(ErrorCode::invalid_argument, "weight '", view.name, "': shape [", view.rows, ", ", view.cols,
                "] is no whole number of blocks of ", block_values, " (", format.name, ")");
  }
  const std::uint64_t row_blocks = static_cast<std::uint64_t>(view.cols) / block_values;
  const std::uint64_t block_bytes = static_cast<std::uint64_t>(format.block_bytes);
  const auto row_bytes = core::checked_mul(row_blocks, block_bytes);
  const auto all_bytes = row_bytes ? core::checked_mul(*row_bytes, static_cast<std::uint64_t>(view.rows)) : row_bytes;
  if (!all_bytes || *all_bytes != view.data.size()) {
    return fail(ErrorCode::invalid_argument, "weight '", view.name, "': ", view.data.size(), " bytes do not hold [",
                view.rows, ", ", view.cols, "] of ", format.name);
  }
  if (first_row < 0 || rows < 0 || first_row > view.rows || rows > view.rows - first_row) {
    return fail(ErrorCode::invalid_argument, "weight '", view.name, "': rows ", first_row, " to ", first_row, " + ",
                rows, " are not within its ", view.rows, " rows");
  }
  const auto values = core::checked_mul(static_cast<std::uint64_t>(rows), static_cast<std::uint64_t>(view.cols));
  if (!values || *values != out.size()) {
    return fail(ErrorCode::invalid_argument, "weight '", view.name, "': the output has ", out.size(), " elements, not ",
                rows, " * ", view.cols);
  }

  // rows * row_bytes <= data.size() by the checks above, so nothing from here on overflows.
  const auto* block =
      reinterpret_cast<const std::uint8_t*>(view.data.data()) + static_cast<std::uint64_t>(first_row) * *row_bytes;
  float* to = out.data();
  const std::vector<std::int32_t>* permutation = view.details.permutation.get();
  if (!permutation) {
    for (std::uint64_t n = static_cast<std::uint64_t>(rows) * row_blocks; n > 0; --n) {
      format.unpack(block, to);
      block += block_bytes;
      to += block_values;
    }
    return {};
  }
  LLMINFER_TRY(check_permutation(view));
  float block_of[256];
  for (std::int64_t row = 0; row < rows; ++row, to += view.cols) {
    for (std::uint64_t col = 0; col < static_cast<std::uint64_t>(view.cols);
         col += block_values, block += block_bytes) {
      format.unpack(block, block_of);
      for (std::uint64_t i = 0; i < block_values; ++i) to[(*permutation)[col + i]] = block_of[i];
    }
  }
  return {};
}

}  // namespace

WeightTypeInfo weight_type_info(WeightType type) noexcept {
  if (!known(type)) return {"unknown", 1, 0};
  const quant::Format& format = quant::format(type);
  return {format.name, static_cast<std::uint32_t>(format.block_values), static_cast<std::uint32_t>(format.block_bytes)};
}

Result<void> unpack_rows(const WeightView& view, std::int64_t first_row, std::int64_t rows, std::span<float> out) {
  return core::guarded([&] { return unpack_checked(view, first_row, rows, out); });
}

}  // namespace llminfer::inline v0
