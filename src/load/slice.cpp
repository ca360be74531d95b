#include "load/slice.hpp"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <utility>
#include <vector>

#include "core/error.hpp"
#include "load/packing.hpp"

namespace llminfer::load {
namespace {

std::uint64_t bytes_of_values(WeightType type, std::int64_t values) {
  const WeightTypeInfo info = weight_type_info(type);
  return static_cast<std::uint64_t>(values) / info.block_values * info.block_bytes;
}

/// A slice that does not lie in the file in one piece.
class Cut final : public Packing {
 public:
  Cut(TensorInfo whole, const TensorSlice& slice) : whole_(std::move(whole)), slice_(slice) {}

  Result<WeightView> read(const Checkpoint& checkpoint, const TensorInfo& tensor, core::Team* team) const override {
    const WeightView whole = LLMINFER_TRY(checkpoint.read(whole_, team));
    if (tensor.type != whole.type) return expand(whole, tensor);
    const std::uint64_t row_bytes = bytes_of_values(whole.type, whole.cols);
    const std::uint64_t begin = bytes_of_values(whole.type, slice_.first_col);
    const std::uint64_t bytes = bytes_of_values(whole.type, slice_.cols);
    if (slice_.cols == whole.cols) {
      WeightView rows = whole;
      rows.name = tensor.name;
      rows.rows = slice_.rows;
      rows.data = whole.data.subspan(static_cast<std::uint64_t>(slice_.first_row) * row_bytes,
                                     static_cast<std::uint64_t>(slice_.rows) * row_bytes);
      return rows;
    }
    BlockBuffer buffer(whole.type, slice_.rows, slice_.cols);
    for (std::int64_t r = 0; r < slice_.rows; ++r) {
      const std::uint64_t at = static_cast<std::uint64_t>(slice_.first_row + r) * row_bytes + begin;
      std::memcpy(buffer.row(r), whole.data.subspan(at, bytes).data(), bytes);
    }
    return buffer.view(tensor);
  }

 private:
  Result<WeightView> expand(const WeightView& whole, const TensorInfo& tensor) const {
    BlockBuffer buffer(tensor.type, slice_.rows, slice_.cols);
    std::vector<float> row(static_cast<std::size_t>(whole.cols));
    for (std::int64_t r = 0; r < slice_.rows; ++r) {
      LLMINFER_TRY(unpack_rows(whole, slice_.first_row + r, 1, row));
      std::memcpy(buffer.row(r), row.data() + slice_.first_col, static_cast<std::size_t>(slice_.cols) * sizeof(float));
    }
    return buffer.view(tensor);
  }

  const TensorInfo whole_;
  const TensorSlice slice_;
};

}  // namespace

std::int64_t common_unit(std::int64_t a, std::int64_t b, std::int64_t limit) noexcept {
  return a <= limit && b <= limit && a / std::gcd(a, b) <= limit / b ? std::lcm(a, b) : limit + 1;
}

std::int64_t column_unit(const TensorInfo& tensor) noexcept {
  const WeightDetails& details = tensor.details;
  std::int64_t unit = details.permutation ? 1 : weight_type_info(tensor.type).block_values;
  for (const std::int64_t group :
       {details.permutation ? 0 : details.scale_columns, std::int64_t{details.input.group}}) {
    if (group > 0 && group < tensor.cols) unit = common_unit(unit, group, tensor.cols);
  }
  return unit;
}

Result<TensorInfo> slice_of(const TensorInfo& tensor, const TensorSlice& slice) {
  if (slice == TensorSlice{0, tensor.rows, 0, tensor.cols}) return tensor;
  const bool all_columns = slice.cols == tensor.cols;
  const std::int64_t unit = column_unit(tensor), end = slice.first_col + slice.cols;
  if (!all_columns && (slice.first_col % unit != 0 || (end % unit != 0 && end != tensor.cols))) {
    return core::fail(ErrorCode::unsupported, "tensor ", tensor.name, ", type ", weight_type_info(tensor.type).name,
                      ": columns ", slice.first_col, " to ", end, " are no multiples of ", unit,
                      ", the values that are stored together");
  }
  TensorInfo part = tensor;
  const auto range = [](std::int64_t from, std::int64_t to) {
    return std::to_string(from).append(":").append(std::to_string(to));
  };
  part.name.append("[").append(range(slice.first_row, slice.first_row + slice.rows));
  part.name.append(",").append(range(slice.first_col, end)).append("]");
  part.rows = slice.rows;
  part.cols = slice.cols;
  part.shape = {slice.rows, slice.cols};
  part.details.scale_columns = std::min(tensor.details.scale_columns, slice.cols);
  if (!all_columns && tensor.details.permutation) {  // each part has columns of all groups
    part.type = WeightType::f32;
    part.details.permutation = nullptr;
    part.details.scale_columns = 0;
    part.packing = std::make_shared<Cut>(tensor, slice);
    return part;
  }
  if (tensor.packing) {  // `offset` and `bytes` stay: all of it is read
    part.packing = std::make_shared<Cut>(tensor, slice);
    return part;
  }
  const std::uint64_t row_bytes = bytes_of_values(tensor.type, tensor.cols);
  part.offset += static_cast<std::uint64_t>(slice.first_row) * row_bytes;
  part.bytes = static_cast<std::uint64_t>(slice.rows) * row_bytes;
  if (all_columns) return part;
  TensorInfo rows = part;
  rows.cols = tensor.cols;
  part.packing = std::make_shared<Cut>(std::move(rows), TensorSlice{0, slice.rows, slice.first_col, slice.cols});
  return part;
}

}  // namespace llminfer::load
