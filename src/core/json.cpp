#include "core/json.hpp"

#include <set>
#include <vector>

#include "core/error.hpp"
#include "core/utf8.hpp"

namespace llminfer::core {
namespace {

constexpr int kMaxDepth = 64;

/// Thrown from the parser's callback, which has no other way to stop it; never leaves parse_json.
struct Stopped {
  Error error;
};

Error wrong_type(const char* key, std::string_view name, const char* expected) {
  return fail(ErrorCode::corrupt, name, ": \"", key, "\" must be ", expected);
}

const Json* member(const Json& object, const char* key) {
  const auto it = object.find(key);
  return it == object.end() || it->is_null() ? nullptr : &*it;
}

}  // namespace

Result<Json> parse_json(std::string_view text, std::string_view name) {
  if (!valid_utf8(text)) return fail(ErrorCode::invalid_encoding, name, ": not UTF-8");
  std::vector<std::set<std::string>> keys(kMaxDepth + 2);
  const auto check = [&](int depth, Json::parse_event_t event, Json& parsed) {
    if (depth >= kMaxDepth && (event == Json::parse_event_t::object_start || event == Json::parse_event_t::array_start)) {
      throw Stopped{fail(ErrorCode::limit_exceeded, name, ": nested deeper than ", kMaxDepth, " levels")};
    }
    if (event == Json::parse_event_t::object_start) keys[static_cast<std::size_t>(depth) + 1].clear();
    if (event == Json::parse_event_t::key &&
        !keys[static_cast<std::size_t>(depth)].insert(parsed.get_ref<const std::string&>()).second) {
      throw Stopped{fail(ErrorCode::corrupt, name, ": duplicate key \"", parsed.get_ref<const std::string&>(), "\"")};
    }
    return true;
  };
  try {
    return Json::parse(text, check);
  } catch (const Stopped& stopped) {
    return stopped.error;
  } catch (const Json::exception& e) {
    return fail(ErrorCode::corrupt, name, ": ", e.what());
  }
}

Result<std::optional<std::int64_t>> json_int(const Json& object, const char* key, std::string_view name) {
  const Json* value = member(object, key);
  if (!value) return std::optional<std::int64_t>();
  if (value->is_number_unsigned() && value->get<std::uint64_t>() > INT64_MAX) return wrong_type(key, name, "a 64-bit integer");
  if (!value->is_number_integer()) return wrong_type(key, name, "an integer");
  return std::optional(value->get<std::int64_t>());
}

Result<std::optional<double>> json_number(const Json& object, const char* key, std::string_view name) {
  const Json* value = member(object, key);
  if (!value) return std::optional<double>();
  if (!value->is_number()) return wrong_type(key, name, "a number");
  return std::optional(value->get<double>());
}

Result<std::optional<bool>> json_bool(const Json& object, const char* key, std::string_view name) {
  const Json* value = member(object, key);
  if (!value) return std::optional<bool>();
  if (!value->is_boolean()) return wrong_type(key, name, "true or false");
  return std::optional(value->get<bool>());
}

Result<std::optional<std::string>> json_string(const Json& object, const char* key, std::string_view name) {
  const Json* value = member(object, key);
  if (!value) return std::optional<std::string>();
  if (!value->is_string()) return wrong_type(key, name, "a string");
  return std::optional(value->get<std::string>());
}

}  // namespace llminfer::core
