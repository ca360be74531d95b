// WeightArena: memory for packed weights, from large mappings that the system may back with huge pages. Knows nothing
// of what lies in it.
#pragma once

#include <cstdint>
#include <memory>

namespace llminfer::cpu {

/// Hands out memory of a few mappings, so that small weights share huge pages too. Used by one thread at a time. What
/// it has handed out outlives it.
class WeightArena {
 public:
  /// `bytes` > 0 zeros that start on a cache line; they take memory only once they are written. Their mapping is given
  /// back with the last of its parts. Null if the system has no memory.
  std::shared_ptr<std::uint8_t> allocate(std::int64_t bytes);

 private:
  std::shared_ptr<std::uint8_t> mapping_;  ///< the one that is being filled
  std::int64_t size_ = 0, used_ = 0;       ///< of it, in bytes
};

}  // namespace llminfer::cpu
