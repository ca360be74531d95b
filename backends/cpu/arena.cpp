#include "backends/cpu/arena.hpp"

#include <sys/mman.h>

#include <algorithm>
#include <utility>

namespace llminfer::cpu {
namespace {

constexpr std::int64_t kHugePage = std::int64_t{2} << 20;
/// Sizes of mappings, each twice the one before: at its end each may leave most of a huge page unused, so few are
/// better.
constexpr std::int64_t kFirstMapping = std::int64_t{16} << 20, kLargestMapping = std::int64_t{1} << 30;

/// A private mapping of `bytes`, whole huge pages, that starts on a huge page.
std::shared_ptr<std::uint8_t> map(std::int64_t bytes) {
  const auto size = static_cast<std::size_t>(bytes), huge = static_cast<std::size_t>(kHugePage);
  void* const address = mmap(nullptr, size + huge, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (address == MAP_FAILED) return nullptr;
  auto* const all = static_cast<std::uint8_t*>(address);
  const std::size_t before = (huge - reinterpret_cast<std::uintptr_t>(all) % huge) % huge;
  if (before > 0) (void)munmap(all, before);
  if (before < huge) (void)munmap(all + before + size, huge - before);
#ifdef MADV_HUGEPAGE
  (void)madvise(all + before, size, MADV_HUGEPAGE);  // advice: without it the pages are small
#endif
  return {all + before, [size](std::uint8_t* p) { (void)munmap(p, size); }};
}

}  // namespace

std::shared_ptr<std::uint8_t> WeightArena::allocate(std::int64_t bytes) {
  constexpr std::int64_t kLine = 64;
  const std::int64_t need = (bytes + kLine - 1) / kLine * kLine;
  if (need > size_ - used_) {
    const std::int64_t least = (need + kHugePage - 1) / kHugePage * kHugePage;
    std::int64_t size = std::max(least, std::clamp(2 * size_, kFirstMapping, kLargestMapping));
    auto mapping = map(size);
    if (!mapping) mapping = map(size = least);  // where address space is limited
    if (!mapping) return nullptr;
    mapping_ = std::move(mapping);
    size_ = size;
    used_ = 0;
  }
  std::uint8_t* const part = mapping_.get() + used_;
  used_ += need;
  return {mapping_, part};
}

}  // namespace llminfer::cpu
