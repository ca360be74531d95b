// Kernels whose blocks are on the machine together: the barrier between them, what the emulator must see of it, which
// steps of a list wait, and which passes are one kernel.
#define LLMINFER_GPU_EMULATED
#define LLMINFER_GPU_TARGET emulated_test
#include "backends/gpu/kernels/together.hpp"

#include <catch2/catch.hpp>

#include "backends/gpu/step_list.hpp"
#include "tests/cpu/mixture.hpp"
#include "tests/gpu/graph_script.hpp"

using namespace llminfer;
using namespace llminfer::test;
namespace emulator = llminfer::gpu::emulator;

namespace {

enum class Fault { none, no_wait, no_barrier, mixed_rounds, left_out };

/// Rounds in which each thread writes a number, and reads that of another one in the next block, all behind barriers.
/// Gives the launch's error, or -1 where a number is wrong.
int exchange(unsigned blocks, std::uint64_t seed, std::uint32_t& barrier, Fault fault = Fault::none) {
  constexpr unsigned kThreads = 64, kRounds = 4;
  emulator::Machine machine;
  machine.seed = seed;
  std::vector<unsigned> numbers(blocks * kThreads);
  int wrong = 0;
  const auto meet = [&](unsigned round) {
    using namespace gpu::emulated_test;
    if (fault == Fault::no_barrier) return;
    if (fault == Fault::left_out && round == 2 && blockIdx.x == 1) return;
    const std::uint32_t before = arrive(&barrier);
    // As if the last round's arrival said which one is waited for.
    if (fault != Fault::no_wait) wait_for_all(&barrier, fault == Fault::mixed_rounds ? before ^ 0x80000000u : before);
  };
  const int error = emulator::launch_together(machine, blocks, kThreads, [&] {
    const unsigned block = emulator::place.block.x, thread = emulator::place.thread.x;
    auto& shared = gpu::emulated_test::memory_of_block<unsigned[kThreads]>();
    for (unsigned round = 0; round < kRounds; ++round) {
      shared[thread] = block * kThreads + round;
      emulator::sync_block();
      numbers[block * kThreads + thread] = shared[kThreads - 1 - thread];
      meet(round);
      const unsigned next = (block + 1) % blocks;
      if (numbers[next * kThreads + (thread + 1) % kThreads] != next * kThreads + round) ++wrong;
      meet(round);
    }
  });
  return error != emulator::ok ? error : wrong > 0 ? -1 : 0;
}

const gpu::EmulatedCounts& counts_of(const Decoder& decoder) { return gpu::emulated_counts(*decoder.device); }

/// Which steps of a list wait.
std::vector<int> waits_of(const gpu::StepList& list) {
  std::vector<int> waits;
  for (const gpu::PersistentStep& step : list.steps()) waits.push_back(step.waits);
  return waits;
}

}  // namespace

TEST_CASE("Blocks wait for each other, launch after launch, and a barrier that is wrong shows") {
  std::uint32_t barrier = 0;
  for (std::uint64_t seed = 1; seed <= 10; ++seed) CHECK(exchange(1 + seed % 3, seed, barrier) == emulator::ok);
  for (const Fault fault : {Fault::no_wait, Fault::no_barrier, Fault::mixed_rounds}) {
    CAPTURE(static_cast<int>(fault));
    int seen = 0;
    for (std::uint64_t seed = 1; seed <= 10; ++seed) {
      std::uint32_t fresh = 0;
      seen += exchange(3, seed, fresh, fault) != emulator::ok;
    }
    CHECK(seen > 5);
  }
  std::uint32_t fresh = 0;
  CHECK(exchange(3, 1, fresh, Fault::left_out) == emulator::deadlock);
}

TEST_CASE("Blocks that are not on the machine together cannot wait for each other") {
  using namespace gpu::emulated_test;
  emulator::Machine machine;
  std::uint32_t barrier = 0;
  const auto meet = [&] { wait_for_all(&barrier, arrive(&barrier)); };
  CHECK(emulator::run(machine, {2}, 32, meet) == emulator::deadlock);
  CHECK(emulator::launch_together(machine, machine.resident_blocks + 1, 32, meet) == emulator::bad_launch);
}

