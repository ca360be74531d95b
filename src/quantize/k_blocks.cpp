// The layouts are those that src/quant/traits_k.hpp reads. Two levels of scales: the fits of the groups want float
// scales; the largest of them decides the super-scale, the others are rounded to whole multiples of it, and the codes
// are rounded anew.
#include "quantize/k_blocks.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/half.hpp"
#include "quant/traits_small.hpp"
#include "quantize/fit.hpp"

namespace llminfer::quantize {
namespace {

constexpr int kSuper = 256;

float store_half(std::uint8_t* to, float value) {
  const std::uint16_t bits = core::float_to_half(value);
  std::memcpy(to, &bits, sizeof bits);
  return core::half_to_float(bits);
}

/// Codes of a super-block and what their groups share.
struct Codes {
  std::uint8_t code[kSuper];
  int sub_scale[16] = {}, sub_minimum[16] = {};
};

int rounded(float value, int low, int high) {
  return static_cast<int>(std::clamp(std::nearbyintf(value), static_cast<float>(low), static_cast<float>(high)));
}

/// Groups with minimums: Q2_K, Q4_K, Q5_K. `sub_top`: the largest sub-scale and sub-minimum. Stores d and d_min.
Codes fit_ranges(const float* x, const float* weight, int group, int top, int sub_top, std::uint8_t* d_at,
                 std::uint8_t* d_min_at) {
  Codes out;
  const int groups = kSuper / group;
  RangeFit fits[16];
  float scale = 0, minimum = 0;
  for (int g = 0; g < groups; ++g) {
    fits[g] = fit_range(x + g * group, weight + g * group, group, top, out.code + g * group);
    scale = std::max(scale, fits[g].scale);
    minimum = std::max(minimum, fits[g].minimum);
  }
  const float d = store_half(d_at, scale / static_cast<float>(sub_top));
  const float d_min = store_half(d_min_at, minimum / static_cast<float>(sub_top));
  for (int g = 0; g < groups; ++g) {
    out.sub_scale[g] = d > 0 ? rounded(fits[g].scale / d, 0, sub_top) : 0;
    out.sub_minimum[g] = d_min > 0 ? rounded(fits[g].minimum / d_min, 0, sub_top) : 0;
    const float step = d * static_cast<float>(out.sub_scale[g]), low = d_min * static_cast<float>(out.sub_minimum[g]);
    for (int i = g * group; i < (g + 1) * group; ++i) {
      out.code[i] = static_cast<std::uint8_t>(step > 0 ? rounded((x[i] + low) / step, 0, top) : 0);
    }
  }
  return out;
}

/// Groups of 16 without: Q3_K, Q6_K. Sub-scales from -sub_center to sub_center - 1. Stores d.
Codes fit_symmetrics(const float* x, const float* weight, int center, int sub_center, std::uint8_t* d_at) {
  Codes out;
  float scales[16], most = 0;
  for (int g = 0; g < 16; ++g) {
    scales[g] = fit_symmetric(x + g * 16, weight + g * 16, 16, center, out.code + g * 16);
    if (std::fabs(scales[g]) > std::fabs(most)) most = scales[g];
  }
  const float d = store_half(d_at, -most / static_cast<float>(sub_center));
  for (int g = 0; g < 16; ++g) {
    out.sub_scale[g] = d != 0 ? rounded(scales[g] / d, -sub_center, sub_center - 1) : 0;
    const float step = d * static_cast<float>(out.sub_scale[g]);
    for (int i = g * 16; i < (g + 1) * 16; ++i) {
      out.code[i] = static_cast<std::uint8_t>(center + (step != 0 ? rounded(x[i] / step, -center, center - 1) : 0));
    }
  }
  return out;
}

/// The lowest two bits of 256 codes: each run of 32 bytes holds 128 values.
void store_pairs(const std::uint8_t* code, int shift, std::uint8_t* to) {
  for (int run = 0; run < 2; ++run) {
    for (int i = 0; i < 32; ++i) {
      unsigned byte = 0;
      for (int part = 0; part < 4; ++part) byte |= ((code[run * 128 + part * 32 + i] >> shift) & 3u) << (2 * part);
      to[run * 32 + i] = static_cast<std::uint8_t>(byte);
    }
  }
}

/// Bit `bit` of 256 codes: bit r of byte i belongs to value 32 r + i.
void store_bit(const std::uint8_t* code, int bit, std::uint8_t* to) {
  for (int i = 0; i < 32; ++i) {
    unsigned byte = 0;
    for (int run = 0; run < 8; ++run) byte |= ((code[run * 32 + i] >> bit) & 1u) << run;
    to[i] = static_cast<std::uint8_t>(byte);
  }
}

/// Low nibbles of `runs` times 2 * width codes: each run of `width` bytes holds first its low, then its high nibbles.
void store_nibbles(const std::uint8_t* code, int runs, int width, std::uint8_t* to) {
  for (int run = 0; run < runs; ++run, code += 2 * width, to += width) {
    for (int i = 0; i < width; ++i) to[i] = static_cast<std::uint8_t>((code[i] & 15) | (code[width + i] & 15) << 4);
  }
}

/// The 6-bit scales and minimums of Q4_K and Q5_K.
void store_k_scales(const Codes& c, std::uint8_t* to) {
  for (int g = 0; g < 4; ++g) {
    const int scale = c.sub_scale[4 + g], minimum = c.sub_minimum[4 + g];
    to[g] = static_cast<std::uint8_t>(c.sub_scale[g] | (scale >> 4) << 6);
    to[4 + g] = static_cast<std::uint8_t>(c.sub_minimum[g] | (minimum >> 4) << 6);
    to[8 + g] = static_cast<std::uint8_t>((scale & 15) | (minimum & 15) << 4);
  }
}

void encode_q2_k(const float* x, const float* weight, std::uint8_t* out) {
  const Codes c = fit_ranges(x, weight, 16, 3, 15, out + 80, out + 82);
  for (int g = 0; g < 16; ++g) out[g] = static_cast<std::uint8_t>(c.sub_scale[g] | c.sub_minimum[g] << 4);
  store_pairs(c.code, 0, out + 16);
}

void encode_q3_k(const float* x, const float* weight, std::uint8_t* out) {
  const Codes c = fit_symmetrics(x, weight, 4, 32, out + 108);
  store_bit(c.code, 2, out);
  store_pairs(c.code, 0, out + 32);
  std::memset(out + 96, 0, 12);
  for (int g = 0; g < 16; ++g) {
    const auto stored = static_cast<unsigned>(c.sub_scale[g] + 32);
    out[96 + g % 8] = static_cast<std::uint8_t>(out[96 + g % 8] | (stored & 15) << (g / 8 * 4));
    out[104 + g % 4] = static_cast<std::uint8_t>(out[104 + g % 4] | (stored >> 4) << (g / 4 * 2));
  }
}

void encode_q4_k(const float* x, const float* weight, std::uint8_t* out) {
  const Codes c = fit_ranges(x, weight, 32, 15, 63, out, out + 2);
  store_k_scales(c, out + 4);
  store_nibbles(c.code, 4, 32, out + 16);
}

void encode_q5_k(const float* x, const float* weight, std::uint8_t* out) {
  const Codes c = fit_ranges(x, weight, 32, 31, 63, out, out + 2);
  store_k_scales(c, out + 4);
  store_bit(c.code, 4, out + 16);
  store_nibbles(c.code, 4, 32, out + 48);
}

void encode_q6_k(const float* x, const float* weight, std::uint8_t* out) {
  const Codes c = fit_symmetrics(x, weight, 32, 128, out + 208);
  store_nibbles(c.code, 2, 64, out);
  store_pairs(c.code, 4, out + 128);
  for (int g = 0; g < 16; ++g) out[192 + g] = static_cast<std::uint8_t>(static_cast<std::int8_t>(c.sub_scale[g]));
}

void store_fifth_bits(const std::uint8_t* code, std::uint8_t* to) {
  std::uint32_t high = 0;
  for (int i = 0; i < 32; ++i) high |= static_cast<std::uint32_t>(code[i] >> 4) << i;
  std::memcpy(to, &high, sizeof high);
}

template <int Bits>
void encode_symmetric(const float* x, const float* weight, std::uint8_t* out) {
  constexpr int kCenter = 1 << (Bits - 1);
  std::uint8_t code[32];
  store_half(out, fit_symmetric(x, weight, 32, kCenter, code));
  if constexpr (Bits == 5) store_fifth_bits(code, out + 2);
  store_nibbles(code, 1, 16, out + (Bits == 5 ? 6 : 2));
}

template <int Bits>
void encode_range(const float* x, const float* weight, std::uint8_t* out) {
  std::uint8_t code[32];
  const RangeFit fit = fit_range(x, weight, 32, (1 << Bits) - 1, code);
  store_half(out, fit.scale);
  store_half(out + 2, -fit.minimum);
  if constexpr (Bits == 5) store_fifth_bits(code, out + 4);
  store_nibbles(code, 1, 16, out + (Bits == 5 ? 8 : 4));
}

void encode_iq4_nl(const float* x, const float* weight, std::uint8_t* out) {
  std::uint8_t code[32];
  store_half(out, fit_table(x, weight, 32, quant::kIq4Values, code));
  store_nibbles(code, 1, 16, out + 2);
}

}  // namespace

SearchedEncoder searched_encoder(WeightType type) noexcept {
  switch (type) {
    case WeightType::q2_k:
      return encode_q2_k;
    case WeightType::q3_k:
      return encode_q3_k;
    case WeightType::q4_k:
      return encode_q4_k;
    case WeightType::q5_k:
      return encode_q5_k;
    case WeightType::q6_k:
      return encode_q6_k;
    case WeightType::q4_0:
      return encode_symmetric<4>;
    case WeightType::q4_1:
      return encode_range<4>;
    case WeightType::q5_0:
      return encode_symmetric<5>;
    case WeightType::q5_1:
      return encode_range<5>;
    case WeightType::iq4_nl:
      return encode_iq4_nl;
    default:
      return nullptr;
  }
}

}  // namespace llminfer::quantize
