// What one rendering spends and owns: fuel, size limits, and the objects that templates make. Knows no syntax.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "chat/template.hpp"
#include "chat/value.hpp"
#include "core/error.hpp"

namespace llminfer::chat::jinja {

/// Thrown inside the interpreter; Template turns it into its Error.
struct Failure {
  Error error;
};

template <class... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  throw Failure{core::fail(ErrorCode::template_error, parts...)};
}

template <class... Parts>
[[noreturn]] void exceed(const Parts&... parts) {
  throw Failure{core::fail(ErrorCode::limit_exceeded, parts...)};
}

/// State of one rendering; used by one thread.
struct Runtime {
  explicit Runtime(const TemplateLimits& template_limits) : limits(template_limits) {}
  Runtime(const Runtime&) = delete;
  Runtime& operator=(const Runtime&) = delete;

  /// Takes `steps` from the fuel. Whatever loops over a value calls this first.
  void charge(std::uint64_t steps) {
    if (steps > limits.steps - spent) exceed("more than ", limits.steps, " steps");
    spent += steps;
  }
  /// Fuel for reading or writing `bytes` of text.
  void charge_text(std::uint64_t bytes) { charge(1 + bytes / 8); }
  /// Fails if a string of `bytes` may not exist.
  void check_size(std::uint64_t bytes) const {
    if (bytes > limits.output_bytes) exceed("more than ", limits.output_bytes, " bytes of text");
  }
  /// Nested values may be deeper than the context's, since templates wrap parts of it.
  int max_value_depth() const { return 2 * limits.depth; }

  Value text(std::string s) {
    check_size(s.size());
    charge_text(s.size());
    return Value(std::move(s));
  }
  Value list(std::vector<Value> items) { return sequence(Sequence::Form::list, std::move(items)); }
  Value tuple(std::vector<Value> items) { return sequence(Sequence::Form::tuple, std::move(items)); }
  Value generator(std::vector<Value> items) { return sequence(Sequence::Form::generator, std::move(items)); }
  Value sequence(Sequence::Form form, std::vector<Value> items);
  /// Keys are unique.
  Value dict(std::vector<std::pair<Value, Value>> entries);
  /// An undefined value whose use raises a message made of `parts`.
  template <class... Parts>
  Value undefined(const Parts&... parts) {
    charge(1);
    std::string message;
    (message.append(parts), ...);
    return Undefined{std::make_shared<const std::string>(std::move(message))};
  }

  /// Objects that can refer to others live until the rendering ends; values refer to them without owning them, so that
  /// no cycle can leak.
  template <class T>
  Value own(std::unique_ptr<T> object) {
    charge(4);
    T* raw = object.get();
    objects.push_back(std::move(object));
    return std::shared_ptr<Object>(std::shared_ptr<void>(), raw);
  }

  const TemplateLimits& limits;
  std::uint64_t spent = 0;
  std::vector<std::unique_ptr<Object>> objects;
  std::optional<std::int64_t> now;  ///< Unix time in seconds that strftime_now shows; nothing: the clock's
};

/// Text that grows within the limits.
class TextBuilder {
 public:
  explicit TextBuilder(Runtime& runtime) : runtime_(runtime) {}
  TextBuilder& operator<<(std::string_view part) {
    runtime_.check_size(text_.size() + part.size());
    runtime_.charge_text(part.size());
    text_.append(part);
    return *this;
  }
  TextBuilder& repeat(std::string_view part, std::uint64_t times);
  std::size_t size() const { return text_.size(); }
  std::string take() { return std::move(text_); }
  Value value() { return Value(std::move(text_)); }

 private:
  Runtime& runtime_;
  std::string text_;
};

/// The arguments of a call.
class Arguments {
 public:
  std::vector<Value> positional;
  std::vector<std::pair<std::string, Value>> keywords;

  /// Matches the arguments to parameters, as a Python function of that signature does; null where one was not given.
  /// Fails if there are too many, an unknown keyword, or fewer than `required`.
  template <std::size_t N>
  std::array<const Value*, N> bind(std::string_view function, const char* const (&names)[N],
                                   std::size_t required = 0) const {
    std::array<const Value*, N> bound{};
    bind_all(function, names, bound.data(), N, required);
    return bound;
  }
  /// Fails if there are any.
  void none(std::string_view function) const;

 private:
  void bind_all(std::string_view function, const char* const* names, const Value** bound, std::size_t count,
                std::size_t required) const;
};

/// A function, filter, test or method. `self` is the filtered or tested value or the receiver (undefined for
/// functions).
using Builtin = Value (*)(Runtime& runtime, const Value& self, Arguments& arguments);

struct NamedBuiltin {
  std::string_view name;
  Builtin function;
};

/// A builtin bound to what it works on.
class BoundBuiltin final : public Object {
 public:
  BoundBuiltin(Value self, NamedBuiltin builtin) : self_(std::move(self)), builtin_(builtin) {}
  std::string type_name() const override { return "builtin_function_or_method"; }
  bool callable() const override { return true; }
  Value call(Runtime& runtime, Arguments& arguments) override { return builtin_.function(runtime, self_, arguments); }

 private:
  Value self_;
  NamedBuiltin builtin_;
};

}  // namespace llminfer::chat::jinja
