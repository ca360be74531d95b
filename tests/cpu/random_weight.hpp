// Weights of random blocks for the tests of the CPU backend: any codes, with scale fields of a moderate size.
#pragma once

#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

#include <llminfer/weight.hpp>

#include "core/half.hpp"

namespace llminfer::test {

/// Owns the bytes; view() refers to them.
struct RandomWeight {
  std::vector<std::byte> bytes;
  WeightType type;
  std::int64_t rows, cols;
  WeightDetails details{};

  WeightView view() const { return {"random", type, rows, cols, bytes, nullptr, details}; }
};

inline RandomWeight random_weight(WeightType type, std::int64_t rows, std::int64_t cols, unsigned seed) {
  const WeightTypeInfo info = weight_type_info(type);
  RandomWeight w{{}, type, rows, cols, {}};
  w.bytes.resize(static_cast<std::size_t>(rows * (cols / info.block_values) * info.block_bytes));
  std::mt19937 random(seed);
  for (std::byte& b : w.bytes) b = static_cast<std::byte>(random());

  std::uniform_real_distribution<float> scale(0.001f, 0.02f);
  for (std::size_t block = 0; block < w.bytes.size(); block += info.block_bytes) {
    const auto half_at = [&](std::size_t offset, float sign = 1.0f) {
      const std::uint16_t h = core::float_to_half(sign * scale(random));
      std::memcpy(&w.bytes[block + offset], &h, sizeof h);
    };
    const auto any_sign = [&] { return random() & 1 ? 1.0f : -1.0f; };
    switch (type) {
      case WeightType::f32: {
        const float f = scale(random) * any_sign();
        std::memcpy(&w.bytes[block], &f, sizeof f);
        break;
      }
      case WeightType::bf16: {
        const std::uint16_t h = core::float_to_bfloat(scale(random) * any_sign());
        std::memcpy(&w.bytes[block], &h, sizeof h);
        break;
      }
      case WeightType::q4_1:
      case WeightType::q5_1:
        half_at(0);
        half_at(2, any_sign());
        break;
      case WeightType::q4_k:
      case WeightType::q5_k:
        half_at(0);
        half_at(2);
        break;
      case WeightType::q2_k:
        half_at(80);
        half_at(82);
        break;
      case WeightType::q3_k:
        half_at(108, any_sign());
        break;
      case WeightType::q6_k:
        half_at(208, any_sign());
        break;
      case WeightType::tq1_0:
        half_at(52);
        break;
      case WeightType::tq2_0:
        half_at(64);
        break;
      case WeightType::iq1_m:  // the half lies in the high nibbles of four 16-bit words
        for (int i = 0; i < 4; ++i) {
          std::byte& high = w.bytes[block + 49 + 2 * static_cast<std::size_t>(i)];
          const unsigned nibble = i == 3 ? 0x2 : i == 2 ? 0x4 : random() & 15;
          high = (high & std::byte{15}) | static_cast<std::byte>(nibble << 4);
        }
        break;
      case WeightType::mxfp4:
        w.bytes[block] = static_cast<std::byte>(115 + random() % 8);
        break;
      case WeightType::nvfp4:
        for (std::size_t i = 0; i < 4; ++i) w.bytes[block + i] = static_cast<std::byte>(0x08 + random() % 24);
        break;
      case WeightType::fp4_16:
        for (const std::size_t i : {0u, 4u}) {
          const float f = core::half_to_float(core::float_to_half(scale(random)));
          std::memcpy(&w.bytes[block + i], &f, sizeof f);
        }
        break;
      case WeightType::w2_min:
      case WeightType::w3_min:
      case WeightType::w4_min:
      case WeightType::w8_min:
        for (const std::size_t i : {0u, 4u}) {
          const float f = core::half_to_float(core::float_to_half(scale(random) * any_sign()));
          std::memcpy(&w.bytes[block + i], &f, sizeof f);
        }
        break;
      case WeightType::w2:
      case WeightType::w3:
      case WeightType::w4:
      case WeightType::w8:
      case WeightType::w4_sym:
      case WeightType::w8_sym:
      case WeightType::nf4:
      case WeightType::fp4:
      case WeightType::fp8: {
        const float f = core::half_to_float(core::float_to_half(scale(random) * any_sign()));
        std::memcpy(&w.bytes[block], &f, sizeof f);
        if (type != WeightType::fp8) break;
        for (std::size_t i = 4; i < 36; ++i) {  // no NaN
          if ((w.bytes[block + i] & std::byte{0x7f}) == std::byte{0x7f}) w.bytes[block + i] = std::byte{0x7e};
        }
        break;
      }
      default:
        half_at(0, any_sign());
        break;  // the scale comes first
    }
  }
  return w;
}

/// Gives the blocks of each `scale_columns` columns the first one's head: scale and zero point.
inline void share_scales(RandomWeight& w, std::int64_t scale_columns, std::size_t head_bytes) {
  const auto info = weight_type_info(w.type);
  const auto blocks = static_cast<std::size_t>(w.cols / info.block_values);
  const auto shared = static_cast<std::size_t>(scale_columns / info.block_values);
  for (std::size_t i = 0; i < blocks * static_cast<std::size_t>(w.rows); ++i) {
    const std::size_t first = i - i % blocks % shared;
    std::memcpy(&w.bytes[i * info.block_bytes], &w.bytes[first * info.block_bytes], head_bytes);
  }
  w.details.scale_columns = scale_columns;
}

}  // namespace llminfer::test
