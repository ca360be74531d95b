#include "quantize/gptq.hpp"

#include <Eigen/Cholesky>
#include <Eigen/Core>
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <utility>
#include <vector>

#include "core/error.hpp"
#include "quantize/gemm.hpp"
#include "quantize/writer.hpp"

namespace llminfer::quantize {
namespace {

constexpr std::int64_t kBlock = 128;  ///< columns whose errors reach the columns after them by one product

/// The upper triangular U with U^T U = H^-1 // (n, n), row-major. With J the reversal of an order, J H J = L L^T gives
/// H = R R^T with the upper triangular R = J L J, so that U = R^-1: one decomposition and one triangular inverse, made
/// some columns at a time. `reversed` // (n, n) is J H J; L takes its place.
Result<std::vector<float>> inverse_factor(std::vector<double> reversed, std::int64_t n) {
  using Matrix = Eigen::MatrixXd;
  constexpr std::int64_t kColumns = 128;
  Eigen::Map<Matrix> lower(reversed.data(), n, n);
  const Eigen::LLT<Eigen::Ref<Matrix>> cholesky(lower);  // in place
  if (cholesky.info() != Eigen::Success || !lower.diagonal().allFinite()) {
    return core::fail(ErrorCode::unsupported,
                      "GPTQ: the inputs' second moments have no Cholesky decomposition; expected "
                      "finite inputs, or more damping");
  }
  std::vector<float> factor(static_cast<std::size_t>(n * n), 0.0f);
  for (std::int64_t first = 0; first < n; first += kColumns) {
    const std::int64_t below = n - first, width = std::min(kColumns, below);  // above them the columns are zero
    Matrix columns = Matrix::Identity(below, width);
    lower.bottomRightCorner(below, below).triangularView<Eigen::Lower>().solveInPlace(columns);
    for (std::int64_t r = 0; r < below; ++r) {
      float* const row = factor.data() + (below - 1 - r) * n;
      for (std::int64_t c = 0; c < std::min(width, r + 1); ++c) {
        row[below - 1 - c] = static_cast<float>(columns(r, c));
      }
    }
  }
  return factor;
}

/// Scale and zero point of columns [begin, begin + size): of some shares of the values' range the one with the least
/// sum of (w - q)^2 / U_kk^2, which is what rounding column k adds to the squared error of the outputs.
AffineGroup search_group(const AffineScheme& scheme, const float* w, std::int64_t begin, const float* factor,
                         std::int64_t n) {
  constexpr int kSteps = 10;  // of 0.03
  AffineGroup best;
  float least = std::numeric_limits<float>::infinity();
  for (int step = 0; step < kSteps; ++step) {
    const AffineGroup group = choose_group(scheme, w + begin, scheme.group_size, 1 - 0.03f * static_cast<float>(step));
    float loss = 0;
    for (std::int64_t k = begin; k < begin + scheme.group_size; ++k) {
      const float error = (w[k] - group.value(group.code(w[k], scheme.top()))) / factor[k * n + k];
      loss += error * error;
    }
    if (loss >= least) continue;
    least = loss;
    best = group;
  }
  return best;
}

/// Rounds columns [begin, end) of one row; errors // (end - begin) gets each column's error over its diagonal element.
void round_columns(AffineWeight& out, std::int64_t row, float* w, const std::vector<float>& factor, std::int64_t begin,
                   std::int64_t end, float* errors, std::uint8_t* codes) {
  const std::int64_t n = out.cols, size = out.scheme.group_size;
  for (std::int64_t k = begin; k < end; ++k) {
    AffineGroup& group = out.group(row, k / size);
    if (k % size == 0) group = search_group(out.scheme, w, k, factor.data(), n);
    const float* u = factor.data() + k * n;
    codes[k] = group.code(w[k], out.scheme.top());
    const float error = (w[k] - group.value(codes[k])) / u[k];
    errors[k - begin] = error;
    for (std::int64_t j = k + 1; j < end; ++j) w[j] -= error * u[j];
  }
}

}  // namespace

Result<AffineWeight> gptq(core::Team& team, const AffineScheme& scheme, std::int64_t rows, std::int64_t cols,
                          std::span<float> weights, std::span<const float> hessian, const GptqOptions& options) {
  const auto n = static_cast<std::size_t>(cols);
  std::vector<std::int32_t> order(n);
  std::iota(order.begin(), order.end(), 0);
  const auto diagonal = [&](std::int32_t k) {
    return hessian[static_cast<std::size_t>(k) * n + static_cast<std::size_t>(k)];
  };
  if (options.activation_order) {
    std::stable_sort(order.begin(), order.end(), [&](auto a, auto b) { return diagonal(a) > diagonal(b); });
  }
  double mean = 0;
  for (std::size_t k = 0; k < n; ++k)
    mean += static_cast<double>(diagonal(static_cast<std::int32_t>(k))) / static_cast<double>(n);
  if (!(mean > 0)) mean = 1;

  std::vector<double> moments(n * n);  // the last column first
  for (std::size_t i = 0; i < n; ++i) {
    double* const row = moments.data() + (n - 1 - i) * n;
    for (std::size_t j = 0; j < n; ++j) {
      row[n - 1 - j] =
          static_cast<double>(hessian[static_cast<std::size_t>(order[i]) * n + static_cast<std::size_t>(order[j])]);
    }
    double& own = row[n - 1 - i];
    if (own == 0) own = mean;  // an input that is always 0
    own += options.damping * mean;
  }
  const std::vector<float> factor = LLMINFER_TRY(inverse_factor(std::move(moments), cols));

  AffineWeight out(scheme, rows, cols);
  std::vector<float> ordered(weights.size()), errors(static_cast<std::size_t>(rows * kBlock));
  std::vector<std::uint8_t> codes(weights.size());
  LLMINFER_TRY(for_rows(team, rows, [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t r = first; r < last; ++r) {
      for (std::size_t k = 0; k < n; ++k) {
        const auto from = static_cast<std::size_t>(order[k]);
        const bool dead = diagonal(order[k]) == 0;
        ordered[static_cast<std::size_t>(r) * n + k] = dead ? 0.0f : weights[static_cast<std::size_t>(r) * n + from];
      }
    }
  }));
  for (std::int64_t begin = 0; begin < cols; begin += kBlock) {
    const std::int64_t end = std::min(begin + kBlock, cols), width = end - begin;
    LLMINFER_TRY(for_rows(team, rows, [&](std::int64_t first, std::int64_t last) {
      for (std::int64_t r = first; r < last; ++r) {
        round_columns(out, r, ordered.data() + r * cols, factor, begin, end, errors.data() + r * width,
                      codes.data() + r * cols);
      }
    }));
    if (end == cols) break;
    const MatrixView right{factor.data() + begin * cols + end, width, cols - end, cols, 1};
    LLMINFER_TRY(multiply(team, matrix(errors.data(), rows, width), right, ordered.data() + end, cols, true, -1));
  }
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::size_t k = 0; k < n; ++k) {
      out.codes[static_cast<std::size_t>(r) * n + static_cast<std::size_t>(order[k])] =
          codes[static_cast<std::size_t>(r) * n + k];
    }
  }
  if (options.activation_order) {
    out.group_of.resize(n);
    for (std::size_t k = 0; k < n; ++k) {
      out.group_of[static_cast<std::size_t>(order[k])] =
          static_cast<std::int32_t>(static_cast<std::int64_t>(k) / scheme.group_size);
    }
  }
  return out;
}

}  // namespace llminfer::quantize
