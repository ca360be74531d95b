// Ranks that cannot sum on their GPUs, or no longer: who notices, what a request gets, and that nobody waits for ever.
#include <dlfcn.h>

#include <catch2/catch.hpp>

#include "tests/gpu/collectives.hpp"
#include "tests/gpu/fake_nccl.hpp"

using namespace llminfer;
using namespace llminfer::test;

namespace {

/// The library that the backends have loaded, or will.
FakeNccl& fake() {
  void* const library = ::dlopen(LLMINFER_TEST_FAKE_NCCL, RTLD_NOW | RTLD_NODELETE);
  return *reinterpret_cast<FakeNccl* (*)()>(::dlsym(library, "fake_nccl"))();
}

std::vector<std::shared_ptr<Communicator>> two_ranks() { return make_thread_communicators(2).value(); }

CompletionRequest short_request() {
  CompletionRequest request;
  request.tokens = some_tokens(5, 1);
  request.options.max_tokens = 2;
  request.options.ignore_end = true;
  return request;
}

/// What becomes of a request: its error, or the number of sums that GPUs made for it.
struct Outcome {
  std::optional<ErrorCode> error;
  int sums = 0;
};
Outcome complete(const Engine& engine) {
  const int before = fake().sums;
  const auto result = engine.complete(short_request());
  return {result ? std::nullopt : std::optional(result.error().code), fake().sums - before};
}

/// A Communicator as hosts have written it without ready().
class PlainCommunicator final : public Communicator {
 public:
  explicit PlainCommunicator(std::shared_ptr<Communicator> inner) : inner_(std::move(inner)) {}
  int rank() const noexcept override { return inner_->rank(); }
  int size() const noexcept override { return inner_->size(); }
  Result<void> send(int to, std::span<const std::byte> data) override { return inner_->send(to, data); }
  Result<void> receive(int from, std::span<std::byte> data) override { return inner_->receive(from, data); }

 private:
  const std::shared_ptr<Communicator> inner_;
};

}  // namespace

TEST_CASE("Ranks that cannot sum on their GPUs sum in host memory, or say why not") {
  const FourHeadsModel model;
  const auto check = [&](const std::function<void(Backends&, std::vector<std::shared_ptr<Communicator>>&)>& spoil,
                         ErrorCode code, const std::string& why, bool told) {
    CAPTURE(why);
    for (const DeviceSums sums : {DeviceSums::automatic, DeviceSums::required}) {
      Backends backends = summing_backends(2);
      auto communicators = two_ranks();
      spoil(backends, communicators);
      EngineOptions options = summing_options(sums);
      std::string log;
      options.on_log = [&](LogLevel, std::string_view message) { log += message; };
      Ranks ranks(model.path(), std::move(communicators), 2, options, std::move(backends));
      if (sums == DeviceSums::automatic) {
        REQUIRE(ranks.engine());
        CHECK(complete(*ranks.engine()).sums == 0);
        CHECK(ranks.engine()->info().backend.find("sums by") == std::string::npos);
        CHECK((log.find("sums in host memory: rank 1: ") != std::string::npos) == told);
      } else {
        REQUIRE_FALSE(ranks.engine());
        CHECK(ranks.engine().error().code == code);
        CHECK_THAT(ranks.engine().error().message, Catch::Contains("device_sums is required") && Catch::Contains(why));
      }
      for (const auto& outcome : ranks.end()) CHECK(outcome);
      CHECK(fake().communicators == 0);
    }
  };
  check(
      [](auto& backends, auto&) {
        gpu::EmulatorOptions other;
        other.collectives = "/nonexistent/libnccl.so.2";
        backends[1] = make_machine_backend(other);
      },
      ErrorCode::not_found, "rank 1: /nonexistent/libnccl.so.2", true);
  check([](auto& backends, auto&) { backends[1] = nullptr; }, ErrorCode::unsupported, "rank 1: the backend has no",
        false);
  check(
      [](auto& backends, auto&) {
        gpu::EmulatorOptions options;
        options.collectives = LLMINFER_TEST_FAKE_NCCL;
        backends[1] = make_machine_backend(options, true);
      },
      ErrorCode::unsupported, "rank 1: GpuOptions::batch_invariant", false);
  check([](auto&, auto& communicators) { communicators[1] = std::make_shared<PlainCommunicator>(communicators[1]); },
        ErrorCode::unsupported, "rank 1: the Communicator has no ready()", false);
  fake().fail_init = 1;
  check([](auto&, auto&) {}, ErrorCode::device_error, "rank 1: host emulator, NCCL 2.28.3: making a communicator",
        true);
  fake().fail_init = -1;
}

