// Statements.
#include "chat/parser.hpp"

#include <algorithm>

namespace llminfer::chat::jinja {

using Kind = Token::Kind;

void Parser::unexpected(std::string_view expected) const {
  const Token& token = current();
  std::string found = "'" + token.text + "'";
  if (token.kind == Kind::end) found = "the end of the template";
  if (token.kind == Kind::block_end || token.kind == Kind::print_end) found = "the end of the tag";
  if (token.kind == Kind::text) found = "text";
  fail("line ", token.line, ": expected ", expected, ", got ", found);
}

bool Parser::at_symbol(std::string_view symbol) const {
  return current().kind == Kind::symbol && current().text == symbol;
}
bool Parser::at_name(std::string_view name) const { return current().kind == Kind::name && current().text == name; }

bool Parser::skip_symbol(std::string_view symbol) {
  if (!at_symbol(symbol)) return false;
  ++at_;
  return true;
}
bool Parser::skip_name(std::string_view name) {
  if (!at_name(name)) return false;
  ++at_;
  return true;
}
void Parser::expect_symbol(std::string_view symbol) {
  if (!skip_symbol(symbol)) unexpected("'" + std::string(symbol) + "'");
}
std::string Parser::expect_name() {
  if (current().kind != Kind::name) unexpected("a name");
  return tokens_[at_++].text;
}
void Parser::expect_block_end() {
  if (current().kind != Kind::block_end) unexpected("the end of the tag");
  ++at_;
}

Body Parser::parse() {
  Body body;
  parse_until({}, body);
  return body;
}

/// Statements up to a tag that one of `ends` begins, whose name is consumed and returned; up to the template's end if
/// `ends` is empty.
std::string Parser::parse_until(Names ends, Body& body) {
  const Nested nested(*this);
  const int opened_at = current().line;
  for (;;) {
    const Token& token = current();
    switch (token.kind) {
      case Kind::end: {
        if (ends.size() == 0) return {};
        fail("line ", opened_at, ": block without {% ", *(ends.end() - 1), " %}");
      }
      case Kind::text: {
        Stmt stmt{Stmt::Kind::text, token.line};
        stmt.text = token.text;
        body.push_back(std::move(stmt));
        ++at_;
        break;
      }
      case Kind::print_begin: {
        Stmt stmt{Stmt::Kind::print, token.line};
        ++at_;
        stmt.expr = parse_tuple(true);
        if (current().kind != Kind::print_end) unexpected("the end of the tag");
        ++at_;
        body.push_back(std::move(stmt));
        break;
      }
      default: {  // block_begin: the scanner gives nothing else between tags
        ++at_;
        const std::string tag = expect_name();
        if (std::find(ends.begin(), ends.end(), tag) != ends.end()) return tag;
        parse_statement(tag, body);
        break;
      }
    }
  }
}

/// From the opening tag's end to the tag `end`, which is consumed.
Body Parser::parse_block(std::string_view end) {
  Body body;
  expect_block_end();
  parse_until({end}, body);
  expect_block_end();
  return body;
}

void Parser::parse_statement(const std::string& tag, Body& body) {
  Stmt stmt{Stmt::Kind::scope, current().line};
  if (tag == "if") {
    parse_if(stmt);
  } else if (tag == "for") {
    parse_for(stmt);
  } else if (tag == "set") {
    parse_set(stmt);
  } else if (tag == "macro") {
    parse_macro(stmt);
  } else if (tag == "call") {
    parse_call(stmt);
  } else if (tag == "with") {
    parse_with(stmt);
  } else if (tag == "filter") {
    stmt.kind = Stmt::Kind::filter;
    int links = 0;
    stmt.expr = parse_filters(parse_filter(nullptr), links);
    depth_ -= links;
    stmt.body = parse_block("endfilter");
  } else if (tag == "generation") {
    stmt.body = parse_block("endgeneration");
  } else if (tag == "block") {
    expect_name();
    skip_name("scoped");
    skip_name("required");
    expect_block_end();
    parse_until({"endblock"}, stmt.body);
    if (current().kind == Kind::name) ++at_;
    expect_block_end();
  } else if (tag == "break" || tag == "continue") {
    if (loops_ == 0) fail("line ", stmt.line, ": '", tag, "' outside of a loop");
    stmt.kind = tag == "break" ? Stmt::Kind::break_ : Stmt::Kind::continue_;
    expect_block_end();
  } else {
    fail("line ", stmt.line, ": unknown or misplaced tag '", tag, "'");
  }
  body.push_back(std::move(stmt));
}

void Parser::parse_if(Stmt& stmt) {
  stmt.kind = Stmt::Kind::if_;
  std::string end = "elif";
  while (end == "elif") {
    ExprPtr condition = parse_tuple(false);
    expect_block_end();
    stmt.branches.emplace_back(std::move(condition), Body());
    end = parse_until({"elif", "else", "endif"}, stmt.branches.back().second);
  }
  if (end == "else") {
    stmt.orelse = parse_block("endif");
  } else {
    expect_block_end();
  }
}

void Parser::parse_for(Stmt& stmt) {
  stmt.kind = Stmt::Kind::for_;
  stmt.target = parse_target(false);
  if (!skip_name("in")) unexpected("'in'");
  stmt.expr = parse_tuple(false);
  if (skip_name("if")) stmt.condition = parse_expression();
  stmt.recursive = skip_name("recursive");
  expect_block_end();
  ++loops_;
  const std::string end = parse_until({"else", "endfor"}, stmt.body);
  --loops_;
  if (end == "else") {
    stmt.orelse = parse_block("endfor");
  } else {
    expect_block_end();
  }
}

void Parser::parse_set(Stmt& stmt) {
  stmt.target = parse_target(true);
  if (skip_symbol("=")) {
    stmt.kind = Stmt::Kind::set;
    stmt.expr = parse_tuple(true);
    expect_block_end();
    return;
  }
  stmt.kind = Stmt::Kind::set_block;
  if (stmt.target->kind == Expr::Kind::tuple) unexpected("'='");
  if (skip_symbol("|")) {
    int links = 0;
    stmt.expr = parse_filters(parse_filter(nullptr), links);
    depth_ -= links;
  }
  stmt.body = parse_block("endset");
}

void Parser::parse_with(Stmt& stmt) {
  stmt.kind = Stmt::Kind::with;
  while (current().kind != Kind::block_end) {
    if (!stmt.bindings.empty()) expect_symbol(",");
    ExprPtr target = parse_target(false);
    expect_symbol("=");
    stmt.bindings.emplace_back(std::move(target), parse_expression());
  }
  stmt.body = parse_block("endwith");
}

Signature Parser::parse_signature() {
  Signature signature;
  expect_symbol("(");
  while (!at_symbol(")")) {
    if (!signature.names.empty()) {
      expect_symbol(",");
      if (at_symbol(")")) break;
    }
    signature.names.push_back(expect_name());
    if (skip_symbol("=")) {
      signature.defaults.push_back(parse_expression());
    } else if (!signature.defaults.empty()) {
      fail("line ", current().line, ": parameter without default after one with a default");
    }
  }
  expect_symbol(")");
  return signature;
}

void Parser::parse_macro(Stmt& stmt) {
  stmt.kind = Stmt::Kind::macro;
  stmt.text = expect_name();
  stmt.signature = parse_signature();
  parse_macro_body(stmt, "endmacro");
}

void Parser::parse_call(Stmt& stmt) {
  stmt.kind = Stmt::Kind::call;
  if (at_symbol("(")) stmt.signature = parse_signature();
  stmt.text = "caller";
  stmt.expr = parse_expression();
  if (stmt.expr->kind != Expr::Kind::call) fail("line ", stmt.line, ": a call block needs a call");
  parse_macro_body(stmt, "endcall");
}

void Parser::parse_macro_body(Stmt& stmt, std::string_view end) {
  const int outer_loops = std::exchange(loops_, 0);
  signatures_.push_back(&stmt.signature);
  stmt.body = parse_block(end);
  signatures_.pop_back();
  loops_ = outer_loops;
}

/// A name, name.attribute (in set), or a tuple of targets with or without parentheses.
ExprPtr Parser::parse_target(bool attribute_allowed) {
  const Nested nested(*this);
  std::vector<ExprPtr> parts;
  bool is_tuple = false;
  do {
    if (is_tuple && (at_symbol("=") || at_symbol(")") || at_name("in") || current().kind == Kind::block_end)) break;
    if (skip_symbol("(")) {
      parts.push_back(parse_target(attribute_allowed));
      expect_symbol(")");
    } else {
      static constexpr std::string_view kReserved[] = {"true", "false", "none", "True", "False", "None"};
      const int line = current().line;
      ExprPtr part = make(Expr::Kind::name);
      part->name = expect_name();
      if (std::find(std::begin(kReserved), std::end(kReserved), part->name) != std::end(kReserved)) {
        fail("line ", line, ": cannot assign to '", part->name, "'");
      }
      if (attribute_allowed && skip_symbol(".")) {
        part = make(Expr::Kind::attribute, std::move(part));
        part->name = expect_name();
      }
      parts.push_back(std::move(part));
    }
    if (at_symbol(",")) is_tuple = true;
  } while (skip_symbol(","));
  if (!is_tuple) return std::move(parts[0]);
  ExprPtr tuple = make(Expr::Kind::tuple);
  tuple->parts = std::move(parts);
  return tuple;
}

}  // namespace llminfer::chat::jinja
