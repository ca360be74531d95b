// How many pages of each cache group an engine makes. Knows nothing of backends.
#pragma once

#include <algorithm>
#include <cstdint>

#include <llminfer/program.hpp>

namespace llminfer::inline v0::engine {

/// Tokens by which a sequence can be rewound although a sliding window has given pages back.
constexpr std::int32_t kRewindTokens = kPageTokens;

struct CacheSize {
  std::int32_t pages = 0;      ///< of a group whose layers see all tokens
  std::int32_t windows = 0;    ///< of a group whose layers see a window only
  std::int32_t sequences = 0;  ///< whose last pages are counted as open
  std::int32_t batch_tokens = 0;
  std::int32_t resident = 0;  ///< pages of a group that device memory has room for, where it has its own; 0: all
  std::int32_t context = 0;   ///< tokens of one sequence at most

  /// A sequence keeps its window, what it may be rewound by (where pages are sealed, to the begin of a page), and parts
  /// of pages at both ends; all sequences together get one batch of new tokens, and one page to copy on write.
  std::int32_t pages_of(const CacheGroup& group) const noexcept {
    if (group.window == 0) return pages;
    const std::int64_t all = windows * pages_of_window(group) + batch_tokens / kPageTokens + 1;
    return static_cast<std::int32_t>(std::min<std::int64_t>(pages, all));
  }
  /// Pages of which device memory has room for some.
  bool swaps(const CacheGroup& group) const noexcept { return resident > 0 && resident < pages_of(group); }
  /// Pages of one sequence that a pass uses at most.
  std::int64_t pages_of_sequence(const CacheGroup& group) const noexcept {
    const std::int64_t all = (std::int64_t{context} + kPageTokens - 1) / kPageTokens;
    return group.window == 0 ? all : std::min(all, pages_of_window(group) + batch_tokens / kPageTokens + 1);
  }

  /// Pages of a group that are open at once (CacheStorage::seals_pages): the last one of each sequence, and those that
  /// a batch writes to.
  std::int32_t open_pages_of(const CacheGroup& group) const noexcept {
    const std::int64_t all = (std::int64_t{batch_tokens} + std::int64_t{2 * kPageTokens - 2} * sequences) / kPageTokens;
    return static_cast<std::int32_t>(std::min<std::int64_t>(pages_of(group), all));
  }

 private:
  static std::int64_t pages_of_window(const CacheGroup& group) noexcept {
    const std::int64_t kept = std::int64_t{group.window} + kRewindTokens + kPageTokens;
    return (kept + kPageTokens - 1) / kPageTokens + 2;
  }
};

}  // namespace llminfer::inline v0::engine
