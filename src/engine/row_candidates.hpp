// The candidates of a row of logits in host memory, as a backend gives them: in a fraction of the time that the
// sampling chain takes over a whole vocabulary.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include <llminfer/backend.hpp>

#include "engine/sampler.hpp"

namespace llminfer::inline v0::engine {

class RowScan {
 public:
  /// As Batch::candidates, candidate_sums and draws of the row; the spans are this object's, until the next call.
  RowCandidates find(std::span<const float> logits, const CandidateWish& wish);

 private:
  void find_best(std::span<const float> logits, std::size_t count);

  std::vector<float> block_best_, order_;
  std::vector<double> block_sums_;
  std::vector<TokenLogit> best_;
};

}  // namespace llminfer::inline v0::engine
