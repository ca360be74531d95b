// The steps between a text and the merge model: normalizers rewrite a text, pre-tokenizers cut it into pieces.
// They follow the pipeline of Hugging Face tokenizers, which GGUF's pre-tokenizer names stand for too. No vocabulary
// here.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "tok/regex.hpp"
#include "tok/unicode.hpp"

namespace llminfer::inline v0 {
namespace tok {

/// A text cut into pieces. Pieces are never empty; parts of `text` that no range covers are dropped.
struct Pieces {
  std::string text;
  std::vector<Range> ranges;
  bool at_start = true;  ///< the fragment stands at the very beginning of the encoded text

  std::string_view piece(const Range& range) const {
    return std::string_view(text).substr(range.first, range.second - range.first);
  }
};

/// Immutable once made, hence thread-safe.
using Normalizer = std::function<Result<void>(std::string& text)>;
using PreTokenizer = std::function<Result<void>(Pieces& pieces)>;

/// What becomes of the matches of a split.
enum class SplitBehavior : std::uint8_t { removed, isolated, merged_with_previous, merged_with_next, contiguous };

/// `text` with every `from` (not empty) replaced by `to`.
std::string replaced(std::string_view text, std::string_view from, std::string_view to);

Normalizer normal_form(NormalForm form);
Normalizer lowercase_all();
/// Puts `prefix` before every text that is not empty.
Normalizer prepend(std::string prefix);
Normalizer replace_all(std::string from, std::string to);
Normalizer replace_matches(Pattern pattern, std::string to);
Normalizer strip_whitespace(bool left, bool right);

/// Cuts at the matches of `pattern`; `invert` swaps what matches and what lies between.
PreTokenizer split(Pattern pattern, SplitBehavior behavior, bool invert);
/// Puts a space before every piece that begins with none.
PreTokenizer prefix_space();
/// Writes every piece in the byte-level alphabet.
PreTokenizer byte_level();
/// SentencePiece's way: spaces become `mark`, which goes before the first (or every) piece; then cuts before each mark.
enum class PrependScheme : std::uint8_t { never, first, always };
PreTokenizer metaspace(std::string mark, PrependScheme scheme, bool cut);

}  // namespace tok
}  // namespace llminfer::inline v0
