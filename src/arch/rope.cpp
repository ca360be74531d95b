// Scaling rules: "linear" is position interpolation (Chen et al. 2023, arXiv:2306.15595); "llama3" is the rule
// published with Llama 3.1; "yarn" is Peng et al. 2023, arXiv:2309.00071; "factors" divides each frequency by a number
// of the checkpoint.
#include "arch/rope.hpp"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <vector>

#include "core/error.hpp"

namespace llminfer::arch {
namespace {

using core::fail;
using load::RopeScaling;

constexpr double kTwoPi = 2 * std::numbers::pi;

bool in_range(double value, double min, double max) { return value >= min && value <= max; }

Result<void> check_scaling(const RopeScaling& s) {
  if (s.kind == RopeScaling::Kind::none || s.kind == RopeScaling::Kind::factors) return {};
  if (!in_range(s.factor, 1e-3, 1e6)) {
    return fail(ErrorCode::corrupt, "rope scaling: factor is ", s.factor, ", expected 0.001 … 1e6");
  }
  if (s.kind == RopeScaling::Kind::linear) return {};
  if (!in_range(s.original_context, 1, INT32_MAX)) {
    return fail(ErrorCode::corrupt, "rope scaling: original_max_position_embeddings is ", s.original_context,
                ", expected 1 … 2^31 - 1");
  }
  if (s.kind == RopeScaling::Kind::llama3) {
    if (!in_range(s.low_freq_factor, 1e-6, 1e6) || !in_range(s.high_freq_factor, 1e-6, 1e6) ||
        s.high_freq_factor <= s.low_freq_factor) {
      return fail(ErrorCode::corrupt, "rope scaling: low_freq_factor is ", s.low_freq_factor, " and high_freq_factor ",
                  s.high_freq_factor, ", expected 0 < low < high");
    }
    return {};
  }
  if (!in_range(s.beta_slow, 1e-6, 1e6) || !in_range(s.beta_fast, 1e-6, 1e6) || s.beta_fast < s.beta_slow) {
    return fail(ErrorCode::corrupt, "rope scaling: beta_slow is ", s.beta_slow, " and beta_fast ", s.beta_fast,
                ", expected 0 < slow <= fast");
  }
  if (!in_range(s.attention_factor, 0, 1e3)) {
    return fail(ErrorCode::corrupt, "rope scaling: attention_factor is ", s.attention_factor, ", expected 0 … 1000");
  }
  return {};
}

/// Divides low frequencies by the factor, keeps high ones, and goes from one to the other linearly in original_context
/// / wavelength.
void scale_llama3(std::vector<double>& frequencies, const RopeScaling& s) {
  for (double& frequency : frequencies) {
    const double turns = s.original_context * frequency / kTwoPi;  // within the context that the model was trained on
    const double keep = std::clamp((turns - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor), 0.0, 1.0);
    frequency = keep * frequency + (1 - keep) * frequency / s.factor;
  }
}

/// Keeps the frequencies that turn more than beta_fast times within the original context, divides those that turn less
/// than beta_slow times by the factor, and goes from one to the other linearly in the index of the pair.
void scale_yarn(std::vector<double>& frequencies, const RopeScaling& s, double base, double rotary_dim) {
  const auto dimension_of_turns = [&](double turns) {
    return rotary_dim * std::log(s.original_context / (turns * kTwoPi)) / (2 * std::log(base));
  };
  double low = dimension_of_turns(s.beta_fast);
  double high = dimension_of_turns(s.beta_slow);
  if (s.truncate) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, rotary_dim - 1);
  if (low == high) high += 0.001;
  for (std::size_t i = 0; i < frequencies.size(); ++i) {
    const double interpolate = std::clamp((static_cast<double>(i) - low) / (high - low), 0.0, 1.0);
    frequencies[i] = frequencies[i] * (1 - interpolate) + frequencies[i] / s.factor * interpolate;
  }
}

}  // namespace

Result<RopeTable> make_rope_table(const load::ModelConfig& config, bool interleaved) {
  const RopeScaling& scaling = config.rope_scaling;
  LLMINFER_TRY(check_scaling(scaling));
  std::vector<double> frequencies(static_cast<std::size_t>(config.rotary_dim / 2));
  for (std::size_t i = 0; i < frequencies.size(); ++i) {
    frequencies[i] = std::pow(config.rope_base, -2.0 * static_cast<double>(i) / static_cast<double>(config.rotary_dim));
  }

  RopeTable table;
  table.interleaved = interleaved;
  switch (scaling.kind) {
    case RopeScaling::Kind::none:
    case RopeScaling::Kind::factors:
      break;
    case RopeScaling::Kind::linear:
      for (double& frequency : frequencies) frequency /= scaling.factor;
      break;
    case RopeScaling::Kind::llama3:
      scale_llama3(frequencies, scaling);
      break;
    case RopeScaling::Kind::yarn:
      scale_yarn(frequencies, scaling, config.rope_base, static_cast<double>(config.rotary_dim));
      table.magnitude = static_cast<float>(scaling.attention_factor > 0 ? scaling.attention_factor
                                           : scaling.factor > 1         ? 0.1 * std::log(scaling.factor) + 1
                                                                        : 1.0);
      break;
  }

  if (!scaling.factors.empty() && scaling.factors.size() != frequencies.size()) {
    return fail(ErrorCode::shape_mismatch, "rope scaling: ", scaling.factors.size(), " frequency factors, expected ",
                frequencies.size());
  }
  for (std::size_t i = 0; i < scaling.factors.size(); ++i) {
    if (!in_range(scaling.factors[i], 1e-6, 1e6)) {
      return fail(ErrorCode::corrupt, "rope scaling: frequency factor ", i, " is ", scaling.factors[i],
                  ", expected 1e-6 … 1e6");
    }
    frequencies[i] /= scaling.factors[i];
  }
  table.inverse_frequency.assign(frequencies.begin(), frequencies.end());
  return table;
}

}  // namespace llminfer::arch
