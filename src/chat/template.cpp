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

jinja::Value convert(jinja::Runtime& runtime, const Value& json, int depth);

jinja::Value convert_value(jinja::Runtime&, std::nullptr_t, int) { return jinja::None{}; }
jinja::Value convert_value(jinja::Runtime&, bool value, int) { return value; }
jinja::Value convert_value(jinja::Runtime&, std::int64_t value, int) { return value; }
jinja::Value convert_value(jinja::Runtime&, std::uint64_t value, int) {
  jinja::fail("integer ", value, " in the context does not fit 64 bits");
}
jinja::Value convert_value(jinja::Runtime&, double value, int) { return value; }
jinja::Value convert_value(jinja::Runtime&, const std::string& value, int) { return value; }
jinja::Value convert_value(jinja::Runtime& runtime, const Value::Array& array, int depth) {
  std::vector<jinja::Value> items;
  items.reserve(array.size());
  for (const Value& item : array) items.push_back(convert(runtime, item, depth + 1));
  return runtime.list(std::move(items));
}
jinja::Value convert_value(jinja::Runtime& runtime, const Value::Object& object, int depth) {
  std::vector<std::pair<jinja::Value, jinja::Value>> entries;
  entries.reserve(object.size());
  for (const auto& [key, value] : object) entries.emplace_back(key, convert(runtime, value, depth + 1));
  return runtime.dict(std::move(entries));
}

jinja::Value convert(jinja::Runtime& runtime, const Value& json, int depth) {
  if (depth > runtime.limits.depth) jinja::exceed("context nested deeper than ", runtime.limits.depth, " levels");
  runtime.charge(1);
  return std::visit([&](const auto& value) { return convert_value(runtime, value, depth); }, json.value());
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
    for (const auto& [name, value] : context.object()) {
      if (name == "__now") {
        if (!value.integer()) jinja::fail("__now must be an integer: Unix time in seconds");
        runtime.now = *value.integer();
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
