// IQ1, IQ2, IQ3: vectors of 8 or 4 magnitudes out of a grid (iq_grids.hpp), with signs, integer sub-scales and one d.
//
// A signed grid value fits in a byte, so these formats decompose to 8-bit codes with zero = 128. Their sub-scales are
// odd numbers (2s + 1) over 8 or 4; the power of two goes into d, which is then a half-precision number times 1/8 or
// 1/4.
#pragma once

#include "quant/iq_grids.hpp"
#include "quant/traits_base.hpp"

namespace llminfer::quant {

/// Sign bits of 8 values from 7: the eighth makes their number even.
inline unsigned even_signs(unsigned seven_bits) noexcept {
  return seven_bits | (static_cast<unsigned>(std::popcount(seven_bits)) & 1u) << 7;
}

inline constexpr std::uint8_t kIq2Magnitudes[4] = {8, 25, 43, 0};
inline constexpr std::uint8_t kIq3XxsMagnitudes[8] = {4, 12, 20, 28, 36, 44, 52, 62};
inline constexpr std::uint8_t kIq3SMagnitudes[8] = {1, 3, 5, 7, 9, 11, 13, 15};

inline std::uint8_t signed_code(int magnitude, unsigned negative) noexcept {
  return static_cast<std::uint8_t>(negative ? 128 - magnitude : 128 + magnitude);
}

/// Eight codes from one vector of an IQ2 grid.
inline void iq2_codes(std::uint16_t vector, unsigned signs, std::uint8_t* code) noexcept {
  for (int i = 0; i < 8; ++i) code[i] = signed_code(kIq2Magnitudes[(vector >> (2 * i)) & 3], (signs >> i) & 1);
}

/// Four codes from one vector of an IQ3 grid.
inline void iq3_codes(std::uint16_t vector, const std::uint8_t* magnitudes, unsigned signs,
                      std::uint8_t* code) noexcept {
  for (int i = 0; i < 4; ++i) code[i] = signed_code(magnitudes[(vector >> (4 * i)) & 7], (signs >> i) & 1);
}

/// Eight codes from one vector of the IQ1 grid: (g + delta) * 8 with g in {-1, 0, 1} and delta = ±1/8.
inline void iq1_codes(std::uint16_t vector, bool negative_delta, std::uint8_t* code) noexcept {
  for (int i = 0; i < 8; ++i) {
    const int digit = (vector >> (2 * i)) & 3;
    code[i] = static_cast<std::uint8_t>(128 + 8 * (digit - 1) + (negative_delta ? -1 : 1));
  }
}

inline std::int8_t odd(unsigned scale) noexcept { return static_cast<std::int8_t>(2 * scale + 1); }

struct IQ2_XXS {  // d | 8 x (4 grid bytes, word of four 7-bit signs and a 4-bit scale)
  static constexpr WeightType type = WeightType::iq2_xxs;
  static constexpr const char* name = "IQ2_XXS";
  static constexpr int block_values = 256;
  static constexpr int block_bytes = 66;
  static constexpr GroupedShape shape{
      .bits = 8, .group = 32, .zero = 128, .scales = ScaleKind::two_level, .half_scales = false};
  static void unpack(const std::uint8_t* block, float* out) noexcept { unpack_grouped<IQ2_XXS>(block, out); }
  static void decompose(const std::uint8_t* block, GroupedBlock& out) noexcept {
    out.d = load_half(block) * 0.125f;
    for (int g = 0; g < 8; ++g) {
      const std::uint8_t* index = block + 2 + 8 * g;
      const auto word = load_le<std::uint32_t>(index + 4);
      out.sub_scale[g] = odd(word >> 28);
      for (int k = 0; k < 4; ++k) {
        iq2_codes(kIq2XxsGrid[index[k]], even_signs((word >> (7 * k)) & 127), out.code + 32 * g + 8 * k);
      }
    }
    combine_levels<IQ2_XXS>(out);
  }
};

struct IQ2_XS {  // d | 32 x (9-bit index, 7-bit signs) | 16 scale nibbles
  static constexpr WeightType type = WeightType::iq2_xs;
  static constexpr const char* name = "IQ2_XS";
  static constexpr int block_values = 256;
  static constexpr int block_bytes = 74;
  static constexpr GroupedShape shape{
      .bits = 8, .group = 16, .zero = 128, .scales = ScaleKind::two_level, .half_scales = false};
  static void unpack(const std::uint8_t* block, float* out) noexcept { unpack_grouped<IQ2_XS>(block, out); }
  static void decompose(const std::uint8_t* block, GroupedBlock& out) noexcept {
    out.d = load_half(block) * 0.125f;
    for (int v = 0; v < 32; ++v) {
      const unsigned packed = load_le<std::uint16_t>(block + 2 + 2 * v);
      iq2_codes(kIq2XsGrid[packed & 511], even_signs(packed >> 9), out.code + 8 * v);
    }
    for (int g = 0; g < 16; ++g) out.sub_scale[g] = odd((block[66 + g / 2] >> (g % 2 * 4)) & 15);
    combine_levels<IQ2_XS>(out);
  }
};

struct IQ2_S {  // d | 32 low index bytes | 32 sign bytes | 32 pairs of high index bits | 16 scale nibbles
  static constexpr WeightType type = WeightType::iq2_s;
  static constexpr const char* name = "IQ2_S";
  static constexpr int block_values = 256;
  static constexpr int block_bytes = 82;
  static constexpr GroupedShape shape{
      .bits = 8, .group = 16, .zero = 128, .scales = ScaleKind::two_level, .half_scales = false};
  static void unpack(const std::uint8_t* block, float* out) noexcept { unpack_grouped<IQ2_S>(block, out); }
  static void decompose(const std::uint8_t* block, GroupedBlock& out) noexcept {
    out.d = load_half(block) * 0.125f;
    for (int v = 0; v < 32; ++v) {
      const int high = (block[66 + v / 4] >> (v % 4 * 2)) & 3;
      iq2_codes(kIq2SGrid[block[2 + v] | high << 8], block[34 + v], out.code + 8 * v);
    }
    for (int g = 0; g < 16; ++g) out.sub_scale[g] = odd((block[74 + g / 2] >> (g % 2 * 4)) & 15);
    combine_levels<IQ2_S>(out);
  }
};

struct IQ3_XXS {  // d | 64 grid bytes | 8 words of four 7-bit signs and a 4-bit scale
  static constexpr WeightType type = WeightType::iq3_xxs;
  static constexpr const char* name = "IQ3_XXS";
  static constexpr int block_values = 256;
  static constexpr int block_bytes = 98;
  static constexpr GroupedShape shape{
      .bits = 8, .group = 32, .zero = 128, .scales = ScaleKind::two_level, .half_scales = false};
  static void unpack(const std::uint8_t* block, float* out) noexcept { unpack_grouped<IQ3_XXS>(block, out); }
  static void decompose(const std::uint8_t* block, GroupedBlock& out) noexcept {
    out.d = load_half(block) * 0.25f;
    for (int g = 0; g < 8; ++g) {
      const auto word = load_le<std::uint32_t>(block + 66 + 4 * g);
      out.sub_scale[g] = odd(word >> 28);
      for (int k = 0; k < 8; ++k) {
        const unsigned signs = even_signs((word >> (k / 2 * 7)) & 127) >> (k % 2 * 4);
        iq3_codes(kIq3XxsGrid[block[2 + 8 * g + k]], kIq3XxsMagnitudes, signs, out.code + 32 * g + 4 * k);
      }
    }
    combine_levels<IQ3_XXS>(out);
  }
};

struct IQ3_S {  // d | 64 low index bytes | 64 high index bits | 32 sign bytes | 8 scale nibbles
  static constexpr WeightType type = WeightType::iq3_s;
  static constexpr const char* name = "IQ3_S";
  static constexpr int block_values = 256;
  static constexpr int block_bytes = 110;
  static constexpr GroupedShape shape{.bits = 8, .group = 32, .zero = 128, .scales = ScaleKind::two_level};
  static void unpack(const std::uint8_t* block, float* out) noexcept { unpack_grouped<IQ3_S>(block, out); }
  static void decompose(const std::uint8_t* block, GroupedBlock& out) noexcept {
    out.d = load_half(block);
    for (int v = 0; v < 64; ++v) {
      const int high = (block[66 + v / 8] >> (v % 8)) & 1;
      const unsigned signs = block[74 + v / 2] >> (v % 2 * 4);
      iq3_codes(kIq3SGrid[block[2 + v] | high << 8], kIq3SMagnitudes, signs, out.code + 4 * v);
    }
    for (int g = 0; g < 8; ++g) out.sub_scale[g] = odd((block[106 + g / 2] >> (g % 2 * 4)) & 15);
    combine_levels<IQ3_S>(out);
  }
};

struct IQ1_S {  // d | 32 low index bytes | 8 x (four 3-bit high index parts, 3-bit scale, sign of delta)
  static constexpr WeightType type = WeightType::iq1_s;
  static constexpr const char* name = "IQ1_S";
  static constexpr int block_values = 256;
  static constexpr int block_bytes = 50;
  static constexpr GroupedShape shape{
      .bits = 8, .group = 32, .zero = 128, .scales = ScaleKind::two_level, .half_scales = false};
  static void unpack(const std::uint8_t* block, float* out) noexcept { unpack_grouped<IQ1_S>(block, out); }
  static void decompose(const std::uint8_t* block, GroupedBlock& out) noexcept {
    out.d = load_half(block) * 0.125f;
    for (int g = 0; g < 8; ++g) {
      const unsigned word = load_le<std::uint16_t>(block + 34 + 2 * g);
      out.sub_scale[g] = odd((word >> 12) & 7);
      for (int k = 0; k < 4; ++k) {
        const unsigned index = block[2 + 4 * g + k] | ((word >> (3 * k)) & 7) << 8;
        iq1_codes(kIq1Grid[index], (word & 0x8000) != 0, out.code + 32 * g + 8 * k);
      }
    }
    combine_levels<IQ1_S>(out);
  }
};

struct IQ1_M {  // 32 low index bytes | 32 x (3-bit high index part, sign of delta) | 4 x (four 3-bit scales, nibble of
                // d)
  static constexpr WeightType type = WeightType::iq1_m;
  static constexpr const char* name = "IQ1_M";
  static constexpr int block_values = 256;
  static constexpr int block_bytes = 56;
  static constexpr GroupedShape shape{
      .bits = 8, .group = 16, .zero = 128, .scales = ScaleKind::two_level, .half_scales = false};
  static void unpack(const std::uint8_t* block, float* out) noexcept { unpack_grouped<IQ1_M>(block, out); }
  static void decompose(const std::uint8_t* block, GroupedBlock& out) noexcept {
    unsigned half = 0;
    for (int w = 0; w < 4; ++w) {
      const unsigned word = load_le<std::uint16_t>(block + 48 + 2 * w);
      half |= (word >> 12) << (4 * w);
      for (int k = 0; k < 4; ++k) out.sub_scale[4 * w + k] = odd((word >> (3 * k)) & 7);
    }
    out.d = core::half_to_float(static_cast<std::uint16_t>(half)) * 0.125f;
    for (int v = 0; v < 32; ++v) {
      const unsigned nibble = (block[32 + v / 2] >> (v % 2 * 4)) & 15u;
      iq1_codes(kIq1Grid[block[v] | (nibble & 7) << 8], (nibble & 8) != 0, out.code + 8 * v);
    }
    combine_levels<IQ1_M>(out);
  }
};

}  // namespace llminfer::quant
