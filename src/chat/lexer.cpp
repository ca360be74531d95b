// The scanner. White space around tags follows jinja2's lexer; see "Whitespace Control" in Jinja2's documentation.
#include "chat/lexer.hpp"

#include <algorithm>
#include <charconv>

#include "chat/runtime.hpp"
#include "chat/unicode.hpp"

namespace llminfer::chat::jinja {
namespace {

using Kind = Token::Kind;

bool is_ascii_digit(char c) { return c >= '0' && c <= '9'; }
bool is_name_char(char c) {
  return is_ascii_digit(c) || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' ||
         static_cast<unsigned char>(c) >= 0x80;
}

int hex_digit(char c) {
  if (is_ascii_digit(c)) return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  return c >= 'A' && c <= 'F' ? c - 'A' + 10 : 99;
}

/// Line ends become \n; one at the very end goes.
std::string normalized(std::string_view source) {
  std::string out;
  out.reserve(source.size());
  for (std::size_t i = 0; i < source.size(); ++i) {
    if (source[i] == '\r') {
      out.push_back('\n');
      if (source.substr(i + 1, 1) == "\n") ++i;
    } else {
      out.push_back(source[i]);
    }
  }
  if (!out.empty() && out.back() == '\n') out.pop_back();
  return out;
}

class Lexer {
 public:
  explicit Lexer(std::string_view source) : source_(source) {}

  std::vector<Token> run() {
    while (at_ < source_.size()) text();
    push(Kind::end);
    return std::move(tokens_);
  }

 private:
  bool looking_at(std::string_view s) const { return source_.substr(at_, s.size()) == s; }
  char peek(std::size_t ahead = 0) const { return at_ + ahead < source_.size() ? source_[at_ + ahead] : '\0'; }

  void advance(std::size_t n) {
    line_ += static_cast<int>(std::count(source_.begin() + static_cast<std::ptrdiff_t>(at_),
                                         source_.begin() + static_cast<std::ptrdiff_t>(at_ + n), '\n'));
    at_ += n;
  }
  void skip_space() {
    while (at_ < source_.size()) {
      const std::size_t n = character_size(source_.substr(at_));
      if (!is_space(code_point(source_.substr(at_, n)))) break;
      advance(n);
    }
  }
  Token& push(Kind kind, std::string text = {}) {
    tokens_.push_back(Token{kind, line_, std::move(text)});
    return tokens_.back();
  }

  /// The text up to the next tag, and that tag.
  void text() {
    std::size_t tag = at_;
    do {
      tag = source_.find('{', tag);
      if (tag == std::string_view::npos || tag + 1 >= source_.size()) {
        push(Kind::text, std::string(source_.substr(at_)));
        at_ = source_.size();
        return;
      }
    } while (source_[tag + 1] != '{' && source_[tag + 1] != '%' && source_[tag + 1] != '#' && ++tag);
    const char type = source_[tag + 1];
    const char sign = tag + 2 < source_.size() ? source_[tag + 2] : '\0';
    push_text(source_.substr(at_, tag - at_), sign, type != '{');
    advance(tag - at_ + 2);
    if (sign == '-' || sign == '+') advance(1);
    if (type == '#') {
      comment();
    } else if (type == '{') {
      push(Kind::print_begin);
      tag_tokens("}}", Kind::print_end);
    } else if (!raw()) {
      push(Kind::block_begin);
      tag_tokens("%}", Kind::block_end);
    }
    line_starting_ = source_[at_ - 1] == '\n';
  }

  void push_text(std::string_view text, char sign, bool is_block) {
    if (sign == '-') {
      text = strip(text, nullptr, false, true);
    } else if (is_block && sign != '+') {
      const std::size_t line_begin = text.rfind('\n') + 1;  // npos + 1 == 0
      if ((line_begin > 0 || line_starting_) && strip(text.substr(line_begin), nullptr, true, false).empty()) {
        text = text.substr(0, line_begin);
      }
    }
    if (!text.empty()) push(Kind::text, std::string(text));
  }

  /// After a tag that may drop what follows: "-" all white space, else one newline.
  void after_tag(char sign, bool trims_newline) {
    if (sign == '-') {
      skip_space();
    } else if (sign != '+' && trims_newline && peek() == '\n') {
      advance(1);
    }
  }

