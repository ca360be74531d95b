// Template: parsing and rendering behind the layer's interface, where Failure becomes Error.
#include "chat/template.hpp"

#include "chat/interpreter.hpp"
#include "chat/lexer.hpp"
#include "chat/parser.hpp"

namespace llminfer::chat {

struct Template::Impl {
  TemplateLimits limits;
  jinja::Body body;
};

namespace {

jinja::Value convert(jinja::Runtime& runtime, const Value& json, int depth) {
  if (depth > runtime.limits.depth) jinja::exceed("context nested deeper than ", runtime.limits.depth, " levels");
  runtime.charge(1);
  switch (json.type()) {
    case Value::value_t::null:
      return jinja::None{};
    case Value::value_t::boolean:
      return json.get<bool>();
    case Value::value_t::number_integer:
      return json.get<std::int64_t>();
    case Value::value_t::number_unsigned: {
      const auto number = json.get<std::uint64_t>();
      if (number > INT64_MAX) jinja::fail("integer ", number, " in the context does not fit 64 bits");
      return static_cast<std::int64_t>(number);
    }
    case Value::value_t::number_float:
      return json.get<double>();
    case Value::value_t::string:
      return json.get<std::string>();
    case Value::value_t::array: {
      std::vector<jinja::Value> items;
      items.reserve(json.size());
      for (const Value& item : json) items.push_back(convert(runtime, item, depth + 1));
      return runtime.list(std::move(items));
    }
    case Value::value_t::object: {
      std::vector<std::pair<jinja::Value, jinja::Value>> entries;
      entries.reserve(json.size());
      for (const auto& [key, value] : json.items()) entries.emplace_back(key, convert(runtime, value, depth + 1));
      return runtime.dict(std::move(entries));
    }
    default:
      jinja::fail("the context holds a value that is not JSON");
  }
}

}  // namespace

Template::Template(std::unique_ptr<const Impl> impl) : impl_(std::move(impl)) {}
Template::~Template() = default;
Template::Template(Template&&) noexcept = default;
Template& Template::operator=(Template&&) noexcept = default;

Result<Template> Template::parse(std::string_view source, const TemplateLimits& limits) {
  try {
    if (source.size() > limits.source_bytes) jinja::exceed("source longer than ", limits.source_bytes, " bytes");
    jinja::Body body = jinja::Parser(jinja::tokenize(source), limits.depth).parse();
    return Template(std::make_unique<const Impl>(Impl{limits, std::move(body)}));
  } catch (jinja::Failure& failure) {
    return core::at("chat template", std::move(failure.error));
  }
}

Result<std::string> Template::render(const Value& context) const {
  try {
    if (!context.is_object()) jinja::fail("the context must be an object");
    jinja::Runtime runtime(impl_->limits);
    jinja::Scope globals;
    globals.variables.reserve(context.size());
    for (const auto& [name, value] : context.items()) {
      if (name == "__now") {
        if (!value.is_number_integer()) jinja::fail("__now must be an integer: Unix time in seconds");
        runtime.now = value.get<std::int64_t>();
      } else {
        globals.variables.emplace_back(name, convert(runtime, value, 1));
      }
    }
    return jinja::Interpreter(runtime, globals).run(impl_->body);
  } catch (jinja::Failure& failure) {
    // What a template raises itself is for the user, word for word.
    if (failure.error.code == ErrorCode::template_error) return std::move(failure.error);
    return core::at("chat template", std::move(failure.error));
  }
}

}  // namespace llminfer::chat
