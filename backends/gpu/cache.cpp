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
bool has_scales(CacheType type) { return type == CacheType::int8 || type == CacheType::fp8; }
std::int64_t bits_of(CacheType type) {
  return type == CacheType::f32 ? 32 : has_scales(type) ? 8 : type == CacheType::int4 ? 4 : 16;
}
/// A token's key or value. With int4 all those of a page begin on whole bytes, since they are padded.
std::int64_t row_bytes(const CacheGroup& group, CacheType type) { return padded(group.head_dim) * bits_of(type) / 8; }
std::int64_t matrix_bytes(const CacheGroup& group, CacheType type) { return kPageSlots * row_bytes(group, type); }
std::int64_t head_bytes(const CacheGroup& group, CacheType type) {
  const std::int64_t words = has_scales(type)          ? 2 * kPageSlots
                             : type == CacheType::int4 ? padded(group.head_dim) + kPageSlots
                                                       : 0;
  return 2 * matrix_bytes(group, type) + 4 * words;
}

CacheElement element_of(CacheType type) {
  switch (type) {
    case CacheType::f32:
      return CacheElement::f32;
    case CacheType::bf16:
      return CacheElement::bf16;
    case CacheType::int8:
      return CacheElement::int8;
    case CacheType::int4:
      return CacheElement::int4;
    case CacheType::fp8:
      return CacheElement::e4m3;
    case CacheType::f16:
      break;
  }
  return CacheElement::f16;
}

template <class T>
T load(const std::byte* from) {
  T value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

/// Element i of token t's key (which = 0) or value (1), of a page's head.
float read_element(const CacheGroup& group, CacheType type, const std::byte* head, std::int64_t which, std::int64_t t,
                   std::int64_t i) {
  const std::int64_t matrix = matrix_bytes(group, type);
  const std::byte* const row = head + which * matrix + t * row_bytes(group, type);
  const std::byte* const scales = head + 2 * matrix;
  switch (type) {
    case CacheType::f32:
      return load<float>(row + i * 4);
    case CacheType::int8:
      return static_cast<float>(load<std::int8_t>(row + i)) * load<float>(scales + (which * kPageSlots + t) * 4);
    case CacheType::fp8:
      return core::e4m3_to_float(load<std::uint8_t>(row + i)) * load<float>(scales + (which * kPageSlots + t) * 4);
    case CacheType::int4: {
      const auto range = load<std::uint32_t>(scales + (which == 0 ? i : padded(group.head_dim) + t) * 4);
      const int code = static_cast<int>(row[i / 2]) >> (i % 2 * 4) & 15;
      return static_cast<float>(code) * std::bit_cast<float>(range & 0xffff0000u) + std::bit_cast<float>(range << 16);
    }
    case CacheType::bf16:
      return core::bfloat_to_float(load<std::uint16_t>(row + i * 2));
    case CacheType::f16:
      break;
  }
  return core::half_to_float(load<std::uint16_t>(row + i * 2));
}

/// As the kernels choose it.
float scale_of(CacheType type, const float* x, std::int32_t n) {
  float most = 0.0f;
  for (std::int32_t i = 0; i < n; ++i) most = std::max(most, std::abs(x[i]));
  if (!(most >= 1e-30f)) return 0.0f;
  const auto bits =
      std::bit_cast<std::uint32_t>((most < 1e38f ? most : 1e38f) / (type == CacheType::fp8 ? 448.0f : 127.0f));
  return std::bit_cast<float>((bits + 0x7fu) & ~0x7fu);
}

/// The way back for a whole row // (head_dim), which has to be zero. Open pages are written in f32.
void write_row(const CacheGroup& group, CacheType type, std::byte* head, std::int64_t which, std::int64_t t,
               const float* x) {
  const std::int64_t matrix = matrix_bytes(group, type);
  std::byte* row = head + which * matrix + t * row_bytes(group, type);
  const auto put = [&](auto value) {
    std::memcpy(row, &value, sizeof value);
    row += sizeof value;
  };
  const float scale = has_scales(type) ? scale_of(type, x, group.head_dim) : 1.0f;
  const float inverse = scale > 0.0f ? 1.0f / scale : 0.0f;
  if (has_scales(type)) std::memcpy(head + 2 * matrix + (which * kPageSlots + t) * 4, &scale, sizeof scale);
  for (std::int32_t i = 0; i < group.head_dim; ++i) {
    if (type == CacheType::f32) {
      put(x[i]);
    } else if (type == CacheType::int8) {
      put(static_cast<std::int8_t>(std::clamp(std::nearbyint(x[i] * inverse), -127.0f, 127.0f)));
    } else if (type == CacheType::fp8) {
      put(core::float_to_e4m3(x[i] * inverse));
    } else if (type == CacheType::bf16) {
      put(core::float_to_bfloat(x[i]));
    } else {
      put(core::float_to_half(std::clamp(x[i], -65504.0f, 65504.0f)));
    }
  }
}

}  // namespace

