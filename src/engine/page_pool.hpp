// PagePool: which pages of one cache group are free, and by how many sequences each of the others is shared.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

namespace llminfer::inline v0::engine {

/// Not thread-safe; the engine's mutex guards it.
class PagePool {
 public:
  explicit PagePool(std::int32_t pages) : references_(static_cast<std::size_t>(pages), 0) {
    free_.reserve(references_.size());
    for (std::int32_t page = pages; page-- > 0;) free_.push_back(page);
  }

  std::int32_t size() const noexcept { return static_cast<std::int32_t>(references_.size()); }
  std::int32_t used() const noexcept { return size() - static_cast<std::int32_t>(free_.size()); }

  /// A page with one reference, or nothing when all are taken.
  std::optional<std::int32_t> take() noexcept {
    if (free_.empty()) return std::nullopt;
    const std::int32_t page = free_.back();
    free_.pop_back();
    references_[static_cast<std::size_t>(page)] = 1;
    return page;
  }
  void share(std::int32_t page) noexcept { ++references_[static_cast<std::size_t>(page)]; }
  bool shared(std::int32_t page) const noexcept { return references_[static_cast<std::size_t>(page)] > 1; }
  /// Whether nobody has the page any more.
  bool release(std::int32_t page) noexcept {
    if (--references_[static_cast<std::size_t>(page)] > 0) return false;
    free_.push_back(page);  // reserved: cannot throw
    return true;
  }

 private:
  std::vector<std::int32_t> references_;
  std::vector<std::int32_t> free_;
};

}  // namespace llminfer::inline v0::engine
