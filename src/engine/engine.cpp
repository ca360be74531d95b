// The public Engine over EngineCore.
#include <llminfer/engine.hpp>

#include <system_error>
#include <utility>

#include "core/error.hpp"
#include "engine/core.hpp"
#include "load/checkpoint.hpp"

namespace llminfer::inline v0 {

using core::fail;

namespace {

Error moved_from() { return fail(ErrorCode::invalid_state, "the engine was moved from"); }

Result<Engine> start(Result<load::Checkpoint> checkpoint, const EngineOptions& options) {
  std::shared_ptr<engine::Leader> leader;
  if (options.communicator && options.communicator->size() > 1) {
    if (const int rank = options.communicator->rank(); rank != 0) {
      return fail(ErrorCode::invalid_argument, "EngineOptions::communicator: this is rank ", rank,
                  ", which calls Engine::serve(); rank 0 loads the engine");
    }
    leader = std::make_shared<engine::Leader>(options.communicator);  // whatever fails, it releases the others
  }
  if (!checkpoint) return std::move(checkpoint).error();
  auto model = engine::load_model(*checkpoint, options, std::move(leader));
  if (!model) return core::at(checkpoint->path, std::move(model).error());
  const ModelInfo& info = (*model)->info;
  auto logged = engine::log(options, LogLevel::info, "loaded " + info.architecture + " on " + info.backend);
  if (!logged) return core::at(checkpoint->path, std::move(logged).error());
  try {
    return Engine(std::make_shared<engine::EngineCore>(std::move(*model), options));
  } catch (const std::system_error& e) {
    return fail(ErrorCode::out_of_memory, "cannot start the engine's thread: ", e.what());
  }
}

}  // namespace

Engine::Engine(std::shared_ptr<engine::EngineCore> core) : core_(std::move(core)) {}

Result<Engine> Engine::load(const std::string& path, const EngineOptions& options) {
  return core::guarded([&] { return start(load::open_checkpoint(path, options.mmap), options); });
}

Result<Engine> Engine::load_memory(std::span<const std::byte> data, std::shared_ptr<const void> keep,
                                   const EngineOptions& options) {
  return core::guarded([&]() -> Result<Engine> {
    if (data.empty()) return fail(ErrorCode::truncated, "load_memory: no data");
    return start(load::open_gguf(core::memory_source("memory", data, std::move(keep))), options);
  });
}

Result<Engine> Engine::load_reader(std::uint64_t size, ReadCallback read, const EngineOptions& options) {
  return core::guarded([&]() -> Result<Engine> {
    if (!read) return fail(ErrorCode::invalid_argument, "load_reader: `read` is empty");
    return start(load::open_gguf(core::reader_source("reader", size, std::move(read))), options);
  });
}

Result<void> Engine::serve(const std::string& path, const EngineOptions& options) {
  return core::guarded([&]() -> Result<void> {
    if (!options.communicator || options.communicator->rank() == 0) {
      return fail(ErrorCode::invalid_argument,
                  "Engine::serve: expected EngineOptions::communicator, of a rank other than 0");
    }
    Communicator& communicator = *options.communicator;
    const engine::Setup setup = LLMINFER_TRY(engine::receive_setup(communicator));
    auto stage = core::guarded([&]() -> Result<engine::RankStage> {
      const load::Checkpoint checkpoint = LLMINFER_TRY(load::open_checkpoint(path, options.mmap));
      auto loaded = engine::load_rank(checkpoint, options, setup);
      if (!loaded) return core::at(path, std::move(loaded).error());
      return loaded;
    });
    std::unique_ptr<engine::Follower> follower;
    auto made = core::guarded([&]() -> Result<void> {
      if (stage) follower = engine::make_follower(communicator, *stage);
      return {};
    });
    if (!made) stage = std::move(made).error();
    LLMINFER_TRY(engine::send_reply(communicator, stage));
    if (!stage) return std::move(stage).error();
    return follower->run();
  });
}

Result<MemoryPlan> Engine::plan(const std::string& path, const EngineOptions& options) {
  return core::guarded([&]() -> Result<MemoryPlan> {
    const load::Checkpoint checkpoint = LLMINFER_TRY(load::open_checkpoint(path, options.mmap));
    auto plan = engine::plan_model(checkpoint, options);
    if (!plan) return core::at(path, std::move(plan).error());
    return plan;
  });
}

Result<Session> Engine::new_session(const SessionOptions& options) const {
  return core::guarded([&]() -> Result<Session> {
    if (!core_) return moved_from();
    return Session(core_, core_->new_sequence(options.cache_salt));
  });
}

Result<Completion> Engine::submit(CompletionRequest request) const {
  return core::guarded([&]() -> Result<Completion> {
    if (!core_) return moved_from();
    if (request.tokens.empty()) request.tokens = LLMINFER_TRY(tokenizer().encode(request.prompt));
    LLMINFER_TRY(core_->check_tokens(request.tokens));
    /// The handle owns the engine too, so that the engine outlives its requests.
    struct Owner {
      std::shared_ptr<engine::EngineCore> core;
      std::shared_ptr<engine::Request> request = std::make_shared<engine::Request>();
    };
    auto owner = std::make_shared<Owner>(Owner{core_});
    owner->request->sequence = core_->new_sequence(std::move(request.cache_salt));
    owner->request->sequence->tokens = std::move(request.tokens);
    owner->request->options = std::move(request.options);
    LLMINFER_TRY(core_->submit(owner->request));
    engine::Request* const raw = owner->request.get();
    return Completion(std::shared_ptr<engine::Request>(std::move(owner), raw));
  });
}

Result<CompletionResult> Engine::complete(CompletionRequest request) const {
  Completion completion = LLMINFER_TRY(submit(std::move(request)));
  return completion.wait();
}

const Tokenizer& Engine::tokenizer() const noexcept {
  static const Tokenizer kNone{nullptr};
  return core_ ? core_->model().tokenizer : kNone;
}
const ModelInfo& Engine::info() const noexcept {
  static const ModelInfo kNone;
  return core_ ? core_->model().info : kNone;
}
const SamplingOptions& Engine::recommended_sampling() const noexcept {
  static const SamplingOptions kNone;
  return core_ ? core_->model().recommended : kNone;
}
EngineStats Engine::stats() const { return core_ ? core_->stats() : EngineStats{}; }

}  // namespace llminfer::inline v0
