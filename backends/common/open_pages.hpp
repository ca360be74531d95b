// The pages of an int4 cache that may still grow (docs/adr/0017), in memory that a page has only while it is open.
// Knows neither what kind of memory that is nor how a backend lays it out.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include <llminfer/backend.hpp>

namespace llminfer::backend {

/// Pages are opened by one thread; close() may be called on any, for pages that no pass uses.
class OpenPages {
 public:
  using Memory = std::shared_ptr<void>;

  /// `make` gives memory for one page, `page_bytes` of it.
  OpenPages(std::int32_t pages, std::int64_t page_bytes, std::function<Result<Memory>()> make)
      : page_bytes_(page_bytes), make_(std::move(make)), memory_(static_cast<std::size_t>(pages)) {}

  /// The page has memory from now on; what it held before is kept. Errors: out_of_memory and those of `make`.
  Result<void> open(std::int32_t page);
  void close(std::int32_t page) noexcept;
  bool is_open(std::int32_t page) const noexcept { return memory_[static_cast<std::size_t>(page)] != nullptr; }
  template <class T>
  T* data(std::int32_t page) const noexcept {
    return static_cast<T*>(memory_[static_cast<std::size_t>(page)].get());
  }
  /// Of all pages that have been open at once.
  std::int64_t bytes() const noexcept;

  /// Before a pass over these runs: opens the pages that they begin, and closes those that their sequences have filled
  /// before, since by then all layers have sealed them. Gives the page of each row. Errors: those of open(),
  /// invalid_state (a row's page was full).
  Result<std::vector<std::int32_t>> begin_pass(std::span<const Run> runs, std::size_t group);

 private:
  const std::int64_t page_bytes_;
  const std::function<Result<Memory>()> make_;
  std::vector<Memory> memory_;  ///< per page
  mutable std::mutex mutex_;    ///< guards what follows
  std::vector<Memory> unused_;  ///< has room for all there are
  std::size_t made_ = 0;
};

/// What CacheStorage::copy_page does with open pages: `to` becomes what `from` is. True if the floats of tokens [0,
/// tokens) are to be copied. Errors: those of open(), invalid_state (some tokens of a full page).
Result<bool> open_copy(OpenPages& open, std::int32_t from, std::int32_t to, std::int32_t tokens);

}  // namespace llminfer::backend
