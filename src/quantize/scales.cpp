#include "quantize/scales.hpp"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <numeric>

#include "core/error.hpp"
#include "quantize/gemm.hpp"
#include "quantize/writer.hpp"

namespace llminfer::quantize {
namespace {

constexpr int kGrid = 20;

std::vector<float>& weight(FloatWeights& weights, WeightId id) { return weights.at(static_cast<std::int32_t>(id)); }

/// Calls f(element, its column) for all elements of a matrix.
template <class T, class F>
void for_columns(T& values, std::size_t cols, const F& f) {
  for (std::size_t at = 0; at < values.size(); at += cols) {
    for (std::size_t k = 0; k < cols; ++k) f(values[at + k], k);
  }
}

int uses(const Program& program, ValueId value) {
  int count = value == program.hidden || value == program.logits ? 1 : 0;
  for (const Op& op : program.ops) for_inputs(op, [&](ValueId id) { count += id == value; });
  return count;
}

template <class T>
const T* producer(const Program& program, const OpRange& range, ValueId value) {
  for (std::size_t i = range.begin; i < range.end; ++i) {
    const auto* op = std::get_if<T>(&program.ops[i]);
    if (op && op->out == value) return op;
  }
  return nullptr;
}

std::int64_t width(const Program& program, ValueId value) {
  return program.values[static_cast<std::size_t>(value)].width;
}

/// sum of d M d^T over the rows d of `errors` // (rows, cols)
Result<double> output_error(core::Team& team, std::span<const float> errors, std::int64_t cols,
                            std::span<const float> moments, std::vector<float>& scratch) {
  const std::int64_t rows = static_cast<std::int64_t>(errors.size()) / cols;
  scratch.resize(errors.size());
  LLMINFER_TRY(
      multiply(team, matrix(errors.data(), rows, cols), matrix(moments.data(), cols, cols), scratch.data(), cols));
  std::vector<double> sums(static_cast<std::size_t>(rows));
  LLMINFER_TRY(for_rows(team, rows, [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t r = first; r < last; ++r) {
      for (std::int64_t k = r * cols; k < (r + 1) * cols; ++k) {
        const auto i = static_cast<std::size_t>(k);
        sums[static_cast<std::size_t>(r)] += static_cast<double>(errors[i]) * static_cast<double>(scratch[i]);
      }
    }
  }));
  return std::accumulate(sums.begin(), sums.end(), 0.0);
}

}  // namespace

std::optional<Fold> find_fold(const Program& program, const OpRange& range, const LinearGroup& group) {
  if (const Expert* const expert = group.expert) {
    const bool down = group.linears.front() == &expert->down;
    return down && expert->activation != Activation::clamped_swiglu ? std::optional(Fold{nullptr, &expert->up})
                                                                    : std::nullopt;
  }
  if (uses(program, group.in) != static_cast<int>(group.linears.size()) + (group.moe ? 1 : 0)) return std::nullopt;
  if (const auto* norm = producer<op::RmsNorm>(program, range, group.in)) return Fold{norm, nullptr};
  ValueId before = ValueId::none;
  if (const auto* glu = producer<op::Glu>(program, range, group.in)) before = glu->up;
  const auto* attention = producer<op::Attention>(program, range, group.in);
  if (attention && width(program, attention->v) == width(program, group.in)) before = attention->v;
  const auto* linear = before == ValueId::none ? nullptr : producer<op::Linear>(program, range, before);
  if (!linear || uses(program, before) != 1) return std::nullopt;
  return Fold{nullptr, linear};
}

void apply_scales(const Fold& fold, const LinearGroup& group, std::span<const float> scales, FloatWeights& weights,
                  std::span<float> input) {
  const std::size_t cols = scales.size();
  for_columns(input, cols, [&](float& x, std::size_t k) { x /= scales[k]; });
  if (fold.norm) {
    std::vector<float>& w = weight(weights, fold.norm->weight);
    for (std::size_t i = 0; i < cols; ++i) w[i] /= scales[i];
  } else {
    std::vector<float>& w = weight(weights, fold.linear->weight);
    const std::size_t inner = w.size() / cols;
    for (std::size_t i = 0; i < w.size(); ++i) w[i] /= scales[i / inner];
    if (fold.linear->bias != WeightId::none) {
      std::vector<float>& bias = weight(weights, fold.linear->bias);
      for (std::size_t i = 0; i < cols; ++i) bias[i] /= scales[i];
    }
  }
  for (const op::Linear* linear : group.linears) scale_columns(weight(weights, linear->weight), scales);
}

void scale_columns(std::span<float> weights, std::span<const float> scales) {
  for_columns(weights, scales.size(), [&](float& w, std::size_t k) { w *= scales[k]; });
}

std::vector<float> mean_magnitude(std::span<const float> input, std::int64_t width) {
  std::vector<double> sums(static_cast<std::size_t>(width));
  for_columns(input, sums.size(), [&](float x, std::size_t k) { sums[k] += static_cast<double>(std::fabs(x)); });
  std::vector<float> means;
  for (const double sum : sums)
    means.push_back(static_cast<float>(sum / static_cast<double>(input.size() / sums.size())));
  return means;
}

std::vector<float> greatest_magnitude(std::span<const float> input, std::int64_t width) {
  std::vector<float> most(static_cast<std::size_t>(width), 0.0f);
  for_columns(input, most.size(), [&](float x, std::size_t k) { most[k] = std::max(most[k], std::fabs(x)); });
  return most;
}