TEST_CASE("A pass that fails on one rank makes its sums all the same, and the GPUs go on summing") {
  const FourHeadsModel model;
  for (const std::size_t broken : {0, 1}) {
    for (const int launch : {9, 30}) {
      CAPTURE(broken, launch);
      Backends backends = summing_backends(2);
      gpu::EmulatorOptions options;
      options.collectives = LLMINFER_TEST_FAKE_NCCL;
      options.fail_launch = launch;
      backends[broken] = make_machine_backend(options);
      Ranks ranks(model.path(), two_ranks(), 2, summing_options(DeviceSums::required), std::move(backends));
      REQUIRE(ranks.engine());
      int failed = 0;
      for (int i = 0; i < 3; ++i) {
        const Outcome outcome = complete(*ranks.engine());
        if (outcome.error) CHECK(*outcome.error == ErrorCode::device_error);
        failed += outcome.error.has_value();
        CHECK(outcome.sums % 8 == 0);  // 2 ranks, 2 layers
        if (!outcome.error) CHECK(outcome.sums == 16);
      }
      CHECK(failed == 1);
      for (const auto& outcome : ranks.end()) CHECK(outcome);
    }
  }
  CHECK(fake().communicators == 0);
}

TEST_CASE("Ranks whose libraries wait for each other when they abort hear of a failure all the same") {
  const FourHeadsModel model;
  fake().abort_waits = true;
  {
    Ranks ranks(model.path(), two_ranks(), 2, summing_options(DeviceSums::required), summing_backends(2));
    REQUIRE(ranks.engine());
    fake().fail_sum = 3;
    CHECK(complete(*ranks.engine()).error == ErrorCode::device_error);
    CHECK_FALSE(complete(*ranks.engine()).error);
    for (const auto& outcome : ranks.end()) CHECK(outcome);
  }
  fake().abort_waits = false;
  CHECK(fake().communicators == 0);
}

TEST_CASE("A sum that cannot be made is an error of its pass, and later ones are made in host memory") {
  const FourHeadsModel model;
  for (const bool late : {false, true}) {
    for (const int sum : {3, 12}) {
      CAPTURE(late, sum);
      Ranks ranks(model.path(), two_ranks(), 2, summing_options(DeviceSums::required), summing_backends(2));
      REQUIRE(ranks.engine());
      (late ? fake().break_sum : fake().fail_sum) = sum;
      CHECK(complete(*ranks.engine()).error == ErrorCode::device_error);
      CHECK(fake().communicators == 0);
      for (int i = 0; i < 2; ++i) {
        const Outcome outcome = complete(*ranks.engine());
        CHECK_FALSE(outcome.error);
        CHECK(outcome.sums == 0);
      }
      for (const auto& outcome : ranks.end()) CHECK(outcome);
    }
  }
}

TEST_CASE("Prompts that are interrupted while GPUs sum") {
  const FourHeadsModel model;
  Ranks ranks(model.path(), two_ranks(), 2, summing_options(DeviceSums::required), summing_backends(2));
  REQUIRE(ranks.engine());
  for (int i = 0; i < 6; ++i) {
    CompletionRequest request = short_request();
    request.tokens = some_tokens(50, 1);
    CancelToken cancel;
    request.options.cancel = cancel;
    Completion running = ranks.engine()->submit(std::move(request)).value();
    std::this_thread::sleep_for(std::chrono::milliseconds(3 * i));
    cancel.cancel();
    (void)running.wait();
  }
  CHECK(complete(*ranks.engine()).sums == 16);
}

TEST_CASE("A rank that is lost while GPUs sum is an error, and nobody waits for it") {
  const FourHeadsModel model;
  int later = 0;
  for (int messages = 0; messages < 40; messages += 5) {
    CAPTURE(messages);
    auto communicators = two_ranks();
    communicators[1] = std::make_shared<FailingCommunicator>(communicators[1], messages);
    Ranks ranks(model.path(), std::move(communicators), 2, summing_options(DeviceSums::automatic), summing_backends(2));
    if (ranks.engine()) {
      ++later;
      std::optional<ErrorCode> error;
      for (int i = 0; i < 20 && !error; ++i) error = complete(*ranks.engine()).error;
      CHECK(error == ErrorCode::peer_lost);
      CHECK(complete(*ranks.engine()).error == ErrorCode::peer_lost);
    } else {
      CHECK(ranks.engine().error().code == ErrorCode::peer_lost);
    }
    CHECK(ranks.end()[1].error().code == ErrorCode::peer_lost);
    CHECK(fake().communicators == 0);
  }
  CHECK(later > 3);
}
