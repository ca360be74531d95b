// Python's arithmetic, ordering, equality and membership on 64-bit integers, floats, text and sequences.
#include <algorithm>
#include <cmath>

#include "chat/builtins.hpp"
#include "chat/unicode.hpp"

namespace llminfer::chat::jinja {
namespace {

[[noreturn]] void unsupported(std::string_view op, const Value& a, const Value& b) {
  if (a.is_undefined()) fail_undefined(a);
  if (b.is_undefined()) fail_undefined(b);
  fail("unsupported operand type(s) for ", op, ": '", a.type_name(), "' and '", b.type_name(), "'");
}

bool both_int(const Value& a, const Value& b) { return a.is_int() && b.is_int(); }
bool both_number(const Value& a, const Value& b) { return a.is_number() && b.is_number(); }

[[noreturn]] void overflow() { fail("integer does not fit 64 bits"); }

void require_divisor(const Value& b) {
  if (b.floating() == 0) fail("division by zero");
}

/// `sequence` (text, list or tuple) repeated.
Value repeat(Runtime& runtime, const Value& sequence, std::int64_t times) {
  const auto count = static_cast<std::uint64_t>(std::max<std::int64_t>(0, times));
  if (sequence.is_string()) {
    TextBuilder text(runtime);
    text.repeat(sequence.string(), count);
    return text.value();
  }
  const std::vector<Value>& items = sequence.sequence().items;
  if (!items.empty() && count > runtime.limits.steps / items.size()) runtime.charge(runtime.limits.steps + 1);
  runtime.charge(items.size() * count);
  std::vector<Value> repeated;
  repeated.reserve(items.size() * count);
  for (std::uint64_t i = 0; i < count && !items.empty(); ++i)
    repeated.insert(repeated.end(), items.begin(), items.end());
  return runtime.sequence(sequence.sequence().form, std::move(repeated));
}

}  // namespace

void fail_undefined(const Value& value) {
  if (!value.is_undefined() || !value.undefined().message) fail("the value is undefined");
  fail(*value.undefined().message);
}

Value add(Runtime& runtime, const Value& a, const Value& b) {
  if (both_int(a, b)) {
    std::int64_t sum = 0;
    if (__builtin_add_overflow(a.integer(), b.integer(), &sum)) overflow();
    return sum;
  }
  if (both_number(a, b)) return a.floating() + b.floating();
  if (a.is_string() && b.is_string()) {
    TextBuilder text(runtime);
    text << a.string() << b.string();
    return text.value();
  }
  if (a.is_array() && b.is_array() && a.is_list() == b.is_list()) {
    const std::vector<Value>& left = a.sequence().items;
    const std::vector<Value>& right = b.sequence().items;
    runtime.charge(left.size() + right.size());
    std::vector<Value> items(left);
    items.insert(items.end(), right.begin(), right.end());
    return runtime.sequence(a.sequence().form, std::move(items));
  }
  if (a.is_string() && !b.is_undefined()) fail("can only concatenate str (not \"", b.type_name(), "\") to str");
  if (a.is_list() && !b.is_undefined()) fail("can only concatenate list (not \"", b.type_name(), "\") to list");
  unsupported("+", a, b);
}

Value subtract(Runtime&, const Value& a, const Value& b) {
  if (both_int(a, b)) {
    std::int64_t difference = 0;
    if (__builtin_sub_overflow(a.integer(), b.integer(), &difference)) overflow();
    return difference;
  }
  if (both_number(a, b)) return a.floating() - b.floating();
  unsupported("-", a, b);
}

Value multiply(Runtime& runtime, const Value& a, const Value& b) {
  if (both_int(a, b)) {
    std::int64_t product = 0;
    if (__builtin_mul_overflow(a.integer(), b.integer(), &product)) overflow();
    return product;
  }
  if (both_number(a, b)) return a.floating() * b.floating();
  if ((a.is_string() || a.is_array()) && b.is_int()) return repeat(runtime, a, b.integer());
  if ((b.is_string() || b.is_array()) && a.is_int()) return repeat(runtime, b, a.integer());
  unsupported("*", a, b);
}

Value divide(Runtime&, const Value& a, const Value& b) {
  if (!both_number(a, b)) unsupported("/", a, b);
  require_divisor(b);
  return a.floating() / b.floating();
}

Value floor_divide(Runtime&, const Value& a, const Value& b) {
  if (!both_number(a, b)) unsupported("//", a, b);
  require_divisor(b);
  if (!both_int(a, b)) return std::floor(a.floating() / b.floating());
  const std::int64_t x = a.integer(), y = b.integer();
  if (y == -1) return negate(a);
  return x / y - (x % y != 0 && (x < 0) != (y < 0) ? 1 : 0);
}

Value modulo(Runtime& runtime, const Value& a, const Value& b) {
  if (a.is_string()) return format_percent(runtime, a.string(), b);
  if (!both_number(a, b)) unsupported("%", a, b);
  require_divisor(b);
  if (!both_int(a, b)) {
    const double remainder = std::fmod(a.floating(), b.floating());
    return remainder != 0 && (remainder < 0) != (b.floating() < 0) ? remainder + b.floating() : remainder;
  }
  const std::int64_t x = a.integer(), y = b.integer();
  if (y == -1) return 0;
  return x % y + (x % y != 0 && (x < 0) != (y < 0) ? y : 0);
}

Value power(Runtime&, const Value& a, const Value& b) {
  if (!both_number(a, b)) unsupported("** or pow()", a, b);
  if (!both_int(a, b) || b.integer() < 0) {
    if (a.floating() == 0 && b.floating() < 0) fail("0.0 cannot be raised to a negative power");
    const double result = std::pow(a.floating(), b.floating());
    if (std::isnan(result) && !std::isnan(a.floating()) && !std::isnan(b.floating())) fail("power has no real value");
    return result;
  }
  std::int64_t result = 1, base = a.integer();
  for (std::int64_t exponent = b.integer(); exponent > 0; exponent >>= 1) {
    if ((exponent & 1) && __builtin_mul_overflow(result, base, &result)) overflow();
    if (exponent > 1 && __builtin_mul_overflow(base, base, &base)) overflow();
  }
  return result;
}

Value negate(const Value& a) {
  if (a.is_undefined()) fail_undefined(a);
  if (a.is_float()) return -a.floating();
  if (!a.is_int()) fail("bad operand type for unary -: '", a.type_name(), "'");
  if (a.integer() == INT64_MIN) overflow();
  return -a.integer();
}

Value concatenate(Runtime& runtime, const Value& a, const Value& b) {
  TextBuilder text(runtime);
  text << to_text(runtime, a) << to_text(runtime, b);
  return text.value();
}

bool equal(Runtime& runtime, const Value& a, const Value& b) {
  runtime.charge(1);
  if (both_int(a, b)) return a.integer() == b.integer();
  if (both_number(a, b)) return a.floating() == b.floating();
  if (a.is_string() && b.is_string()) {
    if (a.string().size() != b.string().size()) return false;
    runtime.charge_text(a.string().size());
    return a.string() == b.string();
  }
  if (a.is_undefined() || a.is_none()) return a.is_undefined() ? b.is_undefined() : b.is_none();
  if (a.is_array() && b.is_array() && a.is_list() == b.is_list()) {
    const auto& left = a.sequence().items;
    const auto& right = b.sequence().items;
    return std::equal(left.begin(), left.end(), right.begin(), right.end(),
                      [&](const Value& x, const Value& y) { return equal(runtime, x, y); });
  }
  if (a.is_dict() && b.is_dict()) {
    if (a.dict().entries.size() != b.dict().entries.size()) return false;
    for (const auto& [key, value] : a.dict().entries) {
      const Value* other = find_key(runtime, b.dict(), key);
      if (!other || !equal(runtime, value, *other)) return false;
    }
    return true;
  }
  return a.same_as(b);
}

int compare(Runtime& runtime, const Value& a, const Value& b) {
  runtime.charge(1);
  const auto order = [](const auto& x, const auto& y) { return x < y ? -1 : x == y ? 0 : x > y ? 1 : 2; };
  if (both_int(a, b)) return order(a.integer(), b.integer());
  if (both_number(a, b)) return order(a.floating(), b.floating());
  if (a.is_string() && b.is_string()) {  // the order of UTF-8 bytes is that of code points
    runtime.charge_text(std::min(a.string().size(), b.string().size()));
    return order(a.string().compare(b.string()), 0);
  }
  if (a.is_array() && b.is_array() && a.is_list() == b.is_list()) {
    const auto& left = a.sequence().items;
    const auto& right = b.sequence().items;
    for (std::size_t i = 0; i < left.size() && i < right.size(); ++i) {
      if (!equal(runtime, left[i], right[i])) return compare(runtime, left[i], right[i]);
    }
    return order(left.size(), right.size());
  }
  if (a.is_undefined()) fail_undefined(a);
  if (b.is_undefined()) fail_undefined(b);
  fail("'<' not supported between instances of '", a.type_name(), "' and '", b.type_name(), "'");
}

bool contains(Runtime& runtime, const Value& container, const Value& item) {
  if (container.is_undefined()) return false;
  if (container.is_string()) {
    if (item.is_undefined()) fail_undefined(item);
    if (!item.is_string()) fail("'in <string>' requires string as left operand, not ", item.type_name());
    runtime.charge_text(container.string().size() + item.string().size());
    return find_text(container.string(), item.string()) != std::string::npos;
  }
  if (container.is_dict()) return find_key(runtime, container.dict(), item) != nullptr;
  const auto is_item = [&](const Value& other) { return equal(runtime, other, item); };
  if (container.is_array()) {
    const auto& items = container.sequence().items;
    return std::any_of(items.begin(), items.end(), is_item);
  }
  if (container.is_generator()) {
    const std::vector<Value> items = iterate(runtime, container);
    return std::any_of(items.begin(), items.end(), is_item);
  }
  fail("argument of type '", container.type_name(), "' is not iterable");
}

}  // namespace llminfer::chat::jinja
