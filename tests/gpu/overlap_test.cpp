// Kernels that begin before those before them have ended: the emulator must see all that a GPU would not forgive, and
// the plans' kernels must give the bits that they give in turn.
#include <catch2/catch.hpp>

#include <functional>

#include "backends/gpu/emulator/emulator.hpp"
#include "tests/gpu/graph_script.hpp"

using namespace llminfer;
using namespace llminfer::test;
namespace emulator = llminfer::gpu::emulator;

namespace {

/// A machine with some numbers in its memory, all 0, and kernels of two blocks that work on them.
struct Numbers {
  static constexpr unsigned kThreads = 64, kCount = 2 * kThreads;
  std::shared_ptr<gpu::Device> device;
  gpu::Buffer memory, host;

  explicit Numbers(std::uint64_t seed, bool dependent_launch = true) {
    gpu::EmulatorOptions options;
    options.seed = seed;
    options.dependent_launch = dependent_launch;
    device = gpu::make_emulated_device(options);
    memory = gpu::Buffer::make(device, 3 * kCount * sizeof(int)).value();
    host = gpu::Buffer::make(device, kCount * sizeof(int), true).value();
    device->clear(memory.at(), memory.bytes()).value();
    device->wait().value();
  }
  int* row(int i) const { return memory.at<int>() + i * static_cast<int>(kCount); }

  /// body(i): of thread i of all.
  void launch(void* stream, std::function<void(unsigned)> body) const {
    REQUIRE(emulator::launch(*static_cast<emulator::Machine*>(stream), {2, 1, 1}, kThreads, [body = std::move(body)] {
              body(emulator::place.block.x * kThreads + emulator::place.thread.x);
            }) == emulator::ok);
  }
  void launch(std::function<void(unsigned)> body) const { launch(device->stream(), std::move(body)); }
  /// row(to) = row(from) + 1, where that is read after the former kernels have ended, or before.
  void launch_next(void* stream, int from, int to, bool too_early = false) const {
    launch(stream, [in = row(from), out = row(to), too_early](unsigned i) {
      int value = in[i];
      emulator::after_former();
      if (!too_early) value = in[i];
      out[i] = value + 1;
    });
  }
  void launch_next(int from, int to, bool too_early = false) const {
    launch_next(device->stream(), from, to, too_early);
  }
  Result<void> wait() const { return device->wait(); }
  /// Whether all of the row are that.
  bool row_is(int i, int value) const {
    device->copy(host.at(), row(i), host.bytes()).value();
    device->wait().value();
    return std::count(host.at<int>(), host.at<int>() + kCount, value) == kCount;
  }
};

/// How many of 20 schedules show it.
int count_shown(const std::function<bool(std::uint64_t)>& shows) {
  int shown = 0;
  for (std::uint64_t seed = 1; seed <= 20; ++seed) shown += shows(seed);
  return shown;
}
bool wrong_when_early(std::uint64_t seed, bool too_early) {
  const Numbers numbers(seed);
  numbers.launch_next(0, 1);
  numbers.launch_next(1, 2, too_early);
  return !numbers.row_is(2, 2);
}

}  // namespace

TEST_CASE("What is read after the former kernel is there, and what is read too early is not") {
  CHECK(count_shown([](std::uint64_t seed) { return wrong_when_early(seed, false); }) == 0);
  const int shown = count_shown([](std::uint64_t seed) { return wrong_when_early(seed, true); });
  CHECK(shown > 3);
  CHECK(shown < 20);  // it need not begin early
}

TEST_CASE("A kernel may begin before several others have ended") {
  const auto wrong = [](std::uint64_t seed) {
    const Numbers numbers(seed);
    numbers.launch_next(0, 1);
    numbers.launch([](unsigned) { emulator::after_former(); });
    numbers.launch_next(1, 2, true);
    return !numbers.row_is(2, 2);
  };
  CHECK(count_shown(wrong) > 3);
}

TEST_CASE("What was copied is not there for what a kernel does too early, until the host has waited") {
  enum class Waits { not_at_all, host, kernel };
  const auto wrong = [](gpu::Stream stream, Waits waits, std::uint64_t seed) {
    const Numbers numbers(seed);
    const gpu::Event event = gpu::Event::make(numbers.device).value();
    std::fill_n(numbers.host.at<int>(), Numbers::kCount, 5);
    numbers.device->copy(numbers.row(0), numbers.host.at(), numbers.host.bytes(), stream).value();
    event.record(stream).value();
    event.follow(gpu::Stream::work).value();
    if (waits == Waits::host) numbers.device->wait(stream).value();
    numbers.launch_next(0, 1);
    if (waits == Waits::kernel) numbers.device->begin_in_turn();
    numbers.launch_next(0, 2, true);
    return !numbers.row_is(2, 6);
  };
  for (const gpu::Stream stream : {gpu::Stream::work, gpu::Stream::copies}) {
    const auto shown = [&](Waits waits) { return count_shown([&](auto seed) { return wrong(stream, waits, seed); }); };
    CHECK(shown(Waits::not_at_all) > 3);
    CHECK(shown(Waits::host) == 0);
    CHECK(shown(Waits::kernel) == 0);
  }
}

