// The pages of a cache group in the CPU backend's layout: [block][layer][kv_head][page of the block] of keys, then
// values (attention.hpp). Memory that is given has blocks of one page, so that a page is in one place. With int4 a page
// that may grow is open and holds floats; a full one is sealed, in 4 bits (int4.hpp, docs/adr/0017).
#pragma once

#include <cstdlib>
#include <memory>

#include <llminfer/backend.hpp>

#include "backends/common/open_pages.hpp"
#include "backends/cpu/attention.hpp"
#include "backends/cpu/int4.hpp"

namespace llminfer::cpu {

static_assert(kPageSlots == kPageTokens);

/// Bytes of a page of the group, all its layers.
std::int64_t cache_page_bytes(const CacheGroup& group, CacheType type) noexcept;
/// Bytes that it takes beside these while it is open.
std::int64_t open_page_bytes(const CacheGroup& group, CacheType type) noexcept;

class CpuCache final : public CacheStorage {
 public:
  /// `memory`: of all pages (Backend::make_cache_in), or null. Errors: invalid_argument, out_of_memory.
  static Result<std::unique_ptr<CpuCache>> make(const CacheGroup& group, CacheType type, std::int32_t pages,
                                                std::shared_ptr<std::byte> memory = nullptr);

  std::int64_t bytes() const noexcept override { return page_bytes_ * pages_ + (open_ ? open_->bytes() : 0); }
  Result<void> copy_page(std::int32_t from, std::int32_t to, std::int32_t tokens) override;
  std::int64_t canonical_page_bytes() const noexcept override;
  Result<void> export_page(std::int32_t page, std::span<std::byte> out) override;
  Result<void> import_page(std::int32_t page, std::span<const std::byte> in) override;
  bool seals_pages() const noexcept override { return open_ != nullptr; }
  void finish_page(std::int32_t page) noexcept override {
    if (open_) open_->close(page);
  }
  void forget_page(std::int32_t page) noexcept override {
    if (open_) open_->close(page);
  }

  const CacheGroup& group() const noexcept { return group_; }
  std::int32_t pages() const noexcept { return pages_; }
  std::int64_t page_bytes() const noexcept { return page_bytes_; }
  /// Where a layer's head lies; with int4 in pages that are sealed.
  AttentionPages head(std::int32_t layer, std::int32_t kv_head) const noexcept;

  // With int4 only.
  backend::OpenPages& open_pages() noexcept { return *open_; }
  /// A layer's head of an open page, of whatever number.
  AttentionPages open_head(std::int32_t page, std::int32_t layer, std::int32_t kv_head) const noexcept;
  std::uint8_t* sealed_head(std::int32_t page, std::int32_t layer, std::int32_t kv_head) const noexcept {
    return reinterpret_cast<std::uint8_t*>(keys_of_page(head(layer, kv_head), page));
  }

 private:
  CpuCache() = default;
  Result<void> copy_open(std::int32_t from, std::int32_t to, std::int32_t tokens);
  void export_int4(std::int32_t page, std::span<std::byte> out) const;
  Result<void> import_int4(std::int32_t page, std::span<const std::byte> in);
  CacheElement element() const noexcept;
  std::int64_t key_bytes() const noexcept;
  std::int64_t head_bytes() const noexcept;
  /// Calls f(layer's head, token, byte offsets of its key and value in the canonical layout) for each of a page.
  template <class F>
  void for_each_token(F f) const;

  CacheGroup group_{};
  CacheType type_ = CacheType::f16;
  std::int32_t pages_ = 0;
  std::int32_t padded_dim_ = 0;
  std::int64_t element_bytes_ = 0;
  std::int64_t page_bytes_ = 0;
  std::int32_t block_pages_ = 1;
  std::shared_ptr<void> memory_;
  std::byte* data_ = nullptr;  ///< memory_, aligned
  std::unique_ptr<backend::OpenPages> open_;
};

}  // namespace llminfer::cpu
