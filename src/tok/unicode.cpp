#include "tok/unicode.hpp"

#include <utf8proc.h>

#include <algorithm>
#include <vector>

#include "core/error.hpp"

namespace llminfer::inline v0 {
namespace tok {
namespace {

/// The printable bytes stand for themselves; the other 68 take U+0100 and up, in order.
struct Alphabet {
  std::array<char16_t, 256> of_byte{};
  std::array<std::int16_t, 0x144> to_byte{};

  constexpr Alphabet() {
    for (auto& byte : to_byte) byte = -1;
    char16_t next = 0x100;
    for (unsigned byte = 0; byte < 256; ++byte) {
      const bool printable = (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
      of_byte[byte] = printable ? static_cast<char16_t>(byte) : next++;
      to_byte[of_byte[byte]] = static_cast<std::int16_t>(byte);
    }
  }
};
constexpr Alphabet kAlphabet;

utf8proc_option_t options_of(NormalForm form) {
  switch (form) {
    case NormalForm::nfc:
      return static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE);
    case NormalForm::nfd:
      return static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_DECOMPOSE);
    case NormalForm::nfkc:
      return static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE | UTF8PROC_COMPAT);
    case NormalForm::nfkd:
      break;
  }
  return static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_DECOMPOSE | UTF8PROC_COMPAT);
}

/// Sorts each run of combining marks by combining class. utf8proc's own pass is quadratic in the length of a run.
void order_marks(std::vector<utf8proc_int32_t>& text) {
  const auto combining_class = [](utf8proc_int32_t c) { return utf8proc_get_property(c)->combining_class; };
  for (std::size_t i = 0; i < text.size();) {
    if (combining_class(text[i]) == 0) {
      ++i;
      continue;
    }
    std::size_t end = i;
    while (end < text.size() && combining_class(text[end]) != 0) ++end;
    std::stable_sort(text.begin() + static_cast<std::ptrdiff_t>(i), text.begin() + static_cast<std::ptrdiff_t>(end),
                     [&](auto a, auto b) { return combining_class(a) < combining_class(b); });
    i = end;
  }
}

Result<void> normalize_valid(std::string_view text, NormalForm form, std::string& out) {
  const utf8proc_option_t options = options_of(form);
  std::vector<utf8proc_int32_t> points;
  points.reserve(text.size());
  int boundary = 0;
  while (!text.empty()) {
    const std::size_t n = core::utf8_length(text);
    utf8proc_int32_t expansion[32];  // the longest decomposition of Unicode has 18 code points
    const auto count = utf8proc_decompose_char(static_cast<utf8proc_int32_t>(core::utf8_decode(text, n)), expansion, 32,
                                               options, &boundary);
    if (count < 0 || count > 32)
      return core::fail(ErrorCode::internal, "Unicode normalisation: ", utf8proc_errmsg(count));
    points.insert(points.end(), expansion, expansion + count);
    text.remove_prefix(n);
  }
  order_marks(points);
  const auto count = utf8proc_normalize_utf32(points.data(), static_cast<utf8proc_ssize_t>(points.size()), options);
  if (count < 0) return core::fail(ErrorCode::internal, "Unicode normalisation: ", utf8proc_errmsg(count));
  for (utf8proc_ssize_t i = 0; i < count; ++i)
    append_utf8(out, static_cast<char32_t>(points[static_cast<std::size_t>(i)]));
  return {};
}

bool is_word(char32_t c) noexcept {
  if (c == 0x200c || c == 0x200d) return true;  // joiners
  if ((c >= 0x24b6 && c <= 0x24e9) || (c >= 0x1f130 && c <= 0x1f149) || (c >= 0x1f150 && c <= 0x1f169) ||
      (c >= 0x1f170 && c <= 0x1f189)) {
    return true;  // the alphabetic symbols
  }
  switch (utf8proc_category(static_cast<utf8proc_int32_t>(c))) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_PC:
      return true;
    default:
      return false;
  }
}

