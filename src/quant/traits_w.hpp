// The canonical blocks that the loader makes of Hugging Face packings: 32 values, a float scale, and an integer zero
// point or a float minimum in the asymmetric ones. Codes lie in their order, the lowest bits of a byte first.
#pragma once

#include "quant/traits_base.hpp"
#include "quant/traits_small.hpp"

namespace llminfer::quant {

/// 8 codes, the lowest bits of `word`, as bytes: moved apart by halves until each has its own.
template <int Bits>
std::uint64_t spread_codes(std::uint64_t word) noexcept {
  constexpr std::uint64_t kOne = (1u << Bits) - 1, kTwo = (1u << 2 * Bits) - 1, kFour = (1u << 4 * Bits) - 1;
  word = (word | word << (32 - 4 * Bits)) & kFour * 0x0000000100000001u;
  word = (word | word << (16 - 2 * Bits)) & kTwo * 0x0001000100010001u;
  return (word | word << (8 - Bits)) & kOne * 0x0101010101010101u;
}

/// 32 codes of `Bits` bits: one little-endian stream of bits.
template <int Bits>
void unpack_stream(const std::uint8_t* bytes, std::uint8_t* code) noexcept {
  if constexpr (Bits == 8) {
    std::memcpy(code, bytes, 32);
  } else {
    for (int i = 0; i < 4; ++i, bytes += Bits) {
      std::uint64_t word = 0;
      for (int b = 0; b < Bits; ++b) word |= std::uint64_t{bytes[b]} << 8 * b;
      word = spread_codes<Bits>(word);
      std::memcpy(code + 8 * i, &word, 8);
    }
  }
}

/// scale | int8 zero point | codes; value = scale * (code - kZero - zero point). kZero centers 8-bit codes, so that
/// their zero points fit the int8.
template <int Bits>
struct Affine {
  static constexpr int kZero = Bits == 8 ? 128 : 0;
  static constexpr int block_values = 32;
  static constexpr int block_bytes = 5 + 4 * Bits;
  static constexpr GroupedShape shape{
      .bits = Bits, .group = 32, .zero = kZero, .minimum = true, .scales = ScaleKind::shared, .half_scales = false};
  static void unpack(const std::uint8_t* block, float* out) noexcept {
    GroupedBlock b;
    decompose(block, b);
    for (int i = 0; i < 32; ++i) out[i] = b.scale[0] * static_cast<float>(b.code[i] - kZero - b.zero_point[0]);
  }
  static void decompose(const std::uint8_t* block, GroupedBlock& out) noexcept {
    out.scale[0] = load_le<float>(block);
    out.zero_point[0] = static_cast<std::int8_t>(block[4]);
    out.minimum[0] = out.scale[0] * static_cast<float>(out.zero_point[0]);
    unpack_stream<Bits>(block + 5, out.code);
  }
};

struct W2 : Affine<2> {
  static constexpr WeightType type = WeightType::w2;
  static constexpr const char* name = "W2";
};
struct W3 : Affine<3> {
  static constexpr WeightType type = WeightType::w3;
  static constexpr const char* name = "W3";
};
struct W4 : Affine<4> {
  static constexpr WeightType type = WeightType::w4;
  static constexpr const char* name = "W4";
};
struct W8 : Affine<8> {
  static constexpr WeightType type = WeightType::w8;
  static constexpr const char* name = "W8";
};

/// scale | minimum, a float | codes; value = scale * (code - kZero) - minimum.
template <int Bits>
struct AffineMinimum {
  static constexpr int block_values = 32;
  static constexpr int block_bytes = 8 + 4 * Bits;
  static constexpr GroupedShape shape{
      .bits = Bits, .group = 32, .zero = Affine<Bits>::kZero, .minimum = true, .half_scales = false};
  static void unpack(const std::uint8_t* block, float* out) noexcept { unpack_grouped<AffineMinimum>(block, out); }
  static void decompose(const std::uint8_t* block, GroupedBlock& out) noexcept {
    out.scale[0] = load_le<float>(block);
    out.minimum[0] = load_le<float>(block + 4);
    unpack_stream<Bits>(block + 8, out.code);
  }
};

struct W2_MIN : AffineMinimum<2> {
  static constexpr WeightType type = WeightType::w2_min;
  static constexpr const char* name = "W2_MIN";
};
struct W3_MIN : AffineMinimum<3> {
  static constexpr WeightType type = WeightType::w3_min;
  static constexpr const char* name = "W3_MIN";
};
struct W4_MIN : AffineMinimum<4> {
  static constexpr WeightType type = WeightType::w4_min;
  static constexpr const char* name = "W4_MIN";
};
struct W8_MIN : AffineMinimum<8> {
  static constexpr WeightType type = WeightType::w8_min;
  static constexpr const char* name = "W8_MIN";
};

struct W4_SYM {  // scale | codes
  static constexpr WeightType type = WeightType::w4_sym;
  static constexpr const char* name = "W4_SYM";
  static constexpr int block_values = 32;
  static constexpr int block_bytes = 20;
  static constexpr GroupedShape shape{
      .bits = 4, .group = 32, .zero = 8, .scales = ScaleKind::shared, .half_scales = false};
  static void unpack(const std::uint8_t* block, float* out) noexcept { unpack_grouped<W4_SYM>(block, out); }
  static void decompose(const std::uint8_t* block, GroupedBlock& out) noexcept {
    out.scale[0] = load_le<float>(block);
    unpack_stream<4>(block + 4, out.code);
  }
};

struct W8_SYM {  // scale | signed bytes
  static constexpr WeightType type = WeightType::w8_sym;
  static constexpr const char* name = "W8_SYM";
  static constexpr int block_values = 32;
  static constexpr int block_bytes = 36;
  static constexpr GroupedShape shape{
      .bits = 8, .group = 32, .zero = 128, .scales = ScaleKind::shared, .half_scales = false};
  static void unpack(const std::uint8_t* block, float* out) noexcept { unpack_grouped<W8_SYM>(block, out); }
  static void decompose(const std::uint8_t* block, GroupedBlock& out) noexcept {
    out.scale[0] = load_le<float>(block);
    for (int i = 0; i < 32; ++i) out.code[i] = block[4 + i] ^ 0x80;
  }
};

/// The code book of NF4 as bitsandbytes writes it (quant_map), and the same in units of 1/127.
inline constexpr float kNf4Values[16] = {-1.0f,
                                         -0.6961928009986877f,
                                         -0.5250730514526367f,
                                         -0.39491748809814453f,
                                         -0.28444138169288635f,
                                         -0.18477343022823334f,
                                         -0.09105003625154495f,
                                         0.0f,
                                         0.07958029955625534f,
                                         0.16093020141124725f,
                                         0.24611230194568634f,
                                         0.33791524171829224f,
                                         0.44070982933044434f,
                                         0.5626170039176941f,
                                         0.7229568362236023f,
                                         1.0f};
inline constexpr std::int8_t kNf4Integers[16] = {-127, -88, -67, -50, -36, -23, -12, 0,
                                                 10,   20,  31,  43,  56,  71,  92,  127};
/// bitsandbytes' FP4: sign, and 0, 1/192, 2/3, 1, 1/3, 1/2, 1/6, 1/4.
inline constexpr float kFp4Values[16] = {0.0f,
                                         0.0052083334885537624f,
                                         0.6666666865348816f,
                                         1.0f,
                                         0.3333333432674408f,
                                         0.5f,
                                         0.1666666716337204f,
                                         0.25f,
                                         -0.0f,
                                         -0.0052083334885537624f,
                                         -0.6666666865348816f,
                                         -1.0f,
                                         -0.3333333432674408f,
                                         -0.5f,
                                         -0.1666666716337204f,
                                         -0.25f};
inline constexpr std::int8_t kFp4Integers[16] = {0, 1, 85, 127, 42, 64, 21, 32, 0, -1, -85, -127, -42, -64, -21, -32};

/// scale | codes. Kernels multiply integers, so that decompose() gives the nearest ones; they are off by at most
/// scale / 254.
template <const float* Values, const std::int8_t* Integers>
struct FloatTable {
  static constexpr int block_values = 32;
  static constexpr int block_bytes = 20;
  static constexpr GroupedShape shape{
      .bits = 4, .group = 32, .table = Integers, .scales = ScaleKind::shared, .half_scales = false, .exact = false};
  static void unpack(const std::uint8_t* block, float* out) noexcept {
    std::uint8_t code[32];
    unpack_stream<4>(block + 4, code);
    const auto scale = load_le<float>(block);
    for (int i = 0; i < 32; ++i) out[i] = scale * Values[code[i]];
  }
  static void decompose(const std::uint8_t* block, GroupedBlock& out) noexcept {
    out.scale[0] = load_le<float>(block) / 127.0f;
    unpack_stream<4>(block + 4, out.code);
  }
};

struct NF4 : FloatTable<kNf4Values, kNf4Integers> {
  static constexpr WeightType type = WeightType::nf4;
  static constexpr const char* name = "NF4";
};
struct FP4 : FloatTable<kFp4Values, kFp4Integers> {
  static constexpr WeightType type = WeightType::fp4;
  static constexpr const char* name = "FP4";
};

struct FP4_16 {  // two scales | codes of E2M1
  static constexpr WeightType type = WeightType::fp4_16;
  static constexpr const char* name = "FP4_16";
  static constexpr int block_values = 32;
  static constexpr int block_bytes = 24;
  static constexpr GroupedShape shape{.bits = 4, .group = 16, .table = kE2m1Values, .half_scales = false};
  static void unpack(const std::uint8_t* block, float* out) noexcept { unpack_grouped<FP4_16>(block, out); }
  static void decompose(const std::uint8_t* block, GroupedBlock& out) noexcept {
    for (int g = 0; g < 2; ++g) out.scale[g] = 0.5f * load_le<float>(block + 4 * g);  // the table is doubled
    unpack_stream<4>(block + 8, out.code);
  }
};

struct FP8 {  // scale | E4M3 (OCP 8-bit floating point, without infinities)
  static constexpr WeightType type = WeightType::fp8;
  static constexpr const char* name = "FP8";
  static constexpr int block_values = 32;
  static constexpr int block_bytes = 36;
  static void unpack(const std::uint8_t* block, float* out) noexcept {
    const auto scale = load_le<float>(block);
    for (int i = 0; i < 32; ++i) out[i] = scale * core::e4m3_to_float(block[4 + i]);
  }
};

}  // namespace llminfer::quant
