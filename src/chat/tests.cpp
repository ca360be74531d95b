// Tests: {{ value is name }}.
#include <algorithm>

#include "chat/builtins.hpp"
#include "chat/unicode.hpp"

namespace llminfer::chat::jinja {
namespace {

template <bool (*kPredicate)(const Value&)>
Value plain(Runtime&, const Value& self, Arguments& arguments) {
  arguments.none("test");
  return kPredicate(self);
}

bool is_defined(const Value& v) { return !v.is_undefined(); }
bool is_undefined(const Value& v) { return v.is_undefined(); }
bool is_none(const Value& v) { return v.is_none(); }
bool is_boolean(const Value& v) { return v.is_bool(); }
bool is_true(const Value& v) { return v.is_bool() && v.truthy(); }
bool is_false(const Value& v) { return v.is_bool() && !v.truthy(); }
bool is_integer(const Value& v) { return v.is_int() && !v.is_bool(); }
bool is_float(const Value& v) { return v.is_float(); }
bool is_number(const Value& v) { return v.is_number(); }
bool is_string(const Value& v) { return v.is_string(); }
bool is_mapping(const Value& v) { return v.is_dict(); }
bool is_sequence(const Value& v) { return v.is_string() || v.is_array() || v.is_dict() || v.is_undefined(); }
bool is_iterable(const Value& v) { return is_sequence(v) || v.is_generator(); }
bool is_callable(const Value& v) { return v.is_object() && v.object().callable(); }
bool is_filter(const Value& v) { return v.is_string() && find_filter(v.string()) != nullptr; }
bool is_test(const Value& v) { return v.is_string() && find_test(v.string()) != nullptr; }
bool is_escaped(const Value&) { return false; }

Value divisibleby(Runtime& runtime, const Value& self, Arguments& arguments) {
  return equal(runtime, modulo(runtime, self, *arguments.bind("divisibleby", {"num"}, 1)[0]), 0);
}
Value even(Runtime& runtime, const Value& self, Arguments& arguments) {
  arguments.none("even");
  return equal(runtime, modulo(runtime, self, 2), 0);
}
Value odd(Runtime& runtime, const Value& self, Arguments& arguments) {
  arguments.none("odd");
  return equal(runtime, modulo(runtime, self, 2), 1);
}
Value upper(Runtime& runtime, const Value& self, Arguments& arguments) {
  arguments.none("upper");
  const std::string text = to_text(runtime, self);
  return to_upper(text) == text && to_lower(text) != text;
}
Value lower(Runtime& runtime, const Value& self, Arguments& arguments) {
  arguments.none("lower");
  const std::string text = to_text(runtime, self);
  return to_lower(text) == text && to_upper(text) != text;
}
Value sameas(Runtime&, const Value& self, Arguments& arguments) {
  return self.same_as(*arguments.bind("sameas", {"other"}, 1)[0]);
}
Value in(Runtime& runtime, const Value& self, Arguments& arguments) {
  return contains(runtime, *arguments.bind("in", {"seq"}, 1)[0], self);
}
Value eq(Runtime& runtime, const Value& self, Arguments& arguments) {
  return equal(runtime, self, *arguments.bind("eq", {"other"}, 1)[0]);
}
Value ne(Runtime& runtime, const Value& self, Arguments& arguments) {
  return !equal(runtime, self, *arguments.bind("ne", {"other"}, 1)[0]);
}
/// True where compare() gives kFirst or kSecond.
template <int kFirst, int kSecond>
Value ordered(Runtime& runtime, const Value& self, Arguments& arguments) {
  const int order = compare(runtime, self, *arguments.bind("comparison", {"other"}, 1)[0]);
  return order == kFirst || order == kSecond;
}

constexpr NamedBuiltin kTests[] = {
    {"defined", plain<is_defined>},
    {"undefined", plain<is_undefined>},
    {"none", plain<is_none>},
    {"boolean", plain<is_boolean>},
    {"true", plain<is_true>},
    {"false", plain<is_false>},
    {"integer", plain<is_integer>},
    {"float", plain<is_float>},
    {"number", plain<is_number>},
    {"string", plain<is_string>},
    {"mapping", plain<is_mapping>},
    {"sequence", plain<is_sequence>},
    {"iterable", plain<is_iterable>},
    {"callable", plain<is_callable>},
    {"filter", plain<is_filter>},
    {"test", plain<is_test>},
    {"escaped", plain<is_escaped>},
    {"divisibleby", divisibleby},
    {"even", even},
    {"odd", odd},
    {"upper", upper},
    {"lower", lower},
    {"sameas", sameas},
    {"in", in},
    {"eq", eq},
    {"equalto", eq},
    {"==", eq},
    {"ne", ne},
    {"!=", ne},
    {"lt", ordered<-1, -1>},
    {"lessthan", ordered<-1, -1>},
    {"<", ordered<-1, -1>},
    {"le", ordered<-1, 0>},
    {"<=", ordered<-1, 0>},
    {"gt", ordered<1, 1>},
    {"greaterthan", ordered<1, 1>},
    {">", ordered<1, 1>},
    {"ge", ordered<1, 0>},
    {">=", ordered<1, 0>},
};

}  // namespace

Builtin find_test(std::string_view name) {
  const auto* const found =
      std::find_if(std::begin(kTests), std::end(kTests), [&](const NamedBuiltin& t) { return t.name == name; });
  return found == std::end(kTests) ? nullptr : found->function;
}

}  // namespace llminfer::chat::jinja
