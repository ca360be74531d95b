// The plausibility of QuantizeOptions, before any file is opened.
#pragma once

#include <llminfer/quantize.hpp>
#include <llminfer/result.hpp>

namespace llminfer::quantize {

/// Errors: invalid_argument, naming the option and what was expected.
Result<void> check_options(const QuantizeOptions& options);

/// Whether the model has to run on calibration text.
bool needs_calibration(const QuantizeOptions& options) noexcept;

}  // namespace llminfer::quantize
