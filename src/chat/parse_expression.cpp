// Expressions, from the loosest binding (if … else) to the tightest (literals).
#include <algorithm>

#include "chat/builtins.hpp"
#include "chat/parser.hpp"

namespace llminfer::chat::jinja {
namespace {

using Kind = Token::Kind;

struct Spelling {
  std::string_view symbol;
  Operator op;
  int level;  ///< of arithmetic: a higher one binds tighter
};
constexpr Spelling kArithmetic[] = {
    {"+", Operator::add, 0},      {"-", Operator::subtract, 0}, {"~", Operator::concatenate, 1},
    {"*", Operator::multiply, 2}, {"/", Operator::divide, 2},   {"//", Operator::floor_divide, 2},
    {"%", Operator::modulo, 2},   {"**", Operator::power, 3},
};
constexpr int kTightest = 4;
constexpr Spelling kComparison[] = {
    {"==", Operator::equal, 0},      {"!=", Operator::not_equal, 0}, {"<", Operator::less, 0},
    {"<=", Operator::less_equal, 0}, {">", Operator::greater, 0},    {">=", Operator::greater_equal, 0},
};

}  // namespace

ExprPtr Parser::make(Expr::Kind kind, ExprPtr first) const {
  auto expr = std::make_unique<Expr>(Expr{kind, current().line});
  if (first) expr->parts.push_back(std::move(first));
  return expr;
}

bool Parser::at_tuple_end() const {
  return current().kind == Kind::block_end || current().kind == Kind::print_end || at_symbol(")") ||
         at_name("recursive");
}

ExprPtr Parser::parse_tuple(bool with_conditional, bool in_parentheses) {
  ExprPtr tuple = make(Expr::Kind::tuple);
  bool is_tuple = false;
  while (!at_tuple_end()) {
    tuple->parts.push_back(parse_expression(with_conditional));
    if (!skip_symbol(",")) break;
    is_tuple = true;
  }
  if (is_tuple) return tuple;
  if (!tuple->parts.empty()) return std::move(tuple->parts[0]);
  if (!in_parentheses) unexpected("an expression");
  return tuple;
}

ExprPtr Parser::parse_expression(bool with_conditional) { return with_conditional ? parse_conditional() : parse_or(); }

ExprPtr Parser::parse_conditional() {
  const Nested nested(*this);
  ExprPtr expr = parse_or();
  int links = 0;
  while (skip_name("if")) {
    count_link(links);
    ExprPtr conditional = make(Expr::Kind::conditional, parse_or());
    conditional->parts.push_back(std::move(expr));
    conditional->parts.push_back(skip_name("else") ? parse_conditional() : nullptr);
    expr = std::move(conditional);
  }
  depth_ -= links;
  return expr;
}

ExprPtr Parser::parse_or() {
  ExprPtr first = parse_and();
  if (!at_name("or")) return first;
  ExprPtr expr = make(Expr::Kind::or_, std::move(first));
  while (skip_name("or")) expr->parts.push_back(parse_and());
  return expr;
}

ExprPtr Parser::parse_and() {
  ExprPtr first = parse_not();
  if (!at_name("and")) return first;
  ExprPtr expr = make(Expr::Kind::and_, std::move(first));
  while (skip_name("and")) expr->parts.push_back(parse_not());
  return expr;
}

ExprPtr Parser::parse_not() {
  if (!skip_name("not")) return parse_comparison();
  const Nested nested(*this);
  return make(Expr::Kind::not_, parse_not());
}

ExprPtr Parser::parse_comparison() {
  ExprPtr first = parse_arithmetic(0);
  ExprPtr expr;
  for (;;) {
    const auto* const found = std::find_if(std::begin(kComparison), std::end(kComparison),
                                           [&](const Spelling& s) { return at_symbol(s.symbol); });
    Operator op = Operator::contained;
    if (found != std::end(kComparison)) {
      op = found->op;
      ++at_;
    } else if (at_name("not") && next_token().kind == Kind::name && next_token().text == "in") {
      op = Operator::not_contained;
      at_ += 2;
    } else if (!skip_name("in")) {
      return expr ? std::move(expr) : std::move(first);
    }
    if (!expr) expr = make(Expr::Kind::comparison, std::move(first));
    expr->operators.push_back(op);
    expr->parts.push_back(parse_arithmetic(0));
  }
}

ExprPtr Parser::parse_arithmetic(int level) {
  if (level == kTightest) return parse_unary();
  ExprPtr first = parse_arithmetic(level + 1);
  ExprPtr expr;
  for (;;) {
    const auto* const found = std::find_if(std::begin(kArithmetic), std::end(kArithmetic),
                                           [&](const Spelling& s) { return s.level == level && at_symbol(s.symbol); });
    if (found == std::end(kArithmetic)) return expr ? std::move(expr) : std::move(first);
    ++at_;
    if (!expr) expr = make(Expr::Kind::arithmetic, std::move(first));
    expr->operators.push_back(found->op);
    expr->parts.push_back(parse_arithmetic(level + 1));
  }
}

/// Chains such as a.b.c nest in the tree, so each link counts as a level; the caller takes the links off again.
void Parser::count_link(int& links) {
  { const Nested nested(*this); }
  ++depth_;
  ++links;
}

ExprPtr Parser::parse_unary(bool with_filter) {
  const Nested nested(*this);
  ExprPtr expr;
  if (skip_symbol("-")) {
    expr = make(Expr::Kind::negate, parse_unary(false));
  } else if (skip_symbol("+")) {
    expr = make(Expr::Kind::plus, parse_unary(false));
  } else {
    expr = parse_primary();
  }
  int links = 0;
  expr = parse_postfix(std::move(expr), links);
  if (with_filter) expr = parse_filters(std::move(expr), links);
  depth_ -= links;
  return expr;
}

ExprPtr Parser::parse_primary() {
  ExprPtr literal = make(Expr::Kind::literal);
  const Token& token = current();
  switch (token.kind) {
    case Kind::string: {
      std::string text;
      while (current().kind == Kind::string) text += tokens_[at_++].text;
      literal->value = Value(std::move(text));
      return literal;
    }
    case Kind::integer:
      literal->value = Value(tokens_[at_++].number);
      return literal;
    case Kind::floating:
      literal->value = Value(tokens_[at_++].real);
      return literal;
    case Kind::name: {
      const std::string name = expect_name();
      if (name == "true" || name == "True" || name == "false" || name == "False") {
        literal->value = Value(name[0] == 't' || name[0] == 'T');
        return literal;
      }
      if (name == "none" || name == "None") {
        literal->value = Value(None{});
        return literal;
      }
      literal->kind = Expr::Kind::name;
      literal->name = name;
      if (!signatures_.empty()) {
        Signature& signature = *signatures_.back();
        signature.uses_varargs |= name == "varargs";
        signature.uses_kwargs |= name == "kwargs";
        signature.uses_caller |= name == "caller";
      }
      return literal;
    }
    default:
      break;
  }
  if (skip_symbol("(")) {
    ExprPtr expr = parse_tuple(true, true);
    expect_symbol(")");
    return expr;
  }
  if (skip_symbol("[")) return parse_list();
  if (skip_symbol("{")) return parse_dict();
  unexpected("an expression");
}

ExprPtr Parser::parse_list() {
  ExprPtr list = make(Expr::Kind::list);
  while (!at_symbol("]")) {
    list->parts.push_back(parse_expression());
    if (!skip_symbol(",")) break;
  }
  expect_symbol("]");
  return list;
}

ExprPtr Parser::parse_dict() {
  ExprPtr dict = make(Expr::Kind::dict);
  while (!at_symbol("}")) {
    dict->parts.push_back(parse_expression());
    expect_symbol(":");
    dict->parts.push_back(parse_expression());
    if (!skip_symbol(",")) break;
  }
  expect_symbol("}");
  return dict;
}

ExprPtr Parser::parse_postfix(ExprPtr expr, int& links) {
  for (;;) {
    if (at_symbol(".")) {
      count_link(links);
      ++at_;
      if (current().kind == Kind::integer) {
        ExprPtr index = make(Expr::Kind::literal);
        index->value = Value(tokens_[at_++].number);
        expr = make(Expr::Kind::item, std::move(expr));
        expr->parts.push_back(std::move(index));
      } else {
        expr = make(Expr::Kind::attribute, std::move(expr));
        expr->name = expect_name();
      }
    } else if (at_symbol("[")) {
      count_link(links);
      expr = parse_subscript(std::move(expr));
    } else if (at_symbol("(")) {
      count_link(links);
      expr = make(Expr::Kind::call, std::move(expr));
      parse_arguments(*expr);
    } else {
      return expr;
    }
  }
}

ExprPtr Parser::parse_filters(ExprPtr expr, int& links) {
  for (;;) {
    if (at_symbol("|")) {
      count_link(links);
      ++at_;
      expr = parse_filter(std::move(expr));
    } else if (at_name("is")) {
      count_link(links);
      ++at_;
      expr = parse_test(std::move(expr));
    } else if (at_symbol("(")) {
      count_link(links);
      expr = make(Expr::Kind::call, std::move(expr));
      parse_arguments(*expr);
    } else {
      return expr;
    }
  }
}

ExprPtr Parser::parse_subscript(ExprPtr base) {
  ExprPtr expr = make(Expr::Kind::item, std::move(base));
  expect_symbol("[");
  const auto bound = [&] { return at_symbol(":") || at_symbol("]") ? nullptr : parse_expression(); };
  ExprPtr first = bound();
  if (at_symbol(":")) {
    expr->kind = Expr::Kind::slice;
    expr->parts.push_back(std::move(first));
    for (int i = 0; i < 2; ++i) expr->parts.push_back(skip_symbol(":") ? bound() : nullptr);
  } else {
    if (!first) unexpected("an index");
    expr->parts.push_back(std::move(first));
  }
  expect_symbol("]");
  return expr;
}

void Parser::parse_arguments(Expr& call) {
  expect_symbol("(");
  while (!at_symbol(")")) {
    if (skip_symbol("*")) {
      if (call.star || call.star_star) unexpected("one *argument");
      call.star = parse_expression();
    } else if (skip_symbol("**")) {
      if (call.star_star) unexpected("one **argument");
      call.star_star = parse_expression();
    } else if (current().kind == Kind::name && next_token().kind == Kind::symbol && next_token().text == "=") {
      std::string name = expect_name();
      ++at_;
      call.keywords.emplace_back(std::move(name), parse_expression());
    } else {
      if (call.star || call.star_star || !call.keywords.empty()) unexpected("a keyword argument");
      call.parts.push_back(parse_expression());
    }
    if (!skip_symbol(",")) break;
  }
  expect_symbol(")");
}

ExprPtr Parser::parse_filter(ExprPtr input) {
  ExprPtr expr = make(Expr::Kind::filter);
  expr->parts.push_back(std::move(input));
  expr->name = expect_name();
  expr->builtin = find_filter(expr->name);
  if (at_symbol("(")) parse_arguments(*expr);
  return expr;
}

ExprPtr Parser::parse_test(ExprPtr subject) {
  const bool negated = skip_name("not");
  ExprPtr expr = make(Expr::Kind::test, std::move(subject));
  expr->name = expect_name();
  expr->builtin = find_test(expr->name);
  const Token& token = current();
  const bool operand = token.kind == Kind::string || token.kind == Kind::integer || token.kind == Kind::floating ||
                       at_symbol("[") || at_symbol("{") ||
                       (token.kind == Kind::name && token.text != "else" && token.text != "or" && token.text != "and");
  if (at_symbol("(")) {
    parse_arguments(*expr);
  } else if (operand) {
    if (at_name("is")) fail("line ", token.line, ": tests cannot be chained with 'is'");
    int links = 0;
    expr->parts.push_back(parse_postfix(parse_primary(), links));
    depth_ -= links;
  }
  return negated ? make(Expr::Kind::not_, std::move(expr)) : std::move(expr);
}

}  // namespace llminfer::chat::jinja
