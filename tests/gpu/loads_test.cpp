// Engines that come and go on one GPU, and several at once.
#include <catch2/catch.hpp>

#include <optional>
#include <utility>
#include <vector>

#include "tests/gpu/machines.hpp"
#include "tests/gpu/requests.hpp"

using namespace llminfer;
using namespace llminfer::test;

namespace {

#ifdef LLMINFER_TEST_GPU
constexpr std::int64_t kOthers = 16 << 20;  // of a GPU's memory others may take a little meanwhile
#else
constexpr std::int64_t kOthers = 0;
#endif

Engine load_on(std::shared_ptr<gpu::Device> device) {
  EngineOptions options = options_of({});
  options.custom_backend = gpu::make_backend(std::move(device), {});
  return Engine::load(tiny::kModel, options).value();
}

std::vector<Token> tokens_of(const Engine& engine) { return engine.complete(request_of(2)).value().tokens; }

void load_and_unload(int times) {
  const auto device = make_machine();
  std::vector<Token> expected;
  std::int64_t before = 0;
  for (int i = 0; i < times; ++i) {
    CAPTURE(i);
    {
      const Engine engine = load_on(device);
      if (i % (times / 4) == 0) {
        const auto tokens = tokens_of(engine);
        if (i == 0) expected = tokens;
        CHECK(tokens == expected);
      }
    }
    device->wait(gpu::Stream::work).value();
    device->wait(gpu::Stream::copies).value();
    if (i == 0) before = memory_in_use();  // what the runtime has taken for itself
    REQUIRE(before >= 0);
    REQUIRE(memory_in_use() <= before + kOthers);
#ifndef LLMINFER_TEST_GPU
    REQUIRE(before == 0);  // all of it
    REQUIRE(gpu::emulated_counts(*device).events == 0);
    REQUIRE(gpu::emulated_counts(*device).graphs == 0);
#endif
  }
}

}  // namespace

TEST_CASE("Engines that come and go leave nothing on the GPU") { load_and_unload(20); }
TEST_CASE("A thousand engines that come and go leave nothing on the GPU", "[.slow]") { load_and_unload(1000); }

TEST_CASE("Engines on one GPU at once give what each gives alone, while others come and go") {
  const std::vector<Token> expected = load_on(make_machine()).complete(request_of(12)).value().tokens;
  REQUIRE(expected.size() == 12);
  const Engine stays = load_on(make_machine());
  std::optional<Engine> leaves = load_on(make_machine());
  const auto submit = [](const Engine& engine) { return engine.submit(request_of(12)).value(); };
  Completion first = submit(stays), second = submit(*leaves), third = submit(stays);
  CHECK(second.wait().value().tokens == expected);
  leaves.reset();  // perhaps in the middle of the others' work
  leaves = load_on(make_machine());
  second = submit(*leaves);
  for (Completion* const request : {&first, &second, &third}) CHECK(request->wait().value().tokens == expected);
}
