// GraphTable: the graphs of a plan, or lists of steps in their stead, by what their launches depend on. Knows nothing
// of what is launched.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "backends/gpu/device.hpp"

namespace llminfer::gpu {

/// Those that were used last. Used while none of them runs.
class GraphTable {
 public:
  static constexpr std::size_t kMost = 16;

  struct Entry {
    std::vector<std::int64_t> key;
    Graph graph;          ///< or none
    Buffer steps;         ///< PersistentSteps, or none
    bool seen = false;    ///< asked for before
    bool failed = false;  ///< could not be made or launched
  };

  /// The key's entry, a new one if there is none. Valid until the next call.
  Entry& of(std::vector<std::int64_t> key) {
    auto it = std::find_if(entries_.begin(), entries_.end(), [&](const Entry& entry) { return entry.key == key; });
    if (it == entries_.end()) {
      if (entries_.size() == kMost) entries_.pop_back();
      it = entries_.insert(entries_.end(), Entry{std::move(key), {}, {}, false, false});
    }
    std::rotate(entries_.begin(), it, it + 1);
    return entries_.front();
  }
  void clear() noexcept { entries_.clear(); }

 private:
  std::vector<Entry> entries_;  ///< the last one first
};

}  // namespace llminfer::gpu
