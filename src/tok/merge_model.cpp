#include "tok/merge_model.hpp"

#include <algorithm>
#include <bit>
#include <queue>

#include "tok/unicode.hpp"

namespace llminfer::inline v0 {
namespace tok {
namespace {

/// A stretch of the piece; the symbols form a linked list. A dead symbol has length 0.
struct Symbol {
  std::int32_t previous = -1, next = -1;
  std::int32_t begin = 0, length = 0;
  Token id = -1;  ///< -1: not in the vocabulary
};

/// The merge of two neighbours and how soon it happens: the lower, the sooner.
struct Rule {
  double order = 0;
  Token merged = -1;
};

struct Candidate {
  double order;
  std::int32_t left;
  Token merged;
  bool operator<(const Candidate& other) const {  // std::priority_queue takes the largest first
    return order != other.order ? order > other.order : left > other.left;
  }
};

/// Merges neighbours until no rule applies. `rule(left, right)` is a pure function of two symbols.
template <class FindRule>
void merge_all(std::vector<Symbol>& symbols, FindRule&& rule) {
  std::vector<Candidate> storage;
  storage.reserve(symbols.size());
  std::priority_queue<Candidate> queue({}, std::move(storage));
  const auto propose = [&](std::int32_t left) {
    if (left < 0) return;
    const Symbol& symbol = symbols[static_cast<std::size_t>(left)];
    if (symbol.next < 0) return;
    const std::optional<Rule> found = rule(symbol, symbols[static_cast<std::size_t>(symbol.next)]);
    if (found) queue.push({found->order, left, found->merged});
  };
  for (std::size_t i = 0; i + 1 < symbols.size(); ++i) propose(static_cast<std::int32_t>(i));
  while (!queue.empty()) {
    const Candidate top = queue.top();
    queue.pop();
    Symbol& left = symbols[static_cast<std::size_t>(top.left)];
    if (left.length == 0 || left.next < 0) continue;
    Symbol& right = symbols[static_cast<std::size_t>(left.next)];
    const std::optional<Rule> now = rule(left, right);  // the neighbours may have changed since
    if (!now || now->merged != top.merged) continue;
    left.id = top.merged;
    left.length += right.length;
    left.next = right.next;
    right.length = 0;
    if (left.next >= 0) symbols[static_cast<std::size_t>(left.next)].previous = top.left;
    propose(left.previous);
    propose(top.left);
  }
}

class Bpe : public MergeModel {
 protected:
  Bpe(std::shared_ptr<const TokenIndex> index, Fallback fallback)
      : index_(std::move(index)), fallback_(std::move(fallback)) {}

  Token find(std::string_view text) const { return index_->find(text).value_or(-1); }

  static void append_symbol(std::vector<Symbol>& symbols, std::size_t begin, std::size_t length, Token id) {
    const auto at = static_cast<std::int32_t>(symbols.size());
    if (at > 0) symbols.back().next = at;
    symbols.push_back({at - 1, -1, static_cast<std::int32_t>(begin), static_cast<std::int32_t>(length), id});
  }

  /// True if all bytes of `text` have tokens, which it calls `use` with.
  template <class Use>
  bool by_bytes(std::string_view text, Use&& use) const {
    for (const char c : text) {
      if (fallback_.bytes[static_cast<unsigned char>(c)] < 0) return false;
    }
    for (const char c : text) use(fallback_.bytes[static_cast<unsigned char>(c)]);
    return true;
  }

  std::shared_ptr<const TokenIndex> index_;
  Fallback fallback_;
};

/// Pairs of tokens to their merges: a hash table with open addressing, at most half full.
class RuleTable {
 public:
  explicit RuleTable(const std::vector<Merge>& merges) : slots_(std::bit_ceil(2 * merges.size() + 1)) {
    std::uint32_t rank = 0;
    for (const Merge& merge : merges) slots_[find_slot(merge.left, merge.right)] = {merge, rank++};
  }
  std::optional<Rule> find(Token left, Token right) const noexcept {
    const Slot& slot = slots_[find_slot(left, right)];
    return slot.merge.merged < 0 ? std::nullopt : std::optional(Rule{static_cast<double>(slot.rank), slot.merge.merged});
  }

 private:
  struct Slot {
    Merge merge{-1, -1, -1};  ///< merged < 0: free
    std::uint32_t rank = 0;
  };
  std::size_t find_slot(Token left, Token right) const noexcept {
    const std::uint64_t pair =
        std::uint64_t{static_cast<std::uint32_t>(left)} << 32 | static_cast<std::uint32_t>(right);
    const std::uint64_t hash = pair * 0x9e3779b97f4a7c15u;  // Fibonacci hashing: the high bits are the good ones
    const std::size_t mask = slots_.size() - 1;
    std::size_t i = (hash >> 32) & mask;
    while (slots_[i].merge.merged >= 0 && (slots_[i].merge.left != left || slots_[i].merge.right != right)) {
      i = (i + 1) & mask;
    }
    return i;
  }

