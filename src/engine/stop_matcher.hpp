// StopMatcher: finds stop strings in text that arrives in pieces, and holds back what may become one.
#pragma once

#include <algorithm>
#include <cstddef>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace llminfer::inline v0::engine {

class StopMatcher {
 public:
  StopMatcher() = default;
  /// `stops` has no empty string.
  explicit StopMatcher(std::vector<std::string> stops) : stops_(std::move(stops)) {}

  /// Adds a piece; gives the text that is certain now. After a match that is the text before it, and matched() holds.
  std::string push(std::string_view piece) {
    held_ += piece;
    std::size_t end = std::string::npos;
    for (const std::string& stop : stops_) end = std::min(end, held_.find(stop));
    if (end != std::string::npos) {
      matched_ = true;
      std::string text = held_.substr(0, end);
      held_.clear();
      return text;
    }
    const std::size_t keep = longest_begun();
    std::string text = held_.substr(0, held_.size() - keep);
    held_.erase(0, text.size());
    return text;
  }
  /// The text that was held back, at the end of the answer.
  std::string finish() { return std::exchange(held_, {}); }
  bool matched() const noexcept { return matched_; }

 private:
  /// The length of the longest end of the held text with which a stop string begins.
  std::size_t longest_begun() const {
    std::size_t longest = 0;
    for (const std::string& stop : stops_) {
      for (std::size_t n = std::min(stop.size() - 1, held_.size()); n > longest; --n) {
        if (std::string_view(held_).ends_with(std::string_view(stop).substr(0, n))) longest = n;
      }
    }
    return longest;
  }

  std::vector<std::string> stops_;
  std::string held_;
  bool matched_ = false;
};

}  // namespace llminfer::inline v0::engine
