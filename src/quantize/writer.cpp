#include "quantize/writer.hpp"

#include <algorithm>
#include <atomic>
#include <cmath>

#include "core/error.hpp"
#include "quant/format.hpp"
#include "quantize/blocks.hpp"
#include "quantize/prune.hpp"

namespace llminfer::quantize {
namespace {

using core::fail;

constexpr std::int64_t kPieceValues = 1 << 22;  ///< read, converted and written together
constexpr float kMostHalf = 65504.0f;

}  // namespace

Result<void> for_rows(core::Team& team, std::int64_t rows, core::FunctionRef<void(std::int64_t, std::int64_t)> body) {
  const std::int64_t chunks = std::min<std::int64_t>(rows, 16 * team.threads());
  const int phases[] = {static_cast<int>(chunks)};
  return team.run(phases, [&](int, int chunk, int) { body(rows * chunk / chunks, rows * (chunk + 1) / chunks); });
}

Result<AffineWeight> round_all(const AffineScheme& scheme, std::int64_t rows, std::int64_t cols,
                               std::span<const float> values, core::Team& team) {
  AffineWeight weight(scheme, rows, cols);
  LLMINFER_TRY(for_rows(team, rows, [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t r = first; r < last; ++r) round_row(weight, r, values.data() + r * cols);
  }));
  return weight;
}

/// Errors: corrupt (a value that is no number), unsupported (one that is too large for the type).
Result<void> Writer::check_values(const Job& job, std::span<const float> values) {
  std::atomic<bool> finite{true}, fits{true};
  LLMINFER_TRY(for_rows(team_, static_cast<std::int64_t>(values.size()), [&](std::int64_t first, std::int64_t last) {
    float most = 0;
    bool numbers = true;
    for (std::int64_t i = first; i < last; ++i) {
      const float magnitude = std::fabs(values[static_cast<std::size_t>(i)]);
      numbers &= magnitude <= 3.4e38f;
      most = std::max(most, magnitude);
    }
    if (!numbers) finite = false;
    if (most > kMostHalf) fits = false;
  }));
  if (!finite) return fail(ErrorCode::corrupt, "tensor ", job.tensor->name, ": a value is not finite");
  const bool wide = !job.affine && (job.type == WeightType::f32 || job.type == WeightType::bf16);
  if (fits || wide) return {};
  return fail(ErrorCode::unsupported, "tensor ", job.tensor->name,
              ": a value is above 65504, the greatest half-precision number; "
              "expected BF16 or F32 for it");
}

Result<void> Writer::write_blocks(const Job& job, std::int64_t first_row, std::span<const float> values,
                                  std::span<const float> importance) {
  const quant::Format& format = quant::format(job.type);
  const std::int64_t cols = job.tensor->cols, rows = static_cast<std::int64_t>(values.size()) / cols;
  const std::int64_t row_bytes = cols / format.block_values * format.block_bytes;
  std::vector<std::uint8_t> bytes(static_cast<std::size_t>(rows * row_bytes));
  LLMINFER_TRY(for_rows(team_, rows, [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t r = first; r < last; ++r) {
      encode_row(job.type, values.data() + r * cols, cols, importance.empty() ? nullptr : importance.data(),
                 bytes.data() + r * row_bytes);
    }
  }));
  return file_.write(job.places[0].offset + static_cast<std::uint64_t>(first_row * row_bytes),
                     std::as_bytes(std::span(bytes)));
}

Result<void> Writer::write_stored(const Job& job) {
  const load::TensorInfo& tensor = *job.tensor;
  const WeightView view = LLMINFER_TRY(checkpoint_.read(tensor));
  if (!job.affine && view.type == job.type && !view.details.permutation) {
    LLMINFER_TRY(file_.write(job.places[0].offset, view.data));
  } else if (job.affine) {
    LLMINFER_TRY(write_values(job, LLMINFER_TRY(read_floats(checkpoint_, tensor))));
  } else {
    const std::int64_t step = std::max<std::int64_t>(1, kPieceValues / tensor.cols);
    std::vector<float> values(static_cast<std::size_t>(std::min(step, tensor.rows) * tensor.cols));
    for (std::int64_t row = 0; row < tensor.rows; row += step) {
      const std::int64_t rows = std::min(step, tensor.rows - row);
      const auto piece = std::span(values).first(static_cast<std::size_t>(rows * tensor.cols));
      LLMINFER_TRY(unpack_rows(view, row, rows, piece));
      LLMINFER_TRY(check_values(job, piece));
      LLMINFER_TRY(write_blocks(job, row, piece, {}));
    }
  }
  checkpoint_.release(tensor);
  return {};
}

Result<void> Writer::write_pruned(const Job& job) {
  std::vector<float> values = LLMINFER_TRY(read_floats(checkpoint_, *job.tensor));
  checkpoint_.release(*job.tensor);
  LLMINFER_TRY(prune(team_, options_, job.tensor->cols, values, {}));
  return write_values(job, values);
}

Result<void> Writer::write_values(const Job& job, std::span<const float> values, std::span<const float> importance) {
  LLMINFER_TRY(check_values(job, values));
  if (!job.affine) return write_blocks(job, 0, values, importance);
  return write_affine(job, LLMINFER_TRY(round_all(job.scheme, job.tensor->rows, job.tensor->cols, values, team_)));
}

Result<void> Writer::write_affine(const Job& job, const AffineWeight& weight) {
  const auto parts = pack(weight, options_);
  for (std::size_t i = 0; i < parts.size(); ++i) LLMINFER_TRY(file_.write(job.places[i].offset, parts[i]));
  return {};
}

}  // namespace llminfer::quantize
