// Weights in the form that the GPU kernels read (MatrixArgs), and how each format gets there.
//
// Formats of codes keep their codes, each width in its own planes, with half-precision scales relative to the largest
// of the row, or exactly where the row has but one; all others become halves relative to the largest of the row. See
// docs/adr/0014.
#pragma once

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include <llminfer/backend.hpp>

#include "backends/gpu/device.hpp"
#include "backends/gpu/staging.hpp"

namespace llminfer::gpu {

/// Columns that a prepared matrix has, and inputs of its layer: whole blocks.
constexpr std::int64_t padded_columns(std::int64_t cols) noexcept {
  return (cols + kColumnBlock - 1) / kColumnBlock * kColumnBlock;
}

/// Where the parts of a prepared matrix lie in its memory, and its constants.
struct MatrixLayout {
  Form form = Form::f16;
  std::int64_t rows = 0, cols = 0;  ///< true
  std::int64_t padded_cols = 0;
  int group = 32;  ///< columns that share a scale
  float zero = 0.0f;
  bool minimums = false;
  const float* table = nullptr;  ///< [16]
  bool sums = false;             ///< of codes less the zero point, of the whole row
  bool order = false;            ///< MatrixArgs::order
  // Bytes per row of each part, 0 for those that the form has not; and the parts' offsets.
  std::int64_t high_row = 0, pairs_row = 0, bits_row = 0, scales_row = 0;
  std::int64_t high = 0, pairs = 0, bits = 0, scale = 0, minimum = 0, factor = 0, sum = 0, table_at = 0, order_at = 0;
  std::int64_t bytes = 0;
};
MatrixLayout matrix_layout(WeightType type, std::int64_t rows, std::int64_t cols, const WeightDetails& details = {});

/// Where a weight's bytes are.
struct WeightHome {
  enum class Kind : std::uint8_t { device, host, storage } kind = Kind::device;  ///< in the others it is streamed
  std::shared_ptr<WeightStorage> storage{};
  std::int64_t offset = 0;  ///< in the storage
};

/// A matrix, or a vector of floats (rows == 1, for norms and biases, as well as a matrix of one row).
class GpuWeight final : public PreparedWeight {
 public:
  /// For the device of `staging`. Errors: invalid_argument, out_of_memory, device_error, those of the storage.
  static Result<std::unique_ptr<GpuWeight>> make(const WeightView& view, Staging& staging, WeightHome home = {});
  static std::int64_t bytes_of(WeightType type, std::int64_t rows, std::int64_t cols,
                               const WeightDetails& details = {});

  std::int64_t bytes() const noexcept override { return bytes_; }
  std::int64_t rows() const noexcept { return layout_.rows; }
  std::int64_t cols() const noexcept { return layout_.cols; }
  int padded_cols() const noexcept { return static_cast<int>(layout_.padded_cols); }
  Form form() const noexcept { return layout_.form; }
  const InputQuantization& input() const noexcept { return input_; }
  bool rounds() const noexcept { return input_.kind != InputQuantization::Kind::none; }
  /// Whether its layer's inputs are neither rounded nor in another order.
  bool takes_inputs_as_they_are() const noexcept { return !rounds() && !order_; }
  /// Whether both take their layer's inputs rounded alike and in the same order.
  bool takes_inputs_like(const GpuWeight& other) const noexcept;
  /// Columns of a row that share a scale, as LinearArgs::weight_group; less than 0: it is not to be multiplied as E4M3.
  int e4m3_group() const noexcept;
  /// Whether its layer's rows and it are multiplied as the integers that they are (LinearArgs::codes).
  bool w8a8() const noexcept { return w8a8_; }
  bool streamed() const noexcept { return home_.kind != WeightHome::Kind::device; }
  bool in_storage() const noexcept { return home_.kind == WeightHome::Kind::storage; }
  const WeightHome& home() const noexcept { return home_; }
  /// Whether kernels decode both alike.
  bool decodes_as(const GpuWeight& other) const noexcept {
    return layout_.form == other.layout_.form && layout_.table == other.layout_.table;
  }
  const std::byte* data() const noexcept { return memory_.at(); }  ///< bytes(); null if in_storage()
  /// Not of one that is in_storage().
  MatrixArgs matrix() const noexcept { return matrix_at(data()); }
  /// Of a copy of its bytes.
  MatrixArgs matrix_at(const std::byte* data) const noexcept;
  /// LinearArgs::weight_sums, null unless w8a8()
  const std::int32_t* sums_at(const std::byte* data) const noexcept {
    return w8a8_ ? reinterpret_cast<const std::int32_t*>(data + layout_.sum) : nullptr;
  }
  /// [cols], null unless rows == 1
  const float* vector_at(const std::byte* data) const noexcept {
    return rows() == 1 ? reinterpret_cast<const float*>(data + layout_.bytes) : nullptr;
  }
  const Device* device() const noexcept { return device_.get(); }
  /// As long as the weight.
  void keep(std::shared_ptr<const void> object) noexcept { kept_ = std::move(object); }

 private:
  Result<void> send(const WeightView& view, Staging& staging);
  Result<void> write(const WeightView& view, Staging& staging, std::byte* to) const;
  Result<void> write_tail(const WeightView& view, std::byte* to) const;

  std::shared_ptr<Device> device_;
  MatrixLayout layout_;
  InputQuantization input_;
  std::shared_ptr<const std::vector<std::int32_t>> order_;  ///< of its columns, if the layout has it
  std::int64_t scale_columns_ = 0;                          ///< WeightDetails'
  bool w8a8_ = false;
  WeightHome home_;
  std::int64_t bytes_ = 0;
  Buffer memory_;
  std::shared_ptr<const void> kept_;
};
}  // namespace llminfer::gpu