TEST_CASE("What is still read is not overwritten but after the former kernel") {
  const auto fails = [](std::uint64_t seed, bool too_early) {
    const Numbers numbers(seed);
    numbers.launch_next(0, 1);
    numbers.launch([out = numbers.row(0), too_early](unsigned i) {
      if (too_early) out[i] = 7;
      emulator::after_former();
      out[i] = 7;
    });
    return !numbers.wait();
  };
  CHECK(count_shown([&](std::uint64_t seed) { return fails(seed, false); }) == 0);
  CHECK(count_shown([&](std::uint64_t seed) { return fails(seed, true); }) > 3);
}

TEST_CASE("A thread that never waits for the former kernel is an error, whether or not there is one") {
  const auto fails = [](bool dependent_launch, unsigned lost) {
    const Numbers numbers(1, dependent_launch);
    numbers.launch([lost](unsigned i) {
      if (i != lost) emulator::after_former();
    });
    return !numbers.wait();
  };
  CHECK(fails(true, 70));
  CHECK_FALSE(fails(true, Numbers::kCount));
  CHECK_FALSE(fails(false, 70));
}

TEST_CASE("Barriers and collectives before the wait") {
  for (std::uint64_t seed = 1; seed <= 10; ++seed) {
    const Numbers numbers(seed);
    numbers.launch_next(0, 1);
    std::vector<int> shared(Numbers::kThreads);  // one block's after the other's
    numbers.launch([&shared, in = numbers.row(1), out = numbers.row(2)](unsigned i) {
      const unsigned thread = i % Numbers::kThreads;
      shared[thread] = static_cast<int>(i);
      emulator::sync_block();
      const int opposite = shared[Numbers::kThreads - 1 - thread];
      emulator::after_former();
      emulator::sync_block();
      out[i] =
          in[i] + opposite + static_cast<int>(thread) - static_cast<int>(i / Numbers::kThreads * Numbers::kThreads);
    });
    CHECK(numbers.row_is(2, 1 + static_cast<int>(Numbers::kThreads) - 1));
  }
}

TEST_CASE("Kernels begin in turn after what is no kernel, and in graphs after the first") {
  const auto wrong_after = [](const std::function<void(const Numbers&)>& between) {
    return count_shown([&](std::uint64_t seed) {
      const Numbers numbers(seed);
      const gpu::Event event = gpu::Event::make(numbers.device).value();
      numbers.launch_next(0, 1);
      between(numbers);
      numbers.launch_next(1, 2, true);
      return !numbers.row_is(2, 2);
    });
  };
  using N = const Numbers&;
  CHECK(wrong_after([](N n) { n.device->copy(n.host.at(), n.row(0), 4).value(); }) == 0);
  CHECK(wrong_after([](N n) { n.device->copy_pieces(n.host.at(), n.row(0), 4, 4, 2).value(); }) == 0);
  CHECK(wrong_after([](N n) { n.device->clear(n.row(0), 4).value(); }) == 0);
  CHECK(wrong_after([](N n) { n.device->mark(0).value(); }) == 0);
  CHECK(wrong_after([](N n) { n.device->copy(n.host.at(), n.row(0), 4, gpu::Stream::copies).value(); }) > 3);

  const auto wrong_in_graph = [](int kernel) {  // that reads too early
    return count_shown([&](std::uint64_t seed) {
      const Numbers numbers(seed);
      numbers.launch_next(0, 1);
      const auto graph = gpu::Graph::make(numbers.device, [&](void* stream) -> Result<void> {
                           numbers.launch_next(stream, 1, 2, kernel == 0);
                           numbers.launch_next(stream, 2, 0, kernel == 1);
                           return {};
                         }).value();
      graph.launch().value();
      numbers.launch_next(0, 1, kernel == 2);
      return !numbers.row_is(1, 4);
    });
  };
  CHECK(wrong_in_graph(0) == 0);
  CHECK(wrong_in_graph(1) > 3);
  CHECK(wrong_in_graph(2) == 0);
}

TEST_CASE("Passes give the same bits whether kernels overlap or not") {
  const Model model = decoded_model();
  for (const bool graphs : {true, false}) {
    gpu::EmulatorOptions in_turn;
    in_turn.dependent_launch = false;
    Decoder with(model, {.graphs = graphs}), without(model, {.graphs = graphs}, CacheType::f16, in_turn);
    CHECK(same_bits(decode_all(with), decode_all(without)));
  }
}
