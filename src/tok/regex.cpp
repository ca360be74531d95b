#include "tok/regex.hpp"

#include <algorithm>

#include "core/error.hpp"
#include "core/pcre2.hpp"
#include "core/utf8.hpp"
#include "tok/unicode.hpp"

namespace llminfer::inline v0 {
namespace tok {
namespace {

constexpr std::size_t kMaxPatternBytes = 64 * 1024;
constexpr std::size_t kJitStackBytes = 8 * 1024 * 1024;
constexpr std::uint32_t kFirstMatchLimit = 4096;
constexpr std::uint64_t kFreeBudget = 50'000'000;
constexpr std::uint64_t kBudgetPerByte = 256;
constexpr std::uint32_t kHeapLimitKib = 256 * 1024;

// \s and \w as Unicode defines them: PCRE2's \s also takes U+180E, its \w leaves marks and connectors out.
constexpr std::string_view kSpace =
    "\\x{9}-\\x{d}\\x{20}\\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}\\x{205f}\\x{3000}";
constexpr std::string_view kWord = "\\p{L}\\p{M}\\p{Nd}\\p{Nl}\\p{Pc}\\x{24b6}-\\x{24e9}";

/// Rewrites \s, \S, \w, \W, \h and refuses what PCRE2 would read differently.
Result<std::string> translate(std::string_view pattern, std::string_view name) {
  // An unanchored \s+$ is quadratic on long runs of spaces. A match can only begin where a run begins.
  if (pattern == "\\s+$") return translate("(?<!\\s)\\s+$", name);
  std::string out;
  int in_class = 0;
  for (std::size_t i = 0; i < pattern.size(); ++i) {
    const char c = pattern[i];
    if (c == '\\' && i + 1 < pattern.size()) {
      const char escaped = pattern[++i];
      const bool negated = escaped == 'S' || escaped == 'W';
      if (escaped == 's' || escaped == 'S' || escaped == 'w' || escaped == 'W') {
        const std::string_view set = escaped == 's' || escaped == 'S' ? kSpace : kWord;
        if (in_class == 0) {
          (out += negated ? "[^" : "[").append(set) += ']';
        } else if (!negated) {
          out += set;
        } else if (escaped == 'S') {
          // The complement of kSpace, written as ranges.
          out +=
              "\\x{0}-\\x{8}\\x{e}-\\x{1f}\\x{21}-\\x{84}\\x{86}-\\x{9f}\\x{a1}-\\x{167f}\\x{1681}-\\x{1fff}\\x{200b}-"
              "\\x{2027}"
              "\\x{202a}-\\x{202e}\\x{2030}-\\x{205e}\\x{2060}-\\x{2fff}\\x{3001}-\\x{10ffff}";
        } else {
          return core::fail(ErrorCode::unsupported, name, ": \\W inside a character class");
        }
        continue;
      }
      if (escaped == 'h' || escaped == 'H')
        return core::fail(ErrorCode::unsupported, name, ": \\h means different things");
      out += c;
      out += escaped;
      if (i + 1 < pattern.size() && pattern[i + 1] == '{') {  // \p{L}, \x{2581}: the braces are no interval
        const std::size_t end = std::min(pattern.find('}', i), pattern.size() - 1);
        out += pattern.substr(i + 1, end - i);
        i = end;
      }
      continue;
    }
    if (in_class > 0) {
      if (c == '[' && pattern.substr(i, 2) != "[:") {
        return core::fail(ErrorCode::unsupported, name, ": nested character classes");
      }
      if (c == '&' && pattern.substr(i, 2) == "&&") {
        return core::fail(ErrorCode::unsupported, name, ": intersection of character classes");
      }
      if (c == '[') {  // a POSIX class, copied whole
        const std::size_t end = pattern.find(":]", i);
        if (end == std::string_view::npos) return core::fail(ErrorCode::corrupt, name, ": unclosed POSIX class");
        out += pattern.substr(i, end + 2 - i);
        i = end + 1;
        continue;
      }
      if (c == ']') in_class = 0;
    } else if (c == '[') {
      in_class = 1;
      out += c;
      if (i + 1 < pattern.size() && pattern[i + 1] == '^') out += pattern[++i];
      if (i + 1 < pattern.size() && pattern[i + 1] == ']') {  // a bracket that comes first is literal
        out += "\\]";
        ++i;
      }
      continue;
    } else if (c == '}' && i + 1 < pattern.size() && pattern[i + 1] == '+') {
      return core::fail(ErrorCode::unsupported, name, ": an interval followed by +");
    }
    out += c;
  }
  return out;
}

}  // namespace

struct Pattern::Code {
  std::string name;
  core::Pcre2Code code;
  bool jit = false;
};

Result<Pattern> Pattern::compile(std::string_view pattern, std::string_view name) {
  if (pattern.size() > kMaxPatternBytes) {
    return core::fail(ErrorCode::limit_exceeded, name, ": a regular expression of ", pattern.size(), " bytes; at most ",
                      kMaxPatternBytes);
  }
  const std::string source = LLMINFER_TRY(translate(pattern, name));
  const core::Pcre2CompileContext context(pcre2_compile_context_create(nullptr));
  if (!context) return Error{ErrorCode::out_of_memory, {}};
  pcre2_set_newline(context.get(), PCRE2_NEWLINE_LF);
  pcre2_set_parens_nest_limit(context.get(), 64);
  int error = 0;
  PCRE2_SIZE offset = 0;
  auto code = std::make_shared<Code>();
  code->name = name;
  // Oniguruma's ^ and $ always match at line ends. Lookbehind may not leave the piece, so matching may skip the UTF
  // check.
  code->code.reset(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(source.data()), source.size(),
                                 PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C, &error, &offset,
                                 context.get()));
  if (!code->code && error == PCRE2_ERROR_HEAP_FAILED) return Error{ErrorCode::out_of_memory, {}};
  if (!code->code) {
    return core::fail(ErrorCode::corrupt, name, ": regular expression \"", pattern, "\": ", core::pcre2_message(error));
  }
  // Without executable memory the interpreter does the same, slower.
  code->jit = pcre2_jit_compile(code->code.get(), PCRE2_JIT_COMPLETE) == 0;
  return Pattern(std::move(code));
}

Result<Pattern> Pattern::literal(std::string_view text, std::string_view name) {
  std::string escaped;
  for (const char c : text) {
    if (static_cast<unsigned char>(c) < 0x80) {
      static constexpr char kHex[] = "0123456789abcdef";
      escaped += "\\x{";
      escaped += kHex[static_cast<unsigned char>(c) >> 4];
      escaped += kHex[static_cast<unsigned char>(c) & 15];
      escaped += '}';
    } else {
      escaped += c;
    }
  }
  return compile(escaped, name);
}

struct Matcher::State {
  const Pattern::Code* code = nullptr;
  core::Pcre2MatchData data;
  core::Pcre2MatchContext context;
  core::Pcre2JitStack stack;
  // Backtracking is paid from a budget that is linear in the text, so that a hostile pattern is stopped. A match that
  // reaches its limit is tried again with a larger one.
  std::uint64_t budget = 0;
};

Matcher::Matcher(std::unique_ptr<State> state) : state_(std::move(state)) {}
Matcher::Matcher(Matcher&&) noexcept = default;
Matcher::~Matcher() = default;

Result<Matcher> Pattern::matcher(std::size_t total_bytes) const {
  auto state = std::make_unique<Matcher::State>();
  state->code = code_.get();
  state->budget = kFreeBudget + kBudgetPerByte * static_cast<std::uint64_t>(total_bytes);
  state->data.reset(pcre2_match_data_create(1, nullptr));
  state->context.reset(pcre2_match_context_create(nullptr));
  if (code_->jit) state->stack.reset(pcre2_jit_stack_create(32 * 1024, kJitStackBytes, nullptr));
  if (!state->data || !state->context || (code_->jit && !state->stack)) return Error{ErrorCode::out_of_memory, {}};
  if (state->stack) pcre2_jit_stack_assign(state->context.get(), nullptr, state->stack.get());
  pcre2_set_heap_limit(state->context.get(), kHeapLimitKib);
  return Matcher(std::move(state));
}

Result<void> Matcher::find_all(std::string_view text, std::vector<Range>& found) {
  Result<void> status;
  const auto search = [&](std::string_view part) {
    const auto subject = reinterpret_cast<PCRE2_SPTR>(part.data());
    const auto base = static_cast<std::size_t>(part.data() - text.data());
    std::uint32_t limit = kFirstMatchLimit;
    std::size_t at = 0;
    while (status && at < part.size()) {
      pcre2_set_match_limit(state_->context.get(), limit);
      const int count = pcre2_match(state_->code->code.get(), subject, part.size(), at,
                                    PCRE2_NO_UTF_CHECK | PCRE2_NOTEMPTY, state_->data.get(), state_->context.get());
      if (count == PCRE2_ERROR_NOMATCH) return;
      if (count == PCRE2_ERROR_MATCHLIMIT && state_->budget > limit) {
        state_->budget -= limit;
        limit = limit > UINT32_MAX / 8 ? UINT32_MAX : limit * 8;
        continue;
      }
      if (count < 0) {
        const ErrorCode code = count == PCRE2_ERROR_NOMEMORY ? ErrorCode::out_of_memory : ErrorCode::limit_exceeded;
        status = core::fail(code, state_->code->name, ": regular expression: ", core::pcre2_message(count));
        return;
      }
      const PCRE2_SIZE* ends = pcre2_get_ovector_pointer(state_->data.get());
      if (ends[0] < at || ends[0] >= ends[1]) {  // \K and the like
        status = core::fail(ErrorCode::unsupported, state_->code->name, ": the regular expression moves its match");
        return;
      }
      found.emplace_back(base + ends[0], base + ends[1]);
      at = ends[1];
      limit = kFirstMatchLimit;
    }
  };
  for_each_validity(text, search, [](std::string_view) {});
  return status;
}

}  // namespace tok
}  // namespace llminfer::inline v0
