// Filters on lists and dicts, and `default`.
#include <algorithm>

#include "chat/builtins.hpp"
#include "chat/unicode.hpp"

namespace llminfer::chat::jinja {
namespace {

/// Text in lower case unless case matters; other values as they are.
Value sort_key(Runtime& runtime, const Value& value, bool case_sensitive) {
  if (case_sensitive || !value.is_string()) return value;
  return runtime.text(to_lower(value.string()));
}

/// `value`, or the part of it that `attribute` names.
Value part_of(Runtime& runtime, const Value& value, const Value* attribute) {
  return attribute && !attribute->is_none() ? get_path(runtime, value, *attribute) : value;
}

struct Keyed {
  std::vector<Value> keys;
  Value value;
};

void sort_keyed(Runtime& runtime, std::vector<Keyed>& items, bool reverse) {
  const auto less = [&](const Keyed& a, const Keyed& b) {
    for (std::size_t i = 0; i < a.keys.size(); ++i) {
      if (!equal(runtime, a.keys[i], b.keys[i])) return compare(runtime, a.keys[i], b.keys[i]) == -1;
    }
    return false;
  };
  std::stable_sort(items.begin(), items.end(),
                   [&](const Keyed& a, const Keyed& b) { return reverse ? less(b, a) : less(a, b); });
}

Value length(Runtime& runtime, const Value& self, Arguments& arguments) {
  arguments.none("length");
  return length_of(runtime, self);
}

Value default_(Runtime&, const Value& self, Arguments& arguments) {
  const auto [value, boolean] = arguments.bind("default", {"default_value", "boolean"});
  if (!self.is_undefined() && !(truth_or(boolean, false) && !self.truthy())) return self;
  return value ? *value : Value(std::string());
}

Value first(Runtime& runtime, const Value& self, Arguments& arguments) {
  arguments.none("first");
  const std::vector<Value> items = iterate(runtime, self);
  return items.empty() ? runtime.undefined("No first item, sequence was empty.") : items.front();
}

Value last(Runtime& runtime, const Value& self, Arguments& arguments) {
  arguments.none("last");
  if (self.is_generator()) fail("'generator' object is not reversible");
  const std::vector<Value> items = iterate(runtime, self);
  return items.empty() ? runtime.undefined("No last item, sequence was empty.") : items.back();
}

Value list(Runtime& runtime, const Value& self, Arguments& arguments) {
  arguments.none("list");
  return runtime.list(iterate(runtime, self));
}

Value reverse(Runtime& runtime, const Value& self, Arguments& arguments) {
  arguments.none("reverse");
  std::vector<Value> items = iterate(runtime, self);
  std::reverse(items.begin(), items.end());
  if (!self.is_string()) return runtime.generator(std::move(items));
  TextBuilder text(runtime);
  for (const Value& c : items) text << c.string();
  return text.value();
}

Value items(Runtime& runtime, const Value& self, Arguments& arguments) {
  arguments.none("items");
  if (self.is_undefined()) return runtime.generator({});
  if (!self.is_dict()) fail("Can only get item pairs from a mapping.");
  std::vector<Value> pairs;
  for (const auto& [key, value] : self.dict().entries) pairs.push_back(runtime.tuple({key, value}));
  return runtime.generator(std::move(pairs));
}

Value dictsort(Runtime& runtime, const Value& self, Arguments& arguments) {
  const auto [case_sensitive, by, reversed] = arguments.bind("dictsort", {"case_sensitive", "by", "reverse"});
  const std::string column = text_or(runtime, by, "key");
  if (column != "key" && column != "value") fail("You can only sort by either \"key\" or \"value\"");
  if (!self.is_dict()) fail("dictsort: expected a mapping, got '", self.type_name(), "'");
  std::vector<Keyed> entries;
  for (const auto& [key, value] : self.dict().entries) {
    const Value& sorted_by = column == "key" ? key : value;
    entries.push_back({{sort_key(runtime, sorted_by, truth_or(case_sensitive, false))}, runtime.tuple({key, value})});
  }
  sort_keyed(runtime, entries, truth_or(reversed, false));
  std::vector<Value> sorted;
  for (Keyed& entry : entries) sorted.push_back(std::move(entry.value));
  return runtime.list(std::move(sorted));
}

Value sort(Runtime& runtime, const Value& self, Arguments& arguments) {
  const auto [reversed, case_sensitive, attribute] = arguments.bind("sort", {"reverse", "case_sensitive", "attribute"});
  std::vector<Value> paths;  // "a,b" sorts by a, then b
  if (attribute && attribute->is_string()) {
    std::string_view rest = attribute->string();
    for (std::size_t comma = 0; comma != std::string_view::npos;) {
      comma = rest.find(',');
      paths.emplace_back(std::string(rest.substr(0, comma)));
      if (comma != std::string_view::npos) rest.remove_prefix(comma + 1);
    }
  } else if (attribute && !attribute->is_none()) {
    paths.push_back(*attribute);
  }
  std::vector<Keyed> keyed;
  for (Value& item : iterate(runtime, self)) {
    Keyed entry;
    for (const Value& path : paths) {
      entry.keys.push_back(sort_key(runtime, get_path(runtime, item, path), truth_or(case_sensitive, false)));
    }
    if (paths.empty()) entry.keys.push_back(sort_key(runtime, item, truth_or(case_sensitive, false)));
    entry.value = std::move(item);
    keyed.push_back(std::move(entry));
  }
  sort_keyed(runtime, keyed, truth_or(reversed, false));
  std::vector<Value> sorted;
  for (Keyed& entry : keyed) sorted.push_back(std::move(entry.value));
  return runtime.list(std::move(sorted));
}

Value unique(Runtime& runtime, const Value& self, Arguments& arguments) {
  const auto [case_sensitive, attribute] = arguments.bind("unique", {"case_sensitive", "attribute"});
  std::vector<Value> seen, kept;
  for (Value& item : iterate(runtime, self)) {
    Value key = sort_key(runtime, part_of(runtime, item, attribute), truth_or(case_sensitive, false));
    if (std::any_of(seen.begin(), seen.end(), [&](const Value& other) { return equal(runtime, other, key); })) continue;
    seen.push_back(std::move(key));
    kept.push_back(std::move(item));
  }
  return runtime.generator(std::move(kept));
}

Value groupby(Runtime& runtime, const Value& self, Arguments& arguments) {
  const auto [attribute, otherwise, case_sensitive] =
      arguments.bind("groupby", {"attribute", "default", "case_sensitive"}, 1);
  std::vector<Keyed> keyed;
  for (Value& item : iterate(runtime, self)) {
    Value key = get_path(runtime, item, *attribute);
    if (key.is_undefined() && otherwise) key = *otherwise;
    Value folded = sort_key(runtime, key, truth_or(case_sensitive, false));
    keyed.push_back({{std::move(folded)}, runtime.tuple({std::move(key), std::move(item)})});
  }
  sort_keyed(runtime, keyed, false);
  std::vector<Value> groups;
  for (std::size_t begin = 0, end = 0; begin < keyed.size(); begin = end) {
    std::vector<Value> members;
    for (; end < keyed.size() && equal(runtime, keyed[end].keys[0], keyed[begin].keys[0]); ++end) {
      members.push_back(keyed[end].value.sequence().items[1]);
    }
    if (end == begin) members.push_back(keyed[end++].value.sequence().items[1]);  // NaN does not equal itself
    groups.push_back(runtime.tuple({keyed[begin].value.sequence().items[0], runtime.list(std::move(members))}));
  }
  return runtime.list(std::move(groups));
}

template <bool kMax>
Value extreme(Runtime& runtime, const Value& self, Arguments& arguments) {
  const auto [case_sensitive, attribute] = arguments.bind("min or max", {"case_sensitive", "attribute"});
  Value best = runtime.undefined("No aggregated item, sequence was empty."), best_key;
  for (Value& item : iterate(runtime, self)) {
    Value key = sort_key(runtime, part_of(runtime, item, attribute), truth_or(case_sensitive, false));
    if (best_key.is_undefined() || compare(runtime, key, best_key) == (kMax ? 1 : -1)) {
      best = std::move(item);
      best_key = std::move(key);
    }
  }
  return best;
}

Value sum(Runtime& runtime, const Value& self, Arguments& arguments) {
  const auto [attribute, start] = arguments.bind("sum", {"attribute", "start"});
  Value total = start ? *start : Value(0);
  for (const Value& item : iterate(runtime, self)) total = add(runtime, total, part_of(runtime, item, attribute));
  return total;
}

/// Takes the name of a filter or test off the front of the arguments.
std::string take_name(Arguments& arguments, std::string_view of) {
  if (arguments.positional.empty()) fail(of, " requires a filter or test argument");
  if (!arguments.positional[0].is_string()) fail(of, ": expected a name");
  std::string name = arguments.positional[0].string();
  arguments.positional.erase(arguments.positional.begin());
  return name;
}

Value map(Runtime& runtime, const Value& self, Arguments& arguments) {
  std::vector<Value> mapped;
  if (arguments.positional.empty()) {
    const auto [attribute, otherwise] = arguments.bind("map", {"attribute", "default"});
    if (!attribute) fail("map requires a filter argument");
    for (const Value& item : iterate(runtime, self)) {
      Value part = get_path(runtime, item, *attribute);
      mapped.push_back(part.is_undefined() && otherwise ? *otherwise : std::move(part));
    }
    return runtime.generator(std::move(mapped));
  }
  const std::string name = take_name(arguments, "map");
  const Builtin filter = find_filter(name);
  if (!filter) fail("No filter named '", name, "'.");
  for (const Value& item : iterate(runtime, self)) {
    runtime.charge(1 + arguments.positional.size() + arguments.keywords.size());
    Arguments copy = arguments;
    mapped.push_back(filter(runtime, item, copy));
  }
  return runtime.generator(std::move(mapped));
}

/// select, reject, selectattr and rejectattr.
template <bool kKeep, bool kAttribute>
Value select(Runtime& runtime, const Value& self, Arguments& arguments) {
  Value attribute;
  if (kAttribute) {
    if (arguments.positional.empty()) fail("selectattr requires an attribute argument");
    attribute = arguments.positional[0];
    arguments.positional.erase(arguments.positional.begin());
  }
  Builtin test = nullptr;
  if (!arguments.positional.empty()) {
    const std::string name = take_name(arguments, "select");
    test = find_test(name);
    if (!test) fail("No test named '", name, "'.");
  }
  std::vector<Value> kept;
  for (Value& item : iterate(runtime, self)) {
    runtime.charge(1 + arguments.positional.size() + arguments.keywords.size());
    const Value subject = kAttribute ? get_path(runtime, item, attribute) : item;
    Arguments copy = arguments;
    if ((test ? test(runtime, subject, copy) : subject).truthy() == kKeep) kept.push_back(std::move(item));
  }
  return runtime.generator(std::move(kept));
}

Value batch(Runtime& runtime, const Value& self, Arguments& arguments) {
  const auto [linecount, fill_with] = arguments.bind("batch", {"linecount", "fill_with"}, 1);
  const std::int64_t size = integer_or(linecount, 1, "batch");
  if (size < 1) fail("batch: expected a positive size");
  std::vector<Value> batches, current;
  for (Value& item : iterate(runtime, self)) {
    current.push_back(std::move(item));
    if (static_cast<std::int64_t>(current.size()) == size) batches.push_back(runtime.list(std::exchange(current, {})));
  }
  if (!current.empty()) {
    while (fill_with && !fill_with->is_none() && static_cast<std::int64_t>(current.size()) < size) {
      runtime.charge(1);
      current.push_back(*fill_with);
    }
    batches.push_back(runtime.list(std::move(current)));
  }
  return runtime.generator(std::move(batches));
}

Value slice(Runtime& runtime, const Value& self, Arguments& arguments) {
  const auto [slices, fill_with] = arguments.bind("slice", {"slices", "fill_with"}, 1);
  const std::vector<Value> all = iterate(runtime, self);
  const std::int64_t count = integer_or(slices, 1, "slice");
  if (count < 1) fail("slice: expected a positive count");
  const std::size_t n = all.size(), wanted = static_cast<std::size_t>(count), each = n / wanted, longer = n % wanted;
  std::vector<Value> parts;
  for (std::size_t i = 0, at = 0; i < wanted; ++i) {
    const std::size_t size = each + (i < longer ? 1 : 0);
    std::vector<Value> part(all.begin() + static_cast<std::ptrdiff_t>(at),
                            all.begin() + static_cast<std::ptrdiff_t>(at + size));
    at += size;
    if (fill_with && !fill_with->is_none() && i >= longer && longer > 0) part.push_back(*fill_with);
    parts.push_back(runtime.list(std::move(part)));
  }
  return runtime.generator(std::move(parts));
}

Value attr(Runtime& runtime, const Value& self, Arguments& arguments) {
  const auto [name] = arguments.bind("attr", {"name"}, 1);
  if (self.is_dict()) return runtime.undefined("'dict object' has no attribute '", to_text(runtime, *name), "'");
  return get_attribute(runtime, self, to_text(runtime, *name));
}

constexpr NamedBuiltin kFilters[] = {
    {"length", length},
    {"count", length},
    {"default", default_},
    {"d", default_},
    {"first", first},
    {"last", last},
    {"list", list},
    {"reverse", reverse},
    {"items", items},
    {"dictsort", dictsort},
    {"sort", sort},
    {"unique", unique},
    {"groupby", groupby},
    {"min", extreme<false>},
    {"max", extreme<true>},
    {"sum", sum},
    {"map", map},
    {"select", select<true, false>},
    {"reject", select<false, false>},
    {"selectattr", select<true, true>},
    {"rejectattr", select<false, true>},
    {"batch", batch},
    {"slice", slice},
    {"attr", attr},
};

}  // namespace

Builtin find_list_filter(std::string_view name) {
  const auto* const found =
      std::find_if(std::begin(kFilters), std::end(kFilters), [&](const NamedBuiltin& f) { return f.name == name; });
  return found == std::end(kFilters) ? nullptr : found->function;
}

Builtin find_filter(std::string_view name) {
  if (const Builtin filter = find_text_filter(name)) return filter;
  if (const Builtin filter = find_list_filter(name)) return filter;
  return find_number_filter(name);
}

}  // namespace llminfer::chat::jinja