TEST_CASE("Of a list's steps those wait that have to do with one since the last that waits") {
  float a[64], b[64], c[64];
  const gpu::KernelTable& table = gpu::StepList::table();
  const auto row = [](float* at) { return gpu::RowsArgs{at, 64}; };
  gpu::StepList list;
  const auto add = [&](float* x, float* y, float* out, int width) {
    return table.add(&list, {row(x), row(y), row(out), 1, width});
  };
  CHECK(add(a, a, b, 32) == 0);
  CHECK(add(a, a, b + 32, 32) == 0);  // beside it
  CHECK(add(b + 31, a, c, 1) == 0);   // reads what is written
  CHECK(add(b, a, c + 32, 8) == 0);   // also reads, and writes elsewhere: nothing new
  CHECK(add(c, c, b, 4) == 0);        // writes what was read, and reads what was written
  CHECK(add(a, a, c, 1) == 0);        // writes what was read
  CHECK(add(a, a, c, 1) == 0);        // writes what was written
  CHECK(waits_of(list) == std::vector<int>{0, 0, 1, 0, 1, 1, 1});
  CHECK(table.add(&list, {row(a), row(a), row(b), 2, 8}) != 0);
  CHECK(table.linear_many(&list, {}) != 0);
  CHECK(list.steps().size() == 7);
}

TEST_CASE("A token's pass is one launch, and what the kernel has no steps for is a graph") {
  const auto check = [](const Model& model, const GpuOptions& options, int rows, int resident_blocks, bool one_kernel,
                        bool graphs = true) {
    gpu::EmulatorOptions machine;
    machine.resident_blocks = resident_blocks;
    Decoder decoder(model, options, CacheType::f16, machine);
    Sequence sequence;
    for (int i = 0; i < 3; ++i) decoder.pass({{&sequence, rows}});
    const std::int64_t before = counts_of(decoder).launches;
    decoder.pass({{&sequence, rows}});
    const bool graph = counts_of(decoder).graphs_made > 0;
    CHECK(graph == (!one_kernel && graphs));
    // The rows whose hidden states are wanted are gathered by a kernel of their own.
    if (one_kernel) CHECK(counts_of(decoder).launches - before == 1 + 1);
  };
  const Model model = decoded_model();
  const GpuOptions persistent{.persistent = true};
  check(model, persistent, 1, 3, true);
  check(model, {}, 1, 3, false);
  check(model, persistent, 2, 3, false);
  check(model, persistent, 1, 0, false);
  check(model, {.graphs = false, .persistent = true}, 1, 3, false, false);
  check(model, {.batch_invariant = true, .persistent = true}, 1, 3, false);
  check(make_model(make_mixture({.experts = 6, .layers = 1}), WeightType::q4_0), persistent, 1, 3, false);
}

TEST_CASE("A token's kernel that cannot be launched leaves the pass to single launches") {
  const Model model = decoded_model();
  const auto tokens_of = [&](std::int64_t fail_launch, std::int64_t& launches) {
    gpu::EmulatorOptions machine;
    machine.fail_launch = fail_launch;
    Decoder decoder(model, {.persistent = true}, CacheType::f16, machine);
    Sequence sequence;
    std::vector<float> all;
    for (int i = 0; i < 3; ++i) {
      const std::vector<float> some = decoder.pass({{&sequence, 1}});
      all.insert(all.end(), some.begin(), some.end());
      if (i == 1) launches = counts_of(decoder).launches;
    }
    return all;
  };
  std::int64_t launches = 0, others = 0;
  const std::vector<float> expected = tokens_of(-1, launches);
  CHECK(same_bits(tokens_of(launches - 2, others), expected));  // the kernel; the last one gathers a hidden state
  CHECK(others > launches);
}
