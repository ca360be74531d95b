// ForgottenPages: pages that no sequence has any more, until other ranks are told so. Knows nothing of messages.
#pragma once

#include <algorithm>
#include <cstdint>
#include <mutex>
#include <span>
#include <vector>

namespace llminfer::inline v0::engine {

/// Any thread, but for reserve(), which comes first; without it pages are not kept.
class ForgottenPages {
 public:
  /// `pages`: of each cache group. Throws std::bad_alloc.
  void reserve(std::span<const std::int32_t> pages) {
    std::size_t all = 0;
    for (const std::int32_t count : pages) {
      listed_.emplace_back(static_cast<std::size_t>(count), false);
      all += static_cast<std::size_t>(count);
    }
    words_.reserve(2 * all);
  }

  void add(std::size_t group, std::int32_t page) noexcept {
    const std::lock_guard lock(mutex_);
    if (listed_.empty() || listed_[group][static_cast<std::size_t>(page)]) return;
    listed_[group][static_cast<std::size_t>(page)] = true;
    words_.insert(words_.end(), {static_cast<std::int32_t>(group), page});  // reserved: cannot throw
  }
  /// The page has something in it again that is not to be forgotten.
  void remove(std::size_t group, std::int32_t page) noexcept {
    const std::lock_guard lock(mutex_);
    if (listed_.empty() || !listed_[group][static_cast<std::size_t>(page)]) return;
    listed_[group][static_cast<std::size_t>(page)] = false;
    for (std::size_t i = 0; i < words_.size(); i += 2) {
      if (words_[i] != static_cast<std::int32_t>(group) || words_[i + 1] != page) continue;
      words_.erase(words_.begin() + static_cast<std::ptrdiff_t>(i),
                   words_.begin() + static_cast<std::ptrdiff_t>(i) + 2);
      return;
    }
  }
  /// Appends them, each as its group and itself, and then their number. Throws std::bad_alloc; then nothing has
  /// changed.
  void move_to(std::vector<std::int32_t>& words) {
    const std::lock_guard lock(mutex_);
    words.reserve(words.size() + words_.size() + 1);
    words.insert(words.end(), words_.begin(), words_.end());
    words.push_back(static_cast<std::int32_t>(words_.size() / 2));
    for (std::size_t i = 0; i < words_.size(); i += 2) {
      listed_[static_cast<std::size_t>(words_[i])][static_cast<std::size_t>(words_[i + 1])] = false;
    }
    words_.clear();
  }

 private:
  std::mutex mutex_;                       ///< guards what follows
  std::vector<std::int32_t> words_;        ///< has room for all there are
  std::vector<std::vector<bool>> listed_;  ///< per cache group and page
};

}  // namespace llminfer::inline v0::engine
