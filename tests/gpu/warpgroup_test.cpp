// The emulator of what sm_90a starts and does not wait for: it must see what a GPU would not forgive.
#include <catch2/catch.hpp>

#include <cstring>
#include <vector>

#include "backends/gpu/emulator/asynchronous.hpp"
#include "backends/gpu/emulator/e4m3.hpp"
#include "backends/gpu/emulator/emulator.hpp"
#include "core/half.hpp"

using namespace llminfer;
using namespace llminfer::gpu::emulator;

namespace {

/// What is done wrong.
enum class Fault { none, no_fence, no_commit, no_wait, early_refill, wrong_stride, wrong_swizzle, short_expect };

/// Rows of 128 bytes; integers, so that sums are exact.
struct Tile {
  Tile(std::size_t rows, Factors factors) : columns(factors == Factors::e4m3 ? 128 : 64), bytes(rows * 128) {
    for (std::size_t i = 0; i < rows * columns; ++i) {
      const float x = static_cast<float>((i * 7 + i / columns * 5) % 19) - 9;
      numbers.push_back(x);
      const std::uint16_t half = core::float_to_half(x);
      if (columns == 128)
        bytes[i] = std::byte{core::float_to_e4m3(x)};
      else
        std::memcpy(&bytes[2 * i], &half, 2);
    }
  }
  float at(std::size_t row, std::size_t column) const { return numbers[row * columns + column]; }
  TensorMap map(std::uint32_t rows) const {
    const auto width = static_cast<std::uint32_t>(columns);
    return {bytes.data(), width, rows, 128, width, rows, 128 / width};
  }
  std::size_t columns;
  std::vector<std::byte> bytes;
  std::vector<float> numbers;
};

/// One warpgroup multiplies 64 rows by 128 that a thread of a fifth warp had copied, and which this overwrites once it
/// may. Gives the launch's error, or -1 where the sums are wrong.
int multiply(Fault fault, std::uint64_t seed, Factors factors) {
  const Tile left(64, factors), right(128, factors);
  const TensorMap left_map = left.map(64), right_map = right.map(128);
  const std::vector<std::uint16_t> zeros(128 * 64);
  const TensorMap zero_map{reinterpret_cast<const std::byte*>(zeros.data()), 64, 128, 128, 64, 128, 2};
  std::vector<float> sums(64 * 128), registers(128 * 64);  // which outlive products that nobody waits for
  Machine machine;
  machine.seed = seed;
  constexpr std::size_t kTiles = 192 * 128;
  const int error = run(
      machine, {}, 160,
      [&] {
        const unsigned thread = place.thread.x;
        std::byte* memory = shared_memory();
        memory += (1024 - shared_address(memory) % 1024) % 1024;
        auto* const full = memory + kTiles;
        auto* const empty = full + 8;
        if (thread == 0) {
          barrier_init(full, 1);
          barrier_init(empty, 4);
          barrier_fence();
        }
        sync_block();
        if (thread >= 128) {
          if (thread != 128) return;
          barrier_expect(full, fault == Fault::short_expect ? kTiles / 2 : kTiles);
          copy_tile(memory, left_map, 0, 0, full);
          copy_tile(memory + 64 * 128, right_map, 0, 0, full);
          barrier_wait(empty, 0);
          barrier_expect(full, 128 * 128);
          copy_tile(memory + 64 * 128, zero_map, 0, 0, full);
          return;
        }
        float* const d = registers.data() + std::size_t{64} * thread;
        const std::uint64_t stride = fault == Fault::wrong_stride ? 32 : 64,
                            swizzle = fault == Fault::wrong_swizzle ? 2 : 1;
        const auto descriptor = [&](const std::byte* at) {
          return swizzle << 62 | stride << 32 | 1ull << 16 | (shared_address(at) & 0x3ffff) >> 4;
        };
        barrier_wait(full, 0);
        if (fault != Fault::no_fence) product_fence();
        for (unsigned k = 0; k < 4; ++k)
          product(d, descriptor(memory) + 2 * k, descriptor(memory + 64 * 128) + 2 * k, k > 0, factors);
        if (fault != Fault::no_commit) product_commit();
        if (fault == Fault::early_refill && thread % 32 == 0) barrier_arrive(empty);
        if (fault != Fault::no_wait) product_wait(0);
        if (fault != Fault::early_refill && thread % 32 == 0) barrier_arrive(empty);
        for (unsigned i = 0; i < 64; ++i) {
          const unsigned row = thread / 32 * 16 + thread % 32 / 4 + i / 2 % 2 * 8,
                         column = i / 4 * 8 + thread % 4 * 2 + i % 2;
          sums[row * 128 + column] = d[i];
        }
        barrier_wait(full, 1);
      },
      Start::alone, kTiles + 1024 + 16);
  if (error != ok) return error;
  for (std::size_t row = 0; row < 64; ++row) {
    for (std::size_t column = 0; column < 128; ++column) {
      float sum = 0;
      for (std::size_t k = 0; k < left.columns; ++k) sum += left.at(row, k) * right.at(column, k);
      if (sum != sums[row * 128 + column]) return -1;
    }
  }
  return ok;
}

}  // namespace

TEST_CASE("Products of warpgroups are right if everything is done that the PTX ISA asks for, and only then") {
  for (std::uint64_t seed = 1; seed <= 10; ++seed) {
    CHECK(multiply(Fault::none, seed, Factors::halves) == ok);
    CHECK(multiply(Fault::none, seed, Factors::e4m3) == ok);
  }
  for (const Fault fault : {Fault::no_fence, Fault::no_commit, Fault::no_wait, Fault::early_refill, Fault::wrong_stride,
                            Fault::wrong_swizzle, Fault::short_expect}) {
    CAPTURE(static_cast<int>(fault));
    int seen = 0;
    for (std::uint64_t seed = 1; seed <= 20; ++seed) seen += multiply(fault, seed, Factors::halves) != ok;
    CHECK(seen > 0);
  }
}

TEST_CASE("Sums of E4M3 products keep 14 bits of the largest addend") {
  float products[32] = {};
  products[3] = 1.0f, products[30] = -3.0f;
  CHECK(add_products(8192.0f, products) == 8190.0f);
  CHECK(add_products(16384.0f, products) == 16382.0f);  // a unit is 2: the 1 is lost, and of the 3 as much
  products[5] = 0.75f;
  CHECK(add_products(0.0f, products) == -1.25f);
  products[5] = 16000.0f;
  CHECK(add_products(16383.0f, products) == 32380.0f);  // 32381, but for its last bit
}
