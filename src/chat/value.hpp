// The values that a chat template computes with: Python's, as far as Jinja2 shows them. Knows no syntax.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace llminfer::chat::jinja {

class Object;
struct Dict;
struct Sequence;

struct None {};

/// Jinja2's Undefined: prints as nothing, iterates as nothing; most other uses raise `message`.
struct Undefined {
  std::shared_ptr<const std::string> message;
};

/// Text is UTF-8 (bytes that are not count as one character each). Copies share text, sequences and dicts, which never
/// change once a template can see them; so no value can contain itself.
class Value {
 public:
  Value() : data_(Undefined{}) {}
  Value(None none) : data_(none) {}
  Value(Undefined undefined) : data_(std::move(undefined)) {}
  Value(bool b) : data_(b) {}
  Value(std::int64_t i) : data_(i) {}
  Value(int i) : data_(std::int64_t{i}) {}
  Value(double d) : data_(d) {}
  Value(std::string text) : data_(std::make_shared<const std::string>(std::move(text))) {}
  Value(const char*) = delete;
  Value(std::shared_ptr<const Sequence> sequence) : data_(std::move(sequence)) {}
  Value(std::shared_ptr<const Dict> dict) : data_(std::move(dict)) {}
  Value(std::shared_ptr<Object> object) : data_(std::move(object)) {}

  bool is_undefined() const { return std::holds_alternative<Undefined>(data_); }
  bool is_none() const { return std::holds_alternative<None>(data_); }
  bool is_bool() const { return std::holds_alternative<bool>(data_); }
  /// Python's bool is an int.
  bool is_int() const { return std::holds_alternative<std::int64_t>(data_) || is_bool(); }
  bool is_float() const { return std::holds_alternative<double>(data_); }
  bool is_number() const { return is_int() || is_float(); }
  bool is_string() const { return std::holds_alternative<std::shared_ptr<const std::string>>(data_); }
  bool is_list() const;
  bool is_tuple() const;
  bool is_generator() const;
  /// List or tuple.
  bool is_array() const { return is_list() || is_tuple(); }
  bool is_dict() const { return std::holds_alternative<std::shared_ptr<const Dict>>(data_); }
  bool is_object() const { return std::holds_alternative<std::shared_ptr<Object>>(data_); }

  // Each requires the kind of the same name (integer(): is_int()).
  const Undefined& undefined() const { return std::get<Undefined>(data_); }
  std::int64_t integer() const { return is_bool() ? std::get<bool>(data_) : std::get<std::int64_t>(data_); }
  double floating() const { return is_float() ? std::get<double>(data_) : static_cast<double>(integer()); }
  const std::string& string() const { return *std::get<std::shared_ptr<const std::string>>(data_); }
  const Sequence& sequence() const { return *std::get<std::shared_ptr<const Sequence>>(data_); }
  const Dict& dict() const { return *std::get<std::shared_ptr<const Dict>>(data_); }
  Object& object() const { return *std::get<std::shared_ptr<Object>>(data_); }

  /// Nesting: 0 for scalars and objects.
  int depth() const;
  /// Python's truth value.
  bool truthy() const;
  /// Python's name of the type, for messages.
  std::string type_name() const;
  /// The same list, dict or object (Python's `is`), or equal scalars of one type.
  bool same_as(const Value& other) const;

 private:
  bool is_sequence() const { return std::holds_alternative<std::shared_ptr<const Sequence>>(data_); }

  std::variant<Undefined, None, bool, std::int64_t, double, std::shared_ptr<const std::string>,
               std::shared_ptr<const Sequence>, std::shared_ptr<const Dict>, std::shared_ptr<Object>>
      data_;
};

/// A list, a tuple, or what filters such as map give: a generator, which is always true and can be read only once.
struct Sequence {
  enum class Form : std::uint8_t { list, tuple, generator };
  Form form;
  int depth;
  mutable std::vector<Value> items;  ///< changes only when a generator is read
};

/// In order of insertion, without duplicate keys. Lookup is linear: dicts hold JSON schemas and messages.
struct Dict {
  int depth;
  std::vector<std::pair<Value, Value>> entries;
};

struct Runtime;
class Arguments;

/// A value with behaviour: functions, bound methods, macros, namespaces, `loop`.
class Object {
 public:
  virtual ~Object() = default;
  virtual std::string type_name() const = 0;
  virtual bool callable() const { return false; }
  /// Fails with template_error where the object is not callable.
  virtual Value call(Runtime& runtime, Arguments& arguments);
  /// Null where there is none.
  virtual const Value* find_attribute(Runtime& runtime, std::string_view name);
  /// False where the object takes no assignments ({% set object.name = … %}).
  virtual bool assign(Runtime&, std::string_view /*name*/, Value /*value*/) { return false; }
};

}  // namespace llminfer::chat::jinja
