// TokenIndex: from the written form of a token to its id. A hash table of its own, since making one is a good part of
// the time in which a model loads: texts lie one after another in one string, slots hold numbers.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <llminfer/tokenizer.hpp>

namespace llminfer::inline v0 {
namespace tok {

/// Texts are distinct and at most 2^32 - 2 in number. Immutable use is thread-safe.
class TokenIndex {
 public:
  std::size_t size() const noexcept { return entries_.size(); }
  std::size_t longest() const noexcept { return longest_; }  ///< bytes of the longest text

  /// Takes the memory of `count` texts of `bytes` together at once.
  void reserve(std::size_t count, std::size_t bytes) {
    texts_.reserve(bytes);
    entries_.reserve(count);
    if (2 * count > slots_.size()) grow(std::bit_ceil(2 * count));
  }

  std::optional<Token> find(std::string_view text) const noexcept {
    if (slots_.empty() || text.size() > longest_) return std::nullopt;
    const Slot slot = slots_[find_slot(text, hash(text))];
    return slot.entry == 0 ? std::nullopt : std::optional(entries_[slot.entry - 1].id);
  }

  /// Asks for the part of the table that find and emplace of this text look into: it is too large for caches.
  void prefetch(std::string_view text) const noexcept {
    if (!slots_.empty()) __builtin_prefetch(&slots_[hash(text) & (slots_.size() - 1)]);
  }

  /// Adds `text` with `id` unless it is there. Gives the id that it has now, and whether it is new.
  std::pair<Token, bool> emplace(std::string_view text, Token id) {
    if (2 * (entries_.size() + 1) > slots_.size()) grow(std::max<std::size_t>(1024, 2 * slots_.size()));
    const std::uint32_t h = hash(text);
    Slot& slot = slots_[find_slot(text, h)];
    if (slot.entry != 0) return {entries_[slot.entry - 1].id, false};
    const std::size_t begin = texts_.size();
    texts_.append(text);
    entries_.push_back({begin, text.size(), id});
    longest_ = std::max(longest_, text.size());
    slot = {h, static_cast<std::uint32_t>(entries_.size())};
    return {id, true};
  }

  /// Calls f(text, id) for all, in the order in which they were added.
  template <class F>
  void for_each(F&& f) const {
    for (const Entry& entry : entries_) f(text_of(entry), entry.id);
  }

 private:
  struct Entry {
    std::size_t begin, length;  ///< in texts_
    Token id;
  };
  struct Slot {
    std::uint32_t hash = 0;
    std::uint32_t entry = 0;  ///< index + 1; 0: free
  };

  std::string_view text_of(const Entry& entry) const noexcept {
    return std::string_view(texts_).substr(entry.begin, entry.length);
  }

  /// Eight bytes at a time by multiplication (Fibonacci hashing).
  static std::uint32_t hash(std::string_view text) noexcept {
    constexpr std::uint64_t kFactor = 0x9e3779b97f4a7c15u;
    std::uint64_t h = text.size() * kFactor;
    while (!text.empty()) {
      std::uint64_t word = 0;
      const std::size_t n = std::min(text.size(), sizeof word);
      std::memcpy(&word, text.data(), n);
      h = (h ^ word) * kFactor;
      h ^= h >> 32;
      text.remove_prefix(n);
    }
    return static_cast<std::uint32_t>((h * kFactor) >> 32);  // the high bits are the good ones
  }

  /// The slot of the text, or the free one where it would go. The number of slots is a power of two.
  std::size_t find_slot(std::string_view text, std::uint32_t h) const noexcept {
    const std::size_t mask = slots_.size() - 1;
    std::size_t i = h & mask;
    for (; slots_[i].entry != 0; i = (i + 1) & mask) {
      if (slots_[i].hash == h && text_of(entries_[slots_[i].entry - 1]) == text) break;
    }
    return i;
  }

  /// `size`: a power of two.
  void grow(std::size_t size) {
    std::vector<Slot> slots(size);
    const std::size_t mask = size - 1;
    for (const Slot& slot : slots_) {
      if (slot.entry == 0) continue;
      std::size_t i = slot.hash & mask;
      while (slots[i].entry != 0) i = (i + 1) & mask;
      slots[i] = slot;
    }
    slots_ = std::move(slots);
  }

  std::string texts_;
  std::vector<Entry> entries_;
  std::vector<Slot> slots_;  ///< at most half of them taken
  std::size_t longest_ = 0;
};

}  // namespace tok
}  // namespace llminfer::inline v0
