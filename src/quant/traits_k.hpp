// Q2_K … Q6_K: super-blocks of 256 values; a half-precision super-scale (and super-minimum) times an integer sub-scale
// (and sub-minimum) for each group of 16 or 32.
#pragma once

#include "quant/traits_base.hpp"

namespace llminfer::quant {

/// Scales and minimums of a block whose super-scale lies at Format::d_at, before the super-minimum.
template <class Format>
void unpack_levels(const std::uint8_t* block, GroupedBlock& out) noexcept {
  Format::sub_levels(block, out);
  out.d = load_half(block + Format::d_at);
  if constexpr (Format::shape.minimum) out.d_min = load_half(block + Format::d_at + 2);
  combine_levels<Format>(out);
}

/// 32 bytes of one more bit of 256 values, to become bit `Bit` of their codes: bit r of byte i belongs to value 32 r +
/// i.
template <int Bit>
inline void add_high_bits(const std::uint8_t* bytes, std::uint8_t* code) noexcept {
  for (int run = 0; run < 8; ++run, code += 32) {
    const auto mask = static_cast<std::uint8_t>(1 << run);
    for (int i = 0; i < 32; ++i) code[i] |= static_cast<std::uint8_t>((bytes[i] & mask) != 0 ? 1 << Bit : 0);
  }
}

struct Q2_K {  // 16 x (4-bit scale, 4-bit minimum) | 64 bytes of pairs | d | d_min
  static constexpr WeightType type = WeightType::q2_k;
  static constexpr const char* name = "Q2_K";
  static constexpr int block_values = 256;
  static constexpr int block_bytes = 84;
  static constexpr int d_at = 80;
  static constexpr GroupedShape shape{.bits = 2, .group = 16, .minimum = true, .scales = ScaleKind::two_level};
  static void unpack(const std::uint8_t* block, float* out) noexcept { unpack_grouped<Q2_K>(block, out); }
  static void sub_levels(const std::uint8_t* block, GroupedBlock& out) noexcept {
    for (int g = 0; g < 16; ++g) {
      out.sub_scale[g] = static_cast<std::int8_t>(block[g] & 15);
      out.sub_minimum[g] = block[g] >> 4;
    }
  }
  static void decompose(const std::uint8_t* block, GroupedBlock& out) noexcept {
    unpack_levels<Q2_K>(block, out);
    unpack_pairs(block + 16, out.code);
  }
};

struct Q3_K {  // 32 bytes of high bits | 64 bytes of pairs | 12 bytes of 6-bit scales | d
  static constexpr WeightType type = WeightType::q3_k;
  static constexpr const char* name = "Q3_K";
  static constexpr int block_values = 256;
  static constexpr int block_bytes = 110;
  static constexpr int d_at = 108;
  static constexpr GroupedShape shape{.bits = 3, .group = 16, .zero = 4, .scales = ScaleKind::two_level};
  static void unpack(const std::uint8_t* block, float* out) noexcept { unpack_grouped<Q3_K>(block, out); }
  static void sub_levels(const std::uint8_t* block, GroupedBlock& out) noexcept {
    // Scale g: four low bits in the nibbles of bytes 0–7, two high bits in the pairs of bytes 8–11; stored plus 32.
    const std::uint8_t* packed = block + 96;
    for (int g = 0; g < 16; ++g) {
      const int low = (packed[g % 8] >> (g / 8 * 4)) & 15;
      const int high = (packed[8 + g % 4] >> (g / 4 * 2)) & 3;
      out.sub_scale[g] = static_cast<std::int8_t>((low | high << 4) - 32);
    }
  }
  static void decompose(const std::uint8_t* block, GroupedBlock& out) noexcept {
    unpack_levels<Q3_K>(block, out);
    unpack_pairs(block + 32, out.code);
    add_high_bits<2>(block, out.code);
  }
};

/// The eight 6-bit scales and minima that Q4_K and Q5_K pack into 12 bytes: groups 0–3 in the low bits of bytes 0–3
/// (scales) and 4–7 (minima); groups 4–7 with their low nibbles in bytes 8–11 and their two high bits on top of bytes
/// 0–7.
inline void unpack_k_scales(const std::uint8_t* packed, GroupedBlock& out) noexcept {
  for (int g = 0; g < 4; ++g) {
    out.sub_scale[g] = static_cast<std::int8_t>(packed[g] & 63);
    out.sub_minimum[g] = packed[4 + g] & 63;
    out.sub_scale[4 + g] = static_cast<std::int8_t>((packed[8 + g] & 15) | (packed[g] >> 6) << 4);
    out.sub_minimum[4 + g] = static_cast<std::uint8_t>((packed[8 + g] >> 4) | (packed[4 + g] >> 6) << 4);
  }
}

/// 128 bytes of nibbles: each run of 32 bytes holds 64 values, the low nibbles first.
inline void unpack_k_nibbles(const std::uint8_t* bytes, std::uint8_t* code) noexcept {
  for (int run = 0; run < 4; ++run, bytes += 32, code += 64) {
    take_bits<4, 0, 32>(bytes, code);
    take_bits<4, 4, 32>(bytes, code + 32);
  }
}

struct Q4_K {  // d | d_min | 12 bytes of scales and minima | nibbles
  static constexpr WeightType type = WeightType::q4_k;
  static constexpr const char* name = "Q4_K";
  static constexpr int block_values = 256;
  static constexpr int block_bytes = 144;
  static constexpr int d_at = 0;
  static constexpr GroupedShape shape{.bits = 4, .group = 32, .minimum = true, .scales = ScaleKind::two_level};
  static void unpack(const std::uint8_t* block, float* out) noexcept { unpack_grouped<Q4_K>(block, out); }
  static void sub_levels(const std::uint8_t* block, GroupedBlock& out) noexcept { unpack_k_scales(block + 4, out); }
  static void decompose(const std::uint8_t* block, GroupedBlock& out) noexcept {
    unpack_levels<Q4_K>(block, out);
    unpack_k_nibbles(block + 16, out.code);
  }
};

struct Q5_K {  // d | d_min | 12 bytes of scales and minima | 32 bytes of high bits | nibbles
  static constexpr WeightType type = WeightType::q5_k;
  static constexpr const char* name = "Q5_K";
  static constexpr int block_values = 256;
  static constexpr int block_bytes = 176;
  static constexpr int d_at = 0;
  static constexpr GroupedShape shape{.bits = 5, .group = 32, .minimum = true, .scales = ScaleKind::two_level};
  static void unpack(const std::uint8_t* block, float* out) noexcept { unpack_grouped<Q5_K>(block, out); }
  static void sub_levels(const std::uint8_t* block, GroupedBlock& out) noexcept { unpack_k_scales(block + 4, out); }
  static void decompose(const std::uint8_t* block, GroupedBlock& out) noexcept {
    unpack_levels<Q5_K>(block, out);
    unpack_k_nibbles(block + 48, out.code);
    add_high_bits<4>(block + 16, out.code);
  }
};

struct Q6_K {  // 128 bytes of nibbles | 64 bytes of high pairs | 16 signed scales | d
  static constexpr WeightType type = WeightType::q6_k;
  static constexpr const char* name = "Q6_K";
  static constexpr int block_values = 256;
  static constexpr int block_bytes = 210;
  static constexpr int d_at = 208;
  static constexpr GroupedShape shape{.bits = 6, .group = 16, .zero = 32, .scales = ScaleKind::two_level};
  static void unpack(const std::uint8_t* block, float* out) noexcept { unpack_grouped<Q6_K>(block, out); }
  static void sub_levels(const std::uint8_t* block, GroupedBlock& out) noexcept {
    for (int g = 0; g < 16; ++g) out.sub_scale[g] = static_cast<std::int8_t>(block[192 + g]);
  }
  static void decompose(const std::uint8_t* block, GroupedBlock& out) noexcept {
    unpack_levels<Q6_K>(block, out);
    unpack_pairs(block + 128, out.code);
    for (int run = 0; run < 2; ++run) {
      std::uint8_t low[128];
      take_bits<4, 0, 64>(block + run * 64, low);
      take_bits<4, 4, 64>(block + run * 64, low + 64);
      std::uint8_t* const code = out.code + run * 128;
      for (int i = 0; i < 128; ++i) code[i] = static_cast<std::uint8_t>(low[i] | code[i] << 4);
    }
  }
};

}  // namespace llminfer::quant
