// Python's two format languages: "%05.1f" % x and "{:>5}".format(x).
#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>

#include "chat/builtins.hpp"
#include "chat/unicode.hpp"

namespace llminfer::chat::jinja {
namespace {

struct Spec {
  std::string fill = " ";
  char align = 0;  ///< '<', '>', '^', '=' (padding after the sign) or 0: as the type has it
  char sign = '-';
  bool alternate = false, grouped = false;
  std::uint64_t width = 0;
  int precision = -1;
  char type = 0;
};

constexpr int kMostDigits = 400;  // of precision: no double shows more

std::string real_digits(double value, std::chars_format style, int precision) {
  std::array<char, 1024> buffer;
  const auto end = std::to_chars(buffer.data(), buffer.data() + buffer.size(), value, style, precision);
  return std::string(buffer.data(), end.ptr);
}

/// %g: without trailing zeros.
std::string general(double value, int precision) {
  return real_digits(value, std::chars_format::general, std::max(1, precision));
}

std::string magnitude(Runtime& runtime, const Value& value, const Spec& spec) {
  const char type = spec.type;
  if (value.is_int() && std::string_view("feEgG%F").find(type) == std::string_view::npos) {
    const std::int64_t n = value.integer();
    const std::uint64_t absolute = n < 0 ? 0 - static_cast<std::uint64_t>(n) : static_cast<std::uint64_t>(n);
    const int base = type == 'x' || type == 'X' ? 16 : type == 'o' ? 8 : type == 'b' ? 2 : 10;
    std::array<char, 72> buffer;
    std::string digits(buffer.data(), std::to_chars(buffer.data(), buffer.data() + buffer.size(), absolute, base).ptr);
    if (type == 'X') digits = to_upper(digits);
    if (spec.alternate && base != 10) digits.insert(0, std::string("0") + type);
    return digits;
  }
  double real = std::abs(value.floating());
  if (!std::isfinite(real)) return std::isnan(real) ? "nan" : "inf";
  const int precision = std::min(spec.precision < 0 ? 6 : spec.precision, kMostDigits);
  runtime.charge(64);
  switch (type) {
    case 'f':
    case 'F':
      return real_digits(real, std::chars_format::fixed, precision);
    case 'e':
      return real_digits(real, std::chars_format::scientific, precision);
    case 'E':
      return to_upper(real_digits(real, std::chars_format::scientific, precision));
    case 'g':
      return general(real, precision);
    case 'G':
      return to_upper(general(real, precision));
    case '%':
      return real_digits(real * 100, std::chars_format::fixed, precision) + "%";
    default:
      return spec.precision < 0 ? float_repr(real) : general(real, precision);
  }
}

void pad(TextBuilder& out, const std::string& head, const std::string& body, const Spec& spec, char usual) {
  const std::uint64_t size = count_characters(head) + count_characters(body);
  const std::uint64_t padding = spec.width > size ? spec.width - size : 0;
  const char align = spec.align ? spec.align : usual;
  const std::uint64_t left = align == '<' ? 0 : align == '^' ? padding / 2 : padding;
  if (align == '=') {
    out << head;
    out.repeat(spec.fill, padding) << body;
    return;
  }
  out.repeat(spec.fill, left) << head << body;
  out.repeat(spec.fill, padding - left);
}

void append_number(Runtime& runtime, TextBuilder& out, const Value& value, const Spec& spec) {
  std::string digits = magnitude(runtime, value, spec);
  if (spec.grouped) {
    std::size_t end = digits.find_first_not_of("0123456789");
    if (end == std::string::npos) end = digits.size();
    while (end > 3) digits.insert(end -= 3, ",");
  }
  const bool negative = value.is_int() ? value.integer() < 0 : std::signbit(value.floating());
  const std::string sign = negative ? "-" : spec.sign == '-' ? "" : std::string(1, spec.sign);
  pad(out, sign, digits, spec, '>');
}

void append_text(Runtime& runtime, TextBuilder& out, std::string text, const Spec& spec, char usual) {
  if (spec.precision >= 0) {
    const auto characters = split_characters(text);
    runtime.charge(characters.size());
    if (static_cast<std::size_t>(spec.precision) < characters.size()) {
      const auto kept =
          static_cast<std::size_t>(characters[static_cast<std::size_t>(spec.precision)].data() - text.data());
      text.resize(kept);
    }
  }
  pad(out, {}, text, spec, usual);
}

/// Reads digits at `at`; at most a limit that no text reaches.
std::uint64_t read_number(std::string_view s, std::size_t& at) {
  std::uint64_t number = 0;
  for (; at < s.size() && s[at] >= '0' && s[at] <= '9'; ++at) {
    number = std::min<std::uint64_t>(number * 10 + static_cast<std::uint64_t>(s[at] - '0'), 1ull << 40);
  }
  return number;
}

int read_precision(std::string_view s, std::size_t& at) {
  return static_cast<int>(std::min<std::uint64_t>(read_number(s, at), 1u << 30));
}

Spec parse_spec(std::string_view s) {
  Spec spec;
  std::size_t at = 0;
  const auto is_align = [&](std::size_t i) {
    return i < s.size() && std::string_view("<>^=").find(s[i]) != std::string_view::npos;
  };
  const std::size_t first = s.empty() ? 1 : character_size(s);
  if (is_align(first)) {
    spec.fill = s.substr(0, first);
    spec.align = s[first];
    at = first + 1;
  } else if (is_align(0)) {
    spec.align = s[0];
    at = 1;
  }
  const auto skip = [&](char c) { return at < s.size() && s[at] == c && ++at; };
  if (at < s.size() && (s[at] == '+' || s[at] == '-' || s[at] == ' ')) spec.sign = s[at++];
  spec.alternate = skip('#');
  if (at < s.size() && s[at] == '0' && !spec.align) {
    spec.fill = "0";
    spec.align = '=';
  }
  spec.width = read_number(s, at);
  spec.grouped = skip(',');
  if (skip('.')) spec.precision = read_precision(s, at);
  if (at < s.size()) spec.type = s[at++];
  if (at != s.size() || (spec.type && std::string_view("sdfFeEgGxXob%c").find(spec.type) == std::string_view::npos)) {
    fail("Invalid format specifier '", s, "'");
  }
  return spec;
}

void append_formatted(Runtime& runtime, TextBuilder& out, const Value& value, std::string_view spec_text) {
  if (spec_text.empty()) {
    out << to_text(runtime, value);
    return;
  }
  const Spec spec = parse_spec(spec_text);
  if (value.is_number() && spec.type != 's' && spec.type != 'c') {
    if (value.is_float() && spec.type && std::string_view("dxXob").find(spec.type) != std::string_view::npos) {
      fail("Unknown format code '", std::string(1, spec.type), "' for object of type 'float'");
    }
    if (value.is_bool() && !spec.type) return append_text(runtime, out, to_text(runtime, value), spec, '<');
    return append_number(runtime, out, value, spec);
  }
  if (!value.is_string() || (spec.type && spec.type != 's')) {
    fail("unsupported format string '", spec_text, "' for '", value.type_name(), "'");
  }
  append_text(runtime, out, value.string(), spec, '<');
}

/// The value of a replacement field's name: "", "0", "name", then ".attribute" or "[item]" any number of times.
Value field_value(Runtime& runtime, std::string_view field, Arguments& arguments, std::size_t& next) {
  const std::size_t end = std::min(field.find_first_of(".["), field.size());
  const std::string_view head = field.substr(0, end);
  Value value;
  std::size_t at = 0;
  const std::uint64_t index = head.empty() ? next++ : read_number(head, at);
  if (at == head.size()) {
    if (index >= arguments.positional.size())
      fail("Replacement index ", index, " out of range for positional args tuple");
    value = arguments.positional[index];
  } else {
    const auto found = std::find_if(arguments.keywords.begin(), arguments.keywords.end(),
                                    [&](const auto& keyword) { return keyword.first == head; });
    if (found == arguments.keywords.end()) fail("'", head, "'");
    value = found->second;
  }
  for (field.remove_prefix(end); !field.empty();) {
    const bool item = field[0] == '[';
    const std::size_t stop = item ? field.find(']') : std::min(field.find_first_of(".[", 1), field.size());
    if (stop == std::string_view::npos) fail("Missing ']' in format string");
    const std::string name(field.substr(1, stop - 1));
    std::size_t digits = 0;
    const std::uint64_t number = read_number(name, digits);
    const bool is_index = item && !name.empty() && digits == name.size();
    value = item ? get_item(runtime, value, is_index ? Value(static_cast<std::int64_t>(number)) : Value(name))
                 : get_attribute(runtime, value, name);
    field.remove_prefix(item ? stop + 1 : stop);
  }
  return value;
}

}  // namespace

double round_to(double value, std::int64_t digits) {
  if (!std::isfinite(value) || digits > 330) return value;
  if (digits < -330) return std::copysign(0.0, value);
  if (digits < 0) {
    const double scale = std::pow(10.0, static_cast<double>(-digits));
    return std::nearbyint(value / scale) * scale;
  }
  const std::string text = real_digits(value, std::chars_format::fixed, static_cast<int>(digits));
  double rounded = value;
  std::from_chars(text.data(), text.data() + text.size(), rounded);
  return rounded;
}

Value format_percent(Runtime& runtime, const std::string& format, const Value& arguments) {
  TextBuilder out(runtime);
  std::size_t used = 0;
  const auto next = [&]() -> Value {
    if (!arguments.is_tuple()) {
      if (used++ > 0) fail("not enough arguments for format string");
      return arguments;
    }
    if (used >= arguments.sequence().items.size()) fail("not enough arguments for format string");
    return arguments.sequence().items[used++];
  };
  const std::string_view s = format;
  for (std::size_t at = 0; at < s.size();) {
    const std::size_t percent = std::min(s.find('%', at), s.size());
    out << s.substr(at, percent - at);
    at = percent + 1;
    if (percent == s.size()) break;
    std::optional<Value> named;
    if (at < s.size() && s[at] == '(') {
      const std::size_t close = s.find(')', at);
      if (close == std::string_view::npos) fail("incomplete format key");
      if (!arguments.is_dict()) fail("format requires a mapping");
      const Value key{std::string(s.substr(at + 1, close - at - 1))};
      const Value* found = find_key(runtime, arguments.dict(), key);
      if (!found) fail("'", key.string(), "'");
      named = *found;
      at = close + 1;
    }
    Spec spec;
    for (; at < s.size() && std::string_view("-+ #0").find(s[at]) != std::string_view::npos; ++at) {
      if (s[at] == '-') spec.align = '<';
      if (s[at] == '+' || (s[at] == ' ' && spec.sign != '+')) spec.sign = s[at];
      if (s[at] == '#') spec.alternate = true;
      if (s[at] == '0' && !spec.align) {
        spec.fill = "0";
        spec.align = '=';
      }
    }
    if (spec.align == '<') spec.fill = " ";
    spec.width = read_number(s, at);
    if (at < s.size() && s[at] == '.') spec.precision = read_precision(s, ++at);
    if (at >= s.size()) fail("incomplete format");
    spec.type = s[at++];
    if (spec.type == '%') {
      out << "%";
      continue;
    }
    const Value value = named ? *named : next();
    if (spec.type == 's' || spec.type == 'r') {
      if (spec.align == '=') spec.align = 0, spec.fill = " ";
      append_text(runtime, out, spec.type == 's' ? to_text(runtime, value) : to_repr(runtime, value), spec, '>');
      continue;
    }
    if (spec.type == 'i' || spec.type == 'u') spec.type = 'd';
    if (std::string_view("dfFeEgGxXo").find(spec.type) == std::string_view::npos) {
      fail("unsupported format character '", std::string(1, spec.type), "'");
    }
    if (value.is_undefined()) fail_undefined(value);
    if (!value.is_number())
      fail("%", std::string(1, spec.type), " format: a number is required, not ", value.type_name());
    if (value.is_float() && spec.type == 'd') {
      if (!(std::abs(value.floating()) < 0x1p63)) fail("integer does not fit 64 bits");
      append_number(runtime, out, Value(static_cast<std::int64_t>(value.floating())), spec);
    } else {
      append_number(runtime, out, value, spec);
    }
  }
  const bool all_used = arguments.is_tuple() ? used == arguments.sequence().items.size()
                                             : used > 0 || arguments.is_dict() || arguments.is_list();
  if (!all_used) fail("not all arguments converted during string formatting");
  return out.value();
}

Value format_braces(Runtime& runtime, const Value& format, Arguments& arguments) {
  TextBuilder out(runtime);
  std::size_t next = 0;
  const std::string_view s = format.string();
  for (std::size_t at = 0; at < s.size();) {
    const std::size_t brace = std::min(s.find_first_of("{}", at), s.size());
    out << s.substr(at, brace - at);
    at = brace + 1;
    if (brace == s.size()) break;
    if (at < s.size() && s[at] == s[brace]) {
      out << s.substr(at++, 1);
      continue;
    }
    if (s[brace] == '}') fail("Single '}' encountered in format string");
    const std::size_t close = s.find('}', at);
    if (close == std::string_view::npos) fail("expected '}' before end of string");
    std::string_view field = s.substr(at, close - at), spec;
    at = close + 1;
    if (const std::size_t colon = field.find(':'); colon != std::string_view::npos) {
      spec = field.substr(colon + 1);
      field = field.substr(0, colon);
    }
    char conversion = 0;
    if (const std::size_t mark = field.find('!'); mark != std::string_view::npos) {
      conversion = mark + 2 == field.size() ? field[mark + 1] : '?';
      if (conversion != 'r' && conversion != 's') fail("Unknown conversion specifier in format string");
      field = field.substr(0, mark);
    }
    Value value = field_value(runtime, field, arguments, next);
    if (conversion) value = runtime.text(conversion == 'r' ? to_repr(runtime, value) : to_text(runtime, value));
    append_formatted(runtime, out, value, spec);
  }
  return out.value();
}

}  // namespace llminfer::chat::jinja
