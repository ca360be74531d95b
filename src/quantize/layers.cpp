#include "quantize/layers.hpp"

#include <algorithm>
#include <cmath>
#include <utility>

#include "core/error.hpp"
#include "quantize/calibration.hpp"
#include "quantize/gptq.hpp"
#include "quantize/prune.hpp"
#include "quantize/scales.hpp"

namespace llminfer::quantize {
namespace {

/// sum of x^2 of each column of an input // (tokens, width)
std::vector<float> column_squares(std::span<const float> input, std::size_t width) {
  std::vector<double> sums(width);
  for (std::size_t at = 0; at < input.size(); at += width) {
    for (std::size_t k = 0; k < width; ++k)
      sums[k] += static_cast<double>(input[at + k]) * static_cast<double>(input[at + k]);
  }
  return {sums.begin(), sums.end()};
}

}  // namespace

LayerByLayer::LayerByLayer(const Source& source, const Layout& layout, const QuantizeOptions& options, Writer& writer,
                           core::Team& team)
    : checkpoint_(source.checkpoint), program_(source.program), options_(options), writer_(writer), team_(team) {
  for (const Job& job : layout.jobs) jobs_.emplace(job.tensor->name, &job);
}

Result<void> LayerByLayer::run(const std::string& state, bool resume, OnLayer on_layer) {
  auto pieces = LLMINFER_TRY(calibration_pieces(checkpoint_, options_));
  LayerRun run(program_, checkpoint_, std::move(pieces), team_);
  const LayerRanges ranges = split_layers(program_);
  std::size_t first = 0;
  auto saved = resume ? load_values(state, program_, run.tokens()) : std::nullopt;
  if (saved && saved->layer <= ranges.layers.size()) {
    first = saved->layer;
    run.set_values(std::move(saved->values));
  } else {
    LLMINFER_TRY(run.run(ranges.before, LLMINFER_TRY(run.load_weights(ranges.before)), {}));
  }
  for (std::size_t i = first; i < ranges.layers.size(); ++i) {
    FloatWeights weights = LLMINFER_TRY(run.load_weights(ranges.layers[i]));
    LLMINFER_TRY(quantize_layer(run, ranges.layers[i], weights));
    LLMINFER_TRY(write_others(weights));
    std::vector<const Job*> written;
    for (const auto& [id, values] : weights) written.push_back(&job_of(static_cast<WeightId>(id)));
    // First what is done, then the place to go on from: between the two, a layer would only be done again.
    Result<void> go_on = on_layer(written);
    if (i + 1 < ranges.layers.size()) LLMINFER_TRY(save_values(state, i + 1, run.values()));
    if (!go_on) return go_on;
  }
  return {};
}

Result<void> LayerByLayer::quantize_layer(LayerRun& run, const OpRange& range, FloatWeights& weights) {
  if (options_.method == QuantizeMethod::awq) LLMINFER_TRY(search_awq_scales(run, range, weights));
  return run.run(range, weights, [&](const LinearGroup& group, std::span<float> input) {
    return quantize_group(range, group, input, weights);
  });
}

/// Runs the layer once as it is, since the scales of one linear layer may go into the weights of another.
Result<void> LayerByLayer::search_awq_scales(LayerRun& run, const OpRange& range, FloatWeights& weights) {
  LayerRun::Values before = run.values();
  LLMINFER_TRY(run.run(range, weights, [&](const LinearGroup& group, std::span<float> input) -> Result<void> {
    const auto fold = find_fold(program_, range, group);
    if (!fold) return {};
    const std::int64_t width = program_.values[static_cast<std::size_t>(group.in)].width;
    const auto moments = LLMINFER_TRY(gram(team_, input, width));
    const auto scales = LLMINFER_TRY(awq_scales(team_, group, weights, mean_magnitude(input, width), moments,
                                                job_of(group.linears.front()->weight).scheme, program_));
    apply_scales(*fold, group, scales, weights, input);
    return {};
  }));
  run.set_values(std::move(before));
  return {};
}

Result<void> LayerByLayer::quantize_group(const OpRange& range, const LinearGroup& group, std::span<float> input,
                                          FloatWeights& weights) {
  const std::int64_t width = program_.values[static_cast<std::size_t>(group.in)].width;
  if (options_.method == QuantizeMethod::smoothquant) {
    const auto fold = find_fold(program_, range, group);
    if (fold && fold->norm) {  // outliers come from norms
      const auto scales = smoothquant_scales(group, weights, greatest_magnitude(input, width), options_.smoothing);
      apply_scales(*fold, group, scales, weights, input);
    }
  }
  std::vector<float> moments;
  if (options_.method == QuantizeMethod::gptq || options_.method == QuantizeMethod::awq) {
    moments = LLMINFER_TRY(gram(team_, input, width));
  }
  const std::vector<float> squares = column_squares(input, static_cast<std::size_t>(width));
  for (const op::Linear* linear : group.linears) {
    LLMINFER_TRY(quantize_linear(*linear, weights.at(static_cast<std::int32_t>(linear->weight)), moments, squares));
  }
  return {};
}

/// Writes a matrix, and leaves in `values` what was written.
Result<void> LayerByLayer::quantize_linear(const op::Linear& linear, std::span<float> values,
                                           std::span<const float> moments, std::span<const float> squares) {
  const Job& job = job_of(linear.weight);
  const std::int64_t rows = job.tensor->rows, cols = job.tensor->cols;
  if (options_.prune != PruneMethod::none) {
    std::vector<float> norms;
    if (options_.prune == PruneMethod::wanda) {
      for (const float square : squares) norms.push_back(std::sqrt(square));
    }
    LLMINFER_TRY(prune(team_, options_, cols, values, norms));
  }
  if (!job.affine) return writer_.write_values(job, values, squares);

  AffineWeight rounded(job.scheme, 0, cols);
  if (options_.method == QuantizeMethod::gptq) {
    rounded = LLMINFER_TRY(
        gptq(team_, job.scheme, rows, cols, values, moments, {options_.damping, options_.activation_order}));
  } else if (options_.method == QuantizeMethod::awq && !rotated(linear)) {
    const auto shares = LLMINFER_TRY(awq_clipping(team_, job.scheme, rows, cols, values, moments));
    rounded = AffineWeight(job.scheme, rows, cols);
    const auto groups = static_cast<std::size_t>(rounded.groups_of_row());
    LLMINFER_TRY(for_rows(team_, rows, [&](std::int64_t first, std::int64_t last) {
      for (std::int64_t r = first; r < last; ++r) {
        round_row(rounded, r, values.data() + r * cols,
                  std::span(shares).subspan(static_cast<std::size_t>(r) * groups, groups));
      }
    }));
  } else {
    rounded = LLMINFER_TRY(round_all(job.scheme, rows, cols, values, team_));
  }
  LLMINFER_TRY(for_rows(team_, rows, [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t r = first; r < last; ++r) rounded.unpack_row(r, values.data() + r * cols);
  }));
  return writer_.write_affine(job, rounded);
}

/// Queries and keys: clipping their weights harms the scores, so AWQ leaves them as they are.
bool LayerByLayer::rotated(const op::Linear& linear) const {
  return std::any_of(program_.ops.begin(), program_.ops.end(), [&](const Op& op) {
    const auto* rope = std::get_if<op::Rope>(&op);
    return rope && rope->in == linear.out;
  });
}

Result<void> LayerByLayer::write_others(const FloatWeights& weights) {
  for (const auto& [id, values] : weights) {
    const Job& job = job_of(static_cast<WeightId>(id));
    if (!job.linear) LLMINFER_TRY(writer_.write_values(job, values));
  }
  return {};
}

}  // namespace llminfer::quantize
