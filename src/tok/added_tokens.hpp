// Added tokens: texts that are read as one token before the merge model sees anything ("<|im_end|>").
#pragma once

#include <bitset>
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include <llminfer/tokenizer.hpp>

namespace llminfer::inline v0 {
namespace tok {

struct AddedToken {
  Token id = 0;
  std::string content;
  bool special = false;      ///< found in a text only with EncodeOptions::parse_special
  bool normalized = false;   ///< looked for in the normalized text, in its own normalized form
  bool lstrip = false;       ///< takes the whitespace before it along
  bool rstrip = false;       ///< takes the whitespace after it along
  bool single_word = false;  ///< only where no word character touches it
};

/// Finds added tokens, leftmost first and the longest of those. Immutable once filled.
class AddedTokenFinder {
 public:
  /// Looks for `pattern` (not empty) and takes it for `token`. The first of equal patterns wins.
  void add(std::string_view pattern, const AddedToken& token);
  bool empty() const noexcept { return tokens_.empty(); }

  struct Part {
    std::string_view text;  ///< if token < 0
    Token token = -1;
  };
  /// The text cut into tokens and what lies between (never empty). O(text × longest pattern).
  std::vector<Part> cut(std::string_view text, bool parse_special) const;
  /// The text with `mark` after the first character of each match. O(text × longest pattern).
  std::string split_matches(std::string_view text, std::string_view mark) const;

 private:
  struct Match {
    std::size_t length = 0;
    const AddedToken* token = nullptr;
  };
  Match longest_at(std::string_view text) const;

  std::vector<AddedToken> tokens_;
  std::bitset<256> starts_;  ///< the first bytes of the patterns
  // A trie; the edge from node n by byte b has the key n << 8 | b.
  std::unordered_map<std::uint64_t, std::uint32_t> edges_;
  std::vector<std::int32_t> token_at_ = {-1};  ///< per node: index into tokens_ or -1
};

}  // namespace tok
}  // namespace llminfer::inline v0
