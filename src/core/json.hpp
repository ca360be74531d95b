// JSON of untrusted origin: values, and a parser with limits. Not nlohmann::json's own values, because their destructor
// allocates memory, and ends the program where there is none.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include <llminfer/result.hpp>

namespace llminfer::core {

/// A JSON value. Objects keep the order of their members.
class Json {
 public:
  struct Member;
  using Array = std::vector<Json>;
  using Object = std::vector<Member>;
  /// Integers are std::int64_t where they fit it, std::uint64_t above.
  using Value = std::variant<std::nullptr_t, bool, std::int64_t, std::uint64_t, double, std::string, Array, Object>;

  // Defined below, where Member is complete.
  Json() noexcept;
  Json(bool value);
  Json(std::int64_t value);
  Json(std::uint64_t value);
  Json(double value);
  Json(std::string value);
  Json(const char* value);
  Json(Array value);
  Json(Object value);
  Json(const Json& other);
  Json(Json&&) noexcept;
  Json& operator=(const Json& other);
  Json& operator=(Json&&) noexcept;
  ~Json();

  const Value& value() const noexcept { return value_; }
  Value& value() noexcept { return value_; }

  bool is_null() const noexcept { return std::holds_alternative<std::nullptr_t>(value_); }
  bool is_array() const noexcept { return std::holds_alternative<Array>(value_); }
  bool is_object() const noexcept { return std::holds_alternative<Object>(value_); }
  bool is_string() const noexcept { return std::holds_alternative<std::string>(value_); }
  bool is_integer() const noexcept {
    return std::holds_alternative<std::int64_t>(value_) || std::holds_alternative<std::uint64_t>(value_);
  }

  /// The integer, nothing if the value is not one or does not fit.
  std::optional<std::int64_t> integer() const noexcept;
  /// The number as a double, nothing if the value is not one.
  std::optional<double> number() const noexcept;
  std::optional<bool> boolean() const noexcept;
  /// Requires is_string().
  const std::string& string() const { return std::get<std::string>(value_); }
  /// Requires is_array().
  const Array& array() const { return std::get<Array>(value_); }
  /// Requires is_object().
  const Object& object() const { return std::get<Object>(value_); }

  /// The member of that name; null if there is none, or the value is no object. Time: linear in the members.
  const Json* find(std::string_view key) const noexcept;
  /// Elements of an array or members of an object; 0 for others.
  std::size_t size() const noexcept;
  /// The value written as JSON, for messages.
  std::string dump() const;

 private:
  Value value_;  // null at first
};

struct Json::Member {
  explicit Member(std::string k) : key(std::move(k)) {}
  Member(std::string k, Json v) : key(std::move(k)), value(std::move(v)) {}

  std::string key;
  Json value;
};

inline Json::Json() noexcept = default;
inline Json::Json(bool value) : value_(value) {}
inline Json::Json(std::int64_t value) : value_(value) {}
inline Json::Json(double value) : value_(value) {}
inline Json::Json(std::string value) : value_(std::move(value)) {}
inline Json::Json(const char* value) : value_(std::string(value)) {}
inline Json::Json(Array value) : value_(std::move(value)) {}
inline Json::Json(Object value) : value_(std::move(value)) {}
inline Json::Json(Json&&) noexcept = default;
inline Json& Json::operator=(const Json& other) { return *this = Json(other); }
inline Json& Json::operator=(Json&&) noexcept = default;
inline Json::~Json() = default;

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
