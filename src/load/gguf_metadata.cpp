// Typed access to GGUF metadata.
#include "load/gguf_metadata.hpp"

#include <cmath>
#include <cstring>
#include <limits>
#include <utility>

#include "core/error.hpp"

namespace llminfer::load {
namespace {

using core::fail;

Error wrong_type(const std::string& key, const char* expected) {
  return fail(ErrorCode::corrupt, "metadata '", key, "': expected ", expected);
}

/// The integer in `value`, if it is one that int64_t holds.
std::optional<std::int64_t> as_integer(const GgufValue& value) {
  if (const auto* i = std::get_if<std::int64_t>(&value.value)) return *i;
  if (const auto* u = std::get_if<std::uint64_t>(&value.value)) {
    if (*u <= std::numeric_limits<std::int64_t>::max()) return static_cast<std::int64_t>(*u);
  }
  return std::nullopt;
}

template <class T>
T element(const GgufNumbers& numbers, std::size_t i) {
  T value;
  std::memcpy(&value, numbers.bytes.data() + i * sizeof(T), sizeof value);
  return value;
}

/// Element i of an array of integers, if it is one that int64_t holds.
std::optional<std::int64_t> integer_element(const GgufNumbers& numbers, std::size_t i) {
  switch (numbers.element) {
    case GgufType::u8:
      return element<std::uint8_t>(numbers, i);
    case GgufType::i8:
      return element<std::int8_t>(numbers, i);
    case GgufType::u16:
      return element<std::uint16_t>(numbers, i);
    case GgufType::i16:
      return element<std::int16_t>(numbers, i);
    case GgufType::u32:
      return element<std::uint32_t>(numbers, i);
    case GgufType::i32:
      return element<std::int32_t>(numbers, i);
    case GgufType::i64:
      return element<std::int64_t>(numbers, i);
    case GgufType::u64:
      return as_integer({GgufType::u64, element<std::uint64_t>(numbers, i)});
    default:
      return std::nullopt;
  }
}

std::size_t size_of(const GgufNumbers& numbers) { return numbers.bytes.size() / gguf_type_bytes(numbers.element); }

Result<std::int64_t> in_range(const std::string& key, std::int64_t value, std::int64_t min, std::int64_t max) {
  if (value >= min && value <= max) return value;
  return fail(ErrorCode::corrupt, "metadata '", key, "': ", value, " is not in [", min, ", ", max, "]");
}

Result<std::int64_t> present(const std::string& key, Result<std::optional<std::int64_t>> value) {
  if (!value) return std::move(value).error();
  if (!*value) return fail(ErrorCode::corrupt, "metadata '", key, "' is missing");
  return **value;
}

}  // namespace

const GgufValue* GgufMetadata::find(const std::string& key) const {
  const auto found = file_.metadata.find(key);
  return found == file_.metadata.end() ? nullptr : &found->second;
}

Result<std::optional<std::int64_t>> GgufMetadata::integer(const std::string& key, std::int64_t min,
                                                          std::int64_t max) const {
  const GgufValue* value = find(key);
  if (!value) return std::optional<std::int64_t>();
  const auto number = as_integer(*value);
  if (!number) return wrong_type(key, "a 64-bit integer");
  return std::optional(LLMINFER_TRY(in_range(key, *number, min, max)));
}

Result<std::optional<std::int64_t>> GgufMetadata::per_layer(const std::string& key, std::int64_t min,
                                                            std::int64_t max) const {
  const GgufValue* value = find(key);
  const auto* numbers = value ? std::get_if<GgufNumbers>(&value->value) : nullptr;
  if (!numbers) return integer(key, min, max);
  std::optional<std::int64_t> all;
  for (std::size_t i = 0; i < size_of(*numbers); ++i) {
    const auto number = integer_element(*numbers, i);
    if (!number) return wrong_type(key, "64-bit integers");
    if (all && *number != *all) {
      return fail(ErrorCode::unsupported, "metadata '", key, "': different values per layer are not supported");
    }
    all = LLMINFER_TRY(in_range(key, *number, min, max));
  }
  if (!all) return wrong_type(key, "one integer, or one per layer");
  return all;
}

Result<std::optional<double>> GgufMetadata::number(const std::string& key) const {
  const GgufValue* value = find(key);
  if (!value) return std::optional<double>();
  const auto* number = std::get_if<double>(&value->value);
  if (!number) return wrong_type(key, "a floating-point number");
  if (!std::isfinite(*number)) return wrong_type(key, "a finite number");
  return std::optional(*number);
}

Result<std::optional<bool>> GgufMetadata::boolean(const std::string& key) const {
  const GgufValue* value = find(key);
  if (!value) return std::optional<bool>();
  const auto* flag = std::get_if<bool>(&value->value);
  if (!flag) return wrong_type(key, "a boolean");
  return std::optional(*flag);
}

Result<std::optional<std::string>> GgufMetadata::string(const std::string& key) const {
  const GgufValue* value = find(key);
  if (!value) return std::optional<std::string>();
  const auto* text = std::get_if<std::string>(&value->value);
  if (!text) return wrong_type(key, "a string");
  return std::optional(*text);
}

Result<std::vector<float>> GgufMetadata::floats(const std::string& key) const {
  const GgufValue* value = find(key);
  if (!value) return std::vector<float>();
  const auto* numbers = std::get_if<GgufNumbers>(&value->value);
  if (!numbers || numbers->element != GgufType::f32) return wrong_type(key, "an array of f32");
  std::vector<float> out(size_of(*numbers));
  if (!out.empty()) std::memcpy(out.data(), numbers->bytes.data(), numbers->bytes.size());
  return out;
}

Result<std::vector<std::int32_t>> GgufMetadata::integers(const std::string& key) const {
  const GgufValue* value = find(key);
  if (!value) return std::vector<std::int32_t>();
  const auto* numbers = std::get_if<GgufNumbers>(&value->value);
  if (!numbers) return wrong_type(key, "an array of integers");
  std::vector<std::int32_t> out;
  out.reserve(size_of(*numbers));
  for (std::size_t i = 0; i < size_of(*numbers); ++i) {
    const auto number = integer_element(*numbers, i);
    if (!number || *number < INT32_MIN || *number > INT32_MAX) return wrong_type(key, "an array of 32-bit integers");
    out.push_back(static_cast<std::int32_t>(*number));
  }
  return out;
}

Result<std::vector<std::uint8_t>> GgufMetadata::booleans(const std::string& key) const {
  const GgufValue* value = find(key);
  if (!value || as_integer(*value)) return std::vector<std::uint8_t>();
  const auto* numbers = std::get_if<GgufNumbers>(&value->value);
  if (!numbers || numbers->element != GgufType::boolean) return wrong_type(key, "an array of booleans");
  std::vector<std::uint8_t> out(numbers->bytes.size());
  if (!out.empty()) std::memcpy(out.data(), numbers->bytes.data(), out.size());
  return out;
}

Result<std::int64_t> GgufMetadata::required(const std::string& key, std::int64_t min, std::int64_t max) const {
  return present(key, integer(key, min, max));
}

Result<std::int64_t> GgufMetadata::required_per_layer(const std::string& key, std::int64_t min,
                                                      std::int64_t max) const {
  return present(key, per_layer(key, min, max));
}

Result<std::vector<std::string>> take_strings(GgufFile& file, const std::string& key) {
  const auto found = file.metadata.find(key);
  if (found == file.metadata.end()) return std::vector<std::string>();
  auto* texts = std::get_if<std::vector<std::string>>(&found->second.value);
  if (!texts) return wrong_type(key, "an array of strings");
  return std::move(*texts);
}

}  // namespace llminfer::load
