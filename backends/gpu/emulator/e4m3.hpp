// How matrix units of Ada and Hopper add products of E4M3 by E4M3, as measured by others (DeepSeek-V3,
// arXiv:2412.19437, 3.3.2; Badash et al., arXiv:2603.20421).
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>

namespace llminfer::gpu::emulator {

/// sum + the products, of which only those bits count that are among the 14 highest of the largest addend, and then of
/// the result; the others are cut off.
inline float add_products(float sum, const float (&products)[32]) {
  float most = std::abs(sum), plain = sum;
  for (const float x : products) most = std::max(most, std::abs(x)), plain += x;
  if (!std::isfinite(plain) || most < 0x1p-100f) return plain;
  const auto exponent = std::bit_cast<std::uint32_t>(most) & 0x7f800000u;
  const auto unit = std::bit_cast<float>(exponent - (13u << 23)), units = 1.0f / unit;
  auto total = static_cast<std::int32_t>(sum * units);
  for (const float x : products) total += static_cast<std::int32_t>(x * units);
  return std::bit_cast<float>(std::bit_cast<std::uint32_t>(static_cast<float>(total) * unit) & ~0x3ffu);
}

}  // namespace llminfer::gpu::emulator
