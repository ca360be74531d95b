// ModuleList: the modules that a list in compressed-tensors' settings names ("targets", "ignore"). Knows PCRE2 and
// names only, no tensors.
#pragma once

#include <cstddef>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include <llminfer/result.hpp>

#include "core/json.hpp"
#include "core/parallel.hpp"

namespace llminfer::load {

/// Entries are whole names, "re:" and a regular expression that a name must begin with a match of, or classes of
/// modules; each stands for a number. One thread at a time.
class ModuleList {
 public:
  ModuleList();
  ~ModuleList();
  ModuleList(ModuleList&&) noexcept;

  /// Adds the entries of an array of strings, each for `number`; one that is there already takes the new number, as in
  /// the dictionary that compressed-tensors makes of them. `place` is for messages. Errors: corrupt (no such array,
  /// a regular expression's syntax), limit_exceeded (a regular expression of more than 64 KiB).
  Result<void> add(const core::Json& entries, std::size_t number, const std::string& place);

  /// The number of the entry that the module belongs to: its name comes before regular expressions, these in the order
  /// of their bytes, before classes. Nothing if there is none. All modules have the class Linear, but for embed_tokens
  /// (Embedding). Errors: limit_exceeded (regular expressions that backtrack without end on these names).
  Result<std::optional<std::size_t>> find(std::string_view module);

  /// Calls body(entry, number) for the entries that are no regular expressions, until it fails.
  Result<void> for_names(core::FunctionRef<Result<void>(const std::string&, std::size_t)> body) const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace llminfer::load