/// The last character of `text`; nothing if it is ill-formed.
std::optional<char32_t> last_char(std::string_view text, std::size_t* length) noexcept {
  for (std::size_t n = 1; n <= std::min<std::size_t>(4, text.size()); ++n) {
    const std::string_view tail = text.substr(text.size() - n);
    if (core::utf8_length(tail) == n) {
      *length = n;
      return core::utf8_decode(tail, n);
    }
  }
  return std::nullopt;
}

}  // namespace

void append_utf8(std::string& out, char32_t c) {
  const auto put = [&](char32_t byte) { out.push_back(static_cast<char>(static_cast<unsigned char>(byte))); };
  if (c < 0x80) {
    put(c);
  } else if (c < 0x800) {
    put(0xc0 | c >> 6), put(0x80 | (c & 0x3f));
  } else if (c < 0x10000) {
    put(0xe0 | c >> 12), put(0x80 | (c >> 6 & 0x3f)), put(0x80 | (c & 0x3f));
  } else {
    put(0xf0 | c >> 18), put(0x80 | (c >> 12 & 0x3f)), put(0x80 | (c >> 6 & 0x3f)), put(0x80 | (c & 0x3f));
  }
}

std::size_t char_length(std::string_view text) noexcept { return std::max<std::size_t>(1, core::utf8_length(text)); }

void append_alphabet(std::string& out, std::string_view bytes) {
  for (const char c : bytes) append_utf8(out, kAlphabet.of_byte[static_cast<unsigned char>(c)]);
}

std::optional<std::string> alphabet_to_bytes(std::string_view text) {
  std::string out;
  while (!text.empty()) {
    const std::size_t n = core::utf8_length(text);
    if (n == 0) return std::nullopt;
    const char32_t c = core::utf8_decode(text, n);
    if (c >= kAlphabet.to_byte.size() || kAlphabet.to_byte[c] < 0) return std::nullopt;
    out.push_back(static_cast<char>(kAlphabet.to_byte[c]));
    text.remove_prefix(n);
  }
  return out;
}

Result<std::string> normalize(std::string_view text, NormalForm form) {
  if (std::all_of(text.begin(), text.end(), [](char c) { return static_cast<unsigned char>(c) < 0x80; })) {
    return std::string(text);
  }
  std::string out;
  Result<void> status;
  for_each_validity(
      text,
      [&](std::string_view valid) {
        if (status) status = normalize_valid(valid, form, out);
      },
      [&](std::string_view invalid) { out.append(invalid); });
  if (!status) return std::move(status).error();
  return out;
}

std::string lowercase(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  while (!text.empty()) {
    const std::size_t n = core::utf8_length(text);
    if (n == 0) {
      out.push_back(text[0]);
      text.remove_prefix(1);
      continue;
    }
    const char32_t c = core::utf8_decode(text, n);
    if (c == 0x130) {
      out += "i\u0307";  // the one character whose lower case is two
    } else {
      append_utf8(out, static_cast<char32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(c))));
    }
    text.remove_prefix(n);
  }
  return out;
}

bool is_whitespace(char32_t c) noexcept {
  return (c >= 9 && c <= 13) || c == 0x20 || c == 0x85 || c == 0xa0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200a) ||
         c == 0x2028 || c == 0x2029 || c == 0x202f || c == 0x205f || c == 0x3000;
}

std::size_t leading_whitespace(std::string_view text) noexcept {
  std::size_t end = 0;
  while (end < text.size()) {
    const std::size_t n = core::utf8_length(text.substr(end));
    if (n == 0 || !is_whitespace(core::utf8_decode(text.substr(end), n))) break;
    end += n;
  }
  return end;
}

std::size_t trailing_whitespace(std::string_view text) noexcept {
  std::size_t count = 0;
  std::size_t n = 0;
  for (auto c = last_char(text, &n); c && is_whitespace(*c); c = last_char(text, &n)) {
    count += n;
    text.remove_suffix(n);
  }
  return count;
}

bool begins_with_word(std::string_view text) noexcept {
  const std::size_t n = core::utf8_length(text);
  return n > 0 && is_word(core::utf8_decode(text, n));
}

bool ends_with_word(std::string_view text) noexcept {
  std::size_t n = 0;
  const auto c = last_char(text, &n);
  return c && is_word(*c);
}

}  // namespace tok
}  // namespace llminfer::inline v0