std::int64_t cache_page_bytes(const CacheGroup& group, CacheType type) noexcept {
  return std::int64_t{group.layers} * group.kv_heads * head_bytes(group, type);
}

std::int64_t open_page_bytes(const CacheGroup& group, CacheType type) noexcept {
  return type == CacheType::int4 ? cache_page_bytes(group, CacheType::f32) : 0;
}

Result<std::unique_ptr<GpuCache>> GpuCache::make(const CacheGroup& group, CacheType type, std::int32_t pages,
                                                 std::int32_t resident, std::shared_ptr<Device> device,
                                                 std::shared_ptr<std::byte> host) {
  LLMINFER_TRY(backend::check_cache(group, type, pages, kMaxHeadDim));
  auto cache = std::make_unique<GpuCache>();
  cache->device_ = device;
  cache->group_ = group;
  cache->type_ = type;
  cache->pages_ = pages;
  cache->padded_dim_ = padded(group.head_dim);
  cache->page_bytes_ = cache_page_bytes(group, type);
  const auto bytes =
      core::checked_mul(static_cast<std::uint64_t>(cache->page_bytes_), static_cast<std::uint64_t>(pages));
  if (!bytes || *bytes > std::uint64_t{1} << 62) {
    return fail(ErrorCode::out_of_memory, "no memory for ", pages, " cache pages of ", cache->page_bytes_, " bytes");
  }
  if (resident < pages) {
    const PagerSize size{group.layers, pages, resident, cache->page_bytes_ / std::max(group.layers, 1)};
    cache->pager_ = LLMINFER_TRY(CachePager::make(device, size, std::move(host)));
  } else {
    cache->memory_ = LLMINFER_TRY(Buffer::make(device, static_cast<std::int64_t>(*bytes)));
    LLMINFER_TRY(device->clear(cache->memory_.at(), static_cast<std::int64_t>(*bytes)));
    LLMINFER_TRY(device->wait());
  }
  if (type == CacheType::int4) {
    const std::int64_t floats = open_page_bytes(group, type);
    const auto make = [device, floats]() -> Result<std::shared_ptr<void>> {
      const auto buffer = std::make_shared<Buffer>(LLMINFER_TRY(Buffer::make(device, floats)));
      return std::shared_ptr<void>(buffer, buffer->at());
    };
    cache->open_ = std::make_unique<backend::OpenPages>(pages, floats, make);
  }
  return cache;
}

CacheArgs GpuCache::layer(std::int32_t layer) const noexcept {
  CacheArgs args{};
  const std::int64_t head = std::int64_t{layer} * group_.kv_heads;
  args.head_bytes = head_bytes(group_, type_);
  if (pager_) {
    args.data = reinterpret_cast<unsigned char*>(pager_->blocks());
    args.page_bytes = pager_->size().block_bytes;
  } else {
    args.data = memory_.at<unsigned char>(head * args.head_bytes);
    args.page_bytes = page_bytes_;
  }
  args.value_offset = matrix_bytes(group_, type_);
  args.scale_offset = 2 * args.value_offset;
  args.open_offset = head * head_bytes(group_, CacheType::f32);
  args.element = element_of(type_);
  args.kv_heads = group_.kv_heads;
  args.head_dim = group_.head_dim;
  args.padded_dim = padded_dim_;
  return args;
}

Result<void> GpuCache::copy_tokens(CacheType type, std::byte* to, const std::byte* from, std::int32_t tokens) {
  const std::int64_t heads = std::int64_t{group_.layers} * group_.kv_heads, matrix = matrix_bytes(group_, type);
  const auto copy = [&](std::int64_t offset, std::int64_t bytes) {
    return device_->copy_pieces(to + offset, from + offset, tokens * bytes, head_bytes(group_, type), heads);
  };
  for (const std::int64_t which : {0, 1}) {
    LLMINFER_TRY(copy(which * matrix, row_bytes(group_, type)));
    if (has_scales(type)) LLMINFER_TRY(copy(2 * matrix + which * kPageSlots * 4, 4));
  }
  return {};
}

Result<void> GpuCache::copy_page(std::int32_t from, std::int32_t to, std::int32_t tokens) {
  return core::guarded([&]() -> Result<void> {
    LLMINFER_TRY(backend::check_copy(from, to, tokens, pages_));
    if (tokens == 0) return {};
    if (open_ && LLMINFER_TRY(backend::open_copy(*open_, from, to, tokens))) {
      LLMINFER_TRY(copy_tokens(CacheType::f32, open_->data<std::byte>(to), open_->data<std::byte>(from), tokens));
    }
    const bool whole = tokens == kPageTokens;
    if (pager_) {
      if (!open_ || whole) LLMINFER_TRY(pager_->copy_page(from, to));
      return device_->wait();
    }
    std::byte* const target = memory_.at(to * page_bytes_);
    const std::byte* const source = memory_.at(from * page_bytes_);
    if (!open_) {
      LLMINFER_TRY(copy_tokens(type_, target, source, tokens));
    } else if (whole) {
      LLMINFER_TRY(device_->copy(target, source, page_bytes_));
    }
    return device_->wait();
  });
}

