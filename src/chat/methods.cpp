// Methods of strings, lists, tuples and dicts, as Python defines them.
#include <algorithm>

#include "chat/builtins.hpp"
#include "chat/unicode.hpp"

namespace llminfer::chat::jinja {
namespace {

/// The receiver, charged for.
const std::string& receiver(Runtime& runtime, const Value& self) {
  runtime.charge_text(self.string().size());
  return self.string();
}

const std::string& string_argument(Runtime& runtime, const Value& argument, std::string_view method) {
  if (argument.is_undefined()) fail_undefined(argument);
  if (!argument.is_string()) fail(method, "() argument must be str, not ", argument.type_name());
  runtime.charge_text(argument.string().size());
  return argument.string();
}

template <std::string (*kChange)(std::string_view)>
Value changed(Runtime& runtime, const Value& self, Arguments& arguments) {
  arguments.none("str method");
  return runtime.text(kChange(receiver(runtime, self)));
}

template <bool kLeft, bool kRight>
Value stripped(Runtime& runtime, const Value& self, Arguments& arguments) {
  const auto [set] = arguments.bind("strip", {"chars"});
  const std::string& text = receiver(runtime, self);
  if (!set || set->is_none()) return runtime.text(std::string(strip(text, nullptr, kLeft, kRight)));
  const std::string_view characters = string_argument(runtime, *set, "strip");
  if (characters.size() > 16) runtime.charge(text.size() * (characters.size() / 16));
  return runtime.text(std::string(strip(text, &characters, kLeft, kRight)));
}

/// str.split and str.rsplit: at white space where the separator is none, at most `limit` times if that is not negative.
Value split_text(Runtime& runtime, const Value& self, Arguments& arguments, bool from_right) {
  const auto [sep, maxsplit] = arguments.bind("split", {"sep", "maxsplit"});
  const std::string& text = receiver(runtime, self);
  std::int64_t limit = integer_or(maxsplit, -1, "split");
  std::vector<std::string_view> parts;
  const bool by_space = !sep || sep->is_none();
  // From the right the text is read backwards, so that both directions are one search and linear.
  std::string source = text, separator;
  if (!by_space) {
    separator = string_argument(runtime, *sep, "split");
    if (separator.empty()) fail("empty separator");
    if (from_right) {
      std::reverse(source.begin(), source.end());
      std::reverse(separator.begin(), separator.end());
    }
    std::string_view rest = source;
    for (std::size_t at = 0; limit != 0 && (at = find_text(rest, separator)) != std::string_view::npos; --limit) {
      parts.push_back(rest.substr(0, at));
      rest.remove_prefix(at + separator.size());
      runtime.charge(1 + separator.size() / 16);
    }
    parts.push_back(rest);
  } else {
    std::string_view rest = strip(source, nullptr, !from_right, from_right);
    while (!rest.empty()) {
      if (limit-- == 0) {
        parts.push_back(rest);
        break;
      }
      const auto characters = [&](std::size_t i) {
        return is_space(code_point(rest.substr(i, character_size(rest.substr(i)))));
      };
      std::size_t cut = 0;
      if (from_right) {
        cut = rest.size();
        while (cut > 0 && strip(rest.substr(0, cut), nullptr, false, true).size() == cut) --cut;
        parts.push_back(rest.substr(cut));
        rest = strip(rest.substr(0, cut), nullptr, false, true);
      } else {
        while (cut < rest.size() && !characters(cut)) cut += character_size(rest.substr(cut));
        parts.push_back(rest.substr(0, cut));
        rest = strip(rest.substr(cut), nullptr, true, false);
      }
    }
  }
  if (from_right) std::reverse(parts.begin(), parts.end());
  std::vector<Value> values;
  for (const std::string_view part : parts) {
    std::string s(part);
    if (from_right && !by_space) std::reverse(s.begin(), s.end());
    values.push_back(runtime.text(std::move(s)));
  }
  return runtime.list(std::move(values));
}

Value split(Runtime& runtime, const Value& self, Arguments& arguments) {
  return split_text(runtime, self, arguments, false);
}
Value rsplit(Runtime& runtime, const Value& self, Arguments& arguments) {
  return split_text(runtime, self, arguments, true);
}

/// Where the separator last begins.
std::size_t find_last(std::string_view text, std::string_view needle) {
  std::string reversed_text(text.rbegin(), text.rend());
  const std::string reversed_needle(needle.rbegin(), needle.rend());
  const std::size_t at = find_text(reversed_text, reversed_needle);
  return at == std::string_view::npos ? at : text.size() - at - needle.size();
}

template <bool kLast>
Value partition(Runtime& runtime, const Value& self, Arguments& arguments) {
  const std::string& text = receiver(runtime, self);
  const std::string& sep = string_argument(runtime, *arguments.bind("partition", {"sep"}, 1)[0], "partition");
  if (sep.empty()) fail("empty separator");
  const std::size_t at = kLast ? find_last(text, sep) : find_text(text, sep);
  if (at == std::string::npos) {
    const Value empty{std::string()};
    return runtime.tuple(kLast ? std::vector<Value>{empty, empty, self} : std::vector<Value>{self, empty, empty});
  }
  return runtime.tuple({runtime.text(text.substr(0, at)), Value(sep), runtime.text(text.substr(at + sep.size()))});
}

Value splitlines(Runtime& runtime, const Value& self, Arguments& arguments) {
  const auto [keepends] = arguments.bind("splitlines", {"keepends"});
  std::vector<Value> lines;
  for (const std::string_view line : split_lines(receiver(runtime, self), truth_or(keepends, false))) {
    lines.push_back(runtime.text(std::string(line)));
  }
  return runtime.list(std::move(lines));
}

/// The part of `self` that the optional arguments start and stop select, and the characters before it.
std::pair<Value, std::int64_t> selected(Runtime& runtime, const Value& self, const Value* start, const Value* stop) {
  if (!start && !stop) return {self, 0};
  std::int64_t from = start && !start->is_none() ? integer_or(start, 0, "str method") : 0;
  const std::int64_t count = length_of(runtime, self);
  if (from < 0) from = std::max<std::int64_t>(0, from + count);
  return {get_slice(runtime, self, start ? *start : Value(None{}), stop ? *stop : Value(None{}), None{}), from};
}

template <bool kEnd>
Value has_affix(Runtime& runtime, const Value& self, Arguments& arguments) {
  const char* const name = kEnd ? "endswith" : "startswith";
  const auto [affix, start, stop] = arguments.bind(name, {"prefix", "start", "end"}, 1);
  const Value part = selected(runtime, self, start, stop).first;
  const std::string_view text = part.string();
  const auto matches = [&](const Value& value) {
    const std::string& s = string_argument(runtime, value, name);
    return kEnd ? text.ends_with(s) : text.starts_with(s);
  };
  if (!affix->is_tuple()) return matches(*affix);
  const auto& choices = affix->sequence().items;
  return std::any_of(choices.begin(), choices.end(), matches);
}

template <bool kLast, bool kMust>
Value find(Runtime& runtime, const Value& self, Arguments& arguments) {
  const auto [sub, start, stop] = arguments.bind("find", {"sub", "start", "end"}, 1);
  const auto [part, skipped] = selected(runtime, self, start, stop);
  const std::string& needle = string_argument(runtime, *sub, "find");
  const std::string& text = receiver(runtime, part);
  const std::size_t at = kLast ? find_last(text, needle) : find_text(text, needle);
  if (at != std::string::npos) {
    return skipped + static_cast<std::int64_t>(count_characters(std::string_view(text).substr(0, at)));
  }
  if (kMust) fail("substring not found");
  return -1;
}

Value count(Runtime& runtime, const Value& self, Arguments& arguments) {
  const auto [sub, start, stop] = arguments.bind("count", {"sub", "start", "end"}, 1);
  const Value part = selected(runtime, self, start, stop).first;
  const std::string& needle = string_argument(runtime, *sub, "count");
  std::string_view text = receiver(runtime, part);
  if (needle.empty()) return length_of(runtime, part) + 1;
  std::int64_t found = 0;
  for (std::size_t at = 0; (at = find_text(text, needle)) != std::string_view::npos; ++found) {
    text.remove_prefix(at + needle.size());
    runtime.charge(1 + needle.size() / 16);
  }
  return found;
}

Value join(Runtime& runtime, const Value& self, Arguments& arguments) {
  const auto [iterable] = arguments.bind("join", {"iterable"}, 1);
  TextBuilder text(runtime);
  bool first = true;
  for (const Value& item : iterate(runtime, *iterable)) {
    if (!item.is_string()) fail("sequence item: expected str instance, ", item.type_name(), " found");
    if (!std::exchange(first, false)) text << self.string();
    text << item.string();
  }
  return text.value();
}

Value replace(Runtime& runtime, const Value& self, Arguments& arguments) {
  const auto [from, to, count] = arguments.bind("replace", {"old", "new", "count"}, 2);
  return replace_text(runtime, receiver(runtime, self), string_argument(runtime, *from, "replace"),
                      string_argument(runtime, *to, "replace"), integer_or(count, -1, "replace"));
}

Value removeprefix(Runtime& runtime, const Value& self, Arguments& arguments) {
  std::string_view text = receiver(runtime, self);
  const std::string& affix =
      string_argument(runtime, *arguments.bind("removeprefix", {"prefix"}, 1)[0], "removeprefix");
  if (text.starts_with(affix)) text.remove_prefix(affix.size());
  return runtime.text(std::string(text));
}

Value removesuffix(Runtime& runtime, const Value& self, Arguments& arguments) {
  std::string_view text = receiver(runtime, self);
  const std::string& affix =
      string_argument(runtime, *arguments.bind("removesuffix", {"suffix"}, 1)[0], "removesuffix");
  if (text.ends_with(affix)) text.remove_suffix(affix.size());
  return runtime.text(std::string(text));
}

Value format(Runtime& runtime, const Value& self, Arguments& arguments) {
  return format_braces(runtime, self, arguments);
}

/// True if there are characters and all are in the class.
template <bool (*kClass)(char32_t)>
Value all_in(Runtime& runtime, const Value& self, Arguments& arguments) {
  arguments.none("str method");
  const auto characters = split_characters(receiver(runtime, self));
  return !characters.empty() &&
         std::all_of(characters.begin(), characters.end(), [](std::string_view c) { return kClass(code_point(c)); });
}
bool is_alnum(char32_t c) { return is_alpha(c) || is_digit(c); }
bool is_ascii(char32_t c) { return c < 0x80; }

Value isupper(Runtime& runtime, const Value& self, Arguments& arguments) {
  arguments.none("isupper");
  const std::string& text = receiver(runtime, self);
  return to_upper(text) == text && to_lower(text) != text;
}
Value islower(Runtime& runtime, const Value& self, Arguments& arguments) {
  arguments.none("islower");
  const std::string& text = receiver(runtime, self);
  return to_lower(text) == text && to_upper(text) != text;
}
Value istitle(Runtime& runtime, const Value& self, Arguments& arguments) {
  arguments.none("istitle");
  const std::string& text = receiver(runtime, self);
  return title_case(text) == text && to_lower(text) != text;
}

/// ljust, rjust and center: padding goes right, left, or half to each side.
template <int kSides>
Value justify(Runtime& runtime, const Value& self, Arguments& arguments) {
  const auto [width, fill] = arguments.bind("justify", {"width", "fillchar"}, 1);
  const std::string padding = text_or(runtime, fill, " ");
  if (count_characters(padding) != 1) fail("the fill character must be exactly one character long");
  const std::int64_t wanted = integer_or(width, 0, "justify"), length = length_of(runtime, self);
  const auto pad = wanted > length ? static_cast<std::uint64_t>(wanted - length) : 0;
  // str.center() puts the odd character left where the width is odd.
  const std::uint64_t left = kSides == 0   ? 0
                             : kSides == 1 ? pad
                                           : pad / 2 + (pad & static_cast<std::uint64_t>(wanted) & 1);
  TextBuilder text(runtime);
  text.repeat(padding, left) << self.string();
  text.repeat(padding, pad - left);
  return text.value();
}

Value zfill(Runtime& runtime, const Value& self, Arguments& arguments) {
  const auto [width] = arguments.bind("zfill", {"width"}, 1);
  std::string_view digits = self.string();
  const std::int64_t wanted = integer_or(width, 0, "zfill"), length = length_of(runtime, self);
  TextBuilder text(runtime);
  if (!digits.empty() && (digits[0] == '-' || digits[0] == '+')) {
    text << digits.substr(0, 1);
    digits.remove_prefix(1);
  }
  text.repeat("0", wanted > length ? static_cast<std::uint64_t>(wanted - length) : 0) << digits;
  return text.value();
}

Value list_count(Runtime& runtime, const Value& self, Arguments& arguments) {
  const auto [item] = arguments.bind("count", {"value"}, 1);
  std::int64_t found = 0;
  for (const Value& other : self.sequence().items) found += equal(runtime, other, *item) ? 1 : 0;
  return found;
}

Value list_index(Runtime& runtime, const Value& self, Arguments& arguments) {
  const auto [item] = arguments.bind("index", {"value"}, 1);
  const auto& items = self.sequence().items;
  for (std::size_t i = 0; i < items.size(); ++i) {
    if (equal(runtime, items[i], *item)) return static_cast<std::int64_t>(i);
  }
  fail(to_repr(runtime, *item), " is not in list");
}

Value copy(Runtime& runtime, const Value& self, Arguments& arguments) {
  arguments.none("copy");
  if (self.is_dict()) return runtime.dict(self.dict().entries);
  return runtime.list(self.sequence().items);
}

Value dict_get(Runtime& runtime, const Value& self, Arguments& arguments) {
  const auto [key, otherwise] = arguments.bind("get", {"key", "default"}, 1);
  if (const Value* value = find_key(runtime, self.dict(), *key)) return *value;
  return otherwise ? *otherwise : Value(None{});
}

Value dict_items(Runtime& runtime, const Value& self, Arguments& arguments) {
  arguments.none("items");
  std::vector<Value> items;
  for (const auto& [key, value] : self.dict().entries) items.push_back(runtime.tuple({key, value}));
  return runtime.list(std::move(items));
}

Value dict_keys(Runtime& runtime, const Value& self, Arguments& arguments) {
  arguments.none("keys");
  return runtime.list(iterate(runtime, self));
}

Value dict_values(Runtime& runtime, const Value& self, Arguments& arguments) {
  arguments.none("values");
  std::vector<Value> values;
  for (const auto& entry : self.dict().entries) values.push_back(entry.second);
  return runtime.list(std::move(values));
}

constexpr NamedBuiltin kStringMethods[] = {
    {"strip", stripped<true, true>},
    {"lstrip", stripped<true, false>},
    {"rstrip", stripped<false, true>},
    {"split", split},
    {"rsplit", rsplit},
    {"splitlines", splitlines},
    {"partition", partition<false>},
    {"rpartition", partition<true>},
    {"startswith", has_affix<false>},
    {"endswith", has_affix<true>},
    {"removeprefix", removeprefix},
    {"removesuffix", removesuffix},
    {"replace", replace},
    {"join", join},
    {"find", find<false, false>},
    {"rfind", find<true, false>},
    {"index", find<false, true>},
    {"rindex", find<true, true>},
    {"count", count},
    {"format", format},
    {"upper", changed<to_upper>},
    {"lower", changed<to_lower>},
    {"casefold", changed<to_lower>},
    {"title", changed<title_case>},
    {"capitalize", changed<capitalize>},
    {"swapcase", changed<swap_case>},
    {"isdigit", all_in<is_digit>},
    {"isdecimal", all_in<is_digit>},
    {"isnumeric", all_in<is_digit>},
    {"isalpha", all_in<is_alpha>},
    {"isalnum", all_in<is_alnum>},
    {"isspace", all_in<is_space>},
    {"isascii", all_in<is_ascii>},
    {"isupper", isupper},
    {"islower", islower},
    {"istitle", istitle},
    {"ljust", justify<0>},
    {"rjust", justify<1>},
    {"center", justify<2>},
    {"zfill", zfill},
};
constexpr NamedBuiltin kListMethods[] = {{"count", list_count}, {"index", list_index}, {"copy", copy}};
constexpr NamedBuiltin kDictMethods[] = {
    {"get", dict_get}, {"items", dict_items}, {"keys", dict_keys}, {"values", dict_values}, {"copy", copy}};

}  // namespace

Value replace_text(Runtime& runtime, std::string_view text, std::string_view from, std::string_view to,
                   std::int64_t limit) {
  TextBuilder out(runtime);
  if (from.empty()) {  // between all characters, and at both ends
    for (; limit != 0; --limit) {
      out << to;
      if (text.empty()) break;
      const std::size_t n = character_size(text);
      out << text.substr(0, n);
      text.remove_prefix(n);
    }
    out << text;
    return out.value();
  }
  for (std::size_t at = 0; limit != 0 && (at = find_text(text, from)) != std::string_view::npos; --limit) {
    out << text.substr(0, at) << to;
    runtime.charge_text(from.size());
    text.remove_prefix(at + from.size());
  }
  out << text;
  return out.value();
}

std::optional<NamedBuiltin> find_method(const Value& receiver, std::string_view name) {
  const auto look = [&](const auto& table) -> std::optional<NamedBuiltin> {
    const auto* const found =
        std::find_if(std::begin(table), std::end(table), [&](const NamedBuiltin& m) { return m.name == name; });
    if (found == std::end(table)) return std::nullopt;
    return *found;
  };
  if (receiver.is_string()) return look(kStringMethods);
  if (receiver.is_dict()) return look(kDictMethods);
  if (!receiver.is_array() || (receiver.is_tuple() && name == "copy")) return std::nullopt;
  return look(kListMethods);
}

}  // namespace llminfer::chat::jinja
