// The syntax tree of a template. Built once by the parser, then only read.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "chat/runtime.hpp"
#include "chat/value.hpp"

namespace llminfer::chat::jinja {

struct Expr;
struct Stmt;
using ExprPtr = std::unique_ptr<Expr>;
using Body = std::vector<Stmt>;

enum class Operator : std::uint8_t {
  add,
  subtract,
  multiply,
  divide,
  floor_divide,
  modulo,
  power,
  concatenate,  // arithmetic
  equal,
  not_equal,
  less,
  less_equal,
  greater,
  greater_equal,
  contained,
  not_contained,  // comparison
};

/// One node; which members are used depends on the kind.
struct Expr {
  enum class Kind : std::uint8_t {
    literal,  ///< value
    name,     ///< name
    list,
    tuple,  ///< parts
    dict,   ///< parts: key, value, key, value, …
    negate,
    plus,
    not_,        ///< parts[0]
    arithmetic,  ///< parts[0] operators[0] parts[1] operators[1] …, from the left
    comparison,  ///< the same, as Python chains comparisons
    and_,
    or_,          ///< parts
    conditional,  ///< parts: condition, then, else (null: undefined)
    attribute,    ///< parts[0].name
    item,         ///< parts[0][parts[1]]
    slice,        ///< parts[0][parts[1]:parts[2]:parts[3]], each but the first may be null
    call,         ///< parts[0](parts[1…], keywords, star, star_star)
    filter,       ///< parts[0] | name(…), parts[0] is null in filter blocks
    test,         ///< parts[0] is name(…)
  };
  Kind kind;
  int line;
  std::string name{};
  Value value{};
  Builtin builtin = nullptr;  ///< of a filter or test; null for an unknown name, which fails only if it is reached
  std::vector<ExprPtr> parts{};
  std::vector<Operator> operators{};
  std::vector<std::pair<std::string, ExprPtr>> keywords{};
  ExprPtr star{}, star_star{};  ///< *args and **kwargs of a call
};

/// The parameters of a macro or call block; the last defaults.size() of them have defaults.
struct Signature {
  std::vector<std::string> names;
  std::vector<ExprPtr> defaults;
  bool uses_varargs = false, uses_kwargs = false, uses_caller = false;
};

struct Stmt {
  enum class Kind : std::uint8_t {
    text,       ///< text
    print,      ///< expr
    if_,        ///< branches, tried in order; orelse
    for_,       ///< target in expr [if condition]: body, else: orelse
    set,        ///< target = expr
    set_block,  ///< target = body, filtered by expr if that is there
    macro,      ///< name, signature, body
    call,       ///< expr (a call), signature, body
    filter,     ///< expr (a filter of null), body
    with,       ///< targets[i] = values[i]: body
    scope,      ///< body, whose assignments stay inside ({% generation %}, {% block %})
    break_,
    continue_,
  };
  Kind kind;
  int line;
  bool recursive = false;  ///< a for whose `loop` can be called
  std::string text{};      ///< or the macro's name
  ExprPtr target{};        ///< a name, a tuple of targets, or an attribute of a name
  ExprPtr expr{}, condition{};
  std::vector<std::pair<ExprPtr, Body>> branches{};
  std::vector<std::pair<ExprPtr, ExprPtr>> bindings{};
  Signature signature{};
  Body body{}, orelse{};
};

}  // namespace llminfer::chat::jinja
