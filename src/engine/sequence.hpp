// Sequence: the tokens of one conversation or request and the KV pages that hold them. Knows nothing of requests.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <unordered_map>
#include <vector>

#include <llminfer/program.hpp>
#include <llminfer/tokenizer.hpp>

namespace llminfer::inline v0::engine {

/// The first page that a sequence of `tokens` tokens needs for its last token and those after it. Pages before it are
/// -1 once they were given back: entries of a block table keep their places.
inline std::size_t first_needed(const CacheGroup& group, std::int32_t tokens) noexcept {
  if (group.window == 0) return 0;
  return static_cast<std::size_t>(std::max(std::int64_t{0}, std::int64_t{tokens} - group.window) / kPageTokens);
}

/// The owner (a session or the request that runs on it) changes tokens, embeddings, logits and hidden. Everything about
/// pages is changed under the engine's mutex only, since the engine may take the pages of an idle sequence.
struct Sequence {
  std::vector<Token> tokens;                                        ///< -1 where the position holds an embedding
  std::unordered_map<std::int32_t, std::vector<float>> embeddings;  ///< by position [hidden_size]
  std::vector<float> logits;                                        ///< [vocab_size] after the last token, or empty
  std::vector<float> hidden;  ///< [n, hidden_size] of the last prefill that asked for them
  std::string salt;           ///< only sequences with the same one share pages (SessionOptions::cache_salt)

  // Under the engine's mutex.
  std::int32_t cached = 0;  ///< the first `cached` tokens are in the pages
  /// Per cache group, one page per kPageTokens tokens; -1 where a sliding window has left it behind.
  std::vector<std::vector<std::int32_t>> pages;
  bool active = false;          ///< a request runs on it; otherwise it is idle
  bool computed = false;        ///< a pass has computed tokens in its pages
  bool taken = false;           ///< such pages were taken from it, and no pass has computed more since
  std::uint64_t last_used = 0;  ///< for eviction, oldest first

  std::int32_t size() const noexcept { return static_cast<std::int32_t>(tokens.size()); }
};

}  // namespace llminfer::inline v0::engine
