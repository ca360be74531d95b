// What the tests of linear kernels share: the levels of this machine, rows of activations, comparisons.
#pragma once

#include <cstdlib>
#include <cstring>
#include <iostream>
#include <memory>
#include <random>
#include <vector>

#include "backends/cpu/level.hpp"
#include "backends/cpu/linear.hpp"
#include "core/half.hpp"
#include "quant/format.hpp"
#include "tests/cpu/random_weight.hpp"
#include "tests/cpu/same_bits.hpp"

namespace llminfer::cpu {
namespace emulated_tiles_avx2 {
const LinearKernels& linear_kernels();
}
namespace emulated_tiles_avx512 {
const LinearKernels& linear_kernels();
}
}  // namespace llminfer::cpu

namespace llminfer::test {

inline constexpr auto kTypes = static_cast<int>(WeightType::w8_min) + 1;

/// The levels that this machine can run, scalar first; names the others once. Then the kernels of level "amx" on
/// emulated tiles, whether or not the machine has them.
inline const std::vector<const cpu::LinearKernels*>& levels() {
  static const auto found = [] {
    std::vector<const cpu::LinearKernels*> list;
    for (const cpu::Level& level : cpu::runnable_levels()) {
      if (cpu::choose_level(level.name, "test").has_value()) list.push_back(level.linear);
    }
    for (const std::string_view name : cpu::missing_levels()) {
      std::cout << "skipped, not on this machine: level " << name << '\n';
    }
#ifdef LLMINFER_TEST_EMULATED_TILES
    for (const cpu::Level& level : cpu::runnable_levels()) {
      const std::string_view name = level.name;
      if (name == "avx2") list.push_back(&cpu::emulated_tiles_avx2::linear_kernels());
      if (name == "avx512") list.push_back(&cpu::emulated_tiles_avx512::linear_kernels());
    }
#endif
    return list;
  }();
  return found;
}

/// Memory as linear wants it: on a cache line.
inline std::shared_ptr<void> aligned(std::size_t bytes) {
  return {std::aligned_alloc(64, (bytes + 63) / 64 * 64), std::free};
}

/// Rows of activations in all forms.
struct Rows {
  std::vector<float> f32;
  std::vector<cpu::QuantizedGroup> groups;
  std::vector<cpu::QuantizedGroup> bfloats;
  cpu::ActivationCodes codes;
  cpu::ActivationView view;  ///< of f32 and groups

  /// As the weight reads them.
  cpu::ActivationView view_for(const cpu::PackedWeight& w) const {
    cpu::ActivationView of = view;
    of.bfloats = w.form(codes) == cpu::InputForm::bfloats;
    if (of.bfloats) of.groups = bfloats.data();
    return of;
  }
};

/// Value k of a row of BF16 numbers.
inline float bfloat_of(const cpu::QuantizedGroup* row, std::int64_t k) {
  const cpu::QuantizedGroup& group = row[k / 32];
  std::uint16_t bits = 0;
  std::memcpy(&bits, group.codes + k % 32 * 2, sizeof bits);
  return group.scale * core::bfloat_to_float(bits);
}

/// Rows that are quantized, `how`: in BF16 numbers.
inline Rows random_rows(std::int32_t rows, std::int64_t cols, unsigned seed, const cpu::LinearKernels& kernels,
                        cpu::ActivationCodes codes = cpu::kCodes16, const cpu::InputRounding* how = nullptr) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  Rows r;
  const std::int64_t stride = cols + 3, group_stride = cpu::quantized_row_groups(cols);
  r.f32.resize(static_cast<std::size_t>(rows * stride));
  for (float& f : r.f32) f = normal(random);
  r.groups.resize(static_cast<std::size_t>(rows * group_stride));
  r.bfloats.resize(r.groups.size());
  for (std::int32_t i = 0; i < rows; ++i) {
    float* const row = r.f32.data() + i * stride;
    kernels.quantize_row(row, cols, codes, r.groups.data() + i * group_stride);
    kernels.quantize_bfloats(how, row, cols, r.bfloats.data() + i * group_stride);
  }
  r.codes = codes;
  r.view = {r.f32.data(), stride, r.groups.data(), group_stride, codes.bytes, false};
  return r;
}

/// Whether these kernels multiply such activations with the weight.
inline bool can_multiply(const cpu::LinearKernels& kernels, const cpu::PackedWeight& w, cpu::ActivationCodes codes) {
  const bool pairs = kernels.form == cpu::ActivationForm::words && kernels.byte_rows != cpu::kNever;
  return !(codes.bytes && pairs && cpu::wide_codes(cpu::panel_shape(w.kind())));
}

/// The i-th code of a group that was quantized for these kernels.
inline std::int32_t code_of(const cpu::QuantizedGroup& group, const cpu::LinearKernels& kernels,
                            cpu::ActivationCodes codes, std::size_t i) {
  const cpu::ActivationForm form = kernels.form;
  if (form == cpu::ActivationForm::words && codes.bytes && kernels.byte_rows != cpu::kNever) {
    return static_cast<std::int8_t>(group.codes[i]) * (1 << codes.shift);
  }
  if (form == cpu::ActivationForm::words) {
    constexpr std::size_t kPlace[4] = {0, 2, 1, 3};
    std::int16_t code = 0;
    std::memcpy(&code, group.codes + (i / 4 * 4 + kPlace[i % 4]) * sizeof code, sizeof code);
    return code;
  }
  const bool pairs = form == cpu::ActivationForm::pairs;
  const std::size_t high = pairs ? i / 8 * 16 + i % 8 : i, low = pairs ? high + 8 : 32 + i;
  return 256 * static_cast<std::int8_t>(group.codes[high]) + static_cast<std::int8_t>(group.codes[low]);
}

inline constexpr float kUntouched = 12345.0f;

/// out [rows, N + 5]; what the kernel may not write is kUntouched.
inline std::vector<float> multiply(const cpu::LinearKernels& kernels, const cpu::PackedWeight& w, const Rows& x,
                                   std::int32_t rows) {
  const std::int64_t stride = w.rows() + 5;
  std::vector<float> out(static_cast<std::size_t>(rows * stride), kUntouched);
  const auto scratch = aligned(cpu::linear_scratch_bytes(w.cols()));
  kernels.linear(w.view(), 0, w.panels(), x.view_for(w), 0, rows, out.data(), stride, scratch.get());
  return out;
}

inline std::int64_t at_least_a_block(WeightType type, std::int64_t cols) {
  const std::int64_t block = llminfer::weight_type_info(type).block_values;
  return (cols + block - 1) / block * block;
}

inline std::unique_ptr<cpu::PackedWeight> pack(const RandomWeight& w) { return cpu::pack_weight(w.view()).value(); }

inline std::vector<float> unpacked(const RandomWeight& w) {
  std::vector<float> out(static_cast<std::size_t>(w.rows * w.cols));
  llminfer::unpack_rows(w.view(), 0, w.rows, out).value();
  return out;
}

/// What the panels hold: for all types but NF4 and FP4 the same.
inline std::vector<float> read_back(const cpu::PackedWeight& w) {
  std::vector<float> out(static_cast<std::size_t>(w.rows() * w.cols()));
  for (std::int64_t n = 0; n < w.rows(); ++n) w.read_row(n, out.data() + n * w.cols());
  return out;
}

/// How far panels may be from their weight, in units of a group's scale: tables of floats become tables of integers.
inline float packing_error(WeightType type) {
  return llminfer::quant::format(type).shape.exact ? 0.0f : 0.501f / 127.0f;
}

}  // namespace llminfer::test
