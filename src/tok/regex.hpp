// Pattern: a compiled regular expression, in the dialect of the tokenizers that ship with checkpoints. Knows PCRE2
// only.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <llminfer/result.hpp>

namespace llminfer::inline v0 {
namespace tok {

/// Byte range [first, second).
using Range = std::pair<std::size_t, std::size_t>;

/// What one search needs besides the pattern. One thread at a time; must not outlive its Pattern.
class Matcher {
 public:
  Matcher(Matcher&&) noexcept;
  ~Matcher();
  /// Appends the matches from left to right, none overlapping, none empty. Ill-formed bytes never match.
  /// Errors: limit_exceeded if the pattern backtracks without end on these texts.
  Result<void> find_all(std::string_view text, std::vector<Range>& found);

 private:
  friend class Pattern;
  struct State;
  explicit Matcher(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

/// Immutable and thread-safe.
class Pattern {
 public:
  /// Checkpoints write their patterns for Oniguruma; the constructs in which PCRE2 differs are rewritten or refused.
  /// Errors: corrupt (syntax; `name` says where the pattern is from), unsupported, limit_exceeded (longer than 64 KiB).
  static Result<Pattern> compile(std::string_view pattern, std::string_view name);
  /// Matches exactly this text.
  static Result<Pattern> literal(std::string_view text, std::string_view name);

  /// For texts of `total_bytes` together.
  Result<Matcher> matcher(std::size_t total_bytes) const;

 private:
  friend class Matcher;
  struct Code;
  explicit Pattern(std::shared_ptr<const Code> code) : code_(std::move(code)) {}
  std::shared_ptr<const Code> code_;
};

}  // namespace tok
}  // namespace llminfer::inline v0
