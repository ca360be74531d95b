// Q4_0, Q4_1, Q5_0, Q5_1, Q8_0: 32 integers with one half-precision scale, and a half-precision offset in the "_1"
// forms.
#pragma once

#include "quant/traits_base.hpp"

namespace llminfer::quant {

struct Q4_0 {  // d | 16 bytes of nibbles
  static constexpr WeightType type = WeightType::q4_0;
  static constexpr const char* name = "Q4_0";
  static constexpr int block_values = 32;
  static constexpr int block_bytes = 18;
  static constexpr GroupedShape shape{.bits = 4, .group = 32, .zero = 8};
  static void unpack(const std::uint8_t* block, float* out) noexcept { unpack_grouped<Q4_0>(block, out); }
  static void decompose(const std::uint8_t* block, GroupedBlock& out) noexcept {
    out.scale[0] = load_half(block);
    unpack_nibbles(block + 2, out.code);
  }
};

struct Q4_1 {  // d | m | nibbles; value = d * q + m
  static constexpr WeightType type = WeightType::q4_1;
  static constexpr const char* name = "Q4_1";
  static constexpr int block_values = 32;
  static constexpr int block_bytes = 20;
  static constexpr GroupedShape shape{.bits = 4, .group = 32, .minimum = true};
  static void unpack(const std::uint8_t* block, float* out) noexcept { unpack_grouped<Q4_1>(block, out); }
  static void decompose(const std::uint8_t* block, GroupedBlock& out) noexcept {
    out.scale[0] = load_half(block);
    out.minimum[0] = -load_half(block + 2);
    unpack_nibbles(block + 4, out.code);
  }
};

/// Bit j of a number below 16 as byte j: the product has it at bit 8 j.
inline std::uint32_t bits_to_bytes(std::uint32_t four) noexcept { return four * 0x00204081u & 0x01010101u; }

/// Adds the fifth bit of 32 codes: bit i of a little-endian word.
inline void add_fifth_bits(const std::uint8_t* bytes, std::uint8_t* code) noexcept {
  const auto high = load_le<std::uint32_t>(bytes);
  for (int i = 0; i < 32; i += 4) {
    const std::uint32_t bits = bits_to_bytes(high >> i & 15);
    const std::uint32_t four = load_le<std::uint32_t>(code + i) | bits << 4;
    std::memcpy(code + i, &four, sizeof four);
  }
}

struct Q5_0 {  // d | 32 high bits | nibbles
  static constexpr WeightType type = WeightType::q5_0;
  static constexpr const char* name = "Q5_0";
  static constexpr int block_values = 32;
  static constexpr int block_bytes = 22;
  static constexpr GroupedShape shape{.bits = 5, .group = 32, .zero = 16};
  static void unpack(const std::uint8_t* block, float* out) noexcept { unpack_grouped<Q5_0>(block, out); }
  static void decompose(const std::uint8_t* block, GroupedBlock& out) noexcept {
    out.scale[0] = load_half(block);
    unpack_nibbles(block + 6, out.code);
    add_fifth_bits(block + 2, out.code);
  }
};

struct Q5_1 {  // d | m | 32 high bits | nibbles
  static constexpr WeightType type = WeightType::q5_1;
  static constexpr const char* name = "Q5_1";
  static constexpr int block_values = 32;
  static constexpr int block_bytes = 24;
  static constexpr GroupedShape shape{.bits = 5, .group = 32, .minimum = true};
  static void unpack(const std::uint8_t* block, float* out) noexcept { unpack_grouped<Q5_1>(block, out); }
  static void decompose(const std::uint8_t* block, GroupedBlock& out) noexcept {
    out.scale[0] = load_half(block);
    out.minimum[0] = -load_half(block + 2);
    unpack_nibbles(block + 8, out.code);
    add_fifth_bits(block + 4, out.code);
  }
};

struct Q8_0 {  // d | 32 signed bytes
  static constexpr WeightType type = WeightType::q8_0;
  static constexpr const char* name = "Q8_0";
  static constexpr int block_values = 32;
  static constexpr int block_bytes = 34;
  static constexpr GroupedShape shape{.bits = 8, .group = 32, .zero = 128};
  static void unpack(const std::uint8_t* block, float* out) noexcept { unpack_grouped<Q8_0>(block, out); }
  static void decompose(const std::uint8_t* block, GroupedBlock& out) noexcept {
    out.scale[0] = load_half(block);
    for (int i = 0; i < 32; ++i) out.code[i] = block[2 + i] ^ 0x80;  // two's complement to offset 128
  }
};

}  // namespace llminfer::quant
