#include "core/json.hpp"

#include <algorithm>
#include <charconv>
#include <cstddef>
#include <nlohmann/json.hpp>

#include "core/error.hpp"
#include "core/utf8.hpp"

namespace llminfer::core {
namespace {

constexpr std::size_t kMaxDepth = 64;

/// Builds the value from nlohmann's parser. A function that returns false stops it.
class Handler {
 public:
  using number_integer_t = std::int64_t;
  using number_unsigned_t = std::uint64_t;
  using number_float_t = double;
  using string_t = std::string;
  using binary_t = nlohmann::json::binary_t;

  explicit Handler(std::string_view name) : name_(name) {}

  Result<Json> take() && {
    if (!status_) return std::move(status_).error();
    return std::move(root_);
  }

  bool null() { return add(Json()); }
  bool boolean(bool value) { return add(Json(value)); }
  bool number_integer(std::int64_t value) { return add(Json(value)); }
  bool number_unsigned(std::uint64_t value) { return add(Json(value)); }
  bool number_float(double value, const std::string&) { return add(Json(value)); }
  bool string(std::string& value) { return add(Json(std::move(value))); }
  bool binary(binary_t&) { return false; }  // not in JSON's text
  bool start_array(std::size_t) { return open(Json(Json::Array())); }
  bool start_object(std::size_t) { return open(Json(Json::Object())); }
  bool key(std::string& key) {
    std::get<Json::Object>(open_.back()->value()).emplace_back(std::move(key));
    return true;
  }
  bool end_array() {
    open_.pop_back();
    return true;
  }
  bool end_object() {
    const auto& members = open_.back()->object();
    open_.pop_back();
    std::vector<std::string_view> keys;
    keys.reserve(members.size());
    for (const Json::Member& member : members) keys.push_back(member.key);
    std::sort(keys.begin(), keys.end());
    const auto twice = std::adjacent_find(keys.begin(), keys.end());
    if (twice == keys.end()) return true;
    return stop(fail(ErrorCode::corrupt, name_, ": duplicate key \"", *twice, "\""));
  }
  bool parse_error(std::size_t, const std::string&, const std::exception& e) {
    std::string_view what = e.what();  // "[json.exception.parse_error.101] parse error at line 1, ..."
    if (what.starts_with('[')) what.remove_prefix(std::min(what.size(), what.find("] ") + 2));
    return stop(fail(ErrorCode::corrupt, name_, ": ", what));
  }

 private:
  bool stop(Error error) {
    status_ = std::move(error);
    return false;
  }
  /// The place of the value that comes next.
  Json& place() {
    if (open_.empty()) return root_;
    Json& parent = *open_.back();
    if (auto* members = std::get_if<Json::Object>(&parent.value())) return members->back().value;
    return std::get<Json::Array>(parent.value()).emplace_back();
  }
  bool add(Json value) {
    place() = std::move(value);
    return true;
  }
  bool open(Json value) {
    if (open_.size() >= kMaxDepth) {
      return stop(fail(ErrorCode::limit_exceeded, name_, ": nested deeper than ", kMaxDepth, " levels"));
    }
    Json& to = place();
    to = std::move(value);
    open_.push_back(&to);  // stays where it is: containers grow only while they are the innermost open one
    return true;
  }

  std::string_view name_;
  Json root_;
  std::vector<Json*> open_;  ///< the arrays and objects that the next value lies in, outermost first
  Result<void> status_;
};

Error wrong_type(const char* key, std::string_view name, const char* expected) {
  return fail(ErrorCode::corrupt, name, ": \"", key, "\" must be ", expected);
}

const Json* member(const Json& object, const char* key) {
  const Json* value = object.find(key);
  return !value || value->is_null() ? nullptr : value;
}

void write_string(std::string_view text, std::string& out) {
  static constexpr char kHex[] = "0123456789abcdef";
  out += '"';
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte < 0x20) {
      (out += "\\u00") += kHex[byte >> 4];
      out += kHex[byte & 15];
    } else {
      if (c == '"' || c == '\\') out += '\\';
      out += c;
    }
  }
  out += '"';
}

