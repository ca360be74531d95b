#include "tok/added_tokens.hpp"

#include <algorithm>

#include "core/utf8.hpp"
#include "tok/unicode.hpp"

namespace llminfer::inline v0 {
namespace tok {

void AddedTokenFinder::add(std::string_view pattern, const AddedToken& token) {
  std::uint32_t node = 0;
  for (const char c : pattern) {
    const std::uint64_t key = static_cast<std::uint64_t>(node) << 8 | static_cast<unsigned char>(c);
    const auto [edge, fresh] = edges_.emplace(key, static_cast<std::uint32_t>(token_at_.size()));
    if (fresh) token_at_.push_back(-1);
    node = edge->second;
  }
  if (token_at_[node] >= 0) return;
  starts_.set(static_cast<unsigned char>(pattern.front()));
  token_at_[node] = static_cast<std::int32_t>(tokens_.size());
  tokens_.push_back(token);
}

AddedTokenFinder::Match AddedTokenFinder::longest_at(std::string_view text) const {
  Match match;
  std::uint32_t node = 0;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const auto edge = edges_.find(static_cast<std::uint64_t>(node) << 8 | static_cast<unsigned char>(text[i]));
    if (edge == edges_.end()) break;
    node = edge->second;
    if (token_at_[node] >= 0) match = {i + 1, &tokens_[static_cast<std::size_t>(token_at_[node])]};
  }
  return match;
}

std::vector<AddedTokenFinder::Part> AddedTokenFinder::cut(std::string_view text, bool parse_special) const {
  std::vector<Part> parts;
  std::size_t done = 0;  // text before it is in `parts`
  for (std::size_t i = 0; i < text.size();) {
    const Match match = starts_[static_cast<unsigned char>(text[i])] ? longest_at(text.substr(i)) : Match{};
    if (!match.token) {
      ++i;
      continue;
    }
    std::size_t begin = i;
    std::size_t end = i + match.length;
    i = end;
    const AddedToken& token = *match.token;
    // A match that does not count is passed over whole, like one that does.
    if (token.special && !parse_special) continue;
    if (token.single_word && (ends_with_word(text.substr(0, begin)) || begins_with_word(text.substr(end)))) continue;
    if (token.lstrip && begin > done) begin -= trailing_whitespace(text.substr(done, begin - done));
    if (token.rstrip) end += leading_whitespace(text.substr(end));
    if (begin > done) parts.push_back({text.substr(done, begin - done), -1});
    parts.push_back({{}, token.id});
    // Whitespace that was taken along may still hold a token: Hugging Face tokenizers emit that as well.
    done = end;
  }
  if (done < text.size()) parts.push_back({text.substr(done), -1});
  return parts;
}

std::string AddedTokenFinder::split_matches(std::string_view text, std::string_view mark) const {
  std::string out;
  std::size_t done = 0;
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (!starts_[static_cast<unsigned char>(text[i])]) continue;
    const std::size_t length = longest_at(text.substr(i)).length;
    const std::size_t first = std::max<std::size_t>(core::utf8_length(text.substr(i)), 1);
    if (length <= first) continue;
    out.append(text, done, i + first - done).append(mark);
    done = i + first;
  }
  return out.append(text, done);
}

}  // namespace tok
}  // namespace llminfer::inline v0