  void comment() {
    const std::size_t end = source_.find("#}", at_);
    if (end == std::string_view::npos) fail("line ", line_, ": missing end of comment tag");
    const char sign = end > at_ ? source_[end - 1] : '\0';
    advance(end + 2 - at_);
    after_tag(sign, true);
  }

  /// {% raw %}…{% endraw %}, of which the opening "{%" has been read. False where the tag is another one.
  bool raw() {
    const std::size_t begin = at_;
    const int line = line_;
    skip_space();
    const bool named = looking_at("raw");
    if (named) {
      advance(3);
      skip_space();
    }
    const bool strips = named && looking_at("-%}");
    if (!named || !(strips || looking_at("%}"))) {
      at_ = begin;
      line_ = line;
      return false;
    }
    advance(strips ? 3 : 2);
    if (strips) skip_space();
    line_starting_ = source_[at_ - 1] == '\n';
    for (std::size_t tag = source_.find("{%", at_); tag != std::string_view::npos; tag = source_.find("{%", tag + 2)) {
      Lexer ahead(source_);
      ahead.at_ = tag + 2;
      const char sign = ahead.peek();
      if (sign == '-' || sign == '+') ++ahead.at_;
      ahead.skip_space();
      if (!ahead.looking_at("endraw")) continue;
      ahead.at_ += 6;
      ahead.skip_space();
      const char end_sign = ahead.peek();
      if (end_sign == '-' || end_sign == '+') ++ahead.at_;
      if (!ahead.looking_at("%}")) continue;
      push_text(source_.substr(at_, tag - at_), sign, true);
      advance(ahead.at_ + 2 - at_);
      after_tag(end_sign, true);
      return true;
    }
    fail("line ", line, ": missing end of raw directive");
  }

  /// The tokens of a tag up to and with its end.
  void tag_tokens(std::string_view close, Kind end_kind) {
    const int line = line_;
    std::string brackets;  // that are open
    for (;;) {
      skip_space();
      if (at_ >= source_.size()) fail("line ", line, ": unexpected end of template inside a tag");
      if (brackets.empty()) {
        const char sign = peek();
        const bool is_signed = sign == '-' || (sign == '+' && end_kind == Kind::block_end);
        if (source_.substr(at_ + (is_signed ? 1 : 0), 2) == close) {
          push(end_kind);
          advance(is_signed ? 3 : 2);
          after_tag(is_signed ? sign : '\0', end_kind == Kind::block_end);
          return;
        }
      }
      const char c = peek();
      if (is_ascii_digit(c)) {
        number();
      } else if (is_name_char(c)) {
        const std::size_t begin = at_;
        while (is_name_char(peek())) ++at_;
        push(Kind::name, std::string(source_.substr(begin, at_ - begin)));
      } else if (c == '"' || c == '\'') {
        string(c);
      } else {
        symbol(brackets);
      }
    }
  }

  void symbol(std::string& brackets) {
    static constexpr std::string_view kSymbols[] = {"//", "**", "==", "!=", ">=", "<=", "+", "-", "/",
                                                    "*",  "%",  "~",  "[",  "]",  "(",  ")", "{", "}",
                                                    ">",  "<",  "=",  ".",  ":",  "|",  ",", ";"};
    const auto* const found =
        std::find_if(std::begin(kSymbols), std::end(kSymbols), [&](std::string_view s) { return looking_at(s); });
    if (found == std::end(kSymbols)) fail("line ", line_, ": unexpected character '", source_.substr(at_, 1), "'");
    const char c = (*found)[0];
    if (c == '(') brackets.push_back(')');
    if (c == '[') brackets.push_back(']');
    if (c == '{') brackets.push_back('}');
    if (c == ')' || c == ']' || c == '}') {
      if (brackets.empty() || brackets.back() != c) fail("line ", line_, ": unexpected '", *found, "'");
      brackets.pop_back();
    }
    push(Kind::symbol, std::string(*found));
    at_ += found->size();
  }

  /// Appends digits (with single underscores between them) of `base` to `digits`.
  void take_digits(std::string& digits, int base) {
    while (hex_digit(peek()) < base || (peek() == '_' && hex_digit(peek(1)) < base)) {
      if (peek() != '_') digits.push_back(peek());
      ++at_;
    }
  }

