// Formats of 16-entry tables and of three values: IQ4_NL, IQ4_XS, MXFP4, NVFP4, TQ1_0, TQ2_0.
#pragma once

#include "quant/traits_base.hpp"

namespace llminfer::quant {

/// The non-linear code book of the IQ4 formats.
inline constexpr std::int8_t kIq4Values[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                               1,    13,   25,  38,  53,  69,  89,  113};

/// E2M1 (OCP Microscaling Formats 1.0, section 5.3.3), doubled to be integers; the scales below are halved to match.
inline constexpr std::int8_t kE2m1Values[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

struct IQ4_NL {  // d | nibbles
  static constexpr WeightType type = WeightType::iq4_nl;
  static constexpr const char* name = "IQ4_NL";
  static constexpr int block_values = 32;
  static constexpr int block_bytes = 18;
  static constexpr GroupedShape shape{.bits = 4, .group = 32, .table = kIq4Values};
  static void unpack(const std::uint8_t* block, float* out) noexcept { unpack_grouped<IQ4_NL>(block, out); }
  static void decompose(const std::uint8_t* block, GroupedBlock& out) noexcept {
    out.scale[0] = load_half(block);
    unpack_nibbles(block + 2, out.code);
  }
};

struct IQ4_XS {  // d | 8 pairs of high scale bits | 4 bytes of low scale nibbles | 8 x 16 bytes of nibbles
  static constexpr WeightType type = WeightType::iq4_xs;
  static constexpr const char* name = "IQ4_XS";
  static constexpr int block_values = 256;
  static constexpr int block_bytes = 136;
  static constexpr GroupedShape shape{.bits = 4, .group = 32, .table = kIq4Values, .scales = ScaleKind::two_level};
  static void unpack(const std::uint8_t* block, float* out) noexcept { unpack_grouped<IQ4_XS>(block, out); }
  static void decompose(const std::uint8_t* block, GroupedBlock& out) noexcept {
    out.d = load_half(block);
    const auto high = load_le<std::uint16_t>(block + 2);
    for (int g = 0; g < 8; ++g) {
      const int low = (block[4 + g / 2] >> (g % 2 * 4)) & 15;
      out.sub_scale[g] = static_cast<std::int8_t>((low | ((high >> (2 * g)) & 3) << 4) - 32);
      unpack_nibbles(block + 8 + 16 * g, out.code + 32 * g);
    }
    combine_levels<IQ4_XS>(out);
  }
};

struct MXFP4 {  // E8M0 exponent | nibbles
  static constexpr WeightType type = WeightType::mxfp4;
  static constexpr const char* name = "MXFP4";
  static constexpr int block_values = 32;
  static constexpr int block_bytes = 17;
  static constexpr GroupedShape shape{.bits = 4, .group = 32, .table = kE2m1Values, .half_scales = false};
  static void unpack(const std::uint8_t* block, float* out) noexcept { unpack_grouped<MXFP4>(block, out); }
  static void decompose(const std::uint8_t* block, GroupedBlock& out) noexcept {
    // 2^(e - 127) / 2, whose two smallest values are subnormal.
    const std::uint32_t e = block[0];
    out.scale[0] = std::bit_cast<float>(e < 2 ? 0x00200000u << e : (e - 1) << 23);
    unpack_nibbles(block + 1, out.code);
  }
};

struct NVFP4 {  // 4 unsigned E4M3 scales | 4 x 8 bytes of nibbles, the low ones first
  static constexpr WeightType type = WeightType::nvfp4;
  static constexpr const char* name = "NVFP4";
  static constexpr int block_values = 64;
  static constexpr int block_bytes = 36;
  static constexpr GroupedShape shape{.bits = 4, .group = 16, .table = kE2m1Values};
  static void unpack(const std::uint8_t* block, float* out) noexcept { unpack_grouped<NVFP4>(block, out); }
  static void decompose(const std::uint8_t* block, GroupedBlock& out) noexcept {
    for (int g = 0; g < 4; ++g) {
      out.scale[g] = half_of_e4m3(block[g]);
      for (int i = 0; i < 8; ++i) {
        const std::uint8_t byte = block[4 + 8 * g + i];
        out.code[16 * g + i] = byte & 15;
        out.code[16 * g + 8 + i] = byte >> 4;
      }
    }
  }

 private:
  /// The sign bit is ignored and 0x7f (NaN) counts as 0, as the format's writers have it.
  static float half_of_e4m3(std::uint8_t bits) noexcept {
    if (bits == 0x7f) return 0.0f;
    const int exponent = (bits >> 3) & 15;
    const auto mantissa = static_cast<std::uint32_t>(bits & 7);
    if (exponent == 0) return static_cast<float>(mantissa) * 0x1p-10f;
    return std::bit_cast<float>(static_cast<std::uint32_t>(exponent - 8 + 127) << 23 | mantissa << 20);
  }
};

struct TQ1_0 {  // 48 bytes of five base-3 digits | 4 bytes of four | d
  static constexpr WeightType type = WeightType::tq1_0;
  static constexpr const char* name = "TQ1_0";
  static constexpr int block_values = 256;
  static constexpr int block_bytes = 54;
  static constexpr GroupedShape shape{.bits = 2, .group = 32, .zero = 1, .scales = ScaleKind::two_level};
  static void unpack(const std::uint8_t* block, float* out) noexcept { unpack_grouped<TQ1_0>(block, out); }
  static void decompose(const std::uint8_t* block, GroupedBlock& out) noexcept {
    std::uint8_t* code = digits(block, 32, 5, out.code);
    code = digits(block + 32, 16, 5, code);
    digits(block + 48, 4, 4, code);
    out.d = load_half(block + 52);
    for (std::int8_t& sub_scale : out.sub_scale) sub_scale = 1;
    combine_levels<TQ1_0>(out);
  }

 private:
  /// A byte is a fixed-point fraction of 256 whose base-3 digits are read from the top: the first digits of all `bytes`
  /// bytes, then the second ones, and so on.
  static std::uint8_t* digits(const std::uint8_t* from, int bytes, int count, std::uint8_t* code) noexcept {
    std::uint8_t power = 1;
    for (int digit = 0; digit < count; ++digit, power = static_cast<std::uint8_t>(power * 3)) {
      for (int i = 0; i < bytes; ++i) {
        const auto rest = static_cast<std::uint8_t>(from[i] * power);
        *code++ = static_cast<std::uint8_t>((rest * 3) >> 8);
      }
    }
    return code;
  }
};

struct TQ2_0 {  // 64 bytes of pairs | d
  static constexpr WeightType type = WeightType::tq2_0;
  static constexpr const char* name = "TQ2_0";
  static constexpr int block_values = 256;
  static constexpr int block_bytes = 66;
  static constexpr GroupedShape shape{.bits = 2, .group = 32, .zero = 1, .scales = ScaleKind::two_level};
  static void unpack(const std::uint8_t* block, float* out) noexcept { unpack_grouped<TQ2_0>(block, out); }
  static void decompose(const std::uint8_t* block, GroupedBlock& out) noexcept {
    unpack_pairs(block, out.code);
    out.d = load_half(block + 64);
    for (std::int8_t& sub_scale : out.sub_scale) sub_scale = 1;
    combine_levels<TQ2_0>(out);
  }
};

}  // namespace llminfer::quant
