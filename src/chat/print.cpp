// Values as text: Python's str() and repr(), and json.dumps().
#include <algorithm>
#include <charconv>
#include <cmath>

#include "chat/builtins.hpp"
#include "chat/unicode.hpp"
#include "core/utf8.hpp"

namespace llminfer::chat::jinja {
namespace {

constexpr char kHex[] = "0123456789abcdef";

/// Python prefers single quotes, and double ones for text that holds only single ones.
void append_repr(TextBuilder& out, std::string_view text) {
  const bool doubled = text.find('\'') != std::string_view::npos && text.find('"') == std::string_view::npos;
  const char quote = doubled ? '"' : '\'';
  std::string escaped(1, quote);
  while (!text.empty()) {
    const std::size_t n = character_size(text);
    const char c = text[0];
    const char32_t code = code_point(text.substr(0, n));
    if (c == quote || c == '\\') {
      escaped.push_back('\\');
      escaped.push_back(c);
    } else if (c == '\n' || c == '\r' || c == '\t') {
      escaped += c == '\n' ? "\\n" : c == '\r' ? "\\r" : "\\t";
    } else if (code < 0x20 || (code >= 0x7f && code <= 0xa0) || code == 0xad) {
      escaped += "\\x";
      escaped.push_back(kHex[code >> 4 & 15]);
      escaped.push_back(kHex[code & 15]);
    } else if (code != ' ' && is_space(code)) {
      escaped += "\\u";
      for (int shift = 12; shift >= 0; shift -= 4) escaped.push_back(kHex[code >> shift & 15]);
    } else {
      escaped += text.substr(0, n);
    }
    text.remove_prefix(n);
  }
  escaped.push_back(quote);
  out << escaped;
}

void repr(Runtime& runtime, TextBuilder& out, const Value& value) {
  if (value.is_string()) return append_repr(out, value.string());
  if (value.is_undefined()) {
    out << "Undefined";
  } else if (value.is_none()) {
    out << "None";
  } else if (value.is_bool()) {
    out << (value.truthy() ? "True" : "False");
  } else if (value.is_int()) {
    out << std::to_string(value.integer());
  } else if (value.is_float()) {
    out << float_repr(value.floating());
  } else if (value.is_array()) {
    const auto& items = value.sequence().items;
    out << (value.is_list() ? "[" : "(");
    for (std::size_t i = 0; i < items.size(); ++i) {
      if (i > 0) out << ", ";
      repr(runtime, out, items[i]);
    }
    out << (value.is_list() ? "]" : items.size() == 1 ? ",)" : ")");
  } else if (value.is_dict()) {
    out << "{";
    bool first = true;
    for (const auto& [key, member] : value.dict().entries) {
      if (!std::exchange(first, false)) out << ", ";
      repr(runtime, out, key);
      out << ": ";
      repr(runtime, out, member);
    }
    out << "}";
  } else {
    out << "<" << value.type_name() << ">";
  }
}

void append_json_text(TextBuilder& out, std::string_view text, bool ascii) {
  std::string escaped = "\"";
  const auto append_unit = [&](char32_t unit) {
    escaped += "\\u";
    for (int shift = 12; shift >= 0; shift -= 4) escaped.push_back(kHex[unit >> shift & 15]);
  };
  while (!text.empty()) {
    const std::size_t n = character_size(text);
    const char c = text[0];
    const char32_t code = code_point(text.substr(0, n));
    static constexpr std::string_view kSpecial = "\"\\\n\r\t\b\f";
    const std::size_t special = kSpecial.find(c);
    if (special != std::string_view::npos) {
      escaped.push_back('\\');
      escaped.push_back("\"\\nrtbf"[special]);
    } else if (code < 0x20 || (ascii && code >= 0x7f && code < 0x10000 && code != 0x7f)) {
      append_unit(code);
    } else if (ascii && code >= 0x10000) {
      append_unit(0xd800 + ((code - 0x10000) >> 10));
      append_unit(0xdc00 + ((code - 0x10000) & 0x3ff));
    } else {
      escaped += text.substr(0, n);
    }
    text.remove_prefix(n);
  }
  out << (escaped += '"');
}

std::string json_float(double value) {
  if (std::isnan(value)) return "NaN";
  if (std::isinf(value)) return value < 0 ? "-Infinity" : "Infinity";
  return float_repr(value);
}

std::string json_scalar(const Value& value) {
  if (value.is_none()) return "null";
  if (value.is_bool()) return value.truthy() ? "true" : "false";
  return value.is_int() ? std::to_string(value.integer()) : json_float(value.floating());
}

class JsonWriter {
 public:
  JsonWriter(Runtime& runtime, TextBuilder& out, const JsonStyle& style)
      : runtime_(runtime), out_(out), style_(style) {}

