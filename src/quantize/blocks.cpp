#include "quantize/blocks.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/half.hpp"
#include "quant/format.hpp"
#include "quantize/k_blocks.hpp"

namespace llminfer::quantize {
namespace {

constexpr int kBlock = 32;

void store_half(std::uint8_t* to, float value) {
  const std::uint16_t bits = core::float_to_half(value);
  std::memcpy(to, &bits, sizeof bits);
}

/// The value of the greatest magnitude, with its sign; the first of several.
float extreme(const float* x) {
  float best = 0;
  for (int i = 0; i < kBlock; ++i) {
    if (std::fabs(x[i]) > std::fabs(best)) best = x[i];
  }
  return best;
}

/// The greatest magnitude, in a loop that becomes vector instructions, as that of encode_q8_0 does: the output matrix
/// of a checkpoint may be encoded while it is loaded.
float magnitude(const float* x) {
  float most[8] = {};
  for (int i = 0; i < kBlock; i += 8) {
    for (int j = 0; j < 8; ++j) {
      const float a = std::fabs(x[i + j]);
      most[j] = a > most[j] ? a : most[j];
    }
  }
  return *std::max_element(most, most + 8);
}

void store_nibbles(const std::uint8_t* code, std::uint8_t* to) {
  for (int i = 0; i < 16; ++i) to[i] = static_cast<std::uint8_t>((code[i] & 15) | (code[i + 16] & 15) << 4);
}

void store_fifth_bits(const std::uint8_t* code, std::uint8_t* to) {
  std::uint32_t high = 0;
  for (int i = 0; i < kBlock; ++i) high |= static_cast<std::uint32_t>(code[i] >> 4) << i;
  std::memcpy(to, &high, sizeof high);
}

/// Q4_0 and Q5_0: the extreme value becomes code 0, so that it is exact.
template <int Bits>
void encode_symmetric(const float* x, std::uint8_t* out) {
  constexpr int kCenter = 1 << (Bits - 1);
  const float d = extreme(x) / -kCenter;
  const float inverse = d != 0 ? 1 / d : 0;
  std::uint8_t code[kBlock];
  for (int i = 0; i < kBlock; ++i) {
    const auto q = static_cast<int>(x[i] * inverse + (static_cast<float>(kCenter) + 0.5f));
    code[i] = static_cast<std::uint8_t>(std::min(q, 2 * kCenter - 1));
  }
  store_half(out, d);
  if constexpr (Bits == 5) store_fifth_bits(code, out + 2);
  store_nibbles(code, out + (Bits == 5 ? 6 : 2));
}

/// Q4_1 and Q5_1: from the smallest to the largest value.
template <int Bits>
void encode_range(const float* x, std::uint8_t* out) {
  constexpr int kTop = (1 << Bits) - 1;
  const auto [min, max] = std::minmax_element(x, x + kBlock);
  const float d = (*max - *min) / kTop;
  const float inverse = d != 0 ? 1 / d : 0;
  std::uint8_t code[kBlock];
  for (int i = 0; i < kBlock; ++i) {
    code[i] = static_cast<std::uint8_t>(std::min(static_cast<int>((x[i] - *min) * inverse + 0.5f), kTop));
  }
  store_half(out, d);
  store_half(out + 2, *min);
  if constexpr (Bits == 5) store_fifth_bits(code, out + 4);
  store_nibbles(code, out + (Bits == 5 ? 8 : 4));
}

void encode_q8_0(const float* x, std::uint8_t* out) {
  const float d = magnitude(x) / 127;
  const float inverse = d != 0 ? 1 / d : 0;
  store_half(out, d);
  for (int i = 0; i < kBlock; ++i) {  // std::round, half away from zero
    const float scaled = x[i] * inverse;
    const int whole = static_cast<int>(scaled);
    const float rest = scaled - static_cast<float>(whole);
    out[2 + i] = static_cast<std::uint8_t>(whole + (rest >= 0.5f) - (rest <= -0.5f));
  }
}

/// Codes of four-bit floats under a power of two that puts the largest value among the two largest codes, as ggml's
/// reference encoder chooses it.
void encode_mxfp4(const float* x, std::uint8_t* out) {
  constexpr float kValues[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};  // twice the floats
  const float most = magnitude(x);
  // In floats, as ggml has it: just below a power of two the logarithm is that power's.
  const int exponent = most > 0 ? std::clamp(static_cast<int>(std::floor(std::log2(most))) - 2 + 127, 0, 254) : 0;
  const float unit = std::ldexp(1.0f, exponent - 128);
  std::uint8_t code[kBlock];
  for (int i = 0; i < kBlock; ++i) {
    const auto nearer = [&](float a, float b) { return std::fabs(a * unit - x[i]) < std::fabs(b * unit - x[i]); };
    code[i] = static_cast<std::uint8_t>(std::min_element(kValues, kValues + 16, nearer) - kValues);
  }
  out[0] = static_cast<std::uint8_t>(exponent);
  store_nibbles(code, out + 1);
}

void encode_f32(const float* x, std::uint8_t* out) { std::memcpy(out, x, sizeof *x); }
void encode_f16(const float* x, std::uint8_t* out) { store_half(out, *x); }
void encode_bf16(const float* x, std::uint8_t* out) {
  const std::uint16_t bits = core::float_to_bfloat(*x);
  std::memcpy(out, &bits, sizeof bits);
}

using Encoder = void (*)(const float*, std::uint8_t*);

Encoder encoder_of(WeightType type) {
  switch (type) {
    case WeightType::f32:
      return encode_f32;
    case WeightType::f16:
      return encode_f16;
    case WeightType::bf16:
      return encode_bf16;
    case WeightType::q4_0:
      return encode_symmetric<4>;
    case WeightType::q4_1:
      return encode_range<4>;
    case WeightType::q5_0:
      return encode_symmetric<5>;
    case WeightType::q5_1:
      return encode_range<5>;
    case WeightType::q8_0:
      return encode_q8_0;
    case WeightType::mxfp4:
      return encode_mxfp4;
    default:
      return nullptr;
  }
}

}  // namespace

void encode_row(WeightType type, const float* values, std::int64_t cols, const float* importance, std::uint8_t* out) {
  const quant::Format& format = quant::format(type);
  const Encoder encode = encoder_of(type);
  const SearchedEncoder search = importance || !encode ? searched_encoder(type) : nullptr;
  if (!search) {
    for (std::int64_t k = 0; k < cols; k += format.block_values, out += format.block_bytes) encode(values + k, out);
    return;
  }
  // Large weights matter more than small ones, though less than their inputs say: what a product adds to an output
  // grows with both. The weighting is that of ggml's encoders.
  float squares = 0;
  for (std::int64_t k = 0; k < cols; ++k) squares += values[k] * values[k];
  const float mean = squares / static_cast<float>(cols);
  float weight[256];
  for (std::int64_t k = 0; k < cols; k += format.block_values, out += format.block_bytes) {
    for (int i = 0; i < format.block_values; ++i) {
      const float x = values[k + i];
      weight[i] = importance ? importance[k + i] * std::sqrt(mean + x * x) : std::sqrt(mean) + std::fabs(x);
    }
    search(values + k, weight, out);
  }
}

}  // namespace llminfer::quantize