  void number() {
    std::string digits;
    const char prefix = static_cast<char>(peek(1) | 0x20);
    const int base = peek() != '0' ? 10 : prefix == 'x' ? 16 : prefix == 'o' ? 8 : prefix == 'b' ? 2 : 10;
    const std::size_t first_digit = peek(2) == '_' ? 3 : 2;
    if (base != 10 && hex_digit(peek(first_digit)) < base) {
      at_ += first_digit;
      take_digits(digits, base);
      push_integer(digits, base);
      return;
    }
    take_digits(digits, 10);
    bool is_real = false;
    const bool after_dot = !tokens_.empty() && tokens_.back().kind == Kind::symbol && tokens_.back().text == ".";
    if (!after_dot && peek() == '.' && is_ascii_digit(peek(1))) {
      is_real = true;
      digits.push_back('.');
      ++at_;
      take_digits(digits, 10);
    }
    const std::size_t exponent_digit = peek(1) == '-' || peek(1) == '+' ? 2 : 1;
    if (!after_dot && (peek() == 'e' || peek() == 'E') && is_ascii_digit(peek(exponent_digit))) {
      is_real = true;
      digits.push_back('e');
      if (exponent_digit == 2 && peek(1) == '-') digits.push_back('-');
      at_ += exponent_digit;
      take_digits(digits, 10);
    }
    if (!is_real) return push_integer(digits, 10);
    Token& token = push(Kind::floating, digits);
    const auto parsed = std::from_chars(digits.data(), digits.data() + digits.size(), token.real);
    if (parsed.ec != std::errc()) fail("line ", line_, ": number out of range");
  }

  void push_integer(const std::string& digits, int base) {
    Token& token = push(Kind::integer, digits);
    const auto parsed = std::from_chars(digits.data(), digits.data() + digits.size(), token.number, base);
    if (parsed.ec != std::errc()) fail("line ", line_, ": integer out of range");
  }

  void string(char quote) {
    std::string value;
    const int line = line_;
    std::size_t end = at_ + 1;
    while (end < source_.size() && source_[end] != quote) end += source_[end] == '\\' ? 2 : 1;
    if (end >= source_.size()) fail("line ", line, ": string without end");
    const std::string_view body = source_.substr(at_ + 1, end - at_ - 1);
    for (std::size_t i = 0; i < body.size();) {
      if (body[i] != '\\') {
        value.push_back(body[i++]);
      } else {
        i += escape(body.substr(i), value);
      }
    }
    push(Kind::string, std::move(value));
    advance(end + 1 - at_);
  }

  /// Resolves the escape that `s` begins with; returns its size.
  std::size_t escape(std::string_view s, std::string& value) {
    const char c = s[1];
    switch (c) {
      case 'n':
        value.push_back('\n');
        return 2;
      case 'r':
        value.push_back('\r');
        return 2;
      case 't':
        value.push_back('\t');
        return 2;
      case 'a':
        value.push_back('\a');
        return 2;
      case 'b':
        value.push_back('\b');
        return 2;
      case 'f':
        value.push_back('\f');
        return 2;
      case 'v':
        value.push_back('\v');
        return 2;
      case '\\':
      case '\'':
      case '"':
        value.push_back(c);
        return 2;
      case '\n':
        return 2;
      default:
        break;
    }
    if (c >= '0' && c <= '7') {
      std::size_t n = 1;
      char32_t code = 0;
      for (; n < 4 && n < s.size() && s[n] >= '0' && s[n] <= '7'; ++n)
        code = code * 8 + static_cast<char32_t>(s[n] - '0');
      append_utf8(value, code);
      return n;
    }
    const std::size_t digits = c == 'x' ? 2 : c == 'u' ? 4 : c == 'U' ? 8 : 0;
    if (digits == 0) {
      value += s.substr(0, 2);
      return 2;
    }
    char32_t code = 0;
    for (std::size_t i = 2; i < 2 + digits; ++i) {
      const int digit = i < s.size() ? hex_digit(s[i]) : 99;
      if (digit > 15) fail("line ", line_, ": truncated \\", c, " escape");
      code = code * 16 + static_cast<char32_t>(digit);
    }
    if (code > 0x10ffff || (code >= 0xd800 && code < 0xe000))
      fail("line ", line_, ": \\", c, " escape is no character");
    append_utf8(value, code);
    return 2 + digits;
  }

  std::string_view source_;
  std::size_t at_ = 0;
  int line_ = 1;
  bool line_starting_ = true;
  std::vector<Token> tokens_;
};

}  // namespace

std::vector<Token> tokenize(std::string_view source) {
  const std::string text = normalized(source);
  return Lexer(text).run();
}

}  // namespace llminfer::chat::jinja
