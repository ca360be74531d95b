// The pages of an int4 cache that may still grow: their keys and values as floats, all layers and KV heads, in memory
// that a page has only while it is open.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <vector>

namespace llminfer::cpu {

/// Pages are opened by one thread; close() may be called on any, for pages that no pass uses.
class OpenPages {
 public:
  /// Throws std::bad_alloc.
  OpenPages(std::int32_t pages, std::int64_t page_bytes)
      : page_bytes_(page_bytes), memory_(static_cast<std::size_t>(pages)) {}

  /// The page has memory from now on; what it held before is kept. Throws std::bad_alloc.
  void open(std::int32_t page);
  void close(std::int32_t page) noexcept;
  bool is_open(std::int32_t page) const noexcept { return memory_[static_cast<std::size_t>(page)] != nullptr; }
  float* data(std::int32_t page) const noexcept { return memory_[static_cast<std::size_t>(page)].get(); }
  /// Of all pages that have been open at once.
  std::int64_t bytes() const noexcept;

 private:
  struct Free {
    void operator()(float* p) const noexcept { std::free(p); }
  };
  using Memory = std::unique_ptr<float, Free>;

  const std::int64_t page_bytes_;
  std::vector<Memory> memory_;  ///< per page
  mutable std::mutex mutex_;    ///< guards what follows
  std::vector<Memory> unused_;  ///< has room for all there are
  std::size_t made_ = 0;
};

}  // namespace llminfer::cpu
