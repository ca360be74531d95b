// What the backend makes of a weight: a matrix in panels, a matrix as it lies in the checkpoint (exact mode), or a
// vector.
#pragma once

#include <memory>
#include <utility>
#include <vector>

#include "backends/cpu/level.hpp"

namespace llminfer::cpu {

/// A weight of one row, as floats.
class VectorWeight final : public PreparedWeight {
 public:
  explicit VectorWeight(std::vector<float> values) : values_(std::move(values)) {}
  std::int64_t bytes() const noexcept override { return static_cast<std::int64_t>(values_.size() * sizeof(float)); }
  const std::vector<float>& values() const noexcept { return values_; }

 private:
  std::vector<float> values_;
};

/// A weight matrix [rows, cols] to multiply with, whichever form it has. Refers to a prepared weight that lives on.
class Matrix {
 public:
  Matrix() = default;
  explicit Matrix(const PackedWeight& packed) : packed_(&packed), rows_(packed.rows()), cols_(packed.cols()) {}
  explicit Matrix(const ExactWeight& exact) : exact_(&exact), rows_(exact.rows()), cols_(exact.cols()) {}

  std::int64_t rows() const noexcept { return rows_; }
  std::int64_t cols() const noexcept { return cols_; }
  /// Which activations multiply() reads, where the host wants such codes.
  InputForm form(ActivationCodes wanted) const noexcept { return packed_ ? packed_->form(wanted) : InputForm::floats; }
  /// Whether codes have 8 bits once they are unpacked: those that levels multiplying words have no quicker way for.
  bool wide_codes() const noexcept { return packed_ && cpu::wide_codes(panel_shape(packed_->kind())); }
  /// The order in which it wants their columns; null: their own.
  const std::vector<std::int32_t>* order() const noexcept { return packed_ ? packed_->order() : nullptr; }
  /// How the checkpoint rounds the input.
  const InputQuantization& input() const noexcept {
    static constexpr InputQuantization kNone{};
    return packed_ ? packed_->input() : exact_ ? exact_->input() : kNone;
  }
  /// Bytes of PanelRoom::scratch that multiply() and read_row() need now; once 0, always 0.
  std::int64_t room_bytes() const noexcept {
    const PendingPanels* const panels = packed_ ? packed_->pending() : nullptr;
    return panels ? panels->unit_bytes() : 0;
  }
  /// Work on a matrix is shared out in units of kUnitFeatures.
  std::int32_t units() const noexcept { return static_cast<std::int32_t>((rows_ + kUnitFeatures - 1) / kUnitFeatures); }

  /// out[row * out_stride + n] = x[row] * w[n], n in units [first, last), rows [row_begin, row_end).
  void multiply(const LinearKernels& kernels, std::int32_t first, std::int32_t last, const ActivationView& x,
                std::int32_t row_begin, std::int32_t row_end, float* out, std::int64_t out_stride, void* scratch,
                const PanelRoom& room) const noexcept {
    if (PendingPanels* const panels = packed_ ? packed_->pending() : nullptr) {
      for (std::int32_t unit = first; unit < last; ++unit) {
        const PackedWeightView view = panels->unit(unit, room);
        const auto count = static_cast<std::int32_t>((view.rows + kPanelRows - 1) / kPanelRows);
        kernels.linear(view, 0, count, x, row_begin, row_end, out + std::int64_t{unit} * kUnitFeatures, out_stride,
                       scratch);
      }
    } else if (packed_) {
      const std::int32_t end = std::min(2 * last, packed_->panels());
      kernels.linear(packed_->view(), 2 * first, end, x, row_begin, row_end, out, out_stride, scratch);
    } else {
      const std::int64_t end = std::min(std::int64_t{last} * kUnitFeatures, rows_);
      linear_exact(kernels, *exact_, std::int64_t{first} * kUnitFeatures, end, x.f32, x.stride, row_begin, row_end, out,
                   out_stride, static_cast<float*>(scratch));
    }
  }
  void read_row(std::int64_t row, float* out, const PanelRoom& room) const noexcept {
    packed_ ? packed_->read_row(row, out, room) : exact_->read_row(row, out);
  }

 private:
  const PackedWeight* packed_ = nullptr;
  const ExactWeight* exact_ = nullptr;
  std::int64_t rows_ = 0, cols_ = 0;
};

}  // namespace llminfer::cpu
