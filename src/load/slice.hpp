// Slices of tensors: the rows and columns of a weight that one rank of several computes with.
#pragma once

#include <cstdint>

#include <llminfer/result.hpp>

#include "load/checkpoint.hpp"

namespace llminfer::load {

/// Rows [first_row, first_row + rows) and columns [first_col, first_col + cols) of a tensor.
struct TensorSlice {
  std::int64_t first_row = 0, rows = 0, first_col = 0, cols = 0;
  friend bool operator==(const TensorSlice&, const TensorSlice&) = default;
};

/// The least common multiple of two positive numbers; limit + 1 where that is more than `limit`.
std::int64_t common_unit(std::int64_t a, std::int64_t b, std::int64_t limit) noexcept;

/// Columns of a tensor can be cut at multiples of this: where its blocks end, and its groups with scales of their own.
/// More than the tensor has: nowhere.
std::int64_t column_unit(const TensorInfo& tensor) noexcept;

/// The slice as a tensor of its own; all of the tensor is the tensor itself. Where the tensor is stored as it is, only
/// its rows are read; packed weights are read and converted whole. Of columns that are stored in another order some are
/// floats, in the usual one. `slice` lies within the tensor.
/// Errors: unsupported, naming the tensor (columns that are no whole units).
Result<TensorInfo> slice_of(const TensorInfo& tensor, const TensorSlice& slice);

}  // namespace llminfer::load
