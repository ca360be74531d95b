#include "backends/cpu/cache.hpp"

#include <cstring>

#include "core/checked.hpp"
#include "core/error.hpp"
#include "core/half.hpp"

namespace llminfer::cpu {
namespace {

using core::fail;

constexpr std::uintptr_t kAlignment = 64;

std::int32_t padded(std::int32_t head_dim) { return (head_dim + 15) / 16 * 16; }
std::int64_t bytes_of(CacheType type) { return type == CacheType::f16 ? 2 : 4; }

}  // namespace

std::int64_t cache_page_bytes(const CacheGroup& group, CacheType type) noexcept {
  return std::int64_t{group.layers} * group.kv_heads * kPageTokens * (group.head_dim + padded(group.head_dim)) *
         bytes_of(type);
}

Result<std::unique_ptr<CpuCache>> CpuCache::make(const CacheGroup& group, CacheType type, std::int32_t pages) {
  if (group.layers < 1 || group.kv_heads < 1 || group.head_dim < 1 || group.window < 0 || group.layers > 1 << 16 ||
      group.kv_heads > 1 << 12 || group.head_dim > 1 << 12) {
    return fail(ErrorCode::invalid_argument, "cache group: ", group.layers, " layers, ", group.kv_heads,
                " KV heads, head_dim ", group.head_dim, ", window ", group.window, " are out of range");
  }
  if (type != CacheType::f16 && type != CacheType::f32) {
    return fail(ErrorCode::invalid_argument, "unknown cache type ", static_cast<int>(type));
  }
  if (pages < 1) return fail(ErrorCode::invalid_argument, "a cache needs at least 1 page, not ", pages);
  std::unique_ptr<CpuCache> cache(new CpuCache);
  cache->group_ = group;
  cache->type_ = type;
  cache->pages_ = pages;
  cache->padded_dim_ = padded(group.head_dim);
  cache->element_bytes_ = bytes_of(type);
  cache->page_bytes_ = cache_page_bytes(group, type);
  const auto bytes =
      core::checked_mul(static_cast<std::uint64_t>(cache->page_bytes_), static_cast<std::uint64_t>(pages));
  if (bytes && *bytes < std::uint64_t{1} << 62) {
    // calloc: large blocks come zeroed from the system and take memory only once they are touched.
    cache->memory_.reset(std::calloc(static_cast<std::size_t>(*bytes) + kAlignment, 1));
  }
  if (!cache->memory_) {
    return fail(ErrorCode::out_of_memory, "no memory for ", pages, " cache pages of ", cache->page_bytes_, " bytes");
  }
  const auto address = reinterpret_cast<std::uintptr_t>(cache->memory_.get());
  cache->data_ = static_cast<std::byte*>(cache->memory_.get()) + (kAlignment - address % kAlignment) % kAlignment;
  return cache;
}

AttentionPages CpuCache::head(std::int32_t layer, std::int32_t kv_head) const noexcept {
  const std::int64_t key_bytes = std::int64_t{kPageSlots} * group_.head_dim * element_bytes_;
  const std::int64_t head_bytes = key_bytes + std::int64_t{kPageSlots} * padded_dim_ * element_bytes_;
  AttentionPages pages{};
  pages.data = data_ + (std::int64_t{layer} * group_.kv_heads + kv_head) * head_bytes;
  pages.page_stride = page_bytes_;
  pages.value_offset = key_bytes;
  pages.head_dim = group_.head_dim;
  pages.padded_dim = padded_dim_;
  pages.half = type_ == CacheType::f16;
  return pages;
}

Result<void> CpuCache::check_page(std::int32_t page, const char* call) const {
  if (page >= 0 && page < pages_) return {};
  return fail(ErrorCode::invalid_argument, call, ": page ", page, " is not in [0, ", pages_, ")");
}

Result<void> CpuCache::copy_page(std::int32_t from, std::int32_t to, std::int32_t tokens) {
  return core::guarded([&]() -> Result<void> {
    LLMINFER_TRY(check_page(from, "copy_page"));
    LLMINFER_TRY(check_page(to, "copy_page"));
    if (from == to) return fail(ErrorCode::invalid_argument, "copy_page: from and to are both page ", from);
    if (tokens < 0 || tokens > kPageTokens) {
      return fail(ErrorCode::invalid_argument, "copy_page: ", tokens, " tokens; a page has ", kPageTokens);
    }
    // Slots past `tokens` are undefined, and one straight copy is the quickest.
    if (tokens)
      std::memcpy(data_ + to * page_bytes_, data_ + from * page_bytes_, static_cast<std::size_t>(page_bytes_));
    return {};
  });
}

std::int64_t CpuCache::canonical_page_bytes() const noexcept {
  return std::int64_t{group_.layers} * 2 * kPageTokens * group_.kv_heads * group_.head_dim *
         static_cast<std::int64_t>(sizeof(float));
}

template <class F>
void CpuCache::for_each_element(std::int32_t page, F f) const {
  const std::int64_t matrix = std::int64_t{kPageTokens} * group_.kv_heads * group_.head_dim;
  for (std::int32_t layer = 0; layer < group_.layers; ++layer) {
    for (std::int32_t h = 0; h < group_.kv_heads; ++h) {
      const AttentionPages pages = head(layer, h);
      std::byte* const keys = pages.data + page * pages.page_stride;
      std::byte* const values = keys + pages.value_offset;
      for (std::int32_t t = 0; t < kPageTokens; ++t) {
        for (std::int32_t i = 0; i < group_.head_dim; ++i) {
          const std::int64_t canonical =
              layer * 2 * matrix + (std::int64_t{t} * group_.kv_heads + h) * group_.head_dim + i;
          f(keys + (std::int64_t{i} * kPageSlots + t) * element_bytes_, canonical);
          f(values + (std::int64_t{t} * padded_dim_ + i) * element_bytes_, canonical + matrix);
        }
      }
    }
  }
}

Result<void> CpuCache::export_page(std::int32_t page, std::span<std::byte> out) {
  return core::guarded([&]() -> Result<void> {
    LLMINFER_TRY(check_page(page, "export_page"));
    if (out.size() != static_cast<std::size_t>(canonical_page_bytes())) {
      return fail(ErrorCode::invalid_argument, "export_page: ", out.size(), " bytes; expected ",
                  canonical_page_bytes());
    }
    for_each_element(page, [&](const std::byte* element, std::int64_t canonical) {
      float value;
      if (type_ == CacheType::f16) {
        std::uint16_t bits;
        std::memcpy(&bits, element, sizeof bits);
        value = core::half_to_float(bits);
      } else {
        std::memcpy(&value, element, sizeof value);
      }
      std::memcpy(out.data() + canonical * static_cast<std::int64_t>(sizeof value), &value, sizeof value);
    });
    return {};
  });
}

Result<void> CpuCache::import_page(std::int32_t page, std::span<const std::byte> in) {
  return core::guarded([&]() -> Result<void> {
    LLMINFER_TRY(check_page(page, "import_page"));
    if (in.size() != static_cast<std::size_t>(canonical_page_bytes())) {
      return fail(ErrorCode::invalid_argument, "import_page: ", in.size(), " bytes; expected ", canonical_page_bytes());
    }
    for_each_element(page, [&](std::byte* element, std::int64_t canonical) {
      float value;
      std::memcpy(&value, in.data() + canonical * static_cast<std::int64_t>(sizeof value), sizeof value);
      if (type_ == CacheType::f16) {
        const std::uint16_t bits = core::float_to_half(value > 65504.0f    ? 65504.0f
                                                       : value < -65504.0f ? -65504.0f
                                                                           : value);
        std::memcpy(element, &bits, sizeof bits);
      } else {
        std::memcpy(element, &value, sizeof value);
      }
    });
    return {};
  });
}

}  // namespace llminfer::cpu
