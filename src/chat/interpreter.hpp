// Runs a syntax tree: scopes, loops, macros. Values and what is done with them live in builtins.hpp.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "chat/ast.hpp"
#include "chat/builtins.hpp"
#include "chat/runtime.hpp"

namespace llminfer::chat::jinja {

/// Variables of one block; looks further out where it has none of the name.
struct Scope {
  const Scope* parent = nullptr;
  std::vector<std::pair<std::string_view, Value>> variables;
};

class Interpreter {
 public:
  /// `globals` hold the context. All arguments outlive the interpreter.
  Interpreter(Runtime& runtime, Scope& globals) : runtime_(runtime), globals_(globals) {}

  std::string run(const Body& body);

 private:
  friend class Macro;
  friend class Loop;
  class Deeper;
  enum class Flow : std::uint8_t { next, break_, continue_ };

  // interpreter.cpp
  Flow execute(const Body& body, Scope& scope);
  Flow execute(const Stmt& stmt, Scope& scope);
  Flow execute_for(const Stmt& stmt, Scope& scope);
  void run_loop(const Stmt& stmt, const Value& iterable, Scope& scope, int loop_depth);
  void execute_call(const Stmt& stmt, Scope& scope);
  Value define_macro(const Stmt& stmt, Scope& scope, bool bind_name);
  std::string capture(const Body& body, Scope& scope);
  void print(std::string_view text);
  void assign(const Expr& target, Value value, Scope& scope);
  void set_variable(Scope& scope, std::string_view name, Value value);

  // evaluate.cpp
  const Value* find_variable(const Scope& scope, std::string_view name);
  Value evaluate(const Expr& expr, const Scope& scope);
  Value evaluate_arithmetic(const Expr& expr, const Scope& scope);
  Value evaluate_comparison(const Expr& expr, const Scope& scope);
  Value evaluate_dict(const Expr& expr, const Scope& scope);
  std::vector<Value> evaluate_all(const std::vector<ExprPtr>& exprs, std::size_t from, const Scope& scope);
  Arguments evaluate_arguments(const Expr& call, const Scope& scope);
  Value apply(const Expr& filter_or_test, const Value& subject, const Scope& scope);

  Runtime& runtime_;
  Scope& globals_;
  std::string* out_ = nullptr;
  int depth_ = 0;   ///< of nested execute, evaluate
  int macros_ = 0;  ///< of nested macro calls
};

/// Counts one level of the interpreter's own recursion, whose native stack it bounds.
class Interpreter::Deeper {
 public:
  explicit Deeper(Interpreter& interpreter) : interpreter_(interpreter) {
    const TemplateLimits& limits = interpreter_.runtime_.limits;
    if (interpreter_.depth_ >= 16 * limits.depth)
      exceed("evaluation nested deeper than ", 16 * limits.depth, " levels");
    interpreter_.runtime_.charge(1);
    ++interpreter_.depth_;
  }
  ~Deeper() { --interpreter_.depth_; }
  Deeper(const Deeper&) = delete;
  Deeper& operator=(const Deeper&) = delete;

 private:
  Interpreter& interpreter_;
};

}  // namespace llminfer::chat::jinja
