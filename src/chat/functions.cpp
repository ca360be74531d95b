// Global functions: range, namespace, dict, cycler, joiner, raise_exception, strftime_now.
#include <algorithm>
#include <ctime>

#include "chat/builtins.hpp"

namespace llminfer::chat::jinja {
namespace {

constexpr std::int64_t kLongestRange = 100'000;  // as in jinja2's sandbox

Value range(Runtime& runtime, const Value&, Arguments& arguments) {
  const auto [first, second, third] = arguments.bind("range", {"start", "stop", "step"}, 1);
  const std::int64_t start = second ? integer_or(first, 0, "range") : 0;
  const std::int64_t stop = integer_or(second ? second : first, 0, "range"), step = integer_or(third, 1, "range");
  if (step == 0) fail("range() arg 3 must not be zero");
  std::vector<Value> numbers;
  for (std::int64_t i = start; step > 0 ? i < stop : i > stop;) {
    if (static_cast<std::int64_t>(numbers.size()) == kLongestRange) fail("range longer than ", kLongestRange);
    runtime.charge(1);
    numbers.emplace_back(i);
    if (__builtin_add_overflow(i, step, &i)) break;
  }
  return runtime.list(std::move(numbers));
}

/// The members of one positional mapping (or list of pairs) and of the keywords.
std::vector<std::pair<Value, Value>> members(Runtime& runtime, std::string_view function, Arguments& arguments) {
  Dict dict{0, {}};
  const auto put = [&](const Value& key, const Value& value) {
    runtime.charge(1 + dict.entries.size() / 8);
    for (auto& [known, slot] : dict.entries) {
      if (equal(runtime, known, key)) {
        slot = value;
        return;
      }
    }
    dict.entries.emplace_back(key, value);
  };
  if (arguments.positional.size() > 1) fail(function, " expected at most 1 argument");
  for (const Value& from : arguments.positional) {
    if (from.is_undefined()) fail_undefined(from);
    if (from.is_dict()) {
      for (const auto& [key, value] : from.dict().entries) put(key, value);
      continue;
    }
    for (const Value& item : iterate(runtime, from)) {
      const std::vector<Value> pair = iterate(runtime, item);
      if (pair.size() != 2) fail(function, ": expected pairs");
      if (pair[0].is_list() || pair[0].is_dict()) fail("unhashable type: '", pair[0].type_name(), "'");
      put(pair[0], pair[1]);
    }
  }
  for (const auto& [name, value] : arguments.keywords) put(runtime.text(name), value);
  return std::move(dict.entries);
}

Value dict(Runtime& runtime, const Value&, Arguments& arguments) {
  return runtime.dict(members(runtime, "dict", arguments));
}

Value namespace_(Runtime& runtime, const Value&, Arguments& arguments) {
  auto object = std::make_unique<Namespace>();
  for (auto& [key, value] : members(runtime, "namespace", arguments)) {
    if (!key.is_string()) fail("namespace: expected names");
    object->assign(runtime, key.string(), std::move(value));
  }
  return runtime.own(std::move(object));
}

/// Gives its items in turn.
class Cycler final : public Object {
 public:
  explicit Cycler(std::vector<Value> items) : items_(std::move(items)) {}
  std::string type_name() const override { return "Cycler"; }
  const Value* find_attribute(Runtime&, std::string_view name) override {
    const auto method = [&](NamedBuiltin builtin) {
      method_ = std::shared_ptr<Object>(
          std::make_shared<BoundBuiltin>(Value(std::shared_ptr<Object>(std::shared_ptr<void>(), this)), builtin));
      return &method_;
    };
    if (name == "current") return &items_[at_];
    if (name == "next") return method({"next", next});
    return name == "reset" ? method({"reset", reset}) : nullptr;
  }

 private:
  static Value next(Runtime&, const Value& self, Arguments& arguments) {
    arguments.none("next");
    auto& cycler = static_cast<Cycler&>(self.object());
    const Value value = cycler.items_[cycler.at_];
    cycler.at_ = (cycler.at_ + 1) % cycler.items_.size();
    return value;
  }
  static Value reset(Runtime&, const Value& self, Arguments& arguments) {
    arguments.none("reset");
    static_cast<Cycler&>(self.object()).at_ = 0;
    return None{};
  }

  std::vector<Value> items_;
  std::size_t at_ = 0;
  Value method_;
};

Value cycler(Runtime& runtime, const Value&, Arguments& arguments) {
  if (arguments.positional.empty() || !arguments.keywords.empty()) fail("cycler: expected at least one item");
  return runtime.own(std::make_unique<Cycler>(std::move(arguments.positional)));
}

/// Gives nothing the first time, its separator afterwards.
class Joiner final : public Object {
 public:
  explicit Joiner(Value separator) : separator_(std::move(separator)) {}
  std::string type_name() const override { return "Joiner"; }
  bool callable() const override { return true; }
  Value call(Runtime&, Arguments& arguments) override {
    arguments.none("joiner");
    return std::exchange(used_, true) ? separator_ : Value(std::string());
  }

