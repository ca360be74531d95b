// Splits a template into text and the tokens of its tags, with Jinja2's white-space control (trim_blocks and
// lstrip_blocks on, one trailing newline dropped). Knows no grammar.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace llminfer::chat::jinja {

struct Token {
  enum class Kind : std::uint8_t {
    text,         ///< outside of tags
    print_begin,  ///< {{
    print_end,
    block_begin,  ///< {%
    block_end,
    name,
    string,    ///< `text` has its escapes resolved
    integer,   ///< `number`
    floating,  ///< `real`
    symbol,    ///< `text` is the operator or bracket
    end,
  };
  Kind kind;
  int line;
  std::string text;
  std::int64_t number = 0;
  double real = 0;
};

/// Throws Failure{template_error}. The last token is `end`.
std::vector<Token> tokenize(std::string_view source);

}  // namespace llminfer::chat::jinja