std::int64_t GpuCache::canonical_page_bytes() const noexcept {
  return std::int64_t{group_.layers} * 2 * kPageTokens * group_.kv_heads * group_.head_dim *
         static_cast<std::int64_t>(sizeof(float));
}

template <class F>
void GpuCache::for_each_matrix(F f) const {
  const std::int64_t dim = group_.head_dim, matrix = std::int64_t{kPageTokens} * group_.kv_heads * dim;
  for (std::int64_t head = 0; head < std::int64_t{group_.layers} * group_.kv_heads; ++head) {
    for (const std::int64_t which : {0, 1}) {
      f(head, (head / group_.kv_heads * 2 + which) * matrix + head % group_.kv_heads * dim, which);
    }
  }
}

Result<std::byte*> GpuCache::staging(std::int64_t bytes) {
  if (staging_.bytes() < bytes) staging_ = LLMINFER_TRY(Buffer::make(device_, bytes, true));
  return staging_.at();
}

Result<void> GpuCache::export_page(std::int32_t page, std::span<std::byte> out) {
  return core::guarded([&]() -> Result<void> {
    LLMINFER_TRY(backend::check_transfer(page, pages_, out.size(), canonical_page_bytes(), "export_page"));
    const bool open = open_ && open_->is_open(page);
    const CacheType type = open ? CacheType::f32 : type_;
    const std::int64_t bytes = cache_page_bytes(group_, type);
    std::byte* const host = LLMINFER_TRY(staging(bytes));
    if (pager_ && !open) {
      LLMINFER_TRY(pager_->read(page, host));
    } else {
      LLMINFER_TRY(device_->copy(host, open ? open_->data<std::byte>(page) : memory_.at(page * page_bytes_), bytes));
      LLMINFER_TRY(device_->wait());
    }
    for_each_matrix([&](std::int64_t head, std::int64_t canonical, std::int64_t which) {
      const std::byte* const data = host + head * head_bytes(group_, type);
      for (std::int64_t t = 0; t < kPageTokens; ++t) {
        for (std::int64_t i = 0; i < group_.head_dim; ++i) {
          const float x = read_element(group_, type, data, which, t, i);
          std::memcpy(out.data() + (canonical + t * group_.kv_heads * group_.head_dim + i) * 4, &x, sizeof x);
        }
      }
    });
    return {};
  });
}

/// Whether a page of an int4 cache is full is not known: it becomes both.
Result<void> GpuCache::import_page(std::int32_t page, std::span<const std::byte> in) {
  return core::guarded([&]() -> Result<void> {
    LLMINFER_TRY(backend::check_transfer(page, pages_, in.size(), canonical_page_bytes(), "import_page"));
    if (open_) LLMINFER_TRY(open_->open(page));
    const CacheType type = open_ ? CacheType::f32 : type_;
    const std::int64_t bytes = cache_page_bytes(group_, type);
    std::byte* const host = LLMINFER_TRY(staging(std::max(bytes, page_bytes_)));
    std::memset(host, 0, static_cast<std::size_t>(bytes));
    std::vector<float> row(static_cast<std::size_t>(group_.head_dim));
    for_each_matrix([&](std::int64_t head, std::int64_t canonical, std::int64_t which) {
      std::byte* const data = host + head * head_bytes(group_, type);
      for (std::int64_t t = 0; t < kPageTokens; ++t) {
        std::memcpy(row.data(), in.data() + (canonical + t * group_.kv_heads * group_.head_dim) * 4, row.size() * 4);
        write_row(group_, type, data, which, t, row.data());
      }
    });
    if (pager_ && !open_) {
      pager_->write(page, host);
      return {};
    }
    std::byte* const to = open_ ? open_->data<std::byte>(page) : memory_.at(page * page_bytes_);
    LLMINFER_TRY(device_->copy(to, host, bytes));
    Buffer sealed;  // on its way to host memory
    if (pager_) sealed = LLMINFER_TRY(Buffer::make(device_, page_bytes_));
    for (std::int32_t l = 0; open_ && l < group_.layers; ++l) {
      SealArgs args{};
      args.cache = layer(l);
      args.task = {reinterpret_cast<std::uintptr_t>(to), page, 0};
      args.count = 1;
      if (pager_) {
        args.cache.data = sealed.at<unsigned char>(l * args.cache.page_bytes);
        args.task.page = 0;
      }
      const Current current(*device_);
      LLMINFER_TRY(device_->check(device_->kernels().seal(device_->stream(), args), "seal"));
    }
    if (pager_) LLMINFER_TRY(device_->copy(host, sealed.at(), page_bytes_));
    LLMINFER_TRY(device_->wait());
    if (pager_) pager_->write(page, host);
    return {};
  });
}

}  // namespace llminfer::gpu
