// The emulator of what sm_90a starts and does not wait for: it must see what a GPU would not forgive.
#include <catch2/catch.hpp>

#include <vector>

#include "backends/gpu/emulator/asynchronous.hpp"
#include "backends/gpu/emulator/emulator.hpp"
#include "core/half.hpp"

using namespace llminfer;
using namespace llminfer::gpu::emulator;

namespace {

/// What is done wrong.
enum class Fault { none, no_fence, no_commit, no_wait, early_refill, wrong_stride, wrong_swizzle, short_expect };

/// [rows, 64]; integers, so that sums are exact.
struct Halves {
  explicit Halves(std::size_t rows) : values(rows * 64) {
    for (std::size_t i = 0; i < values.size(); ++i)
      values[i] = core::float_to_half(static_cast<float>((i * 7 + i / 64 * 5) % 19) - 9);
  }
  float at(std::size_t row, std::size_t column) const { return core::half_to_float(values[row * 64 + column]); }
  std::vector<std::uint16_t> values;
};

/// One warpgroup multiplies 64 rows by 128 that a thread of a fifth warp had copied, and which this overwrites once it
/// may. Gives the launch's error, or -1 where the sums are wrong.
int multiply(Fault fault, std::uint64_t seed) {
  const Halves left(64), right(128);
  const auto map_of = [](const Halves& halves, std::uint32_t rows) {
    return TensorMap{
        reinterpret_cast<const std::byte*>(halves.values.data()), 64, halves.values.size() / 64, 128, 64, rows};
  };
  const TensorMap left_map = map_of(left, 64), right_map = map_of(right, 128);
  const std::vector<std::uint16_t> zeros(128 * 64);
  const TensorMap zero_map{reinterpret_cast<const std::byte*>(zeros.data()), 64, 128, 128, 64, 128};
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
          product(d, descriptor(memory) + 2 * k, descriptor(memory + 64 * 128) + 2 * k, k > 0);
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
      for (std::size_t k = 0; k < 64; ++k) sum += left.at(row, k) * right.at(column, k);
      if (sum != sums[row * 128 + column]) return -1;
    }
  }
  return ok;
}

}  // namespace

TEST_CASE("Products of warpgroups are right if everything is done that the PTX ISA asks for, and only then") {
  for (std::uint64_t seed = 1; seed <= 10; ++seed) CHECK(multiply(Fault::none, seed) == ok);
  for (const Fault fault : {Fault::no_fence, Fault::no_commit, Fault::no_wait, Fault::early_refill, Fault::wrong_stride,
                            Fault::wrong_swizzle, Fault::short_expect}) {
    CAPTURE(static_cast<int>(fault));
    int seen = 0;
    for (std::uint64_t seed = 1; seed <= 20; ++seed) seen += multiply(fault, seed) != ok;
    CHECK(seen > 0);
  }
}
