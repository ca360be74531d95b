// Characters and their classes from libutf8proc; stripping, lines and linear search.
#include "chat/unicode.hpp"

#include <utf8proc.h>

#include <algorithm>

#include "core/utf8.hpp"

namespace llminfer::chat::jinja {
namespace {

utf8proc_category_t category(char32_t c) { return utf8proc_category(static_cast<utf8proc_int32_t>(c)); }

char32_t upper(char32_t c) { return static_cast<char32_t>(utf8proc_toupper(static_cast<utf8proc_int32_t>(c))); }
char32_t lower(char32_t c) { return static_cast<char32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(c))); }

/// Applies `change` (char32_t, std::string&) to each character; bytes that are not UTF-8 stay.
template <class Change>
std::string map_characters(std::string_view text, Change change) {
  std::string out;
  out.reserve(text.size());
  while (!text.empty()) {
    const std::size_t n = core::utf8_length(text);
    if (n == 0) {
      out.push_back(text[0]);
      text.remove_prefix(1);
      continue;
    }
    change(core::utf8_decode(text, n), out);
    text.remove_prefix(n);
  }
  return out;
}

void append_upper(std::string& out, char32_t c) {
  if (c == 0xdf) {  // the one common letter whose upper case is two letters
    out += "SS";
  } else {
    append_utf8(out, upper(c));
  }
}

bool is_line_end(char32_t c) {
  return (c >= 0x0a && c <= 0x0d) || (c >= 0x1c && c <= 0x1e) || c == 0x85 || c == 0x2028 || c == 0x2029;
}

}  // namespace

std::size_t character_size(std::string_view text) { return std::max<std::size_t>(1, core::utf8_length(text)); }

char32_t code_point(std::string_view character) {
  const std::size_t n = core::utf8_length(character);
  return n == 0 ? 0xfffd : core::utf8_decode(character, n);
}

std::size_t count_characters(std::string_view text) {
  std::size_t count = 0;
  for (; !text.empty(); ++count) text.remove_prefix(character_size(text));
  return count;
}

std::vector<std::string_view> split_characters(std::string_view text) {
  std::vector<std::string_view> characters;
  while (!text.empty()) {
    characters.push_back(text.substr(0, character_size(text)));
    text.remove_prefix(characters.back().size());
  }
  return characters;
}

void append_utf8(std::string& out, char32_t c) {
  const auto put = [&](char32_t byte) { out.push_back(static_cast<char>(byte)); };
  if (c < 0x80) {
    put(c);
  } else if (c < 0x800) {
    put(0xc0 | c >> 6);
    put(0x80 | (c & 0x3f));
  } else if (c < 0x10000) {
    put(0xe0 | c >> 12);
    put(0x80 | (c >> 6 & 0x3f));
    put(0x80 | (c & 0x3f));
  } else {
    put(0xf0 | c >> 18);
    put(0x80 | (c >> 12 & 0x3f));
    put(0x80 | (c >> 6 & 0x3f));
    put(0x80 | (c & 0x3f));
  }
}

bool is_space(char32_t c) {
  return (c >= 0x09 && c <= 0x0d) || (c >= 0x1c && c <= 0x20) || c == 0x85 || c == 0xa0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 || c == 0x202f || c == 0x205f || c == 0x3000;
}

bool is_alpha(char32_t c) {
  const auto kind = category(c);
  return kind == UTF8PROC_CATEGORY_LU || kind == UTF8PROC_CATEGORY_LL || kind == UTF8PROC_CATEGORY_LT ||
         kind == UTF8PROC_CATEGORY_LM || kind == UTF8PROC_CATEGORY_LO;
}
bool is_digit(char32_t c) { return category(c) == UTF8PROC_CATEGORY_ND; }
bool is_upper(char32_t c) { return category(c) == UTF8PROC_CATEGORY_LU; }
bool is_lower(char32_t c) { return category(c) == UTF8PROC_CATEGORY_LL; }

std::string to_upper(std::string_view text) {
  return map_characters(text, [](char32_t c, std::string& out) { append_upper(out, c); });
}

std::string to_lower(std::string_view text) {
  return map_characters(text, [](char32_t c, std::string& out) { append_utf8(out, lower(c)); });
}

std::string capitalize(std::string_view text) {
  bool first = true;
  return map_characters(text, [&](char32_t c, std::string& out) {
    append_utf8(out, first ? upper(c) : lower(c));
    first = false;
  });
}

std::string title_case(std::string_view text) {
  bool in_word = false;
  return map_characters(text, [&](char32_t c, std::string& out) {
    append_utf8(out, in_word ? lower(c) : upper(c));
    in_word = is_upper(c) || is_lower(c);
  });
}

std::string swap_case(std::string_view text) {
  return map_characters(text, [](char32_t c, std::string& out) {
    if (is_upper(c)) {
      append_utf8(out, lower(c));
    } else {
      append_upper(out, c);
    }
  });
}

std::string_view strip(std::string_view text, const std::string_view* set, bool left, bool right) {
  const auto dropped = [&](std::string_view character) {
    return set ? find_text(*set, character) != std::string_view::npos : is_space(code_point(character));
  };
  while (left && !text.empty()) {
    const std::size_t n = character_size(text);
    if (!dropped(text.substr(0, n))) break;
    text.remove_prefix(n);
  }
  while (right && !text.empty()) {
    std::size_t begin = text.size() - 1;  // of the last character: back over continuation bytes
    while (begin > 0 && text.size() - begin < 4 && (static_cast<unsigned char>(text[begin]) & 0xc0) == 0x80) --begin;
    if (core::utf8_length(text.substr(begin)) != text.size() - begin) begin = text.size() - 1;
    if (!dropped(text.substr(begin))) break;
    text.remove_suffix(text.size() - begin);
  }
  return text;
}

std::vector<std::string_view> split_lines(std::string_view text, bool keep_ends) {
  std::vector<std::string_view> lines;
  std::size_t begin = 0;
  for (std::size_t i = 0; i < text.size();) {
    std::size_t n = character_size(text.substr(i));
    if (!is_line_end(code_point(text.substr(i, n)))) {
      i += n;
      continue;
    }
    if (text[i] == '\r' && text.substr(i + 1, 1) == "\n") ++n;
    lines.push_back(text.substr(begin, i - begin + (keep_ends ? n : 0)));
    i += n;
    begin = i;
  }
  if (begin < text.size()) lines.push_back(text.substr(begin));
  return lines;
}

std::size_t find_text(std::string_view text, std::string_view needle, std::size_t from) {
  if (needle.size() <= 16) return text.find(needle, from);
  // Knuth, Morris and Pratt: border[i] is the longest proper prefix of needle[0..i] that is also its suffix.
  std::vector<std::size_t> border(needle.size(), 0);
  for (std::size_t i = 1, k = 0; i < needle.size(); ++i) {
    while (k > 0 && needle[i] != needle[k]) k = border[k - 1];
    if (needle[i] == needle[k]) ++k;
    border[i] = k;
  }
  for (std::size_t i = from, k = 0; i < text.size(); ++i) {
    while (k > 0 && text[i] != needle[k]) k = border[k - 1];
    if (text[i] == needle[k]) ++k;
    if (k == needle.size()) return i + 1 - k;
  }
  return std::string_view::npos;
}

}  // namespace llminfer::chat::jinja
