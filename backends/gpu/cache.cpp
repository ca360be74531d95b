#include "backends/gpu/cache.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "backends/common/check.hpp"
#include "core/checked.hpp"
#include "core/error.hpp"
#include "core/half.hpp"

namespace llminfer::gpu {
namespace {

using core::fail;

std::int32_t padded(std::int32_t head_dim) { return (head_dim + 7) / 8 * 8; }
std::int64_t bytes_of(CacheType type) { return type == CacheType::f32 ? 4 : type == CacheType::int8 ? 1 : 2; }
std::int64_t matrix_bytes(const CacheGroup& group, CacheType type) {
  return std::int64_t{kPageSlots} * padded(group.head_dim) * bytes_of(type);
}
std::int64_t head_bytes(const CacheGroup& group, CacheType type) {
  const std::int64_t scales = type == CacheType::int8 ? 2 * kPageSlots * static_cast<std::int64_t>(sizeof(float)) : 0;
  return 2 * matrix_bytes(group, type) + scales;
}

CacheElement element_of(CacheType type) {
  switch (type) {
    case CacheType::f32:
      return CacheElement::f32;
    case CacheType::bf16:
      return CacheElement::bf16;
    case CacheType::int8:
      return CacheElement::int8;
    case CacheType::f16:
    case CacheType::int4:  // refused by make
      break;
  }
  return CacheElement::f16;
}

float read_element(CacheType type, const std::byte* at, float scale) {
  std::uint16_t bits = 0;
  float value = 0.0f;
  switch (type) {
    case CacheType::f32:
      std::memcpy(&value, at, sizeof value);
      return value;
    case CacheType::int8:
      return static_cast<float>(static_cast<std::int8_t>(*at)) * scale;
    case CacheType::f16:
    case CacheType::bf16:
    case CacheType::int4:
      break;
  }
  std::memcpy(&bits, at, sizeof bits);
  return type == CacheType::f16 ? core::half_to_float(bits) : core::bfloat_to_float(bits);
}

void write_element(CacheType type, std::byte* at, float x, float scale) {
  std::uint16_t bits = 0;
  switch (type) {
    case CacheType::f32:
      std::memcpy(at, &x, sizeof x);
      return;
    case CacheType::int8:
      *at = static_cast<std::byte>(static_cast<std::int8_t>(
          scale > 0.0f ? std::clamp(std::nearbyint(x * (1.0f / scale)), -127.0f, 127.0f) : 0.0f));
      return;
    case CacheType::f16:
      bits = core::float_to_half(std::clamp(x, -65504.0f, 65504.0f));
      break;
    case CacheType::bf16:
      bits = core::float_to_bfloat(x);
      break;
    case CacheType::int4:
      return;
  }
  std::memcpy(at, &bits, sizeof bits);
}

/// As the kernels choose it (int8_scale).
float scale_of(const float* x, std::int32_t n) {
  float most = 0.0f;
  for (std::int32_t i = 0; i < n; ++i) most = std::max(most, std::abs(x[i]));
  if (!(most >= 1e-30f)) return 0.0f;
  const auto bits = std::bit_cast<std::uint32_t>((most < 1e38f ? most : 1e38f) / 127.0f);
  return std::bit_cast<float>((bits + 0x7fu) & ~0x7fu);
}

}  // namespace

std::int64_t cache_page_bytes(const CacheGroup& group, CacheType type) noexcept {
  return std::int64_t{group.layers} * group.kv_heads * head_bytes(group, type);
}

Result<std::unique_ptr<GpuCache>> GpuCache::make(const CacheGroup& group, CacheType type, std::int32_t pages,
                                                 std::shared_ptr<Device> device) {
  LLMINFER_TRY(backend::check_cache(group, type, pages, kMaxHeadDim));
  if (type == CacheType::int4) {
    return fail(ErrorCode::unsupported,
                "EngineOptions::cache_type is int4, which GPU backends do not have; expected f16, bf16, f32 or int8");
  }
  auto cache = std::make_unique<GpuCache>();
  cache->device_ = device;
  cache->group_ = group;
  cache->type_ = type;
  cache->pages_ = pages;
  cache->padded_dim_ = padded(group.head_dim);
  cache->head_bytes_ = head_bytes(group, type);
  cache->page_bytes_ = cache_page_bytes(group, type);
  const auto bytes =
      core::checked_mul(static_cast<std::uint64_t>(cache->page_bytes_), static_cast<std::uint64_t>(pages));
  if (!bytes || *bytes > std::uint64_t{1} << 62) {
    return fail(ErrorCode::out_of_memory, "no memory for ", pages, " cache pages of ", cache->page_bytes_, " bytes");
  }
  cache->memory_ = LLMINFER_TRY(Buffer::make(device, static_cast<std::int64_t>(*bytes)));
  LLMINFER_TRY(device->clear(cache->memory_.at(), static_cast<std::int64_t>(*bytes)));
  LLMINFER_TRY(device->wait());
  return cache;
}

CacheArgs GpuCache::layer(std::int32_t layer) const noexcept {
  CacheArgs args{};
  args.data = memory_.at<unsigned char>(std::int64_t{layer} * group_.kv_heads * head_bytes_);
  args.page_bytes = page_bytes_;
  args.head_bytes = head_bytes_;
  args.value_offset = matrix_bytes(group_, type_);
  args.scale_offset = 2 * args.value_offset;
  args.element = element_of(type_);
  args.kv_heads = group_.kv_heads;
  args.head_dim = group_.head_dim;
  args.padded_dim = padded_dim_;
  return args;
}

Result<void> GpuCache::copy_page(std::int32_t from, std::int32_t to, std::int32_t tokens) {
  return core::guarded([&]() -> Result<void> {
    LLMINFER_TRY(backend::check_copy(from, to, tokens, pages_));
    if (tokens == 0) return {};
    const std::int64_t heads = std::int64_t{group_.layers} * group_.kv_heads, matrix = matrix_bytes(group_, type_);
    const auto copy = [&](std::int64_t offset, std::int64_t bytes) {
      return device_->copy_pieces(memory_.at(to * page_bytes_ + offset), memory_.at(from * page_bytes_ + offset), bytes,
                                  head_bytes_, heads);
    };
    const std::int64_t row = padded_dim_ * bytes_of(type_);
    LLMINFER_TRY(copy(0, tokens * row));
    LLMINFER_TRY(copy(matrix, tokens * row));
    if (type_ == CacheType::int8) {
      const std::int64_t scales = kPageSlots * static_cast<std::int64_t>(sizeof(float));
      LLMINFER_TRY(copy(2 * matrix, tokens * static_cast<std::int64_t>(sizeof(float))));
      LLMINFER_TRY(copy(2 * matrix + scales, tokens * static_cast<std::int64_t>(sizeof(float))));
    }
    return device_->wait();
  });
}

std::int64_t GpuCache::canonical_page_bytes() const noexcept {
  return std::int64_t{group_.layers} * 2 * kPageTokens * group_.kv_heads * group_.head_dim *
         static_cast<std::int64_t>(sizeof(float));
}

template <class F>
void GpuCache::for_each_head(F f) const {
  const std::int64_t dim = group_.head_dim, matrix = std::int64_t{kPageTokens} * group_.kv_heads * dim;
  for (std::int64_t layer = 0; layer < group_.layers; ++layer) {
    for (std::int64_t head = 0; head < group_.kv_heads; ++head) {
      const std::int64_t at = layer * 2 * matrix + head * dim;
      f((layer * group_.kv_heads + head) * head_bytes_, at, at + matrix);
    }
  }
}

Result<void> GpuCache::export_page(std::int32_t page, std::span<std::byte> out) {
  return core::guarded([&]() -> Result<void> {
    LLMINFER_TRY(backend::check_transfer(page, pages_, out.size(), canonical_page_bytes(), "export_page"));
    if (!page_.bytes()) page_ = LLMINFER_TRY(Buffer::make(device_, page_bytes_, true));
    LLMINFER_TRY(device_->copy(page_.at(), memory_.at(page * page_bytes_), page_bytes_));
    LLMINFER_TRY(device_->wait());
    const std::int64_t matrix = matrix_bytes(group_, type_), element = bytes_of(type_);
    for_each_head([&](std::int64_t head, std::int64_t keys_to, std::int64_t values_to) {
      const auto* scales = page_.at<float>(head + 2 * matrix);
      for (std::int64_t which = 0; which < 2; ++which) {
        const std::byte* from = page_.at(head + which * matrix);
        const std::int64_t to = which == 0 ? keys_to : values_to;
        for (std::int64_t t = 0; t < kPageTokens; ++t) {
          const float scale = type_ == CacheType::int8 ? scales[which * kPageSlots + t] : 1.0f;
          for (std::int64_t i = 0; i < group_.head_dim; ++i) {
            const float x = read_element(type_, from + (t * padded_dim_ + i) * element, scale);
            std::memcpy(out.data() + (to + t * group_.kv_heads * group_.head_dim + i) * 4, &x, sizeof x);
          }
        }
      }
    });
    return {};
  });
}

Result<void> GpuCache::import_page(std::int32_t page, std::span<const std::byte> in) {
  return core::guarded([&]() -> Result<void> {
    LLMINFER_TRY(backend::check_transfer(page, pages_, in.size(), canonical_page_bytes(), "import_page"));
    if (!page_.bytes()) page_ = LLMINFER_TRY(Buffer::make(device_, page_bytes_, true));
    std::memset(page_.at(), 0, static_cast<std::size_t>(page_bytes_));
    std::vector<float> row(static_cast<std::size_t>(group_.head_dim));
    const std::int64_t matrix = matrix_bytes(group_, type_), element = bytes_of(type_);
    for_each_head([&](std::int64_t head, std::int64_t keys_from, std::int64_t values_from) {
      auto* scales = page_.at<float>(head + 2 * matrix);
      for (std::int64_t which = 0; which < 2; ++which) {
        std::byte* to = page_.at(head + which * matrix);
        const std::int64_t from = which == 0 ? keys_from : values_from;
        for (std::int64_t t = 0; t < kPageTokens; ++t) {
          std::memcpy(row.data(), in.data() + (from + t * group_.kv_heads * group_.head_dim) * 4, row.size() * 4);
          const float scale = type_ == CacheType::int8 ? scale_of(row.data(), group_.head_dim) : 1.0f;
          if (type_ == CacheType::int8) scales[which * kPageSlots + t] = scale;
          for (std::int64_t i = 0; i < group_.head_dim; ++i) {
            write_element(type_, to + (t * padded_dim_ + i) * element, row[static_cast<std::size_t>(i)], scale);
          }
        }
      }
    });
    LLMINFER_TRY(device_->copy(memory_.at(page * page_bytes_), page_.at(), page_bytes_));
    return device_->wait();
  });
}

}  // namespace llminfer::gpu
