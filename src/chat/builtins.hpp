// What templates find ready: filters, tests, functions, methods, and the operations on values that these share.
// Knows no syntax. Every function charges the fuel of what it touches and throws Failure.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "chat/runtime.hpp"
#include "chat/value.hpp"

namespace llminfer::chat::jinja {

// Tables; null where the name is unknown.
Builtin find_filter(std::string_view name);
Builtin find_text_filter(std::string_view name);
Builtin find_number_filter(std::string_view name);
Builtin find_list_filter(std::string_view name);
Builtin find_test(std::string_view name);
/// A method of strings, lists, tuples or dicts.
std::optional<NamedBuiltin> find_method(const Value& receiver, std::string_view name);
/// A global function as a value.
std::optional<Value> find_function(std::string_view name);

// Printing (print.cpp).
std::string to_text(Runtime& runtime, const Value& value);  ///< Python's str()
std::string to_repr(Runtime& runtime, const Value& value);  ///< Python's repr()
std::string float_repr(double value);
struct JsonStyle {
  bool ascii = false, sort_keys = false;
  std::optional<std::string> indent;  ///< of one level
  std::string item_separator = ", ", key_separator = ": ";
};
std::string to_json(Runtime& runtime, const Value& value, const JsonStyle& style);

// Arithmetic and comparison (operators.cpp).
Value add(Runtime& runtime, const Value& a, const Value& b);
Value subtract(Runtime& runtime, const Value& a, const Value& b);
Value multiply(Runtime& runtime, const Value& a, const Value& b);
Value divide(Runtime& runtime, const Value& a, const Value& b);
Value floor_divide(Runtime& runtime, const Value& a, const Value& b);
Value modulo(Runtime& runtime, const Value& a, const Value& b);
Value power(Runtime& runtime, const Value& a, const Value& b);
Value negate(const Value& a);
Value concatenate(Runtime& runtime, const Value& a, const Value& b);
bool equal(Runtime& runtime, const Value& a, const Value& b);
/// Negative, 0 or positive; fails where Python cannot order the two. NaN compares as 2 with everything.
int compare(Runtime& runtime, const Value& a, const Value& b);
bool contains(Runtime& runtime, const Value& container, const Value& item);

// Parts of values (access.cpp).
/// The attribute or, failing that, the item: {{ value.name }}.
Value get_attribute(Runtime& runtime, const Value& value, const std::string& name);
/// The item or, failing that, the attribute: {{ value[key] }}.
Value get_item(Runtime& runtime, const Value& value, const Value& key);
/// value[start:stop:step], where undefined stands for a bound that was left out.
Value get_slice(Runtime& runtime, const Value& value, const Value& start, const Value& stop, const Value& step);
/// Follows "a.b.0", as the attribute arguments of filters do.
Value get_path(Runtime& runtime, const Value& value, const Value& path);
const Value* find_key(Runtime& runtime, const Dict& dict, const Value& key);
/// What a for loop goes over; reads a generator up.
std::vector<Value> iterate(Runtime& runtime, const Value& value);
std::int64_t length_of(Runtime& runtime, const Value& value);
Value call_value(Runtime& runtime, const Value& callee, Arguments& arguments);

/// Fails with an undefined value's own message.
[[noreturn]] void fail_undefined(const Value& value);
/// The argument as an integer, text or truth value; `otherwise` where it was not given.
std::int64_t integer_or(const Value* argument, std::int64_t otherwise, std::string_view function);
std::string text_or(Runtime& runtime, const Value* argument, std::string_view otherwise);
inline bool truth_or(const Value* argument, bool otherwise) { return argument ? argument->truthy() : otherwise; }

/// str.replace(), at most `limit` times if that is not negative (methods.cpp).
Value replace_text(Runtime& runtime, std::string_view text, std::string_view from, std::string_view to,
                   std::int64_t limit);

// Formatting (format.cpp).
/// "%s of %d" % arguments.
Value format_percent(Runtime& runtime, const std::string& format, const Value& arguments);
/// "{} of {name:>5}".format(…).
Value format_braces(Runtime& runtime, const Value& format, Arguments& arguments);
/// Python's round() of a float at `digits` decimal places (half to even on the exact value).
double round_to(double value, std::int64_t digits);

// Numbers and time (functions.cpp).
/// int() and float() of text: nothing where Python raises ValueError.
std::optional<std::int64_t> parse_integer(std::string_view text, int base);
std::optional<double> parse_float(std::string_view text);

/// An instance of jinja2's namespace.
class Namespace final : public Object {
 public:
  std::string type_name() const override { return "Namespace"; }
  const Value* find_attribute(Runtime& runtime, std::string_view name) override;
  bool assign(Runtime& runtime, std::string_view name, Value value) override;

 private:
  std::vector<std::pair<std::string, Value>> members_;
};

}  // namespace llminfer::chat::jinja
