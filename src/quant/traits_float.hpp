// F32, F16, BF16: one value per block, no decomposition.
#pragma once

#include "quant/traits_base.hpp"

namespace llminfer::quant {

struct F32 {
  static constexpr WeightType type = WeightType::f32;
  static constexpr const char* name = "F32";
  static constexpr int block_values = 1;
  static constexpr int block_bytes = 4;
  static void unpack(const std::uint8_t* block, float* out) noexcept { *out = load_le<float>(block); }
};

struct F16 {
  static constexpr WeightType type = WeightType::f16;
  static constexpr const char* name = "F16";
  static constexpr int block_values = 1;
  static constexpr int block_bytes = 2;
  static void unpack(const std::uint8_t* block, float* out) noexcept { *out = load_half(block); }
};

struct BF16 {
  static constexpr WeightType type = WeightType::bf16;
  static constexpr const char* name = "BF16";
  static constexpr int block_values = 1;
  static constexpr int block_bytes = 2;
  static void unpack(const std::uint8_t* block, float* out) noexcept {
    *out = core::bfloat_to_float(load_le<std::uint16_t>(block));
  }
};

}  // namespace llminfer::quant
