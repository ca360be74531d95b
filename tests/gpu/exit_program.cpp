// exit_program HOW: a program that ends by exit() while its GPU, an emulated one, computes a request. HOW says who has
// the engine then: `static`, an object that exit() destroys; `thread`, the thread that waits for the request; `nobody`,
// an object that nothing destroys.
#include <atomic>
#include <cstdlib>
#include <optional>
#include <string_view>
#include <thread>
#include <utility>

#include <llminfer/llminfer.hpp>

#include "backends/gpu/backend.hpp"
#include "backends/gpu/emulator/device.hpp"

using namespace llminfer;

namespace {

struct Work {
  Engine engine;
  Completion running;
};
std::optional<Work> of_exit;          ///< destroyed by exit()
const Work* of_nobody = nullptr;      ///< never destroyed
std::atomic<bool> generating{false};  ///< and on from there

CompletionRequest endless_request() {
  CompletionRequest request;
  request.tokens = {1, 2, 3};
  request.options.max_tokens = 250;
  request.options.ignore_end = true;
  request.options.on_token = [](const GeneratedToken&) {
    generating = true;
    return true;
  };
  return request;
}

}  // namespace

int main(int argc, char** argv) {
  const std::string_view how = argc > 1 ? argv[1] : "";
  EngineOptions options;
  options.context_length = options.cache_tokens = 256;
  options.custom_backend = gpu::make_backend(gpu::make_emulated_device(), {});
  auto engine = Engine::load(LLMINFER_TEST_DATA "/models/tiny-bf16", options);
  options.custom_backend = nullptr;
  if (!engine) return 1;
  if (how == "thread") {
    std::thread([engine = *engine] { (void)engine.complete(endless_request()).has_value(); }).detach();
    engine = Error{};
  } else if (how == "static" || how == "nobody") {
    Completion running = engine->submit(endless_request()).value();
    Work work{std::move(*engine), std::move(running)};
    engine = Error{};
    if (how == "static") {
      of_exit.emplace(std::move(work));
    } else {
      of_nobody = new Work(std::move(work));
    }
  } else {
    return 1;
  }
  while (!generating) std::this_thread::yield();
  std::exit(0);
}
