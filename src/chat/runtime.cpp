// Making values within the limits, and matching arguments to parameters.
#include "chat/runtime.hpp"

#include <algorithm>

namespace llminfer::chat::jinja {

Value Runtime::sequence(Sequence::Form form, std::vector<Value> items) {
  charge(1 + items.size());
  int depth = 0;
  for (const Value& item : items) depth = std::max(depth, item.depth());
  if (depth >= max_value_depth()) exceed("values nested deeper than ", max_value_depth());
  return std::make_shared<const Sequence>(Sequence{form, depth + 1, std::move(items)});
}

Value Runtime::dict(std::vector<std::pair<Value, Value>> entries) {
  charge(1 + entries.size());
  int depth = 0;
  for (const auto& [key, value] : entries) depth = std::max({depth, key.depth(), value.depth()});
  if (depth >= max_value_depth()) exceed("values nested deeper than ", max_value_depth());
  return std::make_shared<const Dict>(Dict{depth + 1, std::move(entries)});
}

TextBuilder& TextBuilder::repeat(std::string_view part, std::uint64_t times) {
  if (part.empty() || times == 0) return *this;
  if (times > runtime_.limits.output_bytes / part.size()) runtime_.check_size(UINT64_MAX);
  runtime_.check_size(text_.size() + part.size() * times);
  runtime_.charge_text(part.size() * times);
  text_.reserve(text_.size() + part.size() * times);
  for (std::uint64_t i = 0; i < times; ++i) text_.append(part);
  return *this;
}

void Arguments::bind_all(std::string_view function, const char* const* names, const Value** bound, std::size_t count,
                         std::size_t required) const {
  if (positional.size() > count) {
    fail(function, "() takes at most ", count, " arguments (", positional.size(), " given)");
  }
  for (std::size_t i = 0; i < positional.size(); ++i) bound[i] = &positional[i];
  for (const auto& [name, value] : keywords) {
    const auto* const found = std::find(names, names + count, name);
    if (found == names + count) fail(function, "() got an unexpected keyword argument '", name, "'");
    const Value*& slot = bound[found - names];
    if (slot) fail(function, "() got multiple values for argument '", name, "'");
    slot = &value;
  }
  for (std::size_t i = 0; i < required; ++i) {
    if (!bound[i]) fail(function, "() missing the required argument '", names[i], "'");
  }
}

void Arguments::none(std::string_view function) const {
  if (!positional.empty() || !keywords.empty()) fail(function, "() takes no arguments");
}

}  // namespace llminfer::chat::jinja
