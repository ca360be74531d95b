// IEEE half and bfloat16 as bits. Scalar and exact; round to nearest, ties to even.
#pragma once

#include <bit>
#include <cstdint>

namespace llminfer::core {

inline float half_to_float(std::uint16_t h) noexcept {
  const std::uint32_t sign = static_cast<std::uint32_t>(h & 0x8000u) << 16;
  const std::uint32_t magnitude = h & 0x7fffu;
  if (magnitude >= 0x7c00u) return std::bit_cast<float>(sign | 0x7f800000u | ((magnitude & 0x3ffu) << 13));
  if (magnitude >= 0x0400u) return std::bit_cast<float>(sign | ((magnitude << 13) + 0x38000000u));
  const float subnormal = static_cast<float>(magnitude) * 0x1p-24f;
  return std::bit_cast<float>(sign | std::bit_cast<std::uint32_t>(subnormal));
}

inline std::uint16_t float_to_half(float f) noexcept {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(f);
  const auto sign = static_cast<std::uint16_t>((bits >> 16) & 0x8000u);
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return static_cast<std::uint16_t>(sign | 0x7e00u);
  if (magnitude >= 0x47800000u) return static_cast<std::uint16_t>(sign | 0x7c00u);
  if (magnitude < 0x38800000u) {  // subnormal half: let the float adder round at 2^-24
    const float shifted = std::bit_cast<float>(magnitude) + 0.5f;
    return static_cast<std::uint16_t>(sign | (std::bit_cast<std::uint32_t>(shifted) - 0x3f000000u));
  }
  const std::uint32_t odd = (magnitude >> 13) & 1u;
  return static_cast<std::uint16_t>(sign | ((magnitude - 0x38000000u + 0xfffu + odd) >> 13));
}

inline float bfloat_to_float(std::uint16_t b) noexcept {
  return std::bit_cast<float>(static_cast<std::uint32_t>(b) << 16);
}

inline std::uint16_t float_to_bfloat(float f) noexcept {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(f);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<std::uint16_t>((bits >> 16) | 0x40u);
  return static_cast<std::uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

/// E4M3 of the OCP 8-bit floating point specification: no infinities, 0x7f and 0xff are NaN, 448 is the largest.
inline float e4m3_to_float(std::uint8_t u) noexcept {
  const std::uint32_t sign = static_cast<std::uint32_t>(u & 0x80u) << 24;
  if ((u & 0x7fu) == 0x7fu) return std::bit_cast<float>(sign | 0x7fc00000u);
  // The bits of a float whose exponent is too small by 127 - 7; subnormals come right with it.
  return std::bit_cast<float>(sign | static_cast<std::uint32_t>(u & 0x7fu) << 20) * 0x1p120f;
}
/// The nearest E4M3 number, ties to even; beyond the largest one, and for NaN, that of the same sign.
inline std::uint8_t float_to_e4m3(float f) noexcept {
  const auto sign = static_cast<std::uint8_t>(std::bit_cast<std::uint32_t>(f) >> 24 & 0x80u);
  const float given = f < 0.0f ? -f : f, size = given < 448.0f ? given : 448.0f;
  if (size < 0x1p-6f) {  // a multiple of 2^-9: 2^23 leaves no more of it
    return static_cast<std::uint8_t>(sign | (std::bit_cast<std::uint32_t>(size * 0x1p9f + 0x1p23f) & 0xffu));
  }
  const auto bits = std::bit_cast<std::uint32_t>(size);  // whose exponent is larger by 127 - 7
  return static_cast<std::uint8_t>(sign | (((bits + 0x7ffffu + (bits >> 20 & 1u)) >> 20) - (120u << 3)));
}

}  // namespace llminfer::core
