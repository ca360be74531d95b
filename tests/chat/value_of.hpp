// Contexts of templates, written with nlohmann::json.
#pragma once

#include <nlohmann/json.hpp>

#include "chat/template.hpp"

namespace llminfer::test {

using Context = nlohmann::ordered_json;

inline chat::Value value_of(const Context& json) {
  switch (json.type()) {
    case Context::value_t::array: {
      chat::Value::Array items;
      for (const Context& item : json) items.push_back(value_of(item));
      return items;
    }
    case Context::value_t::object: {
      chat::Value::Object members;
      for (const auto& [key, value] : json.items()) members.emplace_back(key, value_of(value));
      return members;
    }
    case Context::value_t::string: return json.get<std::string>();
    case Context::value_t::boolean: return json.get<bool>();
    case Context::value_t::number_integer: return json.get<std::int64_t>();
    case Context::value_t::number_unsigned: return json.get<std::uint64_t>();
    case Context::value_t::number_float: return json.get<double>();
    default: return {};
  }
}

}  // namespace llminfer::test
