// Host memory runs out at every allocation of engines on an emulated GPU: typed errors, and the GPU's memory, events
// and graphs come back with the engine. What the GPU itself does, its kernels and copies, needs no memory of the host.
#include <catch2/catch.hpp>

#include "backends/gpu/backend.hpp"
#include "backends/gpu/emulator/device.hpp"
#include "tests/load/temp_dir.hpp"
#include "tests/memory/walk.hpp"

using namespace llminfer;
using namespace llminfer::test;

namespace {

std::shared_ptr<gpu::Device> make_device() {
  gpu::EmulatorOptions options;
  options.run = [](const std::function<int()>& work) {
    const Spared spared;
    return work();
  };
  return gpu::make_emulated_device(options);
}

/// How an engine uses the GPU.
enum class How : std::uint8_t { alone, beside_cpu, streamed, read, swapped };

const std::string& three_layers() {
  static const std::string bytes = make_model_bytes(3);
  return bytes;
}

EngineOptions on(const std::shared_ptr<gpu::Device>& device, How how) {
  EngineOptions options = small();
  const auto backend = gpu::make_backend(device, {.threads = 2});
  options.custom_backend = backend;
  switch (how) {
    case How::alone:
      break;
    case How::beside_cpu:
      options.split = {{make_cpu_backend({.threads = 1}).value(), 0}, {backend}};
      options.custom_backend = nullptr;
      break;
    case How::streamed:
    case How::read: {
      const TempDir folder;
      folder.write("three.gguf", three_layers());
      const std::int64_t all = Engine::plan(folder / "three.gguf", options).value().total();
      options.split = {{backend, {}, all - 1, true}};
      options.custom_backend = nullptr;
      if (how == How::read) options.stream_folder = "/tmp";
      break;
    }
    case How::swapped:
      options.device_cache_tokens = 256;
      break;
  }
  return options;
}

bool holds_nothing(const gpu::Device& device) {
  const gpu::EmulatedCounts& counts = gpu::emulated_counts(device);
  return gpu::emulated_memory_in_use() == 0 && gpu::emulated_pinned_memory_in_use() == 0 && counts.events == 0 &&
         counts.graphs == 0;
}

}  // namespace

TEST_CASE("out of memory while an engine on a GPU is loaded and unloaded") {
  const auto [how, stride] = GENERATE(table<How, long>(
      {{How::alone, 7}, {How::beside_cpu, 31}, {How::streamed, 19}, {How::read, 19}, {How::swapped, 19}}));
  const auto device = make_device();
  const EngineOptions options = on(device, how);
  const auto attempt = [&]() -> Outcome {
    const auto engine = load_model(options, three_layers());
    return engine ? Outcome() : failed(engine);
  };
  walk("load", stride, attempt, [&] {
    if (!holds_nothing(*device)) FAIL("the GPU's memory has not come back");
  });
}

TEST_CASE("out of memory in requests to an engine on a GPU") {
  const auto [how, stride] = GENERATE(table<How, long>(
      {{How::alone, 41}, {How::beside_cpu, 151}, {How::streamed, 101}, {How::read, 101}, {How::swapped, 101}}));
  const auto device = make_device();
  {
    const Running running(on(device, how), three_layers());
    const std::vector<Token> prompt = some_tokens(20);
    GenerateOptions options;
    options.max_tokens = 3;
    options.ignore_end = true;
    const auto attempt = [&]() -> Outcome {
      auto session = running.engine.new_session();
      if (!session) return failed(session);
      if (auto done = session->prefill(prompt); !done) return failed(done);
      auto branch = session->fork();
      if (!branch) return failed(branch);
      const auto generated = branch->generate(options);
      if (!generated) return failed(generated);
      return {{}, Tokens(generated->tokens)};
    };
    walk("requests", stride, attempt, [&] { running.tidy(); });
  }
  CHECK(holds_nothing(*device));
}
