// What the trait structs share: unaligned little-endian loads, and the two ways from a decomposed block to values.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>

#include "core/half.hpp"
#include "quant/format.hpp"

namespace llminfer::quant {

static_assert(std::endian::native == std::endian::little, "weights are read as they lie in the file, little-endian");

template <class T>
T load_le(const std::uint8_t* bytes) noexcept {
  T value;
  std::memcpy(&value, bytes, sizeof value);
  return value;
}

inline float load_half(const std::uint8_t* bytes) noexcept {
  return core::half_to_float(load_le<std::uint16_t>(bytes));
}

/// unpack() of a format that is wholly described by its decompose(): the formula of GroupedShape. Each product has at
/// most 24 significant bits in every format but Q6_K, so contraction to a fused multiply-add can't change a value.
template <class Format>
void unpack_grouped(const std::uint8_t* block, float* out) noexcept {
  const GroupedShape shape = Format::shape;
  GroupedBlock b;
  Format::decompose(block, b);
  for (int i = 0; i < Format::block_values; ++i) {
    const int code = b.code[i];
    const int integer = shape.table ? shape.table[code] : code - shape.zero;
    const float product = b.scale[i / shape.group] * static_cast<float>(integer);
    out[i] = shape.minimum ? product - b.minimum[i / shape.group] : product;
  }
}

/// scale and minimum of a two-level block from d, d_min and the sub-scales.
template <class Format>
void combine_levels(GroupedBlock& b) noexcept {
  for (int g = 0; g < Format::block_values / Format::shape.group; ++g) {
    b.scale[g] = b.d * static_cast<float>(b.sub_scale[g]);
    if (Format::shape.minimum) b.minimum[g] = b.d_min * static_cast<float>(b.sub_minimum[g]);
  }
}

/// 16 bytes of nibbles: the low ones are values 0–15, the high ones 16–31.
inline void unpack_nibbles(const std::uint8_t* bytes, std::uint8_t* code) noexcept {
  for (int i = 0; i < 16; ++i) {
    code[i] = bytes[i] & 15;
    code[i + 16] = bytes[i] >> 4;
  }
}

/// code[i] = Width bits of bytes[i] from bit Shift on. Loops this plain become vector instructions; loading a model is
/// mostly these.
template <int Width, int Shift, int Count>
inline void take_bits(const std::uint8_t* bytes, std::uint8_t* code) noexcept {
  for (int i = 0; i < Count; ++i) code[i] = (bytes[i] >> Shift) & ((1 << Width) - 1);
}

/// 64 bytes of bit pairs: each run of 32 bytes holds 128 values, the lowest pairs first.
inline void unpack_pairs(const std::uint8_t* bytes, std::uint8_t* code) noexcept {
  for (int run = 0; run < 2; ++run, bytes += 32, code += 128) {
    take_bits<2, 0, 32>(bytes, code);
    take_bits<2, 2, 32>(bytes, code + 32);
    take_bits<2, 4, 32>(bytes, code + 64);
    take_bits<2, 6, 32>(bytes, code + 96);
  }
}

}  // namespace llminfer::quant
