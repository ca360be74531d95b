// Recursive descent from tokens to the syntax tree, by the grammar of jinja2's parser. Knows no values but literals.
#pragma once

#include <initializer_list>
#include <string>
#include <string_view>
#include <vector>

#include "chat/ast.hpp"
#include "chat/lexer.hpp"

namespace llminfer::chat::jinja {

class Parser {
 public:
  /// `depth` bounds how deep expressions and blocks nest.
  Parser(std::vector<Token> tokens, int depth) : tokens_(std::move(tokens)), depth_limit_(depth) {}

  /// Throws Failure{template_error or limit_exceeded}.
  Body parse();

 private:
  class Nested;
  using Names = std::initializer_list<std::string_view>;

  // parser.cpp: tokens and statements
  const Token& current() const { return tokens_[at_]; }
  const Token& next_token() const { return tokens_[at_ + 1 < tokens_.size() ? at_ + 1 : at_]; }
  [[noreturn]] void unexpected(std::string_view expected) const;
  bool at_symbol(std::string_view symbol) const;
  bool at_name(std::string_view name) const;
  bool skip_symbol(std::string_view symbol);
  bool skip_name(std::string_view name);
  void expect_symbol(std::string_view symbol);
  std::string expect_name();
  void expect_block_end();
  std::string parse_until(Names ends, Body& body);
  Body parse_block(std::string_view end);
  void parse_statement(const std::string& tag, Body& body);
  void parse_if(Stmt& stmt);
  void parse_for(Stmt& stmt);
  void parse_set(Stmt& stmt);
  void parse_with(Stmt& stmt);
  void parse_macro(Stmt& stmt);
  void parse_call(Stmt& stmt);
  Signature parse_signature();
  void parse_macro_body(Stmt& stmt, std::string_view end);
  ExprPtr parse_target(bool attribute_allowed);

  // parse_expression.cpp
  ExprPtr make(Expr::Kind kind, ExprPtr first = nullptr) const;
  bool at_tuple_end() const;
  ExprPtr parse_tuple(bool with_conditional, bool in_parentheses = false);
  ExprPtr parse_expression(bool with_conditional = true);
  ExprPtr parse_conditional();
  ExprPtr parse_or();
  ExprPtr parse_and();
  ExprPtr parse_not();
  ExprPtr parse_comparison();
  ExprPtr parse_arithmetic(int level);
  ExprPtr parse_unary(bool with_filter = true);
  ExprPtr parse_primary();
  ExprPtr parse_list();
  ExprPtr parse_dict();
  ExprPtr parse_postfix(ExprPtr expr, int& links);
  ExprPtr parse_filters(ExprPtr expr, int& links);
  ExprPtr parse_subscript(ExprPtr base);
  ExprPtr parse_filter(ExprPtr input);
  ExprPtr parse_test(ExprPtr subject);
  void parse_arguments(Expr& call);
  void count_link(int& links);

  std::vector<Token> tokens_;
  std::size_t at_ = 0;
  int depth_limit_;
  int depth_ = 0;
  int loops_ = 0;                       ///< open for blocks in the current macro
  std::vector<Signature*> signatures_;  ///< of the open macros
};

/// Counts one level of nesting.
class Parser::Nested {
 public:
  explicit Nested(Parser& parser) : parser_(parser) {
    if (parser_.depth_ >= parser_.depth_limit_) {
      exceed("line ", parser_.current().line, ": nested deeper than ", parser_.depth_limit_, " levels");
    }
    ++parser_.depth_;
  }
  ~Nested() { --parser_.depth_; }
  Nested(const Nested&) = delete;
  Nested& operator=(const Nested&) = delete;

 private:
  Parser& parser_;
};

}  // namespace llminfer::chat::jinja
