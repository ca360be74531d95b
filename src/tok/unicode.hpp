// Characters for tokenizers: the byte-level alphabet, normalisation forms, character classes. Knows nothing of
// vocabularies.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include <llminfer/result.hpp>

namespace llminfer::inline v0 {
namespace tok {

/// Appends the UTF-8 form of a code point.
void append_utf8(std::string& out, char32_t code_point);

/// The length of the character that the non-empty `text` begins with; an ill-formed byte counts as a character of its
/// own.
std::size_t char_length(std::string_view text) noexcept;

/// The alphabet of byte-level BPE (GPT-2, 2019): each byte is written as a printable character of U+0021…U+0143.
void append_alphabet(std::string& out, std::string_view bytes);
/// The reverse; nothing if a character of `text` is not of the alphabet.
std::optional<std::string> alphabet_to_bytes(std::string_view text);

enum class NormalForm : std::uint8_t { nfc, nfd, nfkc, nfkd };

/// The text in a Unicode normal form, in O(n log n) also for hostile runs of combining marks; ill-formed bytes stay as
/// they are. Errors: internal if the Unicode library refuses.
Result<std::string> normalize(std::string_view text, NormalForm form);

/// Lower case, character by character, without context rules.
std::string lowercase(std::string_view text);

/// White_Space of Unicode. (PCRE2 counts U+180E in, the libraries that trained the vocabularies do not.)
bool is_whitespace(char32_t code_point) noexcept;
/// The length in bytes of the whitespace that `text` begins or ends with.
std::size_t leading_whitespace(std::string_view text) noexcept;
std::size_t trailing_whitespace(std::string_view text) noexcept;

/// Whether `text` begins or ends with a character of a word (letter, mark, digit, connector).
bool begins_with_word(std::string_view text) noexcept;
bool ends_with_word(std::string_view text) noexcept;

/// Calls valid(part) for well-formed parts and invalid(part) for the ill-formed bytes between them, in order.
template <class Valid, class Invalid>
void for_each_validity(std::string_view text, Valid&& valid, Invalid&& invalid);

}  // namespace tok
}  // namespace llminfer::inline v0

#include "core/utf8.hpp"

namespace llminfer::inline v0 {
namespace tok {

template <class Valid, class Invalid>
void for_each_validity(std::string_view text, Valid&& valid, Invalid&& invalid) {
  std::size_t begin = 0;
  while (begin < text.size()) {
    std::size_t end = begin;
    while (end < text.size()) {
      const std::size_t n = core::utf8_length(text.substr(end));
      if (n == 0) break;
      end += n;
    }
    if (end > begin) valid(text.substr(begin, end - begin));
    begin = end;
    while (end < text.size() && core::utf8_length(text.substr(end)) == 0) ++end;
    if (end > begin) invalid(text.substr(begin, end - begin));
    begin = end;
  }
}

}  // namespace tok
}  // namespace llminfer::inline v0
