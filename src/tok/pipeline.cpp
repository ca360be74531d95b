#include "tok/pipeline.hpp"

#include <algorithm>

#include "core/error.hpp"

namespace llminfer::inline v0 {
namespace tok {
namespace {

/// The pieces of one piece. `parts` alternate freely; first: range, second: whether it matched.
using Parts = std::vector<std::pair<Range, bool>>;

Parts matches_and_gaps(const std::vector<Range>& matches, std::size_t size) {
  Parts parts;
  std::size_t at = 0;
  for (const Range& match : matches) {
    if (match.first > at) parts.emplace_back(Range(at, match.first), false);
    parts.emplace_back(match, true);
    at = match.second;
  }
  if (at < size) parts.emplace_back(Range(at, size), false);
  return parts;
}

void join_by_behavior(const Parts& parts, SplitBehavior behavior, std::size_t base, std::vector<Range>& out) {
  bool before = false;  // whether the previous part matched
  const std::size_t first_out = out.size();
  for (std::size_t i = 0; i < parts.size(); ++i) {
    const bool match = parts[i].second;
    const Range range(base + parts[i].first.first, base + parts[i].first.second);
    const bool has_previous = out.size() > first_out;
    switch (behavior) {
      case SplitBehavior::removed:
        if (!match) out.push_back(range);
        break;
      case SplitBehavior::isolated:
        out.push_back(range);
        break;
      case SplitBehavior::contiguous:
        if (has_previous && match == before) {
          out.back().second = range.second;
        } else {
          out.push_back(range);
        }
        break;
      case SplitBehavior::merged_with_previous:
        if (match && !before && has_previous) {
          out.back().second = range.second;
        } else {
          out.push_back(range);
        }
        break;
      case SplitBehavior::merged_with_next:
        if (has_previous && before && !match) {
          out.back().second = range.second;
        } else {
          out.push_back(range);
        }
        break;
    }
    before = match;
  }
}

}  // namespace

std::string replaced(std::string_view text, std::string_view from, std::string_view to) {
  std::string out;
  std::size_t at = 0;
  for (std::size_t hit = text.find(from); hit != std::string_view::npos; hit = text.find(from, at)) {
    out.append(text.substr(at, hit - at)).append(to);
    at = hit + from.size();
  }
  return out.append(text.substr(at));
}

Normalizer normal_form(NormalForm form) {
  return [form](std::string& text) -> Result<void> {
    text = LLMINFER_TRY(normalize(text, form));
    return {};
  };
}

Normalizer lowercase_all() {
  return [](std::string& text) -> Result<void> {
    text = lowercase(text);
    return {};
  };
}

Normalizer prepend(std::string prefix) {
  return [prefix = std::move(prefix)](std::string& text) -> Result<void> {
    if (!text.empty()) text.insert(0, prefix);
    return {};
  };
}

Normalizer replace_all(std::string from, std::string to) {
  return [from = std::move(from), to = std::move(to)](std::string& text) -> Result<void> {
    if (!from.empty()) text = replaced(text, from, to);
    return {};
  };
}

Normalizer replace_matches(Pattern pattern, std::string to) {
  return [pattern = std::move(pattern), to = std::move(to)](std::string& text) -> Result<void> {
    Matcher matcher = LLMINFER_TRY(pattern.matcher(text.size()));
    std::vector<Range> matches;
    LLMINFER_TRY(matcher.find_all(text, matches));
    std::string out;
    std::size_t at = 0;
    for (const Range& match : matches) {
      out.append(text, at, match.first - at).append(to);
      at = match.second;
    }
    text = out.append(text, at);
    return {};
  };
}

Normalizer strip_whitespace(bool left, bool right) {
  return [left, right](std::string& text) -> Result<void> {
    if (right) text.resize(text.size() - trailing_whitespace(text));
    if (left) text.erase(0, leading_whitespace(text));
    return {};
  };
}

PreTokenizer split(Pattern pattern, SplitBehavior behavior, bool invert) {
  return [pattern = std::move(pattern), behavior, invert](Pieces& pieces) -> Result<void> {
    std::vector<Range> out;
    out.reserve(pieces.ranges.size());
    Matcher matcher = LLMINFER_TRY(pattern.matcher(pieces.text.size()));
    std::vector<Range> matches;
    for (const Range& range : pieces.ranges) {
      matches.clear();
      LLMINFER_TRY(matcher.find_all(pieces.piece(range), matches));
      Parts parts = matches_and_gaps(matches, range.second - range.first);
      if (invert) {
        for (auto& part : parts) part.second = !part.second;
      }
      join_by_behavior(parts, behavior, range.first, out);
    }
    pieces.ranges = std::move(out);
    return {};
  };
}

PreTokenizer prefix_space() {
  return [](Pieces& pieces) -> Result<void> {
    std::string text;
    text.reserve(pieces.text.size() + pieces.ranges.size());
    for (Range& range : pieces.ranges) {
      const std::string_view piece = pieces.piece(range);
      const std::size_t begin = text.size();
      if (piece.front() != ' ') text += ' ';
      text += piece;
      range = Range(begin, text.size());
    }
    pieces.text = std::move(text);
    return {};
  };
}

PreTokenizer byte_level() {
  return [](Pieces& pieces) -> Result<void> {
    std::string text;
    text.reserve(pieces.text.size() + pieces.text.size() / 2);
    for (Range& range : pieces.ranges) {
      const std::size_t begin = text.size();
      append_alphabet(text, pieces.piece(range));
      range = Range(begin, text.size());
    }
    pieces.text = std::move(text);
    return {};
  };
}

PreTokenizer metaspace(std::string mark, PrependScheme scheme, bool cut) {
  return [mark = std::move(mark), scheme, cut](Pieces& pieces) -> Result<void> {
    std::string text;
    std::vector<Range> out;
    bool first = pieces.at_start;
    for (const Range& range : pieces.ranges) {
      std::string piece = replaced(pieces.piece(range), " ", mark);
      const bool prefix = scheme == PrependScheme::always || (scheme == PrependScheme::first && first);
      if (prefix && piece.compare(0, mark.size(), mark) != 0) piece.insert(0, mark);
      first = false;
      const std::size_t begin = text.size();
      text += piece;
      if (!cut) {
        out.emplace_back(begin, text.size());
        continue;
      }
      std::size_t at = 0;
      while (at < piece.size()) {
        const std::size_t next = std::min(piece.find(mark, at + 1), piece.size());
        out.emplace_back(begin + at, begin + next);
        at = next;
      }
    }
    pieces.text = std::move(text);
    pieces.ranges = std::move(out);
    return {};
  };
}

}  // namespace tok
}  // namespace llminfer::inline v0
