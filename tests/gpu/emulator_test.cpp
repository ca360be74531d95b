// The emulator itself: it must see what a GPU would not forgive.
#include <catch2/catch.hpp>

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <numeric>
#include <set>
#include <vector>

#include "backends/gpu/emulator/asynchronous.hpp"
#include "backends/gpu/emulator/emulator.hpp"
#define LLMINFER_GPU_EMULATED
#define LLMINFER_GPU_TARGET emulated_test
#include "backends/gpu/kernels/platform.hpp"

using namespace llminfer::gpu::emulator;

namespace {

/// Each thread writes its number and reads that of the thread on the other side of the block. Gives how many read it.
int exchange_through_memory(bool with_barrier, std::uint64_t seed) {
  Machine machine;
  machine.seed = seed;
  std::vector<unsigned> written(128, 999), read(128);
  REQUIRE(run(machine, {}, 128, [&] {
            const unsigned i = place.thread.x;
            written[i] = i;
            if (with_barrier) sync_block();
            read[i] = written[127 - i];
          }) == ok);
  int right = 0;
  for (unsigned i = 0; i < 128; ++i) right += read[i] == 127 - i;
  return right;
}

struct Lane {
  int in, out;
};

enum class Fault { none, no_wait, no_barrier, early_refill, not_aligned, left };

/// Two pieces that threads copy into shared memory for each other, one after the other into the same place. Gives the
/// launch's error, or -1 where what was read is wrong.
int copy_pieces(Fault fault, std::uint64_t seed) {
  Machine machine;
  machine.seed = seed;
  std::vector<std::uint64_t> from(2 * 128 + 1), read(2 * 128);
  for (std::size_t i = 0; i < from.size(); ++i) from[i] = i;
  const int error = run(
      machine, {}, 128,
      [&] {
        const std::size_t i = place.thread.x;
        const auto at = [](std::size_t thread) { return shared_memory() + 8 * thread; };
        for (std::size_t turn = 0; turn < 2; ++turn) {
          copy_piece(at(i),
                     reinterpret_cast<const std::byte*>(&from[turn * 128 + i]) + (fault == Fault::not_aligned ? 4 : 0),
                     8, true);
          copies_commit();
          copies_commit();
          if (fault != Fault::no_wait) copies_wait(fault == Fault::left ? 2 : 1);
          if (fault != Fault::no_barrier) sync_block();
          std::memcpy(&read[turn * 128 + i], at(127 - i), 8);
          if (fault != Fault::early_refill) sync_block();
        }
      },
      Start::alone, 128 * 8);
  if (error != ok) return error;
  for (std::size_t i = 0; i < 128; ++i) {
    if (read[i] != 127 - i || read[128 + i] != 128 + 127 - i) return -1;
  }
  return ok;
}

}  // namespace

TEST_CASE("Copies are there when they were waited for, and what is forgotten shows") {
  for (std::uint64_t seed = 1; seed <= 10; ++seed) CHECK(copy_pieces(Fault::none, seed) == ok);
  for (const Fault fault : {Fault::no_wait, Fault::no_barrier, Fault::early_refill, Fault::not_aligned, Fault::left}) {
    CAPTURE(static_cast<int>(fault));
    int seen = 0;
    for (std::uint64_t seed = 1; seed <= 20; ++seed) seen += copy_pieces(fault, seed) != ok;
    CHECK(seen > 0);
  }
}

TEST_CASE("A barrier makes writes seen, and a forgotten one shows") {
  for (std::uint64_t seed = 1; seed <= 10; ++seed) {
    CHECK(exchange_through_memory(true, seed) == 128);
    CHECK(exchange_through_memory(false, seed) < 128);
  }
}

TEST_CASE("Threads that wait for ever are reported") {
  Machine machine;
  CHECK(run(machine, {}, 64, [] {
          if (place.thread.x != 5) sync_block();  // a lane that leaves early
        }) == deadlock);
  CHECK(run(machine, {}, 64, [] {
          Lane mine{};
          if (place.thread.x % 32 != 7) collective(&mine, 32, [](void* const*) {});
        }) == deadlock);
  CHECK(run(machine, {}, 64, [] { sync_block(); }) == ok);  // and leave nothing behind
  CHECK(run(machine, {}, 1025, [] {}) == bad_launch);
}

TEST_CASE("Collectives bring all lanes' values, at both widths") {
  for (const int lanes : {32, 64}) {
    Machine machine;
    machine.warp_width = lanes;
    std::vector<int> sums(256);
    REQUIRE(run(machine, {}, 256, [&] {
              const int thread = static_cast<int>(place.thread.x);
              for (int turn = 0; turn < 3; ++turn) {
                Lane mine{thread + turn, 0};
                if (lanes == 32) {
                  collective(&mine, 32, [](void* const* all) {
                    for (int i = 0; i < 32; ++i) static_cast<Lane*>(all[i])->out = static_cast<Lane*>(all[31 - i])->in;
                  });
                } else {
                  collective(&mine, 64, [](void* const* all) {
                    for (int i = 0; i < 64; ++i) static_cast<Lane*>(all[i])->out = static_cast<Lane*>(all[63 - i])->in;
                  });
                }
                sums[static_cast<std::size_t>(thread)] += mine.out;
              }
            }) == ok);
    for (int i = 0; i < 256; ++i)
      CHECK(sums[static_cast<std::size_t>(i)] == 3 * (i / lanes * lanes + lanes - 1 - i % lanes) + 3);
  }
}

TEST_CASE("Lanes that meet once for a reduction get the bits that shuffles give") {
  namespace kernels = llminfer::gpu::emulated_test;
  const auto add = [](float a, float b) { return a + b; };
  const auto larger = [](float a, float b) { return a > b ? a : b; };
  Machine machine;
  std::vector<float> values(128), sums(128), sums_by_shuffles(128), most(128), most_by_shuffles(128);
  for (std::size_t i = 0; i < 128; ++i) values[i] = 1.0f / static_cast<float>(i * 37 % 101 + 3);
  REQUIRE(run(machine, {}, 128, [&] {
            const std::size_t i = place.thread.x;
            sums[i] = kernels::sum_of_lanes(values[i]);
            sums_by_shuffles[i] = kernels::reduce_by_shuffles(values[i], add);
            most[i] = kernels::largest_of_lanes(values[i]);
            most_by_shuffles[i] = kernels::reduce_by_shuffles(values[i], larger);
          }) == ok);
  CHECK(sums == sums_by_shuffles);
  CHECK(most == most_by_shuffles);
  for (std::size_t i = 0; i < 128; ++i) {
    const auto first = values.begin() + static_cast<std::ptrdiff_t>(i / 32 * 32);
    CHECK(sums[i] == Approx(std::accumulate(first, first + 32, 0.0)));
    CHECK(most[i] == *std::max_element(first, first + 32));
  }
}

TEST_CASE("Every thread of every block runs once, in an order of the seed") {
  std::set<std::vector<unsigned>> orders;
  for (std::uint64_t seed = 1; seed <= 4; ++seed) {
    Machine machine;
    machine.seed = seed;
    std::vector<int> count(3 * 2 * 2 * 96);
    std::vector<unsigned> order;
    REQUIRE(run(machine, {3, 2, 2}, 96, [&] {
              const unsigned block = (place.block.z * 2 + place.block.y) * 3 + place.block.x;
              ++count[block * 96 + place.thread.x];
              order.push_back(block * 96 + place.thread.x);
            }) == ok);
    CHECK(count == std::vector<int>(count.size(), 1));
    orders.insert(order);
  }
  CHECK(orders.size() == 4);
}
