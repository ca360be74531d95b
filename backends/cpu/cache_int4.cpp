// What CpuCache does with open and sealed pages.
#include <algorithm>
#include <bit>
#include <cstring>
#include <vector>

#include "backends/cpu/cache.hpp"
#include "backends/cpu/elementwise.hpp"
#include "core/error.hpp"

namespace llminfer::cpu {

void unpack_int4(const Int4Layout& layout, const std::uint8_t* in, float* keys, float* values) {
  const auto unpack = [&](std::int64_t codes, std::int64_t ranges, std::int32_t count, std::int32_t cols, float* x) {
    const auto* const words = reinterpret_cast<const std::uint16_t*>(in + codes);
    for (std::int32_t k = 0; k < count; ++k) {
      std::uint32_t range = 0;
      std::memcpy(&range, in + ranges + k * 4, sizeof range);
      const auto scale = std::bit_cast<float>(range & 0xffff0000u), minimum = std::bit_cast<float>(range << 16);
      for (std::int32_t i = 0; i < cols; ++i) {
        const int code = words[(k / 8 * cols + i) * 2 + k % 2] >> (k / 2 % 4 * 4) & 15;
        *x++ = static_cast<float>(code) * scale + minimum;
      }
    }
  };
  unpack(0, layout.key_ranges, layout.head_dim, kPageSlots, keys);
  unpack(layout.values, layout.value_ranges, kPageSlots, layout.padded_dim, values);
}

AttentionPages CpuCache::open_head(std::int32_t page, std::int32_t layer, std::int32_t kv_head) const noexcept {
  const Int4Layout layout(group_.head_dim);
  AttentionPages pages{};
  pages.data = reinterpret_cast<std::byte*>(open_->data<float>(page) +
                                            (std::int64_t{layer} * group_.kv_heads + kv_head) * layout.floats());
  pages.value_offset = layout.float_keys() * static_cast<std::int64_t>(sizeof(float));
  pages.head_dim = group_.head_dim;
  pages.padded_dim = padded_dim_;
  pages.element = CacheElement::f32;
  return pages;
}

Result<void> CpuCache::copy_open(std::int32_t from, std::int32_t to, std::int32_t tokens) {
  if (!LLMINFER_TRY(backend::open_copy(*open_, from, to, tokens))) return {};
  const Int4Layout layout(group_.head_dim);
  const auto heads = std::int64_t{group_.layers} * group_.kv_heads;
  for (std::int64_t head = 0; head < heads; ++head) {
    const float* const source = open_->data<float>(from) + head * layout.floats();
    float* const target = open_->data<float>(to) + head * layout.floats();
    for (std::int64_t i = 0; i < layout.float_keys(); i += kPageSlots) std::copy_n(source + i, tokens, target + i);
    std::copy_n(source + layout.float_keys(), std::int64_t{tokens} * padded_dim_, target + layout.float_keys());
  }
  return {};
}

/// Keys and values of a page and of `heads` heads in the canonical layout: calls f(canonical index, index of the float
/// in the page's layout) for each element of a head.
template <class F>
static void for_each_element(const Int4Layout& layout, std::int64_t kv_heads, std::int64_t layer, std::int64_t kv_head,
                             const F& f) {
  const std::int64_t dim = layout.head_dim, matrix = std::int64_t{kPageSlots} * kv_heads * dim;
  for (std::int64_t t = 0; t < kPageSlots; ++t) {
    const std::int64_t at = layer * 2 * matrix + (t * kv_heads + kv_head) * dim;
    for (std::int64_t i = 0; i < dim; ++i) {
      f(at + i, i * kPageSlots + t);
      f(at + matrix + i, layout.float_keys() + t * layout.padded_dim + i);
    }
  }
}

void CpuCache::export_int4(std::int32_t page, std::span<std::byte> out) const {
  const Int4Layout layout(group_.head_dim);
  std::vector<float> floats(static_cast<std::size_t>(layout.floats()));
  for (std::int32_t layer = 0; layer < group_.layers; ++layer) {
    for (std::int32_t h = 0; h < group_.kv_heads; ++h) {
      const float* from = floats.data();
      if (open_->is_open(page)) {
        from = reinterpret_cast<const float*>(open_head(page, layer, h).data);
      } else {
        unpack_int4(layout, sealed_head(page, layer, h), floats.data(), floats.data() + layout.float_keys());
      }
      for_each_element(layout, group_.kv_heads, layer, h, [&](std::int64_t canonical, std::int64_t index) {
        std::memcpy(out.data() + canonical * 4, from + index, sizeof(float));
      });
    }
  }
}

/// Whether the page is full is not known: it becomes both.
Result<void> CpuCache::import_int4(std::int32_t page, std::span<const std::byte> in) {
  const Int4Layout layout(group_.head_dim);
  LLMINFER_TRY(open_->open(page));
  for (std::int32_t layer = 0; layer < group_.layers; ++layer) {
    for (std::int32_t h = 0; h < group_.kv_heads; ++h) {
      auto* const to = reinterpret_cast<float*>(open_head(page, layer, h).data);
      std::fill_n(to, layout.floats(), 0.0f);
      for_each_element(layout, group_.kv_heads, layer, h, [&](std::int64_t canonical, std::int64_t index) {
        std::memcpy(to + index, in.data() + canonical * 4, sizeof(float));
      });
      isa_scalar::elementwise_kernels().pack_int4(layout, to, to + layout.float_keys(), sealed_head(page, layer, h));
    }
  }
  return {};
}

}  // namespace llminfer::cpu