AwqSearch::AwqSearch(core::Team& team, std::span<const float> magnitude, std::span<const float> moments,
                     const AffineScheme& scheme)
    : team_(team), magnitude_(magnitude), moments_(moments), scheme_(scheme), relative_(magnitude.size()) {}

void AwqSearch::measure(std::span<const float> w) {
  const auto size = static_cast<std::size_t>(scheme_.group_size), cols = relative_.size();
  for (std::size_t at = 0; at < w.size(); at += size) {
    float most = 1e-12f;
    for (std::size_t i = 0; i < size; ++i) most = std::max(most, std::fabs(w[at + i]));
    const std::size_t first = at % cols;
    for (std::size_t i = 0; i < size; ++i) relative_[first + i] += static_cast<double>(std::fabs(w[at + i]) / most);
  }
  rows_ += static_cast<std::int64_t>(w.size() / cols);
}

void AwqSearch::choose() {
  const std::size_t cols = relative_.size();
  for (int step = -1; step < kGrid; ++step) {  // first as it is
    const float r = static_cast<float>(step) / kGrid;
    std::vector<float>& scales = candidates_.emplace_back(cols, 1.0f);
    for (std::size_t k = 0; k < cols && step >= 0; ++k) {
      const auto relative = static_cast<float>(relative_[k] / static_cast<double>(rows_));
      scales[k] = std::max(std::pow(magnitude_[k], r) / (std::pow(relative, 1 - r) + 1e-4f), 1e-4f);
    }
    const auto [low, high] = std::minmax_element(scales.begin(), scales.end());
    const float middle = std::sqrt(*low * *high);
    for (float& scale : scales) scale /= middle;
  }
  losses_.resize(candidates_.size());
}

Result<void> AwqSearch::try_on(std::span<const float> w) {
  const std::size_t n = relative_.size();
  const auto cols = static_cast<std::int64_t>(n), rows = static_cast<std::int64_t>(w.size() / n);
  std::vector<float> errors(w.size()), scaled(w.size()), scratch;
  for (std::size_t c = 0; c < candidates_.size(); ++c) {
    const std::vector<float>& scales = candidates_[c];
    AffineWeight rounded(scheme_, rows, cols);
    LLMINFER_TRY(for_rows(team_, rows, [&](std::int64_t first, std::int64_t last) {
      for (std::int64_t row = first; row < last; ++row) {
        const float* from = w.data() + row * cols;
        float* s = scaled.data() + row * cols;
        float* e = errors.data() + row * cols;
        for (std::size_t k = 0; k < n; ++k) s[k] = from[k] * scales[k];
        round_row(rounded, row, s);
        rounded.unpack_row(row, e);
        for (std::size_t k = 0; k < n; ++k) e[k] = e[k] / scales[k] - from[k];
      }
    }));
    losses_[c] += LLMINFER_TRY(output_error(team_, errors, cols, moments_, scratch));
  }
  return {};
}

std::vector<float> AwqSearch::best() const {
  const auto least = std::min_element(losses_.begin(), losses_.end());
  return candidates_[static_cast<std::size_t>(least - losses_.begin())];
}

Result<std::vector<float>> awq_clipping(core::Team& team, const AffineScheme& scheme, std::int64_t rows,
                                        std::int64_t cols, std::span<const float> values,
                                        std::span<const float> moments) {
  const std::int64_t size = scheme.group_size, groups = cols / size;
  std::vector<float> shares(static_cast<std::size_t>(rows * groups), 1.0f);
  std::vector<float> scratch(static_cast<std::size_t>(rows * size));
  LLMINFER_TRY(for_rows(team, rows, [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t row = first; row < last; ++row) {
      float* error = scratch.data() + row * size;
      for (std::int64_t g = 0; g < groups; ++g) {
        const float* w = values.data() + row * cols + g * size;
        float least = std::numeric_limits<float>::infinity();
        for (int step = 0; step < kGrid / 2; ++step) {
          const float share = 1 - static_cast<float>(step) / kGrid;
          const AffineGroup group = choose_group(scheme, w, size, share);
          for (std::int64_t i = 0; i < size; ++i) error[i] = group.value(group.code(w[i], scheme.top())) - w[i];
          float loss = 0;
          for (std::int64_t i = 0; i < size; ++i) {
            const float* m = moments.data() + (g * size + i) * cols + g * size;
            float dot = 0;
            for (std::int64_t j = 0; j < size; ++j) dot += m[j] * error[j];
            loss += dot * error[i];
          }
          if (loss >= least) continue;
          least = loss;
          shares[static_cast<std::size_t>(row * groups + g)] = share;
        }
      }
    }
  }));
  return shares;
}

std::vector<float> smoothquant_scales(std::span<const float> inputs, std::span<const float> weights, double strength) {
  std::vector<float> scales;
  for (std::size_t k = 0; k < inputs.size(); ++k) {
    const double x = std::max(static_cast<double>(inputs[k]), 1e-5),
                 w = std::max(static_cast<double>(weights[k]), 1e-5);
    scales.push_back(static_cast<float>(std::max(std::pow(x, strength) / std::pow(w, 1 - strength), 1e-5)));
  }
  return scales;
}

}  // namespace llminfer::quantize
