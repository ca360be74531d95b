// What the engine asks of the sampler besides the public Sampler. Knows nothing of sessions or batches.
#pragma once

#include <cstdint>

#include <llminfer/sampling.hpp>

namespace llminfer::inline v0 {
namespace engine {

/// Checks every option. Errors: invalid_argument naming the option, its value and its range.
Result<void> check_sampling(const SamplingOptions& options, std::int32_t vocab_size);

}  // namespace engine
}  // namespace llminfer::inline v0
