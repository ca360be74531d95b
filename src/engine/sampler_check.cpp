// The ranges of SamplingOptions.
#include <cmath>
#include <limits>

#include "core/error.hpp"
#include "engine/sampler.hpp"

namespace llminfer::inline v0 {
namespace engine {
namespace {

constexpr float kMax = std::numeric_limits<float>::max();

template <class Value>
Error out_of_range(const char* option, Value value, const char* range) {
  return core::fail(ErrorCode::invalid_argument, "SamplingOptions::", option, " is ", value, ", expected ", range);
}

struct FloatRange {
  const char* name;
  float SamplingOptions::*member;
  float low, high;
  bool open;  ///< the lower end itself is out
  const char* text;
};

struct IntRange {
  const char* name;
  std::int32_t SamplingOptions::*member;
  std::int32_t low, high;
  const char* text;
};

using Options = SamplingOptions;

constexpr FloatRange kFloats[] = {
    {"temperature", &Options::temperature, 0.0f, kMax, false, "a finite number >= 0"},
    {"top_p", &Options::top_p, 0.0f, 1.0f, true, "(0, 1]"},
    {"min_p", &Options::min_p, 0.0f, 1.0f, false, "[0, 1]"},
    {"typical_p", &Options::typical_p, 0.0f, 1.0f, true, "(0, 1]"},
    {"xtc_probability", &Options::xtc_probability, 0.0f, 1.0f, false, "[0, 1]"},
    {"xtc_threshold", &Options::xtc_threshold, 0.0f, 1.0f, false, "[0, 1]"},
    {"repetition_penalty", &Options::repetition_penalty, 0.0f, kMax, true, "a finite number > 0"},
    {"presence_penalty", &Options::presence_penalty, -100.0f, 100.0f, false, "[-100, 100]"},
    {"frequency_penalty", &Options::frequency_penalty, -100.0f, 100.0f, false, "[-100, 100]"},
    {"dry_multiplier", &Options::dry_multiplier, 0.0f, kMax, false, "a finite number >= 0"},
    {"dry_base", &Options::dry_base, 1.0f, kMax, false, "a finite number >= 1"},
    {"mirostat_tau", &Options::mirostat_tau, 0.0f, kMax, false, "a finite number >= 0"},
    {"mirostat_eta", &Options::mirostat_eta, 0.0f, 1.0f, true, "(0, 1]"},
};

constexpr IntRange kInts[] = {
    {"top_k", &Options::top_k, 0, INT32_MAX, ">= 0"},
    {"penalty_window", &Options::penalty_window, -1, INT32_MAX, ">= -1"},
    {"dry_allowed_length", &Options::dry_allowed_length, 0, INT32_MAX, ">= 0"},
    {"dry_window", &Options::dry_window, -1, INT32_MAX, ">= -1"},
    {"logprobs", &Options::logprobs, 0, 100, "[0, 100]"},
};

}  // namespace

Result<void> check_sampling(const SamplingOptions& options, std::int32_t vocab_size) {
  for (const FloatRange& range : kFloats) {
    const float value = options.*range.member;
    // Written so that a NaN fails.
    const bool inside = (range.open ? value > range.low : value >= range.low) && value <= range.high;
    if (!inside) return out_of_range(range.name, value, range.text);
  }
  for (const IntRange& range : kInts) {
    const std::int32_t value = options.*range.member;
    if (value < range.low || value > range.high) return out_of_range(range.name, value, range.text);
  }
  for (std::size_t i = 0; i < options.dry_breakers.size(); ++i) {
    if (options.dry_breakers[i].empty()) {
      return core::fail(ErrorCode::invalid_argument, "SamplingOptions::dry_breakers[", i,
                        "] is empty, expected a text");
    }
  }
  for (std::size_t i = 0; i < options.logit_bias.size(); ++i) {
    const LogitBias& bias = options.logit_bias[i];
    if (bias.token < 0 || bias.token >= vocab_size) {
      return core::fail(ErrorCode::invalid_argument, "SamplingOptions::logit_bias[", i, "].token is ", bias.token,
                        ", expected 0 to ", vocab_size - 1);
    }
    if (!(bias.bias <= kMax)) {
      return core::fail(ErrorCode::invalid_argument, "SamplingOptions::logit_bias[", i, "].bias is ", bias.bias,
                        ", expected a finite number or -infinity");
    }
  }
  unsigned seen = 0;
  for (std::size_t i = 0; i < options.chain.size(); ++i) {
    const auto step = static_cast<unsigned>(options.chain[i]);
    if (step > static_cast<unsigned>(SamplerStep::temperature)) {
      return core::fail(ErrorCode::invalid_argument, "SamplingOptions::chain[", i, "] is ", step,
                        ", expected a SamplerStep, 0 to ", static_cast<unsigned>(SamplerStep::temperature));
    }
    if (seen & 1u << step) {
      return core::fail(ErrorCode::invalid_argument, "SamplingOptions::chain[", i, "] repeats step ", step,
                        ", expected each step at most once");
    }
    seen |= 1u << step;
  }
  return {};
}

}  // namespace engine
}  // namespace llminfer::inline v0
