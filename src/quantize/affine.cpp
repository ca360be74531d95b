#include "quantize/affine.hpp"

#include <algorithm>
#include <cmath>

#include "core/half.hpp"
#include "load/packing.hpp"

namespace llminfer::quantize {
namespace {

std::uint16_t bits_of(AffineScheme::Scales type, float scale) {
  return type == AffineScheme::Scales::f16 ? core::float_to_half(scale) : core::float_to_bfloat(scale);
}

float as_stored(AffineScheme::Scales type, float scale) {
  constexpr float kLeast = 0x1p-24f, kMost = 65504.0f;  // of F16
  if (type == AffineScheme::Scales::bf16) return core::bfloat_to_float(core::float_to_bfloat(scale));
  return core::half_to_float(core::float_to_half(std::clamp(scale, kLeast, kMost)));
}

/// Packs `count` numbers of `bits` bits into words: one stream of bits, the first in the lowest ones.
template <class Number>
void pack(Words& words, std::int64_t count, int bits, const Number& number) {
  std::uint64_t stream = 0;
  int filled = 0;
  for (std::int64_t i = 0; i < count; ++i) {
    stream |= static_cast<std::uint64_t>(number(i)) << filled;
    filled += bits;
    if (filled < 32) continue;
    words.push_back(static_cast<std::uint32_t>(stream));
    stream >>= 32;
    filled -= 32;
  }
  if (filled > 0) words.push_back(static_cast<std::uint32_t>(stream));
}

constexpr int kAwqOrder[8] = {0, 2, 4, 6, 1, 3, 5, 7};  // nibble i of a word holds this of its 8 columns

std::uint8_t code_at(const AffineWeight& w, std::int64_t row, std::int64_t col) {
  return w.codes[static_cast<std::size_t>(row * w.cols + col)];
}

}  // namespace

std::uint8_t AffineGroup::code(float value, int top) const noexcept {
  return static_cast<std::uint8_t>(
      std::clamp(std::nearbyintf(value / scale) + static_cast<float>(zero), 0.0f, static_cast<float>(top)));
}

AffineGroup choose_group(const AffineScheme& scheme, const float* values, std::int64_t count, float shrink) {
  float min = 0, max = 0;
  for (std::int64_t i = 0; i < count; ++i) {
    min = std::min(min, values[i]);
    max = std::max(max, values[i]);
  }
  if (scheme.symmetric) {
    max = std::max(-min, max);
    min = -max;
  }
  AffineGroup group;
  const auto top = static_cast<float>(scheme.top());
  // A group of zeros needs some scale.
  group.scale = as_stored(scheme.scales, max > min ? (max - min) * shrink / top : 1.0f);
  group.zero = scheme.symmetric ? scheme.center()
                                : static_cast<int>(std::clamp(std::nearbyintf(-min * shrink / group.scale), 0.0f, top));
  return group;
}

AffineWeight::AffineWeight(const AffineScheme& s, std::int64_t r, std::int64_t c)
    : scheme(s),
      rows(r),
      cols(c),
      codes(static_cast<std::size_t>(r * c)),
      groups(static_cast<std::size_t>(r * (c / s.group_size))) {}

void AffineWeight::unpack_row(std::int64_t row, float* out) const {
  const std::uint8_t* from = codes.data() + row * cols;
  for (std::int64_t k = 0; k < cols; ++k) {
    const std::int64_t g = group_of.empty() ? k / scheme.group_size : group_of[static_cast<std::size_t>(k)];
    out[k] = group(row, g).value(from[k]);
  }
}

void round_row(AffineWeight& weight, std::int64_t row, const float* values, std::span<const float> shrink) {
  const std::int64_t size = weight.scheme.group_size;
  std::uint8_t* code = weight.codes.data() + row * weight.cols;
  for (std::int64_t g = 0; g < weight.groups_of_row(); ++g, values += size, code += size) {
    AffineGroup& group = weight.group(row, g);
    group = choose_group(weight.scheme, values, size, shrink.empty() ? 1.0f : shrink[static_cast<std::size_t>(g)]);
    for (std::int64_t i = 0; i < size; ++i) code[i] = group.code(values[i], weight.scheme.top());
  }
}

Words gptq_qweight(const AffineWeight& w) {
  return load::transposed(ct_packed(w), w.rows, w.cols * w.scheme.bits / 32);
}

Words gptq_qzeros(const AffineWeight& w, bool minus_one) {
  Words words;
  for (std::int64_t g = 0; g < w.groups_of_row(); ++g) {
    pack(words, w.rows, w.scheme.bits,
         [&](std::int64_t n) { return w.group(n, g).zero - static_cast<int>(minus_one); });
  }
  return words;
}

Halves gptq_scales(const AffineWeight& w) {
  Halves scales;
  for (std::int64_t g = 0; g < w.groups_of_row(); ++g) {
    for (std::int64_t n = 0; n < w.rows; ++n) scales.push_back(bits_of(w.scheme.scales, w.group(n, g).scale));
  }
  return scales;
}

Words awq_qweight(const AffineWeight& w) {
  Words words;
  for (std::int64_t k = 0; k < w.cols; ++k) {
    pack(words, w.rows, 4, [&](std::int64_t i) { return code_at(w, i - i % 8 + kAwqOrder[i % 8], k); });
  }
  return words;
}

Words awq_qzeros(const AffineWeight& w) {
  Words words;
  for (std::int64_t g = 0; g < w.groups_of_row(); ++g) {
    pack(words, w.rows, 4, [&](std::int64_t i) { return w.group(i - i % 8 + kAwqOrder[i % 8], g).zero; });
  }
  return words;
}

// The format stores signed numbers plus the center, which is what codes and zero points are here.
Words ct_packed(const AffineWeight& w) {
  Words words;
  for (std::int64_t n = 0; n < w.rows; ++n) {
    pack(words, w.cols, w.scheme.bits, [&](std::int64_t k) { return code_at(w, n, k); });
  }
  return words;
}

Words ct_zero_points(const AffineWeight& w) {
  const std::int64_t per_word = 32 / w.scheme.bits;
  Words words;
  for (std::int64_t first = 0; first < w.rows; first += per_word) {
    for (std::int64_t g = 0; g < w.groups_of_row(); ++g) {
      pack(words, std::min(per_word, w.rows - first), w.scheme.bits,
           [&](std::int64_t j) { return w.group(first + j, g).zero; });
    }
  }
  return words;
}

Halves ct_scales(const AffineWeight& w) {
  Halves scales;
  for (const AffineGroup& group : w.groups) scales.push_back(bits_of(w.scheme.scales, group.scale));
  return scales;
}

std::vector<std::int8_t> ct_int8(const AffineWeight& w) {
  std::vector<std::int8_t> values;
  for (const std::uint8_t code : w.codes) values.push_back(static_cast<std::int8_t>(code - w.scheme.center()));
  return values;
}

}  // namespace llminfer::quantize
