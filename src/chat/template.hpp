// Chat templates: an interpreter for the part of Jinja2 that models ship, with limits against hostile templates.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include <llminfer/result.hpp>

#include "core/json.hpp"

namespace llminfer::chat {

/// Keeps the order of members, which `tojson` prints.
using Value = core::Json;

/// Bounds on one rendering; exceeding one is Error{limit_exceeded}.
struct TemplateLimits {
  std::uint64_t steps = 10'000'000;          ///< evaluated nodes, loop turns and characters touched by filters
  std::uint64_t output_bytes = 64ull << 20;  ///< of the output and of any one string value
  std::uint64_t source_bytes = 1ull << 20;   ///< of the template
  int depth = 64;                            ///< of nested expressions, blocks and macro calls
};

/// A parsed template. Immutable; thread-safe.
class Template {
 public:
  /// Errors: template_error with line number, limit_exceeded.
  static Result<Template> parse(std::string_view source, const TemplateLimits& limits = {});
  ~Template();
  Template(Template&&) noexcept;
  Template& operator=(Template&&) noexcept;

  /// `context` is an object whose members are the global variables (messages, tools, add_generation_prompt, bos_token,
  /// …). Errors: template_error (also for raise_exception, whose message it carries), limit_exceeded.
  Result<std::string> render(const Value& context) const;

 private:
  struct Impl;
  explicit Template(std::unique_ptr<const Impl> impl);
  std::unique_ptr<const Impl> impl_;
};

}  // namespace llminfer::chat
