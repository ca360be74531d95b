// Filters that give numbers, and reading numbers from text as Python's int() and float() do.
#include <algorithm>
#include <charconv>
#include <cmath>

#include "chat/builtins.hpp"
#include "chat/unicode.hpp"

namespace llminfer::chat::jinja {
namespace {

/// White space around and single underscores between digits removed; nothing if underscores are elsewhere.
std::optional<std::string> plain_digits(std::string_view text) {
  text = strip(text, nullptr, true, true);
  std::string digits;
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '_') {
      digits.push_back(text[i]);
    } else if (i == 0 || i + 1 == text.size() || text[i - 1] == '_' || text[i + 1] == '_') {
      return std::nullopt;
    }
  }
  return digits;
}

Value to_int(Runtime& runtime, const Value& self, Arguments& arguments) {
  const auto [otherwise, base] = arguments.bind("int", {"default", "base"});
  const Value zero(0);
  const Value& fallback = otherwise ? *otherwise : zero;
  double real = 0;
  if (self.is_int()) return self.integer();
  if (self.is_string()) {
    runtime.charge_text(self.string().size());
    if (const auto number = parse_integer(self.string(), static_cast<int>(integer_or(base, 10, "int")))) return *number;
    const auto parsed = parse_float(self.string());
    if (!parsed) return fallback;
    real = *parsed;
  } else if (self.is_float()) {
    real = self.floating();
  } else if (self.is_undefined()) {
    fail_undefined(self);
  } else {
    return fallback;
  }
  if (!std::isfinite(real)) return fallback;
  if (std::abs(real) >= 0x1p63) fail("integer does not fit 64 bits");
  return static_cast<std::int64_t>(real);
}

Value to_float(Runtime& runtime, const Value& self, Arguments& arguments) {
  const auto [otherwise] = arguments.bind("float", {"default"});
  if (self.is_number()) return self.floating();
  if (self.is_undefined()) fail_undefined(self);
  if (self.is_string()) {
    runtime.charge_text(self.string().size());
    if (const auto number = parse_float(self.string())) return *number;
  }
  return otherwise ? *otherwise : Value(0.0);
}

Value abs(Runtime&, const Value& self, Arguments& arguments) {
  arguments.none("abs");
  if (self.is_undefined()) fail_undefined(self);
  if (self.is_float()) return std::abs(self.floating());
  if (!self.is_int()) fail("bad operand type for abs(): '", self.type_name(), "'");
  return self.integer() < 0 ? negate(self) : Value(self.integer());
}

Value round(Runtime& runtime, const Value& self, Arguments& arguments) {
  const auto [precision, method] = arguments.bind("round", {"precision", "method"});
  const std::string how = text_or(runtime, method, "common");
  const std::int64_t digits = integer_or(precision, 0, "round");
  if (self.is_undefined()) fail_undefined(self);
  if (!self.is_number()) fail("type ", self.type_name(), " doesn't define __round__ method");
  if (how == "common") {
    if (self.is_int() && digits >= 0) return self.integer();
    const double rounded = round_to(self.floating(), digits);
    return self.is_int() ? Value(static_cast<std::int64_t>(rounded)) : Value(rounded);
  }
  if (how != "ceil" && how != "floor") fail("method must be common, ceil or floor");
  const double scale = std::pow(10.0, static_cast<double>(digits));
  const double scaled = self.floating() * scale;
  return (how == "ceil" ? std::ceil(scaled) : std::floor(scaled)) / scale;
}

constexpr NamedBuiltin kFilters[] = {{"int", to_int}, {"float", to_float}, {"abs", abs}, {"round", round}};

}  // namespace

Builtin find_number_filter(std::string_view name) {
  const auto* const found =
      std::find_if(std::begin(kFilters), std::end(kFilters), [&](const NamedBuiltin& f) { return f.name == name; });
  return found == std::end(kFilters) ? nullptr : found->function;
}

std::optional<std::int64_t> parse_integer(std::string_view text, int base) {
  if (base < 2 || base > 36) return std::nullopt;
  const auto plain = plain_digits(text);
  if (!plain) return std::nullopt;
  std::string_view digits = *plain;
  const bool negative = digits.starts_with('-');
  if (negative || digits.starts_with('+')) digits.remove_prefix(1);
  const std::string_view prefix = base == 16 ? "xX" : base == 8 ? "oO" : base == 2 ? "bB" : "";
  if (digits.size() > 2 && digits[0] == '0' && prefix.find(digits[1]) != std::string_view::npos)
    digits.remove_prefix(2);
  if (digits.empty() || digits[0] == '-') return std::nullopt;
  const std::string number = (negative ? "-" : "") + std::string(digits);
  std::int64_t value = 0;
  const auto parsed = std::from_chars(number.data(), number.data() + number.size(), value, base);
  if (parsed.ptr != number.data() + number.size()) return std::nullopt;
  if (parsed.ec == std::errc::result_out_of_range) fail("integer does not fit 64 bits");
  if (parsed.ec != std::errc()) return std::nullopt;
  return value;
}

std::optional<double> parse_float(std::string_view text) {
  const auto plain = plain_digits(text);
  if (!plain) return std::nullopt;
  std::string_view digits = *plain;
  const bool negative = digits.starts_with('-');
  if (negative || digits.starts_with('+')) digits.remove_prefix(1);
  if (digits.empty() || digits[0] == '-' || digits.find('(') != std::string_view::npos) return std::nullopt;
  double value = 0;
  const auto parsed = std::from_chars(digits.data(), digits.data() + digits.size(), value);
  if (parsed.ptr != digits.data() + digits.size() || parsed.ec == std::errc::invalid_argument) return std::nullopt;
  if (parsed.ec == std::errc::result_out_of_range) {
    const std::size_t e = digits.find_first_of("eE");
    value = e != std::string_view::npos && digits.substr(e + 1).starts_with('-') ? 0 : HUGE_VAL;
  }
  return negative ? -value : value;
}

}  // namespace llminfer::chat::jinja
