// What engines take of a GPU comes back, whatever a load, a request or an engine comes to.
#include <catch2/catch.hpp>

#include <atomic>
#include <thread>
#include <utility>
#include <vector>

#include "tests/engine/split_models.hpp"
#include "tests/gpu/machines.hpp"
#include "tests/gpu/requests.hpp"

using namespace llminfer;
using namespace llminfer::test;

namespace {

/// A machine, an engine on it, and what is left on the machine once that is gone.
struct Turn {
  explicit Turn(const gpu::EmulatorOptions& machine = {}) : device(gpu::make_emulated_device(machine)) {}

  const gpu::EmulatedCounts& counts() const { return gpu::emulated_counts(*device); }
  Result<Engine> load(EngineOptions options = options_of({})) const {
    options.custom_backend = gpu::make_backend(device, {});
    return Engine::load(tiny::kModel, options);
  }
  /// Nothing is allocated, and nothing that was enqueued reads or writes what is released.
  bool clean() const {
    const bool waited = device->wait(gpu::Stream::work) && device->wait(gpu::Stream::copies);
    return waited && gpu::emulated_memory_in_use() == 0 && gpu::emulated_pinned_memory_in_use() == 0 &&
           counts().events == 0 && counts().graphs == 0;
  }

  const std::shared_ptr<gpu::Device> device;
};

}  // namespace

TEST_CASE("A load that is given up leaves nothing on the GPU, whoever keeps the backend") {
  const Turn turn;
  EngineOptions options = options_of({});
  options.custom_backend = gpu::make_backend(turn.device, {});
  bool held = false;
  options.on_progress = [&](float fraction) {
    held = held || gpu::emulated_pinned_memory_in_use() > 0;
    return fraction < 0.5f;
  };
  CHECK(Engine::load(tiny::kModel, options).error().code == ErrorCode::cancelled);
  CHECK(held);
  CHECK(turn.clean());
  options.on_progress = nullptr;
  const Engine engine = Engine::load(tiny::kModel, options).value();
  CHECK(engine.complete(request_of(2)).value().tokens == turn.load().value().complete(request_of(2)).value().tokens);
}

namespace {

/// Each `stride`-th allocation of a load and a request fails.
void fail_allocations(std::int64_t first, std::int64_t stride) {
  const std::vector<Token> expected = Turn().load().value().complete(request_of(3)).value().tokens;
  int loads = 0, requests = 0;
  for (std::int64_t n = first;; n += stride) {
    CAPTURE(n);
    gpu::EmulatorOptions machine;
    machine.fail_allocation = n;
    const Turn turn(machine);
    {
      const auto engine = turn.load();
      if (!engine) {
        CHECK(engine.error().code == ErrorCode::out_of_memory);
        ++loads;
      } else {
        const std::int64_t before = turn.counts().allocations;
        const auto done = engine->complete(request_of(3));
        CHECK((done ? done->tokens == expected : done.error().code == ErrorCode::out_of_memory));
        requests += before <= n && n < turn.counts().allocations;
        CHECK(engine->complete(request_of(3)).value().tokens == expected);
      }
    }
    REQUIRE(turn.clean());
    if (turn.counts().allocations <= n) break;
  }
  CHECK(loads > 0);
  if (stride == 1) CHECK(requests > 0);
}

}  // namespace

TEST_CASE("A load that finds no memory for one of its parts takes none") { fail_allocations(2, 9); }
TEST_CASE("A load or a request that finds no memory, at each allocation", "[.slow]") { fail_allocations(0, 1); }

TEST_CASE("Engines and sessions that end in the middle of their work leave nothing on the GPU") {
  for (const int after : {0, 1, 4}) {
    CAPTURE(after);
    const Turn turn;
    std::atomic<int> generated{0};
    {  // The last handles go while requests run.
      Engine engine = turn.load().value();
      std::vector<Completion> running;
      for (int i = 0; i < 3; ++i) {
        CompletionRequest request = request_of(100);
        request.options.on_token = [&](const GeneratedToken&) {
          ++generated;
          return true;
        };
        running.push_back(engine.submit(std::move(request)).value());
      }
      while (generated < after) std::this_thread::yield();
    }
    CHECK(turn.clean());
    CHECK(generated < 3 * 100);
  }
  const Turn turn;
  {  // A session's prompt is abandoned after some of its chunks.
    Engine engine = turn.load().value();
    Session session = engine.new_session().value();
    CancelToken cancel;
    PrefillOptions options;
    options.cancel = cancel;
    options.on_logits = [&](std::int32_t, std::span<const float>) {
      cancel.cancel();
      return true;
    };
    CHECK(session.prefill(some_tokens(100, 1), options).error().code == ErrorCode::cancelled);
    CHECK(session.size() == 0);
  }
  CHECK(turn.clean());
}
