#include "quantize/layers.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <optional>
#include <utility>

#include "core/error.hpp"
#include "quantize/calibration.hpp"
#include "quantize/gptq.hpp"
#include "quantize/prune.hpp"
#include "quantize/scales.hpp"

namespace llminfer::quantize {
namespace {

/// GPTQ and AWQ need a token of an expert for so many of its input features.
constexpr std::int64_t kFeaturesPerToken = 8;

/// The index of the linear operation that gives the logits.
std::optional<std::size_t> output_of(const Program& program) {
  for (std::size_t i = 0; i < program.ops.size(); ++i) {
    const auto* linear = std::get_if<op::Linear>(&program.ops[i]);
    if (linear && linear->out == program.logits) return i;
  }
  return std::nullopt;
}

/// sum of x^2 of each column of an input // (tokens, width)
std::vector<float> column_squares(std::span<const float> input, std::size_t width) {
  std::vector<double> sums(width);
  for (std::size_t at = 0; at < input.size(); at += width) {
    for (std::size_t k = 0; k < width; ++k)
      sums[k] += static_cast<double>(input[at + k]) * static_cast<double>(input[at + k]);
  }
  return {sums.begin(), sums.end()};
}

/// Of features that the calibration never has, a little: nothing would be left of them.
std::vector<float> importance_of(std::span<const float> squares) {
  const double sum = std::accumulate(squares.begin(), squares.end(), 0.0);
  const auto least = static_cast<float>(1e-6 * sum / static_cast<double>(std::max<std::size_t>(squares.size(), 1)));
  std::vector<float> importance(squares.begin(), squares.end());
  for (float& square : importance) square = std::max(square, least);
  return importance;
}

/// Whether the second moments of a group's input // (tokens, width) may choose its numbers. With fewer tokens of an
/// expert they tell more of these tokens than of the inputs to come.
bool enough_tokens(const LinearGroup& group, std::span<const float> input) {
  const std::int64_t tokens = static_cast<std::int64_t>(input.size()) / group.width;
  return group.expert ? tokens * kFeaturesPerToken >= group.width : tokens > 0;
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
  const auto output = output_of(program_);
  const bool with_output = output && job_of(std::get<op::Linear>(program_.ops[*output]).weight).linear;
  std::size_t first = 0;
  auto saved = resume ? load_values(state, program_, run.tokens()) : std::nullopt;
  if (saved && saved->layer <= ranges.layers.size()) {
    first = saved->layer;
    run.set_values(std::move(saved->values));
  } else {
    FloatWeights weights = LLMINFER_TRY(run.load_weights(ranges.before));
    LLMINFER_TRY(run.run(ranges.before, weights, {}));
  }
  for (std::size_t i = first; i < ranges.layers.size(); ++i) {
    written_.clear();
    FloatWeights weights = LLMINFER_TRY(run.load_weights(ranges.layers[i]));
    LLMINFER_TRY(quantize_layer(run, ranges.layers[i], weights));
    LLMINFER_TRY(write_others(weights));
    // First what is done, then the place to go on from: between the two, a layer would only be done again.
    Result<void> go_on = on_layer(written_);
    if (i + 1 < ranges.layers.size() || with_output) LLMINFER_TRY(save_values(state, i + 1, run.values()));
    if (!go_on) return go_on;
  }
  if (!with_output) return {};
  written_.clear();
  LLMINFER_TRY(quantize_output(run, {ranges.after.begin, *output + 1}));
  return on_layer(written_);
}

Result<void> LayerByLayer::quantize_layer(LayerRun& run, const OpRange& range, FloatWeights& weights) {
  input_scales_.clear();
  inner_scales_.clear();
  if (options_.method == QuantizeMethod::awq) LLMINFER_TRY(search_awq_scales(run, range, weights));
  LayerRun::Hooks hooks;
  hooks.on_group = [&](const LinearGroup& group, std::span<float> input, FloatWeights& of_group) {
    return quantize_group(run, range, group, input, of_group);
  };
  hooks.on_expert = [&](const Expert& expert, FloatWeights& of_expert) -> Result<void> {
    scale_expert(expert, of_expert);
    return {};
  };
  hooks.on_expert_end = [&](const Expert&, FloatWeights& of_expert) { return write_others(of_expert); };
  return run.run(range, weights, hooks);
}

/// The logits themselves are never computed: for all tokens they would be more than anything else.
Result<void> LayerByLayer::quantize_output(LayerRun& run, const OpRange& range) {
  FloatWeights weights = LLMINFER_TRY(run.load_weights(range));
  LLMINFER_TRY(run.run({range.begin, range.end - 1}, weights, {}));
  const auto& output = std::get<op::Linear>(program_.ops[range.end - 1]);
  const LinearGroup group{output.in, run.width(output.in), {&output}, nullptr, nullptr};
  LLMINFER_TRY(quantize_group(run, range, group, run.value(output.in), weights));
  return write_others(weights);
}

template <class F>
Result<void> LayerByLayer::for_weights(const LayerRun& run, const LinearGroup& group, const FloatWeights& weights,
                                       const F& f) const {
  for (const op::Linear* linear : group.linears) {
    if (job_of(linear->weight).linear) LLMINFER_TRY(f(weights.at(static_cast<std::int32_t>(linear->weight))));
  }
  for (std::size_t e = 0; group.moe && e < group.moe->gate.size(); ++e) {
    for (const WeightId id : {group.moe->gate[e], group.moe->up[e]}) LLMINFER_TRY(f(LLMINFER_TRY(run.load_weight(id))));
  }
  return {};
}

void LayerByLayer::scale_expert(const Expert& expert, FloatWeights& weights) const {
  if (const auto scales = input_scales_.find(static_cast<std::int32_t>(expert.gate.in));
      scales != input_scales_.end()) {
    for (const op::Linear* linear : {&expert.gate, &expert.up}) {
      scale_columns(weights.at(static_cast<std::int32_t>(linear->weight)), scales->second);
    }
  }
  const auto scales = inner_scales_.find(static_cast<std::int32_t>(expert.down.weight));
  if (scales == inner_scales_.end()) return;
  const LinearGroup down{ValueId::none, 0, {&expert.down}, nullptr, &expert};
  apply_scales({nullptr, &expert.up}, down, scales->second, weights, {});
}

/// Runs the layer once as it is, since the scales of one linear layer may go into the weights of another.
Result<void> LayerByLayer::search_awq_scales(LayerRun& run, const OpRange& range, FloatWeights& weights) {
  LayerRun::Values before = run.values();
  LayerRun::Hooks hooks;
  hooks.on_group = [&](const LinearGroup& group, std::span<float> input, FloatWeights& of_group) -> Result<void> {
    const auto fold = find_fold(program_, range, group);
    if (!fold || !enough_tokens(group, input)) return {};
    const auto moments = LLMINFER_TRY(gram(team_, input, group.width));
    const auto magnitude = mean_magnitude(input, group.width);
    const WeightId some = group.moe ? group.moe->gate.front() : group.linears.front()->weight;
    AwqSearch search(team_, magnitude, moments, job_of(some).scheme);
    LLMINFER_TRY(for_weights(run, group, of_group, [&](std::span<const float> w) -> Result<void> {
      search.measure(w);
      return {};
    }));
    search.choose();
    LLMINFER_TRY(for_weights(run, group, of_group, [&](std::span<const float> w) { return search.try_on(w); }));
    if (group.expert) {
      inner_scales_.emplace(static_cast<std::int32_t>(group.linears.front()->weight), search.best());
      return {};
    }
    const std::vector<float> scales = search.best();
    apply_scales(*fold, group, scales, of_group, input);
    if (group.moe) input_scales_.emplace(static_cast<std::int32_t>(group.in), scales);
    return {};
  };
  hooks.on_expert = [&](const Expert& expert, FloatWeights& of_expert) -> Result<void> {
    scale_expert(expert, of_expert);
    return {};
  };
  LLMINFER_TRY(run.run(range, weights, hooks));
  run.set_values(std::move(before));
  return {};
}

Result<void> LayerByLayer::quantize_group(LayerRun& run, const OpRange& range, const LinearGroup& group,
                                          std::span<float> input, FloatWeights& weights) {
  if (options_.method == QuantizeMethod::smoothquant) {
    const auto fold = find_fold(program_, range, group);
    if (fold && fold->norm) {  // outliers come from norms
      std::vector<float> most(static_cast<std::size_t>(group.width), 0.0f);
      LLMINFER_TRY(for_weights(run, group, weights, [&](std::span<const float> w) -> Result<void> {
        const auto here = greatest_magnitude(w, group.width);
        for (std::size_t k = 0; k < most.size(); ++k) most[k] = std::max(most[k], here[k]);
        return {};
      }));
      const auto scales = smoothquant_scales(greatest_magnitude(input, group.width), most, options_.smoothing);
      apply_scales(*fold, group, scales, weights, input);
      if (group.moe) input_scales_.emplace(static_cast<std::int32_t>(group.in), scales);
    }
  }
  const bool any = std::any_of(group.linears.begin(), group.linears.end(),
                               [&](const op::Linear* linear) { return job_of(linear->weight).linear; });
  if (!any) return {};
  std::vector<float> moments, squares;
  const bool wanted = options_.method == QuantizeMethod::gptq || options_.method == QuantizeMethod::awq;
  if (wanted && enough_tokens(group, input)) moments = LLMINFER_TRY(gram(team_, input, group.width));
  if (!input.empty()) squares = column_squares(input, static_cast<std::size_t>(group.width));
  for (const op::Linear* linear : group.linears) {
    if (!job_of(linear->weight).linear) continue;
    LLMINFER_TRY(quantize_linear(*linear, weights.at(static_cast<std::int32_t>(linear->weight)), moments, squares));
  }
  return {};
}

/// Writes a matrix, and leaves in `values` what was written. `moments` and `squares` are empty where too few tokens
/// show what the inputs are: then it is rounded, or pruned by magnitude.
Result<void> LayerByLayer::quantize_linear(const op::Linear& linear, std::span<float> values,
                                           std::span<const float> moments, std::span<const float> squares) {
  const Job& job = job_of(linear.weight);
  written_.push_back(&job);
  const std::int64_t rows = job.tensor->rows, cols = job.tensor->cols;
  if (options_.prune != PruneMethod::none) {
    std::vector<float> norms;
    if (options_.prune == PruneMethod::wanda) {
      for (const float square : squares) norms.push_back(std::sqrt(square));
    }
    LLMINFER_TRY(prune(team_, options_, cols, values, norms));
  }
  if (!job.affine) return writer_.write_values(job, values, importance_of(squares));

  AffineWeight rounded(job.scheme, 0, cols);
  if (options_.method == QuantizeMethod::gptq && !moments.empty()) {
    rounded = LLMINFER_TRY(
        gptq(team_, job.scheme, rows, cols, values, moments, {options_.damping, options_.activation_order}));
  } else if (options_.method == QuantizeMethod::awq && !moments.empty() && !rotated(linear)) {
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
    if (job.linear) continue;
    LLMINFER_TRY(writer_.write_values(job, values));
    written_.push_back(&job);
  }
  return {};
}

}  // namespace llminfer::quantize
