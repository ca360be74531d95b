// The pages of a cache group on a GPU; the layout is that of CacheArgs.
#pragma once

#include <memory>

#include <llminfer/backend.hpp>

#include "backends/gpu/device.hpp"

namespace llminfer::gpu {

static_assert(kPageSlots == kPageTokens);

std::int64_t cache_page_bytes(const CacheGroup& group, CacheType type) noexcept;

class GpuCache final : public CacheStorage {
 public:
  /// Errors: invalid_argument, out_of_memory, device_error.
  static Result<std::unique_ptr<GpuCache>> make(const CacheGroup& group, CacheType type, std::int32_t pages,
                                                std::shared_ptr<Device> device);

  std::int64_t bytes() const noexcept override { return page_bytes_ * pages_; }
  Result<void> copy_page(std::int32_t from, std::int32_t to, std::int32_t tokens) override;
  std::int64_t canonical_page_bytes() const noexcept override;
  Result<void> export_page(std::int32_t page, std::span<std::byte> out) override;
  Result<void> import_page(std::int32_t page, std::span<const std::byte> in) override;

  const CacheGroup& group() const noexcept { return group_; }
  CacheType type() const noexcept { return type_; }
  std::int32_t pages() const noexcept { return pages_; }
  const Device* device() const noexcept { return device_.get(); }
  CacheArgs layer(std::int32_t layer) const noexcept;

 private:
  /// Calls f(offset of the head in a page, canonical offset of its keys, of its values) for each layer and head.
  template <class F>
  void for_each_head(F f) const;

  std::shared_ptr<Device> device_;
  CacheGroup group_{};
  CacheType type_ = CacheType::f16;
  std::int32_t pages_ = 0, padded_dim_ = 0;
  std::int64_t head_bytes_ = 0, page_bytes_ = 0;
  Buffer memory_;
  Buffer page_;  ///< of the host: one page on its way
};

}  // namespace llminfer::gpu
