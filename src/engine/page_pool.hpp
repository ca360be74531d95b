// PagePool: which pages of one cache group are free, by how many sequences each of the others is shared, and which are
// kept although no sequence may have them.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

namespace llminfer::inline v0::engine {

/// Not thread-safe; the engine's mutex guards it.
class PagePool {
 public:
  explicit PagePool(std::int32_t pages)
      : references_(static_cast<std::size_t>(pages), 0), kept_(static_cast<std::size_t>(pages), false) {
    free_.reserve(references_.size());
    for (std::int32_t page = pages; page-- > 0;) free_.push_back(page);
  }

  std::int32_t size() const noexcept { return static_cast<std::int32_t>(references_.size()); }
  /// Pages that sequences have.
  std::int32_t used() const noexcept { return size() - static_cast<std::int32_t>(free_.size()) - idle_; }
  /// Pages that are only kept.
  std::int32_t idle() const noexcept { return idle_; }

  /// A page with one reference, or nothing when all are taken or kept.
  std::optional<std::int32_t> take() noexcept {
    if (free_.empty()) return std::nullopt;
    const std::int32_t page = free_.back();
    free_.pop_back();
    references_[static_cast<std::size_t>(page)] = 1;
    return page;
  }
  /// Of a page that has a reference, or is kept.
  void share(std::int32_t page) noexcept {
    if (references_[static_cast<std::size_t>(page)]++ == 0) --idle_;
  }
  /// Whether others than its one sequence want what is in it.
  bool shared(std::int32_t page) const noexcept {
    return references_[static_cast<std::size_t>(page)] > 1 || kept(page);
  }
  /// Whether the page is free now.
  bool release(std::int32_t page) noexcept {
    if (--references_[static_cast<std::size_t>(page)] > 0) return false;
    if (kept(page)) {
      ++idle_;
      return false;
    }
    free_.push_back(page);  // reserved: cannot throw
    return true;
  }

  /// A page that has a reference is not free without one, until it is dropped.
  void keep(std::int32_t page) noexcept { kept_[static_cast<std::size_t>(page)] = true; }
  bool kept(std::int32_t page) const noexcept { return kept_[static_cast<std::size_t>(page)]; }
  bool idle(std::int32_t page) const noexcept { return kept(page) && references_[static_cast<std::size_t>(page)] == 0; }
  /// Of a page that is idle.
  void drop(std::int32_t page) noexcept {
    kept_[static_cast<std::size_t>(page)] = false;
    --idle_;
    free_.push_back(page);
  }

 private:
  std::vector<std::int32_t> references_;
  std::vector<bool> kept_;
  std::int32_t idle_ = 0;
  std::vector<std::int32_t> free_;
};

}  // namespace llminfer::inline v0::engine
