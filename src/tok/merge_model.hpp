// Merge models: one piece of text to token ids by byte pair encoding (Sennrich et al., 2016), O(n log n) with a
// priority queue.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <string_view>
#include <vector>

#include <llminfer/tokenizer.hpp>

#include "tok/token_index.hpp"

namespace llminfer::inline v0 {
namespace tok {

/// What characters become that are not in the vocabulary: bytes first, then the unknown token, else nothing.
struct Fallback {
  std::array<Token, 256> bytes;  ///< -1: none
  std::optional<Token> unknown;
  bool fuse_unknown = false;  ///< neighbouring unknown characters make one unknown token

  Fallback() { bytes.fill(-1); }
};

/// Immutable and thread-safe.
class MergeModel {
 public:
  virtual ~MergeModel() = default;
  /// Appends the tokens of a piece (at most 2^31 - 1 bytes).
  virtual void encode(std::string_view piece, std::vector<Token>& out) const = 0;
};

struct Merge {
  Token left = 0, right = 0, merged = 0;
};

/// Merges in the order of a list, as Hugging Face tokenizers do. `whole_first`: a piece that is a token is that token.
std::unique_ptr<const MergeModel> make_ranked_bpe(std::shared_ptr<const TokenIndex> index,
                                                  const std::vector<Merge>& merges, Fallback fallback,
                                                  bool whole_first);

/// Merges neighbours into the token of the highest score, as SentencePiece does. `index` holds the tokens that text may
/// become.
std::unique_ptr<const MergeModel> make_scored_bpe(std::shared_ptr<const TokenIndex> index, std::vector<float> scores,
                                                  Fallback fallback);

}  // namespace tok
}  // namespace llminfer::inline v0
