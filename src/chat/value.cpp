// Kinds, truth and identity of template values.
#include "chat/value.hpp"

#include "chat/runtime.hpp"

namespace llminfer::chat::jinja {

bool Value::is_list() const { return is_sequence() && sequence().form == Sequence::Form::list; }
bool Value::is_tuple() const { return is_sequence() && sequence().form == Sequence::Form::tuple; }
bool Value::is_generator() const { return is_sequence() && sequence().form == Sequence::Form::generator; }

int Value::depth() const {
  if (is_sequence()) return sequence().depth;
  return is_dict() ? dict().depth : 0;
}

bool Value::truthy() const {
  if (is_undefined() || is_none()) return false;
  if (is_float()) return floating() != 0;
  if (is_int()) return integer() != 0;
  if (is_string()) return !string().empty();
  if (is_array()) return !sequence().items.empty();
  if (is_dict()) return !dict().entries.empty();
  return true;
}

std::string Value::type_name() const {
  if (is_undefined()) return "Undefined";
  if (is_none()) return "NoneType";
  if (is_bool()) return "bool";
  if (is_int()) return "int";
  if (is_float()) return "float";
  if (is_string()) return "str";
  if (is_list()) return "list";
  if (is_tuple()) return "tuple";
  if (is_generator()) return "generator";
  if (is_dict()) return "dict";
  return object().type_name();
}

bool Value::same_as(const Value& other) const {
  if (data_.index() != other.data_.index()) return false;
  if (is_undefined()) return false;
  if (is_none()) return true;
  if (is_bool() || is_int()) return integer() == other.integer();
  if (is_float()) return floating() == other.floating();
  if (is_string()) return string() == other.string();
  if (is_sequence()) return &sequence() == &other.sequence();
  if (is_dict()) return &dict() == &other.dict();
  return &object() == &other.object();
}

Value Object::call(Runtime&, Arguments&) { fail("'", type_name(), "' object is not callable"); }

const Value* Object::find_attribute(Runtime&, std::string_view) { return nullptr; }

}  // namespace llminfer::chat::jinja
