// Scales per input feature that are moved from a linear layer's inputs into its weights, which leaves the model what it
// is but makes it easier to round: AWQ (Lin et al. 2023, arXiv:2306.00978) and SmoothQuant (Xiao et al. 2022,
// arXiv:2211.10438).
#pragma once

#include <optional>
#include <span>
#include <vector>

#include <llminfer/program.hpp>
#include <llminfer/result.hpp>

#include "core/parallel.hpp"
#include "quantize/affine.hpp"
#include "quantize/executor.hpp"

namespace llminfer::quantize {

/// What makes the input of a group, and can take up the inverse of its scales: a norm, or the rows of a linear layer
/// whose output reaches the input element by element (the "up" projection of a gated unit; values, where each has a
/// head of its own).
struct Fold {
  const op::RmsNorm* norm = nullptr;
  const op::Linear* linear = nullptr;
};
/// Nothing where others use the input, too, or nothing before it can be scaled. The experts of a mixture are part of
/// the group; their own inner features can be scaled where their activation is linear in "up".
std::optional<Fold> find_fold(const Program& program, const OpRange& range, const LinearGroup& group);

/// Multiplies the columns of the group's weights by `scales`, and divides what makes the input and the input itself.
/// Not those of experts that are part of the group.
void apply_scales(const Fold& fold, const LinearGroup& group, std::span<const float> scales, FloatWeights& weights,
                  std::span<float> input);

/// mean or largest |x| of each column of an input // (tokens, width), or of a matrix
std::vector<float> mean_magnitude(std::span<const float> input, std::int64_t width);
std::vector<float> greatest_magnitude(std::span<const float> input, std::int64_t width);

/// Multiplies the columns of a matrix.
void scale_columns(std::span<float> weights, std::span<const float> scales);

/// The best of 20 exponents: scales x_mean^r / w_mean^(1 - r), after which the rounded weights' outputs are nearest to
/// the exact ones. Sees the weights that share the input one at a time, all of them twice: measure(), choose(),
/// try_on().
class AwqSearch {
 public:
  /// `magnitude` is the input's mean, `moments` its gram. All outlive this.
  AwqSearch(core::Team& team, std::span<const float> magnitude, std::span<const float> moments,
            const AffineScheme& scheme);

  void measure(std::span<const float> weights);
  void choose();
  Result<void> try_on(std::span<const float> weights);
  std::vector<float> best() const;

 private:
  core::Team& team_;
  const std::span<const float> magnitude_, moments_;
  const AffineScheme scheme_;
  std::vector<double> relative_;  ///< sums over rows of |w| over the largest |w| of the group of columns
  std::int64_t rows_ = 0;
  std::vector<std::vector<float>> candidates_;
  std::vector<double> losses_;  ///< of the candidates
};

/// For each group of columns the share of its range, 1 down to 0.55, with which the outputs are nearest.
/// // (rows, groups of a row)
Result<std::vector<float>> awq_clipping(core::Team& team, const AffineScheme& scheme, std::int64_t rows,
                                        std::int64_t cols, std::span<const float> values,
                                        std::span<const float> moments);

/// x_max^strength / w_max^(1 - strength), of each column.
std::vector<float> smoothquant_scales(std::span<const float> inputs, std::span<const float> weights, double strength);

}  // namespace llminfer::quantize
