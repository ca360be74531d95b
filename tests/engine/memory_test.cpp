// What a load takes, and the ways into a model. Needs the default model: LLMINFER_TEST_MODEL names it.
#include <llminfer/llminfer.hpp>

#include <catch2/catch.hpp>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>

#include "tests/engine/default_model.hpp"

using namespace llminfer;
using test::default_model;

namespace {

/// A field of /proc/self/status, in bytes.
double status_bytes(const std::string& field) {
  std::ifstream status("/proc/self/status");
  for (std::string key; status >> key; status.ignore(1024, '\n')) {
    double kib = 0;
    if (key == field + ":" && status >> kib) return kib * 1024;
  }
  return 0;
}

std::vector<Token> greedy(const Engine& engine) {
  CompletionRequest request;
  request.tokens = engine.tokenizer().encode("The capital of France is").value();
  request.options.max_tokens = 8;
  request.options.ignore_end = true;
  return engine.complete(request).value().tokens;
}

EngineOptions small_cache() {
  EngineOptions options{.threads = 2};
  options.context_length = options.cache_tokens = 1024;
  return options;
}

}  // namespace

// Hidden: peaks are those of a whole process, so the test below runs this in one of its own.
TEST_CASE("memory of a fresh process", "[.]") {
  if (!default_model()) return;
  const MemoryPlan plan = Engine::plan(default_model(), small_cache()).value();
  const double peak_before = status_bytes("VmHWM"), private_before = status_bytes("RssAnon");
  const Engine engine = Engine::load(default_model(), small_cache()).value();
  Session session = engine.new_session().value();
  session.prefill(std::vector<Token>(1000, 1)).value();  // nearly all of the cache
  const double mib = 1 << 20, planned = static_cast<double>(plan.total());
  const double peak = status_bytes("VmHWM") - peak_before, kept = status_bytes("RssAnon") - private_before;
  INFO("plan " << planned / mib << " MiB, private " << kept / mib << ", peak " << peak / mib);
  // Beside what is planned there are the tokenizer, the engine's own tables and at most a huge page per mapping.
  CHECK(kept > 0.85 * planned);
  CHECK(kept < planned + 24 * mib);
  // Never both forms of the whole model.
  CHECK(peak < planned + 24 * mib);
  CHECK(peak < planned + 0.5 * static_cast<double>(plan.file));
}

TEST_CASE("a load takes the memory that its plan tells, and no second copy of the weights at its peak") {
#if defined(LLMINFER_SANITIZED)
  WARN("skipped: sanitizers take memory of their own");
#else
  if (!default_model()) return;
  CHECK(std::system("exec /proc/$PPID/exe 'memory of a fresh process'") == 0);
#endif
}

TEST_CASE("a model from a mapped file, a read file, memory and a reader gives the same tokens") {
  if (!default_model()) return;
  const std::vector<Token> expected = greedy(Engine::load(default_model(), small_cache()).value());
  EngineOptions unmapped = small_cache();
  unmapped.mmap = false;
  CHECK(greedy(Engine::load(default_model(), unmapped).value()) == expected);

  std::ifstream file(default_model(), std::ios::binary);
  auto data =
      std::make_shared<std::vector<char>>(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
  const std::vector<char> before = *data;
  CHECK(greedy(Engine::load_memory(std::as_bytes(std::span(*data)), data, small_cache()).value()) == expected);
  CHECK(*data == before);  // the memory is the host's: nothing of it was given back

  const auto read = [&](std::uint64_t offset, std::span<std::byte> out) {
    std::memcpy(out.data(), before.data() + offset, out.size());
    return true;
  };
  CHECK(greedy(Engine::load_reader(before.size(), read, small_cache()).value()) == expected);
}
