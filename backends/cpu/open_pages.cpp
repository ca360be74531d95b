#include "backends/cpu/open_pages.hpp"

#include <cstdlib>
#include <new>
#include <utility>

namespace llminfer::cpu {

void OpenPages::open(std::int32_t page) {
  if (is_open(page)) return;
  const std::lock_guard lock(mutex_);
  if (unused_.empty()) {
    unused_.reserve(made_ + 1);
    Memory memory(static_cast<float*>(std::aligned_alloc(64, static_cast<std::size_t>((page_bytes_ + 63) / 64 * 64))));
    if (!memory) throw std::bad_alloc();
    unused_.push_back(std::move(memory));
    ++made_;
  }
  memory_[static_cast<std::size_t>(page)] = std::move(unused_.back());
  unused_.pop_back();
}

void OpenPages::close(std::int32_t page) noexcept {
  if (!is_open(page)) return;
  const std::lock_guard lock(mutex_);
  unused_.push_back(std::move(memory_[static_cast<std::size_t>(page)]));  // reserved: cannot throw
}

std::int64_t OpenPages::bytes() const noexcept {
  const std::lock_guard lock(mutex_);
  return static_cast<std::int64_t>(made_) * page_bytes_;
}

}  // namespace llminfer::cpu