void write(const Json& json, std::string& out) {
  std::visit(
      [&](const auto& value) {
        using T = std::decay_t<decltype(value)>;
        if constexpr (std::is_same_v<T, std::nullptr_t>) {
          out += "null";
        } else if constexpr (std::is_same_v<T, bool>) {
          out += value ? "true" : "false";
        } else if constexpr (std::is_same_v<T, double>) {
          char text[32];  // the shortest form that reads back as the same number
          const auto end = std::to_chars(text, text + sizeof text, value);
          const std::string_view written(text, static_cast<std::size_t>(end.ptr - text));
          out += written;
          // Readers that tell integers from other numbers find what was read.
          if (written.find_first_not_of("-0123456789") == written.npos) out += ".0";
        } else if constexpr (std::is_integral_v<T>) {
          out += std::to_string(value);
        } else if constexpr (std::is_same_v<T, std::string>) {
          write_string(value, out);
        } else if constexpr (std::is_same_v<T, Json::Array>) {
          out += '[';
          for (const Json& item : value) {
            if (&item != &value.front()) out += ',';
            write(item, out);
          }
          out += ']';
        } else {
          out += '{';
          for (const Json::Member& item : value) {
            if (&item != &value.front()) out += ',';
            write_string(item.key, out);
            out += ':';
            write(item.value, out);
          }
          out += '}';
        }
      },
      json.value());
}

}  // namespace

Json::Json(std::uint64_t value) {
  if (value <= INT64_MAX) {
    value_ = static_cast<std::int64_t>(value);
  } else {
    value_ = value;
  }
}

/// Copies first: where the copy constructor of such a variant throws, libstdc++ 12 destroys a value that is not there.
Json::Json(const Json& other) {
  std::visit([this](const auto& value) { value_ = std::decay_t<decltype(value)>(value); }, other.value_);
}

std::optional<std::int64_t> Json::integer() const noexcept {
  const auto* value = std::get_if<std::int64_t>(&value_);
  return value ? std::optional(*value) : std::nullopt;
}

std::optional<double> Json::number() const noexcept {
  if (const auto* value = std::get_if<double>(&value_)) return *value;
  if (const auto* value = std::get_if<std::int64_t>(&value_)) return static_cast<double>(*value);
  if (const auto* value = std::get_if<std::uint64_t>(&value_)) return static_cast<double>(*value);
  return std::nullopt;
}

std::optional<bool> Json::boolean() const noexcept {
  const auto* value = std::get_if<bool>(&value_);
  return value ? std::optional(*value) : std::nullopt;
}

const Json* Json::find(std::string_view key) const noexcept {
  const auto* members = std::get_if<Object>(&value_);
  if (!members) return nullptr;
  const auto it = std::find_if(members->begin(), members->end(), [&](const Member& m) { return m.key == key; });
  return it == members->end() ? nullptr : &it->value;
}

std::size_t Json::size() const noexcept {
  if (const auto* items = std::get_if<Array>(&value_)) return items->size();
  if (const auto* members = std::get_if<Object>(&value_)) return members->size();
  return 0;
}

std::string Json::dump() const {
  std::string out;
  write(*this, out);
  return out;
}

Result<Json> parse_json(std::string_view text, std::string_view name) {
  if (!valid_utf8(text)) return fail(ErrorCode::invalid_encoding, name, ": not UTF-8");
  Handler handler(name);
  nlohmann::json::sax_parse(text, &handler);
  return std::move(handler).take();
}

Result<std::optional<std::int64_t>> json_int(const Json& object, const char* key, std::string_view name) {
  const Json* value = member(object, key);
  if (!value) return std::optional<std::int64_t>();
  if (!value->is_integer()) return wrong_type(key, name, "an integer");
  if (!value->integer()) return wrong_type(key, name, "a 64-bit integer");
  return value->integer();
}

Result<std::optional<double>> json_number(const Json& object, const char* key, std::string_view name) {
  const Json* value = member(object, key);
  if (!value) return std::optional<double>();
  if (!value->number()) return wrong_type(key, name, "a number");
  return value->number();
}

Result<std::optional<bool>> json_bool(const Json& object, const char* key, std::string_view name) {
  const Json* value = member(object, key);
  if (!value) return std::optional<bool>();
  if (!value->boolean()) return wrong_type(key, name, "true or false");
  return value->boolean();
}

Result<std::optional<std::string>> json_string(const Json& object, const char* key, std::string_view name) {
  const Json* value = member(object, key);
  if (!value) return std::optional<std::string>();
  if (!value->is_string()) return wrong_type(key, name, "a string");
  return std::optional(value->string());
}

}  // namespace llminfer::core