  std::vector<Slot> slots_;
};

class RankedBpe final : public Bpe {
 public:
  RankedBpe(std::shared_ptr<const TokenIndex> index, const std::vector<Merge>& merges, Fallback fallback,
            bool whole_first)
      : Bpe(std::move(index), std::move(fallback)), rules_(merges), whole_first_(whole_first) {
    short_chars_.fill(-1);
    std::string text;
    for (char32_t c = 0; c < short_chars_.size(); ++c) {
      text.clear();
      append_utf8(text, c);
      short_chars_[c] = find(text);
    }
  }

  void encode(std::string_view piece, std::vector<Token>& out) const override {
    if (whole_first_) {
      const Token whole = find(piece);
      if (whole >= 0) {
        out.push_back(whole);
        return;
      }
    }
    std::vector<Symbol> symbols;
    symbols.reserve(piece.size());
    bool after_unknown = false;
    for (std::size_t at = 0; at < piece.size();) {
      const std::size_t n = char_length(piece.substr(at));
      const Token id = char_token(piece.substr(at, n));
      bool unknown = false;
      if (id >= 0) {
        append_symbol(symbols, at, n, id);
      } else if (!by_bytes(piece.substr(at, n), [&](Token byte) { append_symbol(symbols, at, 1, byte); })) {
        unknown = fallback_.unknown.has_value();
        if (unknown && !(after_unknown && fallback_.fuse_unknown)) append_symbol(symbols, at, n, *fallback_.unknown);
      }
      after_unknown = unknown;
      at += n;
    }
    merge_all(symbols, [&](const Symbol& left, const Symbol& right) -> std::optional<Rule> {
      return rules_.find(left.id, right.id);
    });
    for (const Symbol& symbol : symbols) {
      if (symbol.length > 0) out.push_back(symbol.id);
    }
  }

 private:
  Token char_token(std::string_view text) const {
    const std::size_t n = core::utf8_length(text);
    if (n == 0) return -1;
    const char32_t c = core::utf8_decode(text, n);
    return c < short_chars_.size() ? short_chars_[c] : find(text);
  }

  RuleTable rules_;
  bool whole_first_;
  std::array<Token, 0x180> short_chars_;  ///< the characters below U+0180, the byte-level alphabet among them
};

class ScoredBpe final : public Bpe {
 public:
  ScoredBpe(std::shared_ptr<const TokenIndex> index, std::vector<float> scores, Fallback fallback)
      : Bpe(std::move(index), std::move(fallback)), scores_(std::move(scores)) {}

  void encode(std::string_view piece, std::vector<Token>& out) const override {
    std::vector<Symbol> symbols;
    for (std::size_t at = 0; at < piece.size();) {
      const std::size_t n = char_length(piece.substr(at));
      append_symbol(symbols, at, n, find(piece.substr(at, n)));
      at += n;
    }
    merge_all(symbols, [&](const Symbol& left, const Symbol& right) -> std::optional<Rule> {
      const auto begin = static_cast<std::size_t>(left.begin);
      const Token merged = find(piece.substr(begin, static_cast<std::size_t>(left.length + right.length)));
      if (merged < 0) return std::nullopt;
      return Rule{-static_cast<double>(scores_[static_cast<std::size_t>(merged)]), merged};
    });
    for (const Symbol& symbol : symbols) {
      if (symbol.length == 0) continue;
      if (symbol.id >= 0) {
        out.push_back(symbol.id);
        continue;
      }
      const auto text = piece.substr(static_cast<std::size_t>(symbol.begin), static_cast<std::size_t>(symbol.length));
      if (!by_bytes(text, [&](Token byte) { out.push_back(byte); }) && fallback_.unknown) {
        out.push_back(*fallback_.unknown);
      }
    }
  }

 private:
  std::vector<float> scores_;  ///< per token, finite
};

}  // namespace

std::unique_ptr<const MergeModel> make_ranked_bpe(std::shared_ptr<const TokenIndex> index,
                                                  const std::vector<Merge>& merges, Fallback fallback,
                                                  bool whole_first) {
  return std::make_unique<RankedBpe>(std::move(index), merges, std::move(fallback), whole_first);
}

std::unique_ptr<const MergeModel> make_scored_bpe(std::shared_ptr<const TokenIndex> index, std::vector<float> scores,
                                                  Fallback fallback) {
  return std::make_unique<ScoredBpe>(std::move(index), std::move(scores), std::move(fallback));
}

}  // namespace tok
}  // namespace llminfer::inline v0
