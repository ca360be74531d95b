// Engine: a loaded model.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <llminfer/chat.hpp>
#include <llminfer/completion.hpp>
#include <llminfer/config.hpp>
#include <llminfer/options.hpp>
#include <llminfer/result.hpp>
#include <llminfer/session.hpp>
#include <llminfer/tokenizer.hpp>

namespace llminfer::inline v0 {

/// A prompt (text or tokens) and how to go on from it.
struct CompletionRequest {
  /// Text, encoded with the model's special tokens; ignored if `tokens` is not empty. Tokenizer::escape keeps out those
  /// that a user spells.
  std::string prompt{};
  std::vector<Token> tokens{};
  GenerateOptions options{};
  std::string cache_salt{};  ///< as SessionOptions::cache_salt
};

/// Fills `out` wholly with the bytes at `offset` and returns true; false is Error{io_error}. One thread at a time.
using ReadCallback = std::function<bool(std::uint64_t offset, std::span<std::byte> out)>;

struct ModelInfo {
  std::string name;
  std::string architecture;
  std::string backend;  ///< the backend's description of itself
  std::int64_t parameters = 0;
  std::int32_t vocab_size = 0;
  std::int32_t hidden_size = 0;
  std::int32_t layers = 0;
  std::int32_t context_length = 0;  ///< of one sequence in this engine
  bool has_chat_template = false;
};

struct EngineStats {
  std::int64_t prefill_tokens = 0;  ///< computed since the load
  std::int64_t decode_tokens = 0;
  std::int64_t forward_passes = 0;
  std::int64_t preemptions = 0;    ///< how often a sequence went on whose pages had been taken for others
  std::int64_t cached_tokens = 0;  ///< prompt tokens found in the cache
  std::int32_t running = 0;        ///< requests now
  std::int32_t waiting = 0;
  std::int32_t pages_used = 0;   ///< by sequences
  std::int32_t pages_kept = 0;   ///< beside these, for prompts that begin alike (EngineOptions::prefix_cache)
  std::int32_t pages_total = 0;
  std::int64_t weight_bytes = 0;
  std::int32_t pending_weights = 0;  ///< tensors, parts of which are not prepared (EngineOptions::lazy_weights)
  std::int64_t cache_bytes = 0;  ///< in host memory and files, too
  /// Of KV pages, copied between host and GPU (EngineOptions::device_cache_tokens); of this rank's alone.
  std::int64_t moved_cache_bytes = 0;
  double load_seconds = 0;
};

/// A cheap shared handle, callable from any thread. Sessions, chats and completions keep the model loaded. One that was
/// moved from gives invalid_state, or of what has no Result nothing.
class LLMINFER_API Engine {
 public:
  /// Loads a GGUF file (the first of a split set loads all) or a Hugging Face directory, on the calling thread and the
  /// backend's. Errors, with the checkpoint's path in front: not_found, permission_denied, io_error, not_a_file; what
  /// is wrong with its contents, from truncated to bad_vocabulary; invalid_argument, an option named; unsupported;
  /// cancelled (EngineOptions::on_progress), callback_failed, out_of_memory, and those of a device or another rank.
  static Result<Engine> load(const std::string& path, const EngineOptions& options = {});
  /// A GGUF file that lies in the host's memory; `keep` owns it, and is kept as long as needed (null: the host keeps
  /// the memory, until the engine is gone). Errors as of load().
  static Result<Engine> load_memory(std::span<const std::byte> data, std::shared_ptr<const void> keep,
                                    const EngineOptions& options = {});
  /// A GGUF file of `size` bytes behind the host's reader. Errors as of load().
  static Result<Engine> load_reader(std::uint64_t size, ReadCallback read, const EngineOptions& options = {});
  /// Computes the layers of this rank of EngineOptions::communicator, which is not rank 0, for the engine that rank 0
  /// loads, and returns when that engine is gone. The checkpoint and the options are the same as there, but for those
  /// of threads and backends. Errors: those of a load, on any rank; peer_lost, corrupt or out_of_memory, after which
  /// the other ranks wait until this one's Communicator is destroyed.
  static Result<void> serve(const std::string& path, const EngineOptions& options);
  /// The memory that load() would take, on all ranks as if they had this one's backend. Reads headers only, and calls
  /// and makes nothing that a load does. Errors as of load(), but for what only that finds out: of the vocabulary,
  /// callbacks, folders, other ranks, backends that are in use, and memory that is not there.
  static Result<MemoryPlan> plan(const std::string& path, const EngineOptions& options = {});

  explicit Engine(std::shared_ptr<engine::EngineCore> core);

  Result<Session> new_session(const SessionOptions& options = {}) const;
  /// Errors: template_error where the model has no chat template and the options bring none, or one that is wrong;
  /// of ChatOptions::tools_json invalid_argument, corrupt, invalid_encoding and limit_exceeded.
  Result<Chat> new_chat(const ChatOptions& options = {}) const;
  /// Queues a request; requests run side by side, batched step by step, and each gives what it would give alone (on
  /// GPUs: with GpuOptions::batch_invariant). Errors: invalid_argument, context_overflow, queue_full.
  Result<Completion> submit(CompletionRequest request) const;
  /// submit() and wait().
  Result<CompletionResult> complete(CompletionRequest request) const;

  const Tokenizer& tokenizer() const noexcept;
  const ModelInfo& info() const noexcept;
  /// What the model's makers recommend; neutral where they say nothing.
  const SamplingOptions& recommended_sampling() const noexcept;
  EngineStats stats() const;

 private:
  std::shared_ptr<engine::EngineCore> core_;
};

}  // namespace llminfer::inline v0