  void write(const Value& value, std::uint64_t level) {
    if (value.is_string()) {
      append_json_text(out_, value.string(), style_.ascii);
    } else if (value.is_none() || value.is_number()) {
      out_ << json_scalar(value);
    } else if (value.is_array()) {
      const auto& items = value.sequence().items;
      out_ << "[";
      for (std::size_t i = 0; i < items.size(); ++i) {
        separate(i == 0, level + 1);
        write(items[i], level + 1);
      }
      if (!items.empty()) new_line(level);
      out_ << "]";
    } else if (value.is_dict()) {
      write_dict(value.dict(), level);
    } else {
      fail("Object of type ", value.type_name(), " is not JSON serializable");
    }
  }

 private:
  void write_dict(const Dict& dict, std::uint64_t level) {
    std::vector<const std::pair<Value, Value>*> entries;
    for (const auto& entry : dict.entries) entries.push_back(&entry);
    runtime_.charge(entries.size());
    if (style_.sort_keys) {
      std::stable_sort(entries.begin(), entries.end(),
                       [&](const auto* a, const auto* b) { return compare(runtime_, a->first, b->first) < 0; });
    }
    out_ << "{";
    for (std::size_t i = 0; i < entries.size(); ++i) {
      separate(i == 0, level + 1);
      const Value& key = entries[i]->first;
      if (!key.is_string() && !key.is_none() && !key.is_number()) {
        fail("keys must be str, int, float, bool or None, not ", key.type_name());
      }
      append_json_text(out_, key.is_string() ? key.string() : json_scalar(key), style_.ascii);
      out_ << style_.key_separator;
      write(entries[i]->second, level + 1);
    }
    if (!entries.empty()) new_line(level);
    out_ << "}";
  }
  void separate(bool first, std::uint64_t level) {
    if (!first) out_ << style_.item_separator;
    new_line(level);
  }
  void new_line(std::uint64_t level) {
    if (!style_.indent) return;
    out_ << "\n";
    out_.repeat(*style_.indent, level);
  }

  Runtime& runtime_;
  TextBuilder& out_;
  const JsonStyle& style_;
};

}  // namespace

std::string float_repr(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value < 0 ? "-inf" : "inf";
  char buffer[32];
  const auto end = std::to_chars(buffer, buffer + sizeof buffer, value, std::chars_format::scientific).ptr;
  const std::string_view shortest(buffer, static_cast<std::size_t>(end - buffer));
  const std::size_t e = shortest.find('e');
  int exponent = 0;
  const char* digits_of_exponent = shortest.data() + e + (shortest[e + 1] == '+' ? 2 : 1);
  std::from_chars(digits_of_exponent, end, exponent);
  if (exponent < -4 || exponent >= 16) return std::string(shortest);
  char plain[64];
  const auto plain_end = std::to_chars(plain, plain + sizeof plain, value, std::chars_format::fixed).ptr;
  std::string text(plain, plain_end);
  if (text.find('.') == std::string::npos) text += ".0";
  return text;
}

std::string to_repr(Runtime& runtime, const Value& value) {
  TextBuilder out(runtime);
  repr(runtime, out, value);
  return out.take();
}

std::string to_text(Runtime& runtime, const Value& value) {
  if (value.is_undefined()) return {};
  if (value.is_string()) {
    runtime.charge_text(value.string().size());
    return value.string();
  }
  return to_repr(runtime, value);
}

std::string to_json(Runtime& runtime, const Value& value, const JsonStyle& style) {
  TextBuilder out(runtime);
  JsonWriter(runtime, out, style).write(value, 0);
  return out.take();
}

}  // namespace llminfer::chat::jinja
