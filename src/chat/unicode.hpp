// Text as Python sees it: a sequence of characters, with Unicode's white space and case. A byte that is not UTF-8
// counts as one character.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace llminfer::chat::jinja {

/// The bytes of the character that `text` (not empty) begins with.
std::size_t character_size(std::string_view text);
/// The code point of one character; U+FFFD for a byte that is not UTF-8.
char32_t code_point(std::string_view character);
std::size_t count_characters(std::string_view text);
/// Views into `text`.
std::vector<std::string_view> split_characters(std::string_view text);
void append_utf8(std::string& out, char32_t c);

bool is_space(char32_t c);
/// Of letters and numbers.
bool is_alpha(char32_t c);
bool is_digit(char32_t c);
bool is_upper(char32_t c);
bool is_lower(char32_t c);

std::string to_upper(std::string_view text);
std::string to_lower(std::string_view text);
/// The first character in upper case, the others in lower case.
std::string capitalize(std::string_view text);
/// str.title(): every letter that follows a non-letter in upper case, the others in lower case.
std::string title_case(std::string_view text);
std::string swap_case(std::string_view text);

/// Without leading and trailing characters of `set`; of white space if `set` is null.
std::string_view strip(std::string_view text, const std::string_view* set, bool left, bool right);
/// str.splitlines().
std::vector<std::string_view> split_lines(std::string_view text, bool keep_ends);

/// Where `needle` first occurs at or after `from`, in linear time; npos if nowhere.
std::size_t find_text(std::string_view text, std::string_view needle, std::size_t from = 0);

}  // namespace llminfer::chat::jinja
