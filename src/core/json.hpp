// JSON of untrusted origin, parsed by nlohmann::json with limits.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include <nlohmann/json.hpp>

#include <llminfer/result.hpp>

namespace llminfer::core {

/// Objects sorted by key: files may hold objects of 10^5 members.
using Json = nlohmann::json;

/// Parses strict JSON. `name` is for messages. Errors: limit_exceeded (nesting deeper than 64), corrupt (syntax, duplicate
/// key, number out of range), invalid_encoding (not UTF-8).
Result<Json> parse_json(std::string_view text, std::string_view name);

/// The member `key` of an object as T, nothing if it is absent or null.
/// Errors: corrupt if it has another type or does not fit.
Result<std::optional<std::int64_t>> json_int(const Json& object, const char* key, std::string_view name);
Result<std::optional<double>> json_number(const Json& object, const char* key, std::string_view name);
Result<std::optional<bool>> json_bool(const Json& object, const char* key, std::string_view name);
Result<std::optional<std::string>> json_string(const Json& object, const char* key, std::string_view name);

}  // namespace llminfer::core
