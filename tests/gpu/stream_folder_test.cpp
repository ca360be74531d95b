// Engines whose GPU and host have too little memory, and that read layers from files: tokens, plans, what goes wrong,
// and what is left when they are gone.
#include <sys/resource.h>

#include <algorithm>
#include <catch2/catch.hpp>
#include <filesystem>
#include <thread>

#include "tests/forwarding.hpp"
#include "tests/gpu/deep_model.hpp"
#include "tests/gpu/machines.hpp"
#include "tests/gpu/requests.hpp"
#include "tests/memory_storage.hpp"

using namespace llminfer;
using namespace llminfer::test;

namespace {

/// All of the model on the GPU, which has no room for so many of its layers; 0: for one byte.
EngineOptions short_of(const std::string& model, const std::shared_ptr<Backend>& gpu, std::int64_t layers) {
  const std::int64_t all = Engine::plan(model, options_for({{gpu}})).value().total();
  const std::int64_t layer = Engine::plan(model, options_for({{{}, 1}, {gpu, 1}, {}})).value().shares[1].weights;
  return options_for({{gpu, {}, all - std::max<std::int64_t>(layers * layer, 1), true}});
}

/// Files of the folder that this process has open; they have no names.
int open_files(const TempDir& folder) {
  int count = 0;
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) {
    std::error_code gone;
    count += std::filesystem::read_symlink(entry, gone).string().starts_with(folder.path());
  }
  return count;
}

/// A GPU's weights in another storage than the engine's.
class OtherStorage : public ForwardingBackend {
 public:
  OtherStorage(std::shared_ptr<Backend> gpu, std::shared_ptr<WeightStorage> storage)
      : ForwardingBackend(gpu), gpu_(std::move(gpu)), storage_(std::move(storage)) {}
  bool streams() const noexcept override { return true; }
  std::int64_t stream_buffer_bytes(std::int64_t bytes) const noexcept override {
    return storage_ ? gpu_->stream_buffer_bytes(bytes) : 0;
  }
  Result<std::unique_ptr<PreparedWeight>> prepare_streamed_in(std::shared_ptr<WeightStorage>, std::int64_t offset,
                                                              const WeightView& weight) override {
    return gpu_->prepare_streamed_in(storage_, offset, weight);
  }

 private:
  const std::shared_ptr<Backend> gpu_;
  const std::shared_ptr<WeightStorage> storage_;
};

}  // namespace

TEST_CASE("An engine that reads layers from a file gives the tokens of one that does not, and holds what was planned") {
  const DeepModel model;
  const TempDir folder;
  const auto gpu = make_machine_backend();
  const std::vector<Token> expected = some_answers(Engine::load(model.path(), options_for({})).value());  // the CPU's
  EngineOptions options = short_of(model.path(), gpu, 5);
  const MemoryPlan in_memory = Engine::plan(model.path(), options).value();
  CHECK(in_memory.disk_weights == 0);
  options.stream_folder = folder.path();

  std::int64_t last = 0;
  for (const std::int64_t host_memory :
       {in_memory.streamed, in_memory.streamed - 1, in_memory.streamed / 2, std::int64_t{0}}) {
    CAPTURE(host_memory);
    options.split[0].host_memory = host_memory;
    const MemoryPlan plan = Engine::plan(model.path(), options).value();
    const MemoryShare& share = plan.shares.at(0);
    CHECK(share.total() == in_memory.shares[0].total());
    CHECK(plan.streamed == share.streamed);
    CHECK(plan.disk_weights == share.disk_weights);
    CHECK(plan.total() == share.total() + share.streamed);
    CHECK((plan.disk_weights == 0) == (host_memory == in_memory.streamed));
    const std::int64_t buffers = plan.streamed + plan.disk_weights - in_memory.streamed;
    CHECK(buffers >= 0);
    CHECK((buffers == 0) == (plan.disk_weights == 0));
    CHECK(plan.streamed - buffers <= host_memory);
    CHECK(plan.disk_weights >= last);
    last = plan.disk_weights;
    const Engine engine = Engine::load(model.path(), options).value();
    CHECK(holds(share.total(), share.streamed));
    CHECK(open_files(folder) == (plan.disk_weights > 0 ? 1 : 0));
    CHECK(std::filesystem::is_empty(folder.path()));
    CHECK(engine.stats().weight_bytes == share.weights + in_memory.streamed);
    CHECK(some_answers(engine) == expected);
  }
  CHECK(last == in_memory.streamed);
  CHECK(holds(0, 0));
  CHECK(open_files(folder) == 0);
}

