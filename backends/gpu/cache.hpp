// The pages of a cache group on a GPU; the layout is that of CacheArgs. With int4 a page that may grow is open and has
// floats; a full one is sealed, in 4 bits (docs/adr/0017). Pages that device memory has no room for lie in host memory,
// and a CachePager brings them.
#pragma once

#include <memory>

#include <llminfer/backend.hpp>

#include "backends/common/open_pages.hpp"
#include "backends/gpu/device.hpp"
#include "backends/gpu/pager.hpp"

namespace llminfer::gpu {

static_assert(kPageSlots == kPageTokens);

/// Bytes of a page of the group, all its layers.
std::int64_t cache_page_bytes(const CacheGroup& group, CacheType type) noexcept;
/// Bytes that it takes beside these while it is open.
std::int64_t open_page_bytes(const CacheGroup& group, CacheType type) noexcept;

class GpuCache final : public CacheStorage {
 public:
  /// `resident`: device memory holds so many of the pages, the others lie in host memory, which is `host` unless that is
  /// null. Errors: invalid_argument, out_of_memory, device_error.
  static Result<std::unique_ptr<GpuCache>> make(const CacheGroup& group, CacheType type, std::int32_t pages,
                                                std::int32_t resident, std::shared_ptr<Device> device,
                                                std::shared_ptr<std::byte> host = nullptr);

  std::int64_t bytes() const noexcept override {
    const std::int64_t resident = pager_ ? pager_->size().device_bytes() : 0;
    return page_bytes_ * pages_ + resident + (open_ ? open_->bytes() : 0);
  }
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
    if (pager_) pager_->forget(page);
  }
  PassPages pass_pages() const noexcept override {
    return pager_ ? PassPages{pager_->size().resident, pager_->size().most()} : PassPages();
  }
  std::int64_t moved_bytes() const noexcept override { return pager_ ? pager_->moved_bytes() : 0; }

  const CacheGroup& group() const noexcept { return group_; }
  CacheType type() const noexcept { return type_; }
  std::int32_t pages() const noexcept { return pages_; }
  const Device* device() const noexcept { return device_.get(); }
  /// With a pager, block tables of kernels have the numbers of its blocks in place of pages.
  CacheArgs layer(std::int32_t layer) const noexcept;
  backend::OpenPages& open_pages() noexcept { return *open_; }  ///< with int4 only
  CachePager* pager() const noexcept { return pager_.get(); }   ///< null: all pages lie in device memory

 private:
  /// Copies tokens [0, tokens) of a page of this type, all heads.
  Result<void> copy_tokens(CacheType type, std::byte* to, const std::byte* from, std::int32_t tokens);
  /// Calls f(index of the head in a page, canonical offset of its keys or values, which) for each layer, head and
  /// which = 0 (keys), 1 (values).
  template <class F>
  void for_each_matrix(F f) const;
  /// Room for a page of the host on its way.
  Result<std::byte*> staging(std::int64_t bytes);

  std::shared_ptr<Device> device_;
  CacheGroup group_{};
  CacheType type_ = CacheType::f16;
  std::int32_t pages_ = 0, padded_dim_ = 0;
  std::int64_t page_bytes_ = 0;
  Buffer memory_;  ///< none with a pager
  std::unique_ptr<CachePager> pager_;
  std::unique_ptr<backend::OpenPages> open_;
  Buffer staging_;
};

}  // namespace llminfer::gpu