 private:
  Value separator_;
  bool used_ = false;
};

Value joiner(Runtime& runtime, const Value&, Arguments& arguments) {
  const auto [separator] = arguments.bind("joiner", {"sep"});
  return runtime.own(std::make_unique<Joiner>(separator ? *separator : runtime.text(", ")));
}

Value raise_exception(Runtime& runtime, const Value&, Arguments& arguments) {
  fail(to_text(runtime, *arguments.bind("raise_exception", {"message"}, 1)[0]));
}

/// strftime in the C locale whatever the host's is.
void append_time(std::string& out, char what, bool padded, const std::tm& t) {
  static constexpr const char* kDays[] = {"Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"};
  static constexpr const char* kMonths[] = {"January", "February", "March",     "April",   "May",      "June",
                                            "July",    "August",   "September", "October", "November", "December"};
  const auto number = [&](int value, std::size_t width, char fill = '0') {
    const std::string digits = std::to_string(value);
    if (padded && digits.size() < width) out.append(width - digits.size(), fill);
    out += digits;
  };
  const auto all = [&](std::string_view format) {
    for (const char c : format) {
      if (c == ':' || c == '/' || c == '-' || c == ' ') {
        out.push_back(c);
      } else {
        append_time(out, c, true, t);
      }
    }
  };
  const int hour12 = t.tm_hour % 12 == 0 ? 12 : t.tm_hour % 12;
  switch (what) {
    case 'a':
      out += std::string_view(kDays[t.tm_wday]).substr(0, 3);
      break;
    case 'A':
      out += kDays[t.tm_wday];
      break;
    case 'b':
    case 'h':
      out += std::string_view(kMonths[t.tm_mon]).substr(0, 3);
      break;
    case 'B':
      out += kMonths[t.tm_mon];
      break;
    case 'c':
      all("a b e T Y");
      break;
    case 'C':
      number((t.tm_year + 1900) / 100, 2);
      break;
    case 'd':
      number(t.tm_mday, 2);
      break;
    case 'D':
    case 'x':
      all("m/d/y");
      break;
    case 'e':
      number(t.tm_mday, 2, ' ');
      break;
    case 'F':
      all("Y-m-d");
      break;
    case 'H':
      number(t.tm_hour, 2);
      break;
    case 'I':
      number(hour12, 2);
      break;
    case 'j':
      number(t.tm_yday + 1, 3);
      break;
    case 'k':
      number(t.tm_hour, 2, ' ');
      break;
    case 'l':
      number(hour12, 2, ' ');
      break;
    case 'm':
      number(t.tm_mon + 1, 2);
      break;
    case 'M':
      number(t.tm_min, 2);
      break;
    case 'n':
      out.push_back('\n');
      break;
    case 'p':
      out += t.tm_hour < 12 ? "AM" : "PM";
      break;
    case 'R':
      all("H:M");
      break;
    case 'S':
      number(t.tm_sec, 2);
      break;
    case 't':
      out.push_back('\t');
      break;
    case 'T':
    case 'X':
      all("H:M:S");
      break;
    case 'u':
      number(t.tm_wday == 0 ? 7 : t.tm_wday, 1);
      break;
    case 'U':
      number((t.tm_yday + 7 - t.tm_wday) / 7, 2);
      break;
    case 'w':
      number(t.tm_wday, 1);
      break;
    case 'W':
      number((t.tm_yday + 7 - (t.tm_wday + 6) % 7) / 7, 2);
      break;
    case 'y':
      number((t.tm_year + 1900) % 100, 2);
      break;
    case 'Y':
      number(t.tm_year + 1900, 4);
      break;
    case 'f':
      out += "000000";
      break;  // the clock is read in whole seconds
    case 'z':
    case 'Z':
      break;  // a time without zone, as Python's datetime.now()
    case '%':
      out.push_back('%');
      break;
    default:
      out.push_back('%');
      out.push_back(what);
  }
}

Value strftime_now(Runtime& runtime, const Value&, Arguments& arguments) {
  const std::string format = to_text(runtime, *arguments.bind("strftime_now", {"format"}, 1)[0]);
  std::tm time{};
  const auto now = static_cast<std::time_t>(runtime.now ? *runtime.now : std::time(nullptr));
  if (!(runtime.now ? gmtime_r(&now, &time) : localtime_r(&now, &time))) fail("strftime_now: time out of range");
  std::string out;
  for (std::size_t i = 0; i < format.size(); ++i) {
    if (format[i] != '%' || i + 1 == format.size()) {
      out.push_back(format[i]);
      continue;
    }
    const bool padded = format[i + 1] != '-' || i + 2 == format.size();
    i += padded ? 1 : 2;
    append_time(out, format[i], padded, time);
  }
  return runtime.text(std::move(out));
}

constexpr NamedBuiltin kFunctions[] = {
    {"range", range},
    {"dict", dict},
    {"namespace", namespace_},
    {"cycler", cycler},
    {"joiner", joiner},
    {"raise_exception", raise_exception},
    {"strftime_now", strftime_now},
};

}  // namespace

std::optional<Value> find_function(std::string_view name) {
  const auto* const found =
      std::find_if(std::begin(kFunctions), std::end(kFunctions), [&](const NamedBuiltin& f) { return f.name == name; });
  if (found == std::end(kFunctions)) return std::nullopt;
  return Value(std::shared_ptr<Object>(std::make_shared<BoundBuiltin>(Value(), *found)));
}

const Value* Namespace::find_attribute(Runtime& runtime, std::string_view name) {
  runtime.charge(1 + members_.size() / 16);
  for (const auto& [known, value] : members_) {
    if (known == name) return &value;
  }
  return nullptr;
}

bool Namespace::assign(Runtime& runtime, std::string_view name, Value value) {
  runtime.charge(1 + members_.size() / 16);
  for (auto& [known, slot] : members_) {
    if (known == name) {
      slot = std::move(value);
      return true;
    }
  }
  members_.emplace_back(name, std::move(value));
  return true;
}

}  // namespace llminfer::chat::jinja
