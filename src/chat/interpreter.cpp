// Statements.
#include "chat/interpreter.hpp"

#include <algorithm>

namespace llminfer::chat::jinja {

/// A macro, or the body of a call block. What it sees of the blocks around it is what they held when it was defined.
class Macro final : public Object {
 public:
  Macro(Interpreter& interpreter, const Stmt& stmt) : interpreter_(interpreter), stmt_(stmt) {}
  std::string type_name() const override { return "Macro"; }
  bool callable() const override { return true; }
  Value call(Runtime& runtime, Arguments& arguments) override;
  const Value* find_attribute(Runtime&, std::string_view name) override { return name == "name" ? &name_ : nullptr; }

  Scope captured;  ///< its parent is the globals

 private:
  Interpreter& interpreter_;
  const Stmt& stmt_;
  Value name_{stmt_.text};
};

Value Macro::call(Runtime& runtime, Arguments& arguments) {
  const Signature& signature = stmt_.signature;
  if (interpreter_.macros_ >= runtime.limits.depth) exceed("macro calls nested deeper than ", runtime.limits.depth);
  Scope scope{&captured, {}};
  const std::size_t count = signature.names.size();
  const auto keyword = [&](std::string_view name) {
    return std::find_if(arguments.keywords.begin(), arguments.keywords.end(),
                        [&](const auto& k) { return k.first == name; });
  };
  if (const auto caller = keyword("caller"); caller != arguments.keywords.end() && signature.uses_caller) {
    scope.variables.emplace_back("caller", caller->second);
    arguments.keywords.erase(caller);
  } else if (signature.uses_caller) {
    scope.variables.emplace_back("caller", runtime.undefined("No caller defined"));
  }
  for (std::size_t i = 0; i < count; ++i) {
    const std::string& name = signature.names[i];
    const auto found = keyword(name);
    const std::size_t first_default = count - signature.defaults.size();
    if (i < arguments.positional.size()) {
      if (found != arguments.keywords.end()) fail("macro '", stmt_.text, "' got two values for '", name, "'");
      scope.variables.emplace_back(name, arguments.positional[i]);
    } else if (found != arguments.keywords.end()) {
      scope.variables.emplace_back(name, std::move(found->second));
      arguments.keywords.erase(found);
    } else if (i >= first_default) {
      scope.variables.emplace_back(name, interpreter_.evaluate(*signature.defaults[i - first_default], scope));
    } else {
      scope.variables.emplace_back(name, runtime.undefined("parameter '", name, "' was not provided"));
    }
  }
  std::vector<Value> extra;
  if (arguments.positional.size() > count) {
    if (!signature.uses_varargs) fail("macro '", stmt_.text, "' takes not more than ", count, " argument(s)");
    extra.assign(arguments.positional.begin() + static_cast<std::ptrdiff_t>(count), arguments.positional.end());
  }
  if (signature.uses_varargs) scope.variables.emplace_back("varargs", runtime.tuple(std::move(extra)));
  if (signature.uses_kwargs) {
    std::vector<std::pair<Value, Value>> entries;
    for (auto& [name, value] : arguments.keywords) entries.emplace_back(runtime.text(name), std::move(value));
    scope.variables.emplace_back("kwargs", runtime.dict(std::move(entries)));
  } else if (!arguments.keywords.empty()) {
    fail("macro '", stmt_.text, "' takes no keyword argument '", arguments.keywords[0].first, "'");
  }
  runtime.charge(scope.variables.size());
  ++interpreter_.macros_;
  std::string text = interpreter_.capture(stmt_.body, scope);
  --interpreter_.macros_;
  return Value(std::move(text));
}

/// The variable `loop`.
class Loop final : public Object {
 public:
  Loop(Interpreter& interpreter, const Stmt& stmt, const Scope& scope, int depth, const std::vector<Value>& items)
      : interpreter_(interpreter), stmt_(stmt), scope_(&scope), depth_(depth), items_(&items), count_(items.size()) {}
  std::string type_name() const override { return "LoopContext"; }
  bool callable() const override { return stmt_.recursive && items_; }
  Value call(Runtime& runtime, Arguments& arguments) override;
  const Value* find_attribute(Runtime& runtime, std::string_view name) override;
  void at(std::size_t index) { index_ = index; }
  /// After the loop, whose items and scope are gone.
  void end() {
    items_ = nullptr;
    scope_ = nullptr;
  }

 private:
  static Value cycle(Runtime& runtime, const Value& self, Arguments& arguments);
  static Value changed(Runtime& runtime, const Value& self, Arguments& arguments);
  Value self() { return std::shared_ptr<Object>(std::shared_ptr<void>(), this); }

