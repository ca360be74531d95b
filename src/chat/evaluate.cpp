// Expressions.
#include <algorithm>

#include "chat/interpreter.hpp"

namespace llminfer::chat::jinja {

const Value* Interpreter::find_variable(const Scope& scope, std::string_view name) {
  for (const Scope* at = &scope; at; at = at->parent) {
    runtime_.charge(at->variables.size() / 16);
    for (const auto& [known, value] : at->variables) {
      if (known == name) return &value;
    }
  }
  return nullptr;
}

std::vector<Value> Interpreter::evaluate_all(const std::vector<ExprPtr>& exprs, std::size_t from, const Scope& scope) {
  std::vector<Value> values;
  values.reserve(exprs.size() - from);
  for (std::size_t i = from; i < exprs.size(); ++i) values.push_back(evaluate(*exprs[i], scope));
  return values;
}

Arguments Interpreter::evaluate_arguments(const Expr& call, const Scope& scope) {
  Arguments arguments;
  arguments.positional = evaluate_all(call.parts, 1, scope);
  for (const auto& [name, expr] : call.keywords) arguments.keywords.emplace_back(name, evaluate(*expr, scope));
  if (call.star) {
    std::vector<Value> more = iterate(runtime_, evaluate(*call.star, scope));
    std::move(more.begin(), more.end(), std::back_inserter(arguments.positional));
  }
  if (call.star_star) {
    const Value more = evaluate(*call.star_star, scope);
    if (!more.is_dict()) fail("line ", call.line, ": argument after ** must be a mapping, not ", more.type_name());
    runtime_.charge(more.dict().entries.size());
    for (const auto& [key, value] : more.dict().entries) {
      if (!key.is_string()) fail("line ", call.line, ": keywords must be strings");
      arguments.keywords.emplace_back(key.string(), value);
    }
  }
  return arguments;
}

Value Interpreter::apply(const Expr& expr, const Value& subject, const Scope& scope) {
  if (!expr.builtin) {
    fail("line ", expr.line, ": no ", expr.kind == Expr::Kind::filter ? "filter" : "test", " named '", expr.name, "'");
  }
  Arguments arguments = evaluate_arguments(expr, scope);
  return expr.builtin(runtime_, subject, arguments);
}

Value Interpreter::evaluate_arithmetic(const Expr& expr, const Scope& scope) {
  Value result = evaluate(*expr.parts[0], scope);
  for (std::size_t i = 0; i < expr.operators.size(); ++i) {
    const Value right = evaluate(*expr.parts[i + 1], scope);
    switch (expr.operators[i]) {
      case Operator::add:
        result = add(runtime_, result, right);
        break;
      case Operator::subtract:
        result = subtract(runtime_, result, right);
        break;
      case Operator::multiply:
        result = multiply(runtime_, result, right);
        break;
      case Operator::divide:
        result = divide(runtime_, result, right);
        break;
      case Operator::floor_divide:
        result = floor_divide(runtime_, result, right);
        break;
      case Operator::modulo:
        result = modulo(runtime_, result, right);
        break;
      case Operator::power:
        result = power(runtime_, result, right);
        break;
      default:
        result = concatenate(runtime_, result, right);
        break;
    }
  }
  return result;
}

Value Interpreter::evaluate_comparison(const Expr& expr, const Scope& scope) {
  Value left = evaluate(*expr.parts[0], scope);
  for (std::size_t i = 0; i < expr.operators.size(); ++i) {
    Value right = evaluate(*expr.parts[i + 1], scope);
    bool holds = false;
    switch (expr.operators[i]) {
      case Operator::equal:
        holds = equal(runtime_, left, right);
        break;
      case Operator::not_equal:
        holds = !equal(runtime_, left, right);
        break;
      case Operator::contained:
        holds = contains(runtime_, right, left);
        break;
      case Operator::not_contained:
        holds = !contains(runtime_, right, left);
        break;
      case Operator::less:
        holds = compare(runtime_, left, right) < 0;
        break;
      case Operator::less_equal:
        holds = compare(runtime_, left, right) <= 0;
        break;
      case Operator::greater:
        holds = compare(runtime_, left, right) == 1;
        break;
      default: {
        const int order = compare(runtime_, left, right);
        holds = order == 0 || order == 1;
        break;
      }
    }
    if (!holds) return false;
    left = std::move(right);
  }
  return true;
}

Value Interpreter::evaluate_dict(const Expr& expr, const Scope& scope) {
  Dict dict{0, {}};
  for (std::size_t i = 0; i < expr.parts.size(); i += 2) {
    Value key = evaluate(*expr.parts[i], scope);
    Value value = evaluate(*expr.parts[i + 1], scope);
    if (key.is_list() || key.is_dict()) fail("line ", expr.line, ": unhashable type: '", key.type_name(), "'");
    if (const Value* known = find_key(runtime_, dict, key)) {
      const_cast<Value&>(*known) = std::move(value);  // `dict` is this function's own
    } else {
      dict.entries.emplace_back(std::move(key), std::move(value));
    }
  }
  return runtime_.dict(std::move(dict.entries));
}

Value Interpreter::evaluate(const Expr& expr, const Scope& scope) {
  const Deeper deeper(*this);
  switch (expr.kind) {
    case Expr::Kind::literal:
      return expr.value;
    case Expr::Kind::name: {
      if (const Value* value = find_variable(scope, expr.name)) return *value;
      if (std::optional<Value> function = find_function(expr.name)) return *std::move(function);
      return runtime_.undefined("'", expr.name, "' is undefined");
    }
    case Expr::Kind::list:
      return runtime_.list(evaluate_all(expr.parts, 0, scope));
    case Expr::Kind::tuple:
      return runtime_.tuple(evaluate_all(expr.parts, 0, scope));
    case Expr::Kind::dict:
      return evaluate_dict(expr, scope);
    case Expr::Kind::negate:
      return negate(evaluate(*expr.parts[0], scope));
    case Expr::Kind::plus: {
      Value value = evaluate(*expr.parts[0], scope);
      if (value.is_undefined()) fail_undefined(value);
      if (!value.is_number()) fail("line ", expr.line, ": bad operand type for unary +: '", value.type_name(), "'");
      return value.is_bool() ? Value(value.integer()) : value;
    }
    case Expr::Kind::not_:
      return !evaluate(*expr.parts[0], scope).truthy();
    case Expr::Kind::arithmetic:
      return evaluate_arithmetic(expr, scope);
    case Expr::Kind::comparison:
      return evaluate_comparison(expr, scope);
    case Expr::Kind::and_:
    case Expr::Kind::or_: {
      Value value;
      for (const ExprPtr& part : expr.parts) {
        value = evaluate(*part, scope);
        if (value.truthy() == (expr.kind == Expr::Kind::or_)) break;
      }
      return value;
    }
    case Expr::Kind::conditional: {
      if (evaluate(*expr.parts[0], scope).truthy()) return evaluate(*expr.parts[1], scope);
      if (expr.parts[2]) return evaluate(*expr.parts[2], scope);
      return runtime_.undefined("the inline if-expression evaluated to false and no else section was defined");
    }
    case Expr::Kind::attribute:
      return get_attribute(runtime_, evaluate(*expr.parts[0], scope), expr.name);
    case Expr::Kind::item: {
      const Value base = evaluate(*expr.parts[0], scope);
      return get_item(runtime_, base, evaluate(*expr.parts[1], scope));
    }
    case Expr::Kind::slice: {
      const Value base = evaluate(*expr.parts[0], scope);
      const auto bound = [&](std::size_t i) { return expr.parts[i] ? evaluate(*expr.parts[i], scope) : Value(None{}); };
      const Value start = bound(1), stop = bound(2), step = bound(3);
      return get_slice(runtime_, base, start, stop, step);
    }
    case Expr::Kind::call: {
      const Value callee = evaluate(*expr.parts[0], scope);
      Arguments arguments = evaluate_arguments(expr, scope);
      return call_value(runtime_, callee, arguments);
    }
    case Expr::Kind::filter: {
      if (expr.parts[0]) return apply(expr, evaluate(*expr.parts[0], scope), scope);
      const Value* captured = find_variable(scope, {});  // by the filter or set block around it
      return apply(expr, captured ? *captured : Value(), scope);
    }
    case Expr::Kind::test:
      return apply(expr, evaluate(*expr.parts[0], scope), scope);
  }
  return {};
}

}  // namespace llminfer::chat::jinja
