// The pages of a cache group in the CPU backend's layout: [page][layer][kv_head] of keys, then values (attention.hpp).
#pragma once

#include <cstdlib>
#include <memory>

#include <llminfer/backend.hpp>

#include "backends/cpu/attention.hpp"

namespace llminfer::cpu {

static_assert(kPageSlots == kPageTokens);

/// Bytes of a page of the group, all its layers.
std::int64_t cache_page_bytes(const CacheGroup& group, CacheType type) noexcept;

class CpuCache final : public CacheStorage {
 public:
  /// Errors: invalid_argument, out_of_memory.
  static Result<std::unique_ptr<CpuCache>> make(const CacheGroup& group, CacheType type, std::int32_t pages);

  std::int64_t bytes() const noexcept override { return page_bytes_ * pages_; }
  Result<void> copy_page(std::int32_t from, std::int32_t to, std::int32_t tokens) override;
  std::int64_t canonical_page_bytes() const noexcept override;
  Result<void> export_page(std::int32_t page, std::span<std::byte> out) override;
  Result<void> import_page(std::int32_t page, std::span<const std::byte> in) override;

  const CacheGroup& group() const noexcept { return group_; }
  std::int32_t pages() const noexcept { return pages_; }
  /// Where a layer's head lies.
  AttentionPages head(std::int32_t layer, std::int32_t kv_head) const noexcept;

 private:
  CpuCache() = default;
  CacheElement element() const noexcept;
  std::int64_t key_bytes() const noexcept;
  std::int64_t head_bytes() const noexcept;
  /// Calls f(layer's head, token, byte offsets of its key and value in the canonical layout) for each of a page.
  template <class F>
  void for_each_token(F f) const;

  struct Free {
    void operator()(void* p) const noexcept { std::free(p); }
  };
  CacheGroup group_{};
  CacheType type_ = CacheType::f16;
  std::int32_t pages_ = 0;
  std::int32_t padded_dim_ = 0;
  std::int64_t element_bytes_ = 0;
  std::int64_t page_bytes_ = 0;
  std::unique_ptr<void, Free> memory_;
  std::byte* data_ = nullptr;  ///< memory_, aligned
};

}  // namespace llminfer::cpu