TEST_CASE("A folder that can hold no weights, and a load that is abandoned, leave nothing behind") {
  const DeepModel model;
  const TempDir folder;
  EngineOptions options = short_of(model.path(), make_machine_backend(), 5);
  const auto refused = [&](ErrorCode code, const char* what) {
    const auto engine = Engine::load(model.path(), options);
    REQUIRE_FALSE(engine);
    CHECK(engine.error().code == code);
    CHECK_THAT(engine.error().message, Catch::Contains(what));
    CHECK(holds(0, 0));
    CHECK(open_files(folder) == 0);
    CHECK(std::filesystem::is_empty(folder.path()));
  };
  options.stream_folder = folder / "none";
  refused(ErrorCode::not_found, "EngineOptions::stream_folder");
  options.stream_folder = folder.path();
  struct rlimit before {};
  REQUIRE(::getrlimit(RLIMIT_FSIZE, &before) == 0);
  struct rlimit less = before;
  less.rlim_cur = static_cast<rlim_t>(Engine::plan(model.path(), options).value().disk_weights) - 1;
  REQUIRE(::setrlimit(RLIMIT_FSIZE, &less) == 0);
  refused(ErrorCode::io_error, "EngineOptions::stream_folder");
  ::setrlimit(RLIMIT_FSIZE, &before);
  int calls = 0;
  options.on_progress = [&](float) {
    if (++calls < 20) return true;
    CHECK(open_files(folder) == 1);
    return false;
  };
  refused(ErrorCode::cancelled, "on_progress");
  CHECK(calls == 20);
}

TEST_CASE("A disk that fails or hangs ends the requests that need it, and the engine goes on") {
  const TempDir folder;
  const std::string model = path_of("tiny-bf16");
  const auto gpu = make_machine_backend();
  EngineOptions options = short_of(model, gpu, 0);
  options.stream_folder = folder.path();
  const auto storage = std::make_shared<MemoryStorage>();
  options.split[0].backend = std::make_shared<OtherStorage>(gpu, storage);
  const Engine engine = Engine::load(model, options).value();
  const std::vector<Token> expected = engine.complete(request_of(3)).value().tokens;
  CHECK(expected.size() == 3);

  storage->fail_reads(true);
  int failed = 0;
  for (int i = 0; i < 3; ++i) {  // what was read before is enough for some passes
    const auto result = engine.complete(request_of(3));
    if (result) continue;
    ++failed;
    CHECK(result.error().code == ErrorCode::io_error);
  }
  CHECK(failed >= 2);
  storage->fail_reads(false);
  CHECK(engine.complete(request_of(3)).value().tokens == expected);

  storage->hold();
  Completion hanging = engine.submit(request_of(50)).value();
  storage->await_held(1);
  hanging.cancel();
  CHECK(hanging.wait().value().reason == FinishReason::cancelled);
  storage->let_all();
  CHECK(engine.complete(request_of(3)).value().tokens == expected);
}

TEST_CASE("Options of stream_folder that cannot be") {
  const std::string model = path_of("tiny-bf16");
  const auto gpu = make_machine_backend();
  EngineOptions options = short_of(model, gpu, 0);
  options.stream_folder = "/";
  options.split[0].host_memory = -1;
  CHECK_THAT(refusal(model, options), Catch::Contains("invalid_argument") && Catch::Contains("split[0]: host_memory"));
  options.split[0].host_memory = 0;
  options.split[0].backend = std::make_shared<OtherStorage>(gpu, nullptr);
  CHECK_THAT(refusal(model, options), Catch::Contains("unsupported") && Catch::Contains("stream_folder"));
}

TEST_CASE("Several GPUs that each read their layers from files, in one process or as ranks", "[.slow]") {
  const DeepModel model;
  const TempDir folder;
  const auto first = make_machine_backend(), second = make_machine_backend();
  const std::vector<Token> expected = some_answers(Engine::load(model.path(), options_for({})).value());
  const auto halves = Engine::plan(model.path(), options_for({{first, 4}, {second, 4}})).value().shares;
  const auto limit = [&](std::size_t share) { return halves[share].total() - halves[share].weights / 16; };
  EngineOptions options = options_for({{first, 4, limit(0), true}, {second, {}, limit(1), true}});
  options.stream_folder = folder.path();
  {
    const MemoryPlan plan = Engine::plan(model.path(), options).value();
    CHECK((plan.shares[0].disk_weights > 0 && plan.shares[1].disk_weights > 0));
    CHECK(plan.disk_weights == plan.shares[0].disk_weights + plan.shares[1].disk_weights);
    const Engine engine = Engine::load(model.path(), options).value();
    CHECK(open_files(folder) == 2);
    CHECK(some_answers(engine) == expected);
  }
  auto ranks = make_thread_communicators(2).value();
  Result<void> served;
  std::thread other([&] {
    EngineOptions own = options;
    own.communicator = std::move(ranks[1]);
    served = Engine::serve(model.path(), own);
  });
  {
    EngineOptions own = options;
    own.communicator = std::move(ranks[0]);
    const auto engine = Engine::load(model.path(), own);
    own.communicator = nullptr;
    REQUIRE(engine);
    CHECK(open_files(folder) == 2);
    CHECK(some_answers(*engine) == expected);
  }
  other.join();
  CHECK(served);
  CHECK(open_files(folder) == 0);
}
