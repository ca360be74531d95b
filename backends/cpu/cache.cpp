#include "backends/cpu/cache.hpp"

#include <sys/mman.h>

#include <cstring>
#include <vector>

#include "backends/common/check.hpp"
#include "core/checked.hpp"
#include "core/error.hpp"
#include "core/half.hpp"

namespace llminfer::cpu {
namespace {

using core::fail;

constexpr std::uintptr_t kLine = 64;

std::int32_t padded(std::int32_t head_dim) { return (head_dim + 15) / 16 * 16; }
std::int64_t bytes_of(CacheType type) { return type == CacheType::f32 ? 4 : type == CacheType::int8 ? 1 : 2; }
/// Per token and head, for its key and for its value.
std::int64_t scale_bytes_of(CacheType type) { return type == CacheType::f32 ? 0 : 2 * sizeof(float); }
/// Elements of a token's key.
std::int64_t key_dim_of(const CacheGroup& group, CacheType type) {
  return type == CacheType::f32 ? group.head_dim : even_dim(group.head_dim);
}

/// A huge page of Linux on x86-64; a cache larger than this asks for them, which saves most misses of the TLB.
constexpr std::uintptr_t kHugePage = std::uintptr_t{2} << 20;

}  // namespace

std::int64_t cache_page_bytes(const CacheGroup& group, CacheType type) noexcept {
  if (type == CacheType::fp8) return 0;
  if (type == CacheType::int4) return std::int64_t{group.layers} * group.kv_heads * Int4Layout(group.head_dim).bytes;
  return std::int64_t{group.layers} * group.kv_heads * kPageTokens *
         ((key_dim_of(group, type) + padded(group.head_dim)) * bytes_of(type) + scale_bytes_of(type));
}

std::int64_t open_page_bytes(const CacheGroup& group, CacheType type) noexcept {
  if (type != CacheType::int4) return 0;
  const std::int64_t floats = std::int64_t{group.layers} * group.kv_heads * Int4Layout(group.head_dim).floats();
  return floats * static_cast<std::int64_t>(sizeof(float));
}

Result<std::unique_ptr<CpuCache>> CpuCache::make(const CacheGroup& group, CacheType type, std::int32_t pages,
                                                 std::shared_ptr<std::byte> memory) {
  LLMINFER_TRY(backend::check_cache(group, type, pages, 1 << 12));
  if (type == CacheType::fp8) {
    return fail(ErrorCode::unsupported,
                "cache type fp8, which the CPU backend does not have; expected f16, bf16, f32, int8 or int4");
  }
  std::unique_ptr<CpuCache> cache(new CpuCache);
  cache->group_ = group;
  cache->type_ = type;
  cache->pages_ = pages;
  cache->padded_dim_ = padded(group.head_dim);
  cache->element_bytes_ = bytes_of(type);
  cache->page_bytes_ = cache_page_bytes(group, type);
  cache->block_pages_ = memory ? 1 : kBlockPages;
  const std::int64_t room = (std::int64_t{pages} + cache->block_pages_ - 1) / cache->block_pages_ * cache->block_pages_;
  const auto bytes =
      core::checked_mul(static_cast<std::uint64_t>(cache->page_bytes_), static_cast<std::uint64_t>(room));
  const std::uintptr_t alignment = bytes && *bytes >= 2 * kHugePage && !memory ? kHugePage : kLine;
  if (memory) {
    cache->memory_ = std::move(memory);
  } else if (bytes && *bytes < std::uint64_t{1} << 62) {
    // calloc: large blocks come zeroed from the system and take memory only once they are touched.
    cache->memory_.reset(std::calloc(static_cast<std::size_t>(*bytes) + alignment, 1), &std::free);
  }
  if (!cache->memory_) {
    return fail(ErrorCode::out_of_memory, "no memory for ", pages, " cache pages of ", cache->page_bytes_, " bytes");
  }
  if (type == CacheType::int4) {
    const std::int64_t floats = open_page_bytes(group, type);
    cache->open_ = std::make_unique<backend::OpenPages>(pages, floats, [floats]() -> Result<std::shared_ptr<void>> {
      void* const memory = std::aligned_alloc(64, static_cast<std::size_t>((floats + 63) / 64 * 64));
      if (!memory) return fail(ErrorCode::out_of_memory, "no memory for an open cache page of ", floats, " bytes");
      return std::shared_ptr<void>(memory, &std::free);
    });
  }
  const auto address = reinterpret_cast<std::uintptr_t>(cache->memory_.get());
  cache->data_ = static_cast<std::byte*>(cache->memory_.get()) + (alignment - address % alignment) % alignment;
  // A wish: without huge pages everything works the same.
  if (alignment == kHugePage) (void)::madvise(cache->data_, static_cast<std::size_t>(*bytes), MADV_HUGEPAGE);
  return cache;
}

CacheElement CpuCache::element() const noexcept {
  switch (type_) {
    case CacheType::f16:
    case CacheType::bf16:
      return CacheElement::int16;
    case CacheType::int8:
      return CacheElement::int8;
    case CacheType::int4:
      return CacheElement::code4;
    case CacheType::f32:
    case CacheType::fp8:  // refused by make
      break;
  }
  return CacheElement::f32;
}

std::int64_t CpuCache::key_bytes() const noexcept { return kPageSlots * key_dim_of(group_, type_) * element_bytes_; }
std::int64_t CpuCache::head_bytes() const noexcept {
  return page_bytes_ / (std::int64_t{group_.layers} * group_.kv_heads);
}

AttentionPages CpuCache::head(std::int32_t layer, std::int32_t kv_head) const noexcept {
  AttentionPages pages{};
  pages.page_stride = head_bytes();
  pages.block_stride = page_bytes_ * block_pages_;
  pages.block_pages = block_pages_;
  pages.data = data_ + (std::int64_t{layer} * group_.kv_heads + kv_head) * pages.page_stride * block_pages_;
  pages.value_offset = key_bytes();
  pages.scale_offset = key_bytes() + std::int64_t{kPageSlots} * padded_dim_ * element_bytes_;
  if (open_) {
    const Int4Layout layout(group_.head_dim);
    pages.value_offset = layout.values;
    pages.scale_offset = layout.key_ranges;
  }
  pages.head_dim = group_.head_dim;
  pages.padded_dim = padded_dim_;
  pages.element = element();
  return pages;
}

Result<void> CpuCache::copy_page(std::int32_t from, std::int32_t to, std::int32_t tokens) {
  return core::guarded([&]() -> Result<void> {
    LLMINFER_TRY(backend::check_copy(from, to, tokens, pages_));
    if (tokens == 0) return {};
    if (open_) LLMINFER_TRY(copy_open(from, to, tokens));
    if (open_ && tokens < kPageTokens) return {};
    // Integers lie in pairs, of dimensions and of tokens.
    const std::int64_t together = type_ == CacheType::f32 ? 1 : 2, scale_bytes = scale_bytes_of(type_) / 2;
    const std::int64_t value_bytes = padded_dim_ * element_bytes_;
    for (std::int32_t i = 0; i < group_.layers * group_.kv_heads; ++i) {
      const AttentionPages pages = head(i / group_.kv_heads, i % group_.kv_heads);
      const std::byte* const source = keys_of_page(pages, from);
      std::byte* const target = keys_of_page(pages, to);
      const auto copy = [&](std::int64_t offset, std::int64_t bytes) {
        std::memcpy(target + offset, source + offset, static_cast<std::size_t>(bytes));
      };
      if (tokens == kPageTokens) {
        copy(0, pages.page_stride);
        continue;
      }
      for (std::int64_t k = 0; k < pages.value_offset; k += kPageSlots * together * element_bytes_) {
        copy(k, tokens * together * element_bytes_);
      }
      const std::int64_t whole = tokens / together * together;
      copy(pages.value_offset, whole * value_bytes);
      for (std::int64_t k = 0; whole < tokens && k < padded_dim_; ++k) {
        copy(pages.value_offset + whole * value_bytes + k * together * element_bytes_, element_bytes_);
      }
      copy(pages.scale_offset, tokens * scale_bytes);
      copy(pages.scale_offset + kPageSlots * scale_bytes, tokens * scale_bytes);
    }
    return {};
  });
}

std::int64_t CpuCache::canonical_page_bytes() const noexcept {
  return std::int64_t{group_.layers} * 2 * kPageTokens * group_.kv_heads * group_.head_dim *
         static_cast<std::int64_t>(sizeof(float));
}

template <class F>
void CpuCache::for_each_token(F f) const {
  const std::int64_t row = group_.head_dim * static_cast<std::int64_t>(sizeof(float));
  const std::int64_t matrix = std::int64_t{kPageTokens} * group_.kv_heads * row;
  for (std::int32_t layer = 0; layer < group_.layers; ++layer) {
    for (std::int32_t h = 0; h < group_.kv_heads; ++h) {
      const AttentionPages pages = head(layer, h);
      for (std::int32_t t = 0; t < kPageTokens; ++t) {
        const std::int64_t key = layer * 2 * matrix + (std::int64_t{t} * group_.kv_heads + h) * row;
        f(pages, t, key, key + matrix);
      }
    }
  }
}

Result<void> CpuCache::export_page(std::int32_t page, std::span<std::byte> out) {
  return core::guarded([&]() -> Result<void> {
    LLMINFER_TRY(backend::check_transfer(page, pages_, out.size(), canonical_page_bytes(), "export_page"));
    if (open_) {
      export_int4(page, out);
      return {};
    }
    const auto read = [&](const std::byte* matrix, std::int64_t index, float scale) {
      const std::byte* const element = matrix + index * element_bytes_;
      float value = 0.0f;
      std::int16_t word = 0;
      switch (type_) {
        case CacheType::f32:
          std::memcpy(&value, element, sizeof value);
          break;
        case CacheType::f16:
        case CacheType::bf16:
          std::memcpy(&word, element, sizeof word);
          value = static_cast<float>(word) * scale;
          break;
        case CacheType::int8:
          value = static_cast<float>(static_cast<std::int8_t>(*element)) * scale;
          break;
        case CacheType::int4:  // see export_int4
        case CacheType::fp8:
          break;
      }
      return value;
    };
    for_each_token([&](const AttentionPages& pages, std::int32_t t, std::int64_t key_at, std::int64_t value_at) {
      const std::byte* const keys = keys_of_page(pages, page);
      const auto* const scales = reinterpret_cast<const float*>(keys + pages.scale_offset);
      const bool scaled = type_ != CacheType::f32;
      const float key_scale = scaled ? scales[t] : 1.0f, value_scale = scaled ? scales[kPageSlots + t] : 1.0f;
      for (std::int32_t i = 0; i < group_.head_dim; ++i) {
        const float key = read(keys, key_index(pages.element, t, i), key_scale);
        const float value = read(keys + pages.value_offset, value_index(pages.element, padded_dim_, t, i), value_scale);
        std::memcpy(out.data() + key_at + i * 4, &key, sizeof key);
        std::memcpy(out.data() + value_at + i * 4, &value, sizeof value);
      }
    });
    return {};
  });
}

Result<void> CpuCache::import_page(std::int32_t page, std::span<const std::byte> in) {
  return core::guarded([&]() -> Result<void> {
    LLMINFER_TRY(backend::check_transfer(page, pages_, in.size(), canonical_page_bytes(), "import_page"));
    if (open_) return import_int4(page, in);
    const auto dim = static_cast<std::size_t>(group_.head_dim);
    std::vector<float> key(dim), value(dim);
    const AttentionKernels& kernels = isa_scalar::attention_kernels();  // all levels store alike
    for_each_token([&](const AttentionPages& pages, std::int32_t t, std::int64_t key_at, std::int64_t value_at) {
      std::memcpy(key.data(), in.data() + key_at, dim * sizeof(float));
      std::memcpy(value.data(), in.data() + value_at, dim * sizeof(float));
      kernels.write(pages, page, t, key.data(), value.data());
    });
    return {};
  });
}

}  // namespace llminfer::cpu