  Interpreter& interpreter_;
  const Stmt& stmt_;
  const Scope* scope_;
  int depth_;
  const std::vector<Value>* items_;
  std::size_t count_;
  std::size_t index_ = 0;
  Value attribute_;             ///< that find_attribute gave last
  std::vector<Value> changed_;  ///< the arguments of the last loop.changed()
};

Value Loop::cycle(Runtime&, const Value& self, Arguments& arguments) {
  if (arguments.positional.empty()) fail("no items for cycling given");
  return arguments.positional[static_cast<Loop&>(self.object()).index_ % arguments.positional.size()];
}

Value Loop::changed(Runtime& runtime, const Value& self, Arguments& arguments) {
  std::vector<Value>& last = static_cast<Loop&>(self.object()).changed_;
  bool same = last.size() == arguments.positional.size() && !last.empty();
  for (std::size_t i = 0; same && i < last.size(); ++i) same = equal(runtime, last[i], arguments.positional[i]);
  last = arguments.positional;
  return !same;
}

const Value* Loop::find_attribute(Runtime& runtime, std::string_view name) {
  const auto method = [&](NamedBuiltin builtin) {
    attribute_ = std::shared_ptr<Object>(std::make_shared<BoundBuiltin>(self(), builtin));
    return &attribute_;
  };
  const auto give = [&](Value value) {
    attribute_ = std::move(value);
    return &attribute_;
  };
  const auto index = static_cast<std::int64_t>(index_);
  const auto count = static_cast<std::int64_t>(count_);
  if (name == "index") return give(index + 1);
  if (name == "index0") return give(index);
  if (name == "revindex") return give(count - index);
  if (name == "revindex0") return give(count - index - 1);
  if (name == "first") return give(index == 0);
  if (name == "last") return give(index + 1 == count);
  if (name == "length") return give(count);
  if (name == "depth") return give(depth_ + 1);
  if (name == "depth0") return give(depth_);
  if (name == "previtem") {
    return give(items_ && index > 0 ? (*items_)[index_ - 1] : runtime.undefined("there is no previous item"));
  }
  if (name == "nextitem") {
    return give(items_ && index + 1 < count ? (*items_)[index_ + 1] : runtime.undefined("there is no next item"));
  }
  if (name == "cycle") return method({"cycle", cycle});
  if (name == "changed") return method({"changed", changed});
  return nullptr;
}

Value Loop::call(Runtime& runtime, Arguments& arguments) {
  if (!callable()) fail("the loop must have the 'recursive' marker to be called");
  if (interpreter_.macros_ >= runtime.limits.depth) exceed("loops nested deeper than ", runtime.limits.depth);
  const Value& iterable = *arguments.bind("loop", {"iterable"}, 1)[0];
  Scope scope{scope_, {}};
  std::string text;
  std::string* const outer = std::exchange(interpreter_.out_, &text);
  ++interpreter_.macros_;
  interpreter_.run_loop(stmt_, iterable, scope, depth_ + 1);
  --interpreter_.macros_;
  interpreter_.out_ = outer;
  return runtime.text(std::move(text));
}

std::string Interpreter::run(const Body& body) {
  std::string out;
  out_ = &out;
  execute(body, globals_);
  return out;
}

void Interpreter::print(std::string_view text) {
  runtime_.check_size(out_->size() + text.size());
  runtime_.charge_text(text.size());
  out_->append(text);
}

std::string Interpreter::capture(const Body& body, Scope& scope) {
  std::string text;
  std::string* const outer = std::exchange(out_, &text);
  execute(body, scope);
  out_ = outer;
  return text;
}

void Interpreter::set_variable(Scope& scope, std::string_view name, Value value) {
  runtime_.charge(1 + scope.variables.size() / 16);
  for (auto& [known, slot] : scope.variables) {
    if (known == name) {
      slot = std::move(value);
      return;
    }
  }
  scope.variables.emplace_back(name, std::move(value));
}

void Interpreter::assign(const Expr& target, Value value, Scope& scope) {
  if (target.kind == Expr::Kind::name) {
    set_variable(scope, target.name, std::move(value));
  } else if (target.kind == Expr::Kind::attribute) {
    const Value object = evaluate(*target.parts[0], scope);
    if (!object.is_object() || !object.object().assign(runtime_, target.name, std::move(value))) {
      fail("line ", target.line, ": cannot assign attribute on non-namespace object");
    }
  } else {
    const std::vector<Value> items = iterate(runtime_, value);
    if (items.size() != target.parts.size()) {
      fail("line ", target.line, ": expected ", target.parts.size(), " values to unpack, got ", items.size());
    }
    for (std::size_t i = 0; i < items.size(); ++i) assign(*target.parts[i], items[i], scope);
  }
}

Interpreter::Flow Interpreter::execute(const Body& body, Scope& scope) {
  const Deeper deeper(*this);
  for (const Stmt& stmt : body) {
    const Flow flow = execute(stmt, scope);
    if (flow != Flow::next) return flow;
  }
  return Flow::next;
}

Interpreter::Flow Interpreter::execute(const Stmt& stmt, Scope& scope) {
  runtime_.charge(1);
  switch (stmt.kind) {
    case Stmt::Kind::text:
      print(stmt.text);
      break;
    case Stmt::Kind::print: {
      const Value value = evaluate(*stmt.expr, scope);
      print(value.is_string() ? value.string() : to_text(runtime_, value));
      break;
    }
    case Stmt::Kind::if_: {
      for (const auto& [condition, body] : stmt.branches) {
        if (evaluate(*condition, scope).truthy()) return execute(body, scope);
      }
      return execute(stmt.orelse, scope);
    }
    case Stmt::Kind::for_:
      return execute_for(stmt, scope);
    case Stmt::Kind::set:
      assign(*stmt.target, evaluate(*stmt.expr, scope), scope);
      break;
    case Stmt::Kind::set_block: {
      Scope inner{&scope, {}};
      Value value{capture(stmt.body, inner)};
      if (stmt.expr) {
        set_variable(inner, {}, value);
        value = evaluate(*stmt.expr, inner);
      }
      assign(*stmt.target, std::move(value), scope);
      break;
    }
    case Stmt::Kind::macro:
      define_macro(stmt, scope, true);
      break;
    case Stmt::Kind::call:
      execute_call(stmt, scope);
      break;
    case Stmt::Kind::filter: {
      Scope inner{&scope, {}};
      Value text{capture(stmt.body, inner)};
      set_variable(inner, {}, std::move(text));
      print(to_text(runtime_, evaluate(*stmt.expr, inner)));
      break;
    }
    case Stmt::Kind::with: {
      Scope inner{&scope, {}};
      for (const auto& [target, expr] : stmt.bindings) assign(*target, evaluate(*expr, scope), inner);
      return execute(stmt.body, inner);
    }
    case Stmt::Kind::scope: {
      Scope inner{&scope, {}};
      return execute(stmt.body, inner);
    }
    case Stmt::Kind::break_:
      return Flow::break_;
    case Stmt::Kind::continue_:
      return Flow::continue_;
  }
  return Flow::next;
}

Interpreter::Flow Interpreter::execute_for(const Stmt& stmt, Scope& scope) {
  run_loop(stmt, evaluate(*stmt.expr, scope), scope, 0);
  return Flow::next;
}

void Interpreter::run_loop(const Stmt& stmt, const Value& iterable, Scope& scope, int loop_depth) {
  std::vector<Value> items = iterate(runtime_, iterable);
  if (stmt.condition) {
    std::vector<Value> kept;
    for (Value& item : items) {
      Scope inner{&scope, {}};
      assign(*stmt.target, item, inner);
      if (evaluate(*stmt.condition, inner).truthy()) kept.push_back(std::move(item));
    }
    items = std::move(kept);
  }
  if (items.empty()) {
    Scope inner{&scope, {}};
    execute(stmt.orelse, inner);
    return;
  }
  auto owned = std::make_unique<Loop>(*this, stmt, scope, loop_depth, items);
  Loop& loop = *owned;
  const Value loop_value = runtime_.own(std::move(owned));
  for (std::size_t i = 0; i < items.size(); ++i) {
    Scope inner{&scope, {}};
    loop.at(i);
    inner.variables.emplace_back("loop", loop_value);
    assign(*stmt.target, items[i], inner);
    if (execute(stmt.body, inner) == Flow::break_) break;
  }
  loop.end();
}

Value Interpreter::define_macro(const Stmt& stmt, Scope& scope, bool bind_name) {
  auto owned = std::make_unique<Macro>(*this, stmt);
  Macro& macro = *owned;
  macro.captured.parent = &globals_;
  Value value = runtime_.own(std::move(owned));
  if (bind_name) set_variable(scope, stmt.text, value);
  for (const Scope* from = &scope; from && from != &globals_; from = from->parent) {
    runtime_.charge(1 + from->variables.size());
    // Inner variables come first, so they hide those of the same name further out.
    macro.captured.variables.insert(macro.captured.variables.end(), from->variables.begin(), from->variables.end());
  }
  return value;
}

void Interpreter::execute_call(const Stmt& stmt, Scope& scope) {
  const Value callee = evaluate(*stmt.expr->parts[0], scope);
  Arguments arguments = evaluate_arguments(*stmt.expr, scope);
  arguments.keywords.emplace_back("caller", define_macro(stmt, scope, false));
  print(to_text(runtime_, call_value(runtime_, callee, arguments)));
}

}  // namespace llminfer::chat::jinja
