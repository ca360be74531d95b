// Filters that give text.
#include <algorithm>

#include "chat/builtins.hpp"
#include "chat/unicode.hpp"

namespace llminfer::chat::jinja {
namespace {

template <std::string (*kChange)(std::string_view)>
Value changed(Runtime& runtime, const Value& self, Arguments& arguments) {
  arguments.none("filter");
  return runtime.text(kChange(to_text(runtime, self)));
}

/// Upper case at the text's begin and after spaces and opening brackets, lower case elsewhere (unlike str.title()).
std::string title(std::string_view text) {
  std::string out;
  static constexpr std::string_view kBefore = "-({[<";
  std::size_t begin = 0;
  for (std::size_t i = 0; i <= text.size();) {
    const std::size_t n = i < text.size() ? character_size(text.substr(i)) : 1;
    if (i == text.size() || kBefore.find(text[i]) != std::string_view::npos ||
        is_space(code_point(text.substr(i, n)))) {
      out += capitalize(text.substr(begin, i - begin));
      if (i < text.size()) out += text.substr(i, n);
      begin = i + n;
    }
    i += n;
  }
  return out;
}

std::string escape(std::string_view text) {
  std::string out;
  for (const char c : text) {
    switch (c) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '\'':
        out += "&#39;";
        break;
      case '"':
        out += "&#34;";
        break;
      default:
        out.push_back(c);
    }
  }
  return out;
}

/// `plus`: a space becomes +, as in queries.
std::string quote(std::string_view text, std::string_view safe, bool plus) {
  std::string out;
  for (const char c : text) {
    const bool plain = (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
                       std::string_view("_.-~").find(c) != std::string_view::npos ||
                       safe.find(c) != std::string_view::npos;
    if (plain) {
      out.push_back(c);
    } else if (plus && c == ' ') {
      out.push_back('+');
    } else {
      const auto byte = static_cast<unsigned char>(c);
      out.push_back('%');
      out.push_back("0123456789ABCDEF"[byte >> 4]);
      out.push_back("0123456789ABCDEF"[byte & 15]);
    }
  }
  return out;
}

Value urlencode(Runtime& runtime, const Value& self, Arguments& arguments) {
  arguments.none("urlencode");
  if (!self.is_dict() && !self.is_array()) return runtime.text(quote(to_text(runtime, self), "/", false));
  TextBuilder text(runtime);
  const auto pair = [&](const Value& key, const Value& value) {
    if (text.size() > 0) text << "&";
    text << quote(to_text(runtime, key), "", true) << "=" << quote(to_text(runtime, value), "", true);
  };
  if (self.is_dict()) {
    for (const auto& [key, value] : self.dict().entries) pair(key, value);
    return text.value();
  }
  for (const Value& item : self.sequence().items) {
    const std::vector<Value> parts = iterate(runtime, item);
    if (parts.size() != 2) fail("urlencode: expected pairs");
    pair(parts[0], parts[1]);
  }
  return text.value();
}

Value string(Runtime& runtime, const Value& self, Arguments& arguments) {
  arguments.none("string");
  return self.is_string() ? self : runtime.text(to_text(runtime, self));
}

Value trim(Runtime& runtime, const Value& self, Arguments& arguments) {
  const auto [chars] = arguments.bind("trim", {"chars"});
  const std::string text = to_text(runtime, self);
  if (!chars || chars->is_none()) return runtime.text(std::string(strip(text, nullptr, true, true)));
  const std::string characters = to_text(runtime, *chars);
  const std::string_view set = characters;
  if (set.size() > 16) runtime.charge(text.size() * (set.size() / 16));
  return runtime.text(std::string(strip(text, &set, true, true)));
}

Value replace(Runtime& runtime, const Value& self, Arguments& arguments) {
  const auto [from, to, count] = arguments.bind("replace", {"old", "new", "count"}, 2);
  const std::int64_t limit = count && count->is_none() ? -1 : integer_or(count, -1, "replace");
  return replace_text(runtime, to_text(runtime, self), to_text(runtime, *from), to_text(runtime, *to), limit);
}

Value join(Runtime& runtime, const Value& self, Arguments& arguments) {
  const auto [separator, attribute] = arguments.bind("join", {"d", "attribute"});
  const std::string between = text_or(runtime, separator, "");
  TextBuilder text(runtime);
  bool first = true;
  for (const Value& item : iterate(runtime, self)) {
    if (!std::exchange(first, false)) text << between;
    text << to_text(runtime, attribute && !attribute->is_none() ? get_path(runtime, item, *attribute) : item);
  }
  return text.value();
}

Value indent(Runtime& runtime, const Value& self, Arguments& arguments) {
  const auto [width, first, blank] = arguments.bind("indent", {"width", "first", "blank"});
  std::string indentation;
  if (width && width->is_string()) {
    indentation = width->string();
  } else {
    TextBuilder spaces(runtime);
    spaces.repeat(" ", static_cast<std::uint64_t>(std::max<std::int64_t>(0, integer_or(width, 4, "indent"))));
    indentation = spaces.take();
  }
  std::string source = to_text(runtime, self);
  source.push_back('\n');  // so that a trailing newline gives a last, empty line
  TextBuilder text(runtime);
  if (truth_or(first, false)) text << indentation;
  bool at_first = true;
  for (const std::string_view line : split_lines(source, false)) {
    if (!std::exchange(at_first, false)) {
      text << "\n";
      if (!line.empty() || truth_or(blank, false)) text << indentation;
    }
    text << line;
  }
  return text.value();
}

Value center(Runtime& runtime, const Value& self, Arguments& arguments) {
  const auto [width] = arguments.bind("center", {"width"});
  Arguments of_method;
  of_method.positional.emplace_back(integer_or(width, 80, "center"));
  const Value text = runtime.text(to_text(runtime, self));
  return find_method(text, "center")->function(runtime, text, of_method);
}

Value truncate(Runtime& runtime, const Value& self, Arguments& arguments) {
  const auto [length_arg, killwords, end_arg, leeway_arg] =
      arguments.bind("truncate", {"length", "killwords", "end", "leeway"});
  const std::string text = to_text(runtime, self), end = text_or(runtime, end_arg, "...");
  const std::int64_t length = integer_or(length_arg, 255, "truncate");
  const auto end_length = static_cast<std::int64_t>(count_characters(end));
  const std::int64_t leeway = leeway_arg && !leeway_arg->is_none() ? integer_or(leeway_arg, 5, "truncate") : 5;
  if (length < end_length || leeway < 0) fail("truncate: expected length >= ", end_length, " and leeway >= 0");
  const auto characters = split_characters(text);
  if (static_cast<std::int64_t>(characters.size()) - leeway <= length) return runtime.text(text);
  std::string kept;
  for (std::int64_t i = 0; i < length - end_length; ++i) kept += characters[static_cast<std::size_t>(i)];
  if (!truth_or(killwords, false)) kept = kept.substr(0, kept.rfind(' '));
  return runtime.text(kept + end);
}

Value wordcount(Runtime& runtime, const Value& self, Arguments& arguments) {
  arguments.none("wordcount");
  std::int64_t words = 0;
  bool in_word = false;
  const std::string text = to_text(runtime, self);
  for (const std::string_view c : split_characters(text)) {
    const char32_t code = code_point(c);
    const bool is_word = code == '_' || is_alpha(code) || is_digit(code);
    words += is_word && !in_word ? 1 : 0;
    in_word = is_word;
  }
  return words;
}

Value format(Runtime& runtime, const Value& self, Arguments& arguments) {
  const std::string text = to_text(runtime, self);
  if (!arguments.keywords.empty()) {
    if (!arguments.positional.empty()) fail("can't handle positional and keyword arguments at the same time");
    std::vector<std::pair<Value, Value>> entries;
    for (auto& [name, value] : arguments.keywords) entries.emplace_back(runtime.text(name), std::move(value));
    return format_percent(runtime, text, runtime.dict(std::move(entries)));
  }
  return format_percent(runtime, text, runtime.tuple(std::move(arguments.positional)));
}

/// With transformers' defaults: no HTML escapes, no ASCII escapes, insertion order.
Value tojson(Runtime& runtime, const Value& self, Arguments& arguments) {
  const auto [ascii, indent, separators, sort_keys] =
      arguments.bind("tojson", {"ensure_ascii", "indent", "separators", "sort_keys"});
  JsonStyle style;
  style.ascii = truth_or(ascii, false);
  style.sort_keys = truth_or(sort_keys, false);
  if (indent && !indent->is_none()) {
    style.item_separator = ",";
    if (indent->is_string()) {
      style.indent = indent->string();
    } else {
      TextBuilder spaces(runtime);
      spaces.repeat(" ", static_cast<std::uint64_t>(std::max<std::int64_t>(0, integer_or(indent, 0, "tojson"))));
      style.indent = spaces.take();
    }
  }
  if (separators && !separators->is_none()) {
    const std::vector<Value> pair = iterate(runtime, *separators);
    if (pair.size() != 2) fail("tojson: expected two separators");
    style.item_separator = to_text(runtime, pair[0]);
    style.key_separator = to_text(runtime, pair[1]);
  }
  return Value(to_json(runtime, self, style));
}

constexpr NamedBuiltin kFilters[] = {
    {"upper", changed<to_upper>},
    {"lower", changed<to_lower>},
    {"title", changed<title>},
    {"capitalize", changed<capitalize>},
    {"e", changed<escape>},
    {"escape", changed<escape>},
    {"forceescape", changed<escape>},
    {"safe", string},
    {"string", string},
    {"urlencode", urlencode},
    {"trim", trim},
    {"replace", replace},
    {"join", join},
    {"indent", indent},
    {"center", center},
    {"truncate", truncate},
    {"wordcount", wordcount},
    {"format", format},
    {"tojson", tojson},
};

}  // namespace

Builtin find_text_filter(std::string_view name) {
  const auto* const found =
      std::find_if(std::begin(kFilters), std::end(kFilters), [&](const NamedBuiltin& f) { return f.name == name; });
  return found == std::end(kFilters) ? nullptr : found->function;
}

}  // namespace llminfer::chat::jinja
