// Products of float matrices on all threads, with the widest vectors that the machine has. Knows no models.
#pragma once

#include <cstdint>

#include <llminfer/result.hpp>

#include "core/parallel.hpp"

namespace llminfer::quantize {

/// A view of floats: element (i, j) lies at data[i * row_step + j * col_step].
struct MatrixView {
  const float* data = nullptr;
  std::int64_t rows = 0, cols = 0;
  std::int64_t row_step = 0, col_step = 1;

  MatrixView transposed() const noexcept { return {data, cols, rows, col_step, row_step}; }
};
inline MatrixView matrix(const float* data, std::int64_t rows, std::int64_t cols) noexcept {
  return {data, rows, cols, cols, 1};
}

/// c // (a.rows, b.cols), rows c_step apart, gets alpha * a b, added to what is there if `add`. With `upper`, only
/// elements (i, j) with j >= i - 63 are sure to be computed.
Result<void> multiply(core::Team& team, const MatrixView& a, const MatrixView& b, float* c, std::int64_t c_step,
                      bool add = false, float alpha = 1, bool upper = false);

/// The same on the calling thread. Throws bad_alloc.
void multiply_here(const MatrixView& a, const MatrixView& b, float* c, std::int64_t c_step, bool add = false,
                   float alpha = 1);

}  // namespace llminfer::quantize
