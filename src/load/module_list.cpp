#include "load/module_list.hpp"

#include <cstdint>
#include <functional>
#include <map>
#include <utility>

#include "core/error.hpp"
#include "core/pcre2.hpp"

namespace llminfer::load {
namespace {

using core::fail;

constexpr std::string_view kPrefix = "re:";
constexpr std::size_t kMaxPatternBytes = 64 * 1024;
constexpr std::uint64_t kFirstMatchLimit = 64;
constexpr std::int64_t kBudget = std::int64_t{1} << 28;  // a second or two
constexpr std::uint32_t kHeapLimitKib = 16 * 1024;

/// As Python's re.match reads it, where names have no line ends.
Result<core::Pcre2Code> compile(std::string_view pattern, const std::string& place) {
  if (pattern.size() > kMaxPatternBytes) {
    return fail(ErrorCode::limit_exceeded, place, ": a regular expression of ", pattern.size(), " bytes; at most ",
                kMaxPatternBytes);
  }
  const core::Pcre2CompileContext context(pcre2_compile_context_create(nullptr));
  if (!context) return Error{ErrorCode::out_of_memory, {}};
  pcre2_set_parens_nest_limit(context.get(), 64);
  int error = 0;
  PCRE2_SIZE offset = 0;
  core::Pcre2Code code(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(),
                                     PCRE2_UTF | PCRE2_UCP | PCRE2_ANCHORED | PCRE2_NEVER_BACKSLASH_C, &error, &offset,
                                     context.get()));
  if (code) return code;
  if (error == PCRE2_ERROR_HEAP_FAILED) return Error{ErrorCode::out_of_memory, {}};
  return fail(ErrorCode::corrupt, place, ": regular expression \"", pattern, "\": ", core::pcre2_message(error));
}

}  // namespace

struct ModuleList::State {
  struct Entry {
    std::size_t number = 0;
    core::Pcre2Code code;  ///< of a regular expression
  };
  std::map<std::string, Entry, std::less<>> entries;
  core::Pcre2MatchData data;  ///< once there is a regular expression
  core::Pcre2MatchContext context;
  std::int64_t budget = kBudget;

  Result<void> begin_matching() {
    data.reset(pcre2_match_data_create(1, nullptr));
    context.reset(pcre2_match_context_create(nullptr));
    if (!data || !context) return Error{ErrorCode::out_of_memory, {}};
    pcre2_set_heap_limit(context.get(), kHeapLimitKib);
    return {};
  }

  /// Whether the name begins with a match. Each try is paid with the most that it may take.
  Result<bool> matches(const std::string& pattern, const core::Pcre2Code& code, std::string_view name) {
    for (std::uint64_t limit = kFirstMatchLimit;; limit *= 8) {
      const auto steps = static_cast<std::int64_t>(limit * (1 + name.size() / 256));
      if (steps > budget) break;
      budget -= steps;
      pcre2_set_match_limit(context.get(), static_cast<std::uint32_t>(limit));
      const int count = pcre2_match(code.get(), reinterpret_cast<PCRE2_SPTR>(name.data()), name.size(), 0, 0,
                                    data.get(), context.get());
      if (count >= 0) return true;
      if (count == PCRE2_ERROR_NOMATCH) return false;
      if (count == PCRE2_ERROR_NOMEMORY) return Error{ErrorCode::out_of_memory, {}};
      if (count != PCRE2_ERROR_MATCHLIMIT) break;
    }
    return fail(ErrorCode::limit_exceeded, "quantization_config: \"", pattern, "\" takes too long on \"", name, "\"");
  }
};

ModuleList::ModuleList() : state_(std::make_unique<State>()) {}
ModuleList::~ModuleList() = default;
ModuleList::ModuleList(ModuleList&&) noexcept = default;

Result<void> ModuleList::add(const core::Json& entries, std::size_t number, const std::string& place) {
  if (!entries.is_array()) return fail(ErrorCode::corrupt, place, ": expected an array of names");
  for (const core::Json& json : entries.array()) {
    if (!json.is_string()) return fail(ErrorCode::corrupt, place, ": expected an array of names");
    const std::string& text = json.string();
    State::Entry& entry = state_->entries[text];
    entry.number = number;
    if (!text.starts_with(kPrefix) || entry.code) continue;
    entry.code = LLMINFER_TRY(compile(std::string_view(text).substr(kPrefix.size()), place));
    if (!state_->data) LLMINFER_TRY(state_->begin_matching());
  }
  return {};
}

Result<std::optional<std::size_t>> ModuleList::find(std::string_view module) {
  using Number = std::optional<std::size_t>;
  const auto& entries = state_->entries;
  if (const auto found = entries.find(module); found != entries.end()) return Number(found->second.number);
  for (auto at = entries.lower_bound(kPrefix); at != entries.end() && at->first.starts_with(kPrefix); ++at) {
    if (LLMINFER_TRY(state_->matches(at->first, at->second.code, module))) return Number(at->second.number);
  }
  const bool embedding = module == "embed_tokens" || module.ends_with(".embed_tokens");
  for (const std::string_view name : {embedding ? "Embedding" : "Linear", "Module"}) {  // a class and its parent
    if (const auto found = entries.find(name); found != entries.end()) return Number(found->second.number);
  }
  return Number();
}

Result<void> ModuleList::for_names(core::FunctionRef<Result<void>(const std::string&, std::size_t)> body) const {
  for (const auto& [text, entry] : state_->entries) {
    if (!entry.code) LLMINFER_TRY(body(text, entry.number));
  }
  return {};
}

}  // namespace llminfer::load
