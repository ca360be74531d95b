// Attributes, items, slices, iteration and calls.
#include <algorithm>
#include <charconv>

#include "chat/builtins.hpp"
#include "chat/unicode.hpp"

namespace llminfer::chat::jinja {
namespace {

/// What would change a list or dict, which jinja2's immutable sandbox forbids.
bool is_mutation(const Value& value, std::string_view name) {
  static constexpr std::string_view kOfLists[] = {"append", "clear", "pop",    "reverse",
                                                  "insert", "sort",  "extend", "remove"};
  static constexpr std::string_view kOfDicts[] = {"clear", "pop", "popitem", "setdefault", "update"};
  if (value.is_list()) return std::find(std::begin(kOfLists), std::end(kOfLists), name) != std::end(kOfLists);
  return value.is_dict() && std::find(std::begin(kOfDicts), std::end(kOfDicts), name) != std::end(kOfDicts);
}

std::string description(const Value& value) { return value.is_none() ? "None" : "'" + value.type_name() + " object'"; }

Value missing(Runtime& runtime, const Value& value, std::string_view name) {
  return runtime.undefined(description(value), " has no attribute '", name, "'");
}

std::optional<Value> find_attribute(Runtime& runtime, const Value& value, const std::string& name) {
  if (value.is_object()) {
    if (const Value* found = value.object().find_attribute(runtime, name)) return *found;
    return std::nullopt;
  }
  if (is_mutation(value, name)) {
    return runtime.undefined("access to attribute '", name, "' of '", value.type_name(), "' object is unsafe");
  }
  const auto method = find_method(value, name);
  if (!method) return std::nullopt;
  runtime.charge(2);
  return Value(std::shared_ptr<Object>(std::make_shared<BoundBuiltin>(value, *method)));
}

/// Null where there is none.
std::optional<Value> find_item(Runtime& runtime, const Value& value, const Value& key) {
  if (value.is_dict()) {
    if (const Value* found = find_key(runtime, value.dict(), key)) return *found;
    return std::nullopt;
  }
  if (!key.is_int()) return std::nullopt;
  std::int64_t index = key.integer();
  if (value.is_array()) {
    const auto& items = value.sequence().items;
    const auto count = static_cast<std::int64_t>(items.size());
    if (index < 0) index += count;
    if (index < 0 || index >= count) return std::nullopt;
    return items[static_cast<std::size_t>(index)];
  }
  if (!value.is_string()) return std::nullopt;
  std::string_view text = value.string();
  runtime.charge_text(text.size());
  if (index < 0) index += static_cast<std::int64_t>(count_characters(text));
  if (index < 0) return std::nullopt;
  for (; !text.empty(); --index) {
    const std::size_t n = character_size(text);
    if (index == 0) return Value(std::string(text.substr(0, n)));
    text.remove_prefix(n);
  }
  return std::nullopt;
}

/// The indexes that Python's slice(start, stop, step) takes from `count` items.
std::vector<std::size_t> slice_indexes(Runtime& runtime, std::int64_t count, const Value& start, const Value& stop,
                                       const Value& step) {
  for (const Value* bound : {&start, &stop, &step}) {
    if (bound->is_undefined()) fail_undefined(*bound);
    if (!bound->is_none() && !bound->is_int()) fail("slice indices must be integers or None");
  }
  const std::int64_t by = step.is_none() ? 1 : step.integer();
  if (by == 0) fail("slice step cannot be zero");
  const std::int64_t lowest = by < 0 ? -1 : 0, highest = by < 0 ? count - 1 : count;
  const auto clamp = [&](const Value& bound, std::int64_t otherwise) {
    if (bound.is_none()) return otherwise;
    std::int64_t index = bound.integer();
    if (index < 0) index += count;
    return std::clamp(index, lowest, highest);
  };
  const std::int64_t from = clamp(start, by < 0 ? highest : lowest), to = clamp(stop, by < 0 ? lowest : highest);
  std::vector<std::size_t> indexes;
  // Counted by the distance left, because from + by may overflow.
  for (std::int64_t i = from; by > 0 ? i < to : i > to;) {
    indexes.push_back(static_cast<std::size_t>(i));
    if (by > 0 ? to - i <= by : to - i >= by) break;
    i += by;
  }
  runtime.charge(indexes.size());
  return indexes;
}

}  // namespace

const Value* find_key(Runtime& runtime, const Dict& dict, const Value& key) {
  runtime.charge(1 + dict.entries.size() / 8);
  for (const auto& [known, value] : dict.entries) {
    if (known.is_string() && key.is_string()) {
      if (known.string() == key.string()) return &value;
    } else if (known.is_string() == key.is_string() && equal(runtime, known, key)) {
      return &value;
    }
  }
  return nullptr;
}

Value get_attribute(Runtime& runtime, const Value& value, const std::string& name) {
  if (value.is_undefined()) fail_undefined(value);
  if (auto attribute = find_attribute(runtime, value, name)) return *std::move(attribute);
  if (value.is_dict()) {
    if (auto item = find_item(runtime, value, Value(name))) return *std::move(item);
  }
  return missing(runtime, value, name);
}

Value get_item(Runtime& runtime, const Value& value, const Value& key) {
  if (value.is_undefined()) fail_undefined(value);
  if (auto item = find_item(runtime, value, key)) return *std::move(item);
  if (key.is_string()) {
    if (auto attribute = find_attribute(runtime, value, key.string())) return *std::move(attribute);
    return missing(runtime, value, key.string());
  }
  return runtime.undefined(description(value), " has no element ", to_repr(runtime, key));
}

Value get_slice(Runtime& runtime, const Value& value, const Value& start, const Value& stop, const Value& step) {
  if (value.is_undefined()) fail_undefined(value);
  if (value.is_string()) {
    runtime.charge_text(value.string().size());
    const auto characters = split_characters(value.string());
    std::string part;
    for (const std::size_t i :
         slice_indexes(runtime, static_cast<std::int64_t>(characters.size()), start, stop, step)) {
      part += characters[i];
    }
    return runtime.text(std::move(part));
  }
  if (!value.is_array()) return runtime.undefined(description(value), " cannot be sliced");
  const auto& items = value.sequence().items;
  std::vector<Value> part;
  for (const std::size_t i : slice_indexes(runtime, static_cast<std::int64_t>(items.size()), start, stop, step)) {
    part.push_back(items[i]);
  }
  return runtime.sequence(value.sequence().form, std::move(part));
}

Value get_path(Runtime& runtime, const Value& value, const Value& path) {
  if (!path.is_string()) return get_item(runtime, value, path);
  Value result = value;
  std::string_view rest = path.string();
  for (;;) {
    const std::size_t dot = rest.find('.');
    const std::string_view part = rest.substr(0, dot);
    std::int64_t index = 0;
    const auto parsed = std::from_chars(part.data(), part.data() + part.size(), index);
    const bool is_index = parsed.ec == std::errc() && parsed.ptr == part.data() + part.size() && part[0] != '-';
    result = get_item(runtime, result, is_index ? Value(index) : Value(std::string(part)));
    if (dot == std::string_view::npos) return result;
    rest.remove_prefix(dot + 1);
  }
}

std::vector<Value> iterate(Runtime& runtime, const Value& value) {
  std::vector<Value> items;
  if (value.is_undefined()) return items;
  if (value.is_generator()) {
    runtime.charge(value.sequence().items.size());
    return std::exchange(value.sequence().items, {});
  }
  if (value.is_array()) {
    runtime.charge(value.sequence().items.size());
    return value.sequence().items;
  }
  if (value.is_dict()) {
    runtime.charge(value.dict().entries.size());
    for (const auto& entry : value.dict().entries) items.push_back(entry.first);
    return items;
  }
  if (!value.is_string()) fail("'", value.type_name(), "' object is not iterable");
  runtime.charge(value.string().size());
  for (const std::string_view c : split_characters(value.string())) items.emplace_back(std::string(c));
  return items;
}

std::int64_t length_of(Runtime& runtime, const Value& value) {
  std::size_t length = 0;
  if (value.is_string()) {
    runtime.charge_text(value.string().size());
    length = count_characters(value.string());
  } else if (value.is_array()) {
    length = value.sequence().items.size();
  } else if (value.is_dict()) {
    length = value.dict().entries.size();
  } else if (!value.is_undefined()) {
    fail("object of type '", value.type_name(), "' has no len()");
  }
  return static_cast<std::int64_t>(length);
}

Value call_value(Runtime& runtime, const Value& callee, Arguments& arguments) {
  if (callee.is_undefined()) fail_undefined(callee);
  if (!callee.is_object()) fail("'", callee.type_name(), "' object is not callable");
  runtime.charge(1 + arguments.positional.size() + arguments.keywords.size());
  return callee.object().call(runtime, arguments);
}

std::int64_t integer_or(const Value* argument, std::int64_t otherwise, std::string_view function) {
  if (!argument) return otherwise;
  if (argument->is_undefined()) fail_undefined(*argument);
  if (!argument->is_int()) fail(function, ": expected an integer, got '", argument->type_name(), "'");
  return argument->integer();
}

std::string text_or(Runtime& runtime, const Value* argument, std::string_view otherwise) {
  return argument ? to_text(runtime, *argument) : std::string(otherwise);
}

}  // namespace llminfer::chat::jinja
