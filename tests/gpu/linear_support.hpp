// Linear layers of rows and weights on a device: what tests of their kernels share.
#pragma once

#include <catch2/catch.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <vector>

#include "backends/gpu/plan.hpp"
#include "tests/cpu/random_weight.hpp"
#include "tests/gpu/buffers.hpp"

namespace llminfer::test {

enum class Kernel { few, many, warpgroups, stages };

inline bool has(const gpu::Device& device, Kernel kind) {
  return kind == Kernel::warpgroups ? device.info().warpgroups : kind != Kernel::stages || device.info().copies;
}

/// Of all but Kernel::few.
inline auto kernel_of(const gpu::Device& device, Kernel kind) {
  const gpu::KernelTable& kernels = device.kernels();
  return kind == Kernel::many     ? kernels.linear_many
         : kind == Kernel::stages ? kernels.linear_stages
                                  : kernels.linear_warpgroups;
}

/// Columns that share a scale of a row.
inline std::size_t group_of(const InputQuantization& how, std::size_t width) {
  return how.dynamic && how.group > 0 ? std::min(static_cast<std::size_t>(how.group), width) : width;
}

/// What products of bytes by bytes read.
struct ByteRows {
  gpu::Buffer codes, scales, sums;
};
inline ByteRows to_bytes(const std::shared_ptr<gpu::Device>& device, const gpu::Buffer& in, const float* norm, int rows,
                         int width, const InputQuantization& how) {
  const auto columns = static_cast<std::size_t>(width);
  const auto groups = static_cast<std::int64_t>((columns - 1) / group_of(how, columns) + 1);
  const bool integers = how.kind == InputQuantization::Kind::int8;
  ByteRows out{gpu::Buffer::make(device, std::int64_t{rows} * width).value(),
               gpu::Buffer::make(device, groups * rows * 4).value(),
               gpu::Buffer::make(device, integers ? rows * 4 : 0).value()};
  gpu::QuantizeArgs args{};
  args.in = {in.at<float>(), width};
  args.norm = norm;
  args.epsilon = 1e-5f;
  args.rounding = gpu::rounding_of(how);
  args.rows = rows;
  args.width = width;
  args.codes = out.codes.at<std::uint8_t>();
  args.scales = out.scales.at<float>();
  args.sums = integers ? out.sums.at<std::int32_t>() : nullptr;
  device->check(device->kernels().quantize(device->stream(), args), "quantize").value();
  device->wait().value();  // `in` may go
  return out;
}

/// The same rows, rounded in floats.
struct RoundedRows {
  std::vector<float> out, scales;
};
inline RoundedRows round_rows(const std::shared_ptr<gpu::Device>& device, const gpu::Buffer& in, const float* norm,
                              int rows, int width, const InputQuantization& how) {
  const gpu::Buffer out = gpu::Buffer::make(device, in.bytes()).value(),
                    scales = gpu::Buffer::make(device, rows * 4).value();
  gpu::PrepareArgs args{};
  args.in = {in.at<float>(), width};
  args.norm = norm;
  args.epsilon = 1e-5f;
  args.rounding = gpu::rounding_of(how);
  args.rows = rows;
  args.width = args.padded = width;
  args.out = {out.at<float>(), width};
  args.scales = scales.at<float>();
  device->check(device->kernels().prepare(device->stream(), args), "prepare").value();
  return {to_host(device, out), to_host(device, scales)};
}

/// Four rows: the second is large, the third has an infinity in column 5, the fourth is zeros.
inline std::vector<float> rows_to_round(int width) {
  const auto columns = static_cast<std::size_t>(width);
  std::vector<float> rows = random_floats(4 * columns, 3);
  for (std::size_t i = columns; i < 2 * columns; ++i) rows[i] *= 1e5f;
  rows[2 * columns + 5] = std::numeric_limits<float>::infinity();
  std::fill(rows.begin() + 3 * width, rows.end(), 0.0f);
  return rows;
}

struct Factors {
  std::vector<float> in, bias, residual;  ///< the others may be empty
};
/// The first row is beyond the range of halves.
inline Factors random_factors(std::int64_t features, std::int64_t width, int rows) {
  const auto of_row = static_cast<std::size_t>(features), columns = static_cast<std::size_t>(width),
             count = static_cast<std::size_t>(rows);
  Factors f{random_floats(count * columns, 1), random_floats(of_row, 2), random_floats(count * of_row, 3)};
  for (std::size_t i = 0; i < columns; ++i) f.in[i] *= 3e5f;
  return f;
}

/// Three rows: zeros, one with an infinity, and one of usual numbers.
inline Factors spoiled_factors(std::size_t features, std::size_t width) {
  Factors f{random_floats(3 * width, 1), random_floats(features, 2), random_floats(3 * features, 3)};
  std::fill_n(f.in.begin(), width, 0.0f);
  f.in[width + 300] = std::numeric_limits<float>::infinity();
  return f;
}
inline void check_spoiled(const Factors& f, const std::vector<float>& found) {
  const std::size_t features = f.bias.size();
  for (std::size_t n = 0; n < features; ++n) {
    CHECK(found[n] == f.bias[n] + f.residual[n]);
    CHECK(std::isnan(found[features + n]));
    CHECK(std::isfinite(found[2 * features + n]));
  }
}

/// A layer's arguments, but for its weight and its rows, and their memory on the device.
struct LinearMemory {
  gpu::Buffer bias, residual, out, parts, counters;
  gpu::LinearArgs args{};

  LinearMemory(const std::shared_ptr<gpu::Device>& device, const RandomWeight& w, const Factors& f, int rows,
               int splits = 1)
      : bias(to_device(device, f.bias)),
        residual(to_device(device, f.residual)),
        out(gpu::Buffer::make(device, rows * w.rows * 4).value()),
        parts(gpu::Buffer::make(device, std::int64_t{kBlocks} * gpu::kSplitRows * gpu::kSplitFeatures * 4).value()),
        counters(to_device(device, std::vector<std::uint32_t>(kBlocks))) {
    args.rows = rows;
    args.bias = f.bias.empty() ? nullptr : bias.at<float>();
    if (!f.residual.empty()) args.residual = {residual.at<float>(), w.rows};
    args.out = {out.at<float>(), w.rows};
    args.units = 3;
    args.splits = splits;
    args.split_blocks = kBlocks;
    args.parts = parts.at<float>();
    args.counters = counters.at<std::uint32_t>();
  }

 private:
  static constexpr int kBlocks = 6;
};

}  // namespace llminfer::test
