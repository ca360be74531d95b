// Fragments of mma.hpp, of the kind of matrix unit and under the name that the file has defined before: products of
// tiles by the emulated instruction, against sums in double precision. Included by one file for each kind.
#pragma once

#include <catch2/catch.hpp>

#include <cstdint>
#include <random>
#include <vector>

#include "backends/gpu/kernels/mma.hpp"

namespace llminfer::test {

/// Two products, one added to the other, by each of two waves, of tiles whose rows are some places apart.
template <class Sum>
void check_fragments() {
  using namespace gpu::LLMINFER_GPU_TARGET;
  namespace emulator = gpu::emulator;  // that threadIdx is of
  constexpr int kWaves = 2, kStride = 40, kDepth = 32, kPerHalf = kOfBytes<Sum> ? 2 : 1;
  std::mt19937 random(3);
  const auto values_of = [&](int rows) {
    std::vector<double> values(static_cast<std::size_t>(rows * kDepth * kPerHalf));
    for (double& x : values) x = static_cast<int>(random() % 256) - 128;
    return values;
  };
  const std::vector<double> left = values_of(16 * kWaves), right = values_of(16);
  const auto tile_of = [&](const std::vector<double>& values, int rows) {
    std::vector<std::uint16_t> tile(static_cast<std::size_t>(rows * kStride), 0x7e00);  // NaN between rows
    for (std::size_t i = 0; i < values.size(); ++i) {
      const std::size_t row = i / (kDepth * kPerHalf), k = i % (kDepth * kPerHalf);
      std::uint16_t& half = tile[row * kStride + k / kPerHalf];
      if constexpr (kOfBytes<Sum>) {
        const auto byte = static_cast<std::uint16_t>(static_cast<std::uint8_t>(static_cast<int>(values[i])));
        half = static_cast<std::uint16_t>(k % 2 == 0 ? byte : half | byte << 8);
      } else {
        half = float_to_half(static_cast<float>(values[i]));
      }
    }
    return tile;
  };
  const auto left_tile = tile_of(left, 16 * kWaves), right_tile = tile_of(right, 16);
  std::vector<Sum> found(16 * 16 * kWaves);
  emulator::Machine machine;
  machine.warp_width = kMmaLanes;
  const int error = emulator::run(machine, {}, kWaves * kMmaLanes, [&] {
    const int wave = static_cast<int>(threadIdx.x) / kMmaLanes;
    Accumulator<Sum> sums;
    clear(sums);
    for (int k = 0; k < kDepth; k += 16) {
      FragmentA a;
      FragmentB b;
      load(a, left_tile.data() + wave * 16 * kStride + k, kStride);
      load(b, right_tile.data() + k, kStride);
      mma(sums, a, b);
    }
    for_each(sums, [&](int row, int column, Sum& sum) {
      found[static_cast<std::size_t>((wave * 16 + row) * 16 + column)] = sum;
    });
  });
  REQUIRE(error == emulator::ok);
  std::size_t wrong = 0;
  for (std::size_t i = 0; i < found.size(); ++i) {
    double sum = 0;
    for (std::size_t k = 0; k < kDepth * kPerHalf; ++k) {
      sum += left[i / 16 * kDepth * kPerHalf + k] * right[i % 16 * kDepth * kPerHalf + k];
    }
    wrong += static_cast<double>(found[i]) != sum;
  }
  CHECK(wrong == 0);
}

}  // namespace llminfer::test
