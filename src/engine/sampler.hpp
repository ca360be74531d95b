// What the engine asks of the sampler besides the public Sampler. Knows nothing of sessions or batches.
#pragma once

#include <cstdint>
#include <optional>
#include <span>

#include <llminfer/backend.hpp>
#include <llminfer/sampling.hpp>

namespace llminfer::inline v0 {
namespace engine {

/// Checks every option. Errors: invalid_argument naming the option, its value and its range.
Result<void> check_sampling(const SamplingOptions& options, std::int32_t vocab_size);

/// What a backend gives of a row of logits in place of all.
struct RowCandidates {
  std::span<const TokenLogit> best;  ///< as Batch::candidates, as many as wished
  std::optional<double> sum{};       ///< as Batch::candidate_sums
  std::optional<DrawnToken> drawn{};  ///< as Batch::draws
};

/// A choice from candidates is the one that Sampler::sample() makes of the whole row, to the last bit, or none: where
/// the candidates leave open what that would be (docs/adr/0030).
struct CandidateSampler {
  /// What the sampler wants of the row for its next choice, where a backend gives at most so many candidates; count 0:
  /// the whole row.
  static CandidateWish wish(const Sampler& sampler, std::int32_t most) noexcept;
  /// `row` is as wish() said. Errors: as Sampler::sample().
  static Result<std::optional<Sample>> sample(Sampler& sampler, const RowCandidates& row);
  /// Sampler::sample() by the chain over all tokens: what it must agree with, too, where it looks for candidates first.
  static Result<Sample> sample_whole(Sampler& sampler, std::span<const float> logits);
};

}  // namespace engine
}  // namespace llminfer::inline v0
