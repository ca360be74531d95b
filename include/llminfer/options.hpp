// Options of engines and of generation.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <llminfer/backend.hpp>
#include <llminfer/cancel.hpp>
#include <llminfer/config.hpp>
#include <llminfer/sampling.hpp>
#include <llminfer/tokenizer.hpp>

namespace llminfer::inline v0 {

class Communicator;  // communicator.hpp

enum class LogLevel : std::uint8_t { debug, info, warning };
/// Called on the thread that loads. One that throws fails the load with Error{callback_failed}.
using LogCallback = std::function<void(LogLevel level, std::string_view message)>;
/// Likewise. `fraction` of the load that is done, 0 to 1. Returning false abandons the load with Error{cancelled}.
using ProgressCallback = std::function<bool(float fraction)>;

/// Where ranks that share layers sum what each has computed of them.
enum class DeviceSums : std::uint8_t {
  automatic,  ///< on their GPUs, if all ranks of a stage can: see EngineOptions::device_sums; else in host memory
  never,      ///< in host memory
  required,   ///< on their GPUs; if a rank cannot, the load fails with its error
};

/// What one backend gets of a model that is split: see EngineOptions::split.
struct LayerShare {
  std::shared_ptr<Backend> backend{};    ///< null: the CPU backend that EngineOptions describes
  std::optional<std::int32_t> layers{};  ///< so many; empty: as many as `memory` allows
  std::int64_t memory = 0;               ///< bytes that weights, KV cache and scratch may take; 0: no limit
  /// The backend computes all its layers (`layers`, or all that the others leave), also those that `memory` has no room
  /// for: their weights stay in host memory, and each pass copies them to the device while it computes the layers
  /// before. A pass then takes at least the time of copying MemoryShare::streamed bytes, however few tokens it has: so
  /// this is for prompts, large batches and hosts with slow CPUs; to decode few sequences the CPU is mostly faster. For
  /// backends with a memory of their own (GPUs); needs `memory`. Results are those without it, bit for bit.
  bool stream = false;
  /// With `stream` and EngineOptions::stream_folder: bytes of those weights that stay in host memory all the same, in
  /// whole layers. The others are in the folder, and take memory for two layers on their way.
  std::int64_t host_memory = 0;
};

/// EngineOptions::activation_bits for a model of so many parameters: 16 below 400 million, for these read prompts
/// quickly all the same and answer otherwise soonest; 8 from there on.
constexpr int default_activation_bits(std::int64_t parameters) noexcept { return parameters < 400'000'000 ? 16 : 8; }

struct EngineOptions {
  /// The backend by name ("cpu"), unless `custom_backend` is given, which is this engine's alone as long as it lives.
  std::string backend = "cpu";
  std::shared_ptr<Backend> custom_backend{};
  /// The backends that share a model between them: the first gets the first layers, and so on. The embedding table goes
  /// with the first layers, the output matrix with the last ones; a model that uses one for both has it twice. At most
  /// one may leave `layers` empty without a limit, or with `stream`; it gets what the others leave. So
  /// {{gpu, {}, bytes}, {}} puts as many of the first layers on a GPU as so many bytes hold, and {{}, {gpu, 20}} the
  /// last 20; the others are the CPU's. {{gpu, {}, bytes, true}} has all on the GPU and streams what so many bytes do
  /// not hold. Empty: one backend has all. Errors of a load: out_of_memory, if a layer has no place.
  std::vector<LayerShare> split{};
  /// Ranks that share the model between them, each with some layers, on a backend of its own. Rank 0 has the engine: it
  /// calls Engine::load(), the others Engine::serve(). `split`, if not empty, then has one share per rank, with a
  /// memory limit only where it streams; its `backend` is used by that rank alone. Empty: each has as many layers.
  /// Null: no other ranks.
  std::shared_ptr<Communicator> communicator{};
  /// Ranks that share each layer: so many have some of its attention heads and some features of its feed-forward block
  /// each, and sum what these give, twice per layer. They read less memory per token each, so this can be faster, where
  /// splitting by layers alone is not. The number of ranks is a multiple of it; consecutive ranks share the layers that
  /// otherwise one would have, and `split` has one share for them together. Sums have another order than in one
  /// process, so logits differ from its by rounding; they are the same each time. Ranks of one process need an
  /// `executor`, if any, that can run all of them at the same time. 1: each rank has its layers alone.
  std::int32_t tensor_parallel = 1;
  /// With tensor_parallel: ranks whose backends are GPUs of one kind sum on them, through NCCL (CUDA) or RCCL (HIP),
  /// without the host. The library is looked for when the engine is loaded (libnccl.so.2, librccl.so.1); each rank
  /// needs a GPU of its own, a backend without GpuOptions::batch_invariant, a Communicator that has ready(), and the
  /// pages of a cache that the GPU has no room for in memory, not in a `cache_folder`. With more than two ranks the
  /// order of a sum, and so its last bits, are the library's choice. ModelInfo::backend says which ranks sum so. After
  /// an error by which a sum was not made, later passes sum in host memory. Rank 0's option counts.
  DeviceSums device_sums = DeviceSums::automatic;
  int threads = 0;          ///< CPU threads, at most 1024; 0: as affinity, cgroup quota and physical cores allow
  /// Forces an instruction set level ("scalar", "avx2", "avx512vnni", …); empty: the environment's LLMINFER_CPU_LEVEL,
  /// or the best. Level "amx" asks the operating system for tiles, which the process then has to the end: alternative
  /// signal stacks must have room for them, 8 KiB more.
  std::string cpu_level{};
  Executor executor{};      ///< the host's threads for the CPU backend; empty: the backend's own
  bool exact = false;       ///< float arithmetic throughout; slow, the reference for numerics
  /// Bits of activations that the CPU multiplies with quantized weights: 16, or 8, which reads prompts faster and is
  /// further from exact mode (docs/benchmarks.md); 0: default_activation_bits(). With 8, BF16 and FP8 weights meet
  /// activations in BF16, which has 8 significant bits, otherwise floats. A checkpoint that says how to quantize
  /// activations is obeyed instead, and inputs of LLM.int8()'s layers have 16 always, for their outliers' sake.
  int activation_bits = 0;
  /// 8: an output matrix that the checkpoint has in floats, as most quantized ones do, is rounded to Q8_0 when it is
  /// loaded, the embedding table with it where both are one: half as many bytes are read for each token and held in
  /// memory. 16: it stays as it is.
  int output_bits = 16;
  bool mmap = true;  ///< false: read the file instead of mapping it (a mapped file that shrinks raises SIGBUS)
  /// Weights of a mapped file, or of the host's memory, are not prepared by the load, but while the engine has nothing
  /// else to do, and by the passes that need them, so that the first token comes sooner; the second pass then prepares
  /// what is left of the weights that it needs, and takes longer. Until that is done (EngineStats::pending_weights is 0)
  /// the file is read, and must not change. Results are those without it, bit for bit. Backends that cannot, models
  /// shared between ranks and loads with a `weight_cache` prepare all at once, as all do with false.
  bool lazy_weights = true;
  /// A folder for files of prepared weights; empty, or without `mmap`: none. The first load of a checkpoint writes one,
  /// as large as the weights are in memory, and later loads, with any number of threads and at any CPU level, map it:
  /// they start sooner, and processes share the memory. A checkpoint is known by samples of its tensors and by its
  /// files' sizes and times of change. Files are never deleted. One that cannot be written or read is a warning
  /// (on_log), no error.
  std::string weight_cache{};
  /// Tokens of one sequence at most, up to the model's own context length, past which it was not trained; 0: that.
  std::int32_t context_length = 0;
  /// int4 keeps the last page of each sequence, and those that a pass writes to, in floats as well. MemoryPlan counts
  /// them for max_sequences sequences (four, if cache_tokens is 0); idle sessions beyond these add one page each.
  /// fp8 is for GPU backends.
  CacheType cache_type = CacheType::f16;
  /// Tokens that the KV cache holds for all sequences together, at least context_length and at most 2^36; 0: at least
  /// four sequences of up to 2048 tokens, and one of context_length. Layers with a sliding window hold no more than max_sequences windows.
  std::int64_t cache_tokens = 0;
  /// Of these, the tokens that a GPU has room for; 0: all. The cache of its layers then lies in host memory, and pages
  /// are copied to the GPU when a pass needs them, while it computes the layers before: sessions that are idle take no
  /// device memory when others need it, and go on without being computed again. Requests that have no room beside older
  /// ones wait for these. If one context alone exceeds it, its pages are copied through device memory layer by layer in
  /// each pass, which then takes at least the time of that; two layers of a context have to fit. Backends without a
  /// memory of their own, the CPU's, ignore this. With a communicator each rank whose backend has one holds so many
  /// tokens of its layers there, and rank 0's option counts. Results are those without it, bit for bit.
  std::int64_t device_cache_tokens = 0;
  /// A folder for temporary files, in which the KV pages lie that would take host memory: those of the CPU, and with
  /// device_cache_tokens those of a GPU. The system keeps in memory what is used and has room there, and writes the
  /// rest to the disk, so that idle sessions may be larger than memory; the folder should be on a disk of its own
  /// machine, and not in memory (tmpfs). Files take all of their room at once, have no names, and are gone with the
  /// engine, or the process. Results are those without it, bit for bit. Each rank's option counts for its own pages.
  /// Empty: none. Errors of the load: not_found, permission_denied, io_error (no room on the disk), unsupported (a
  /// backend of the host's that cannot).
  std::string cache_folder{};
  /// A folder for temporary files, in which the weights lie that LayerShare::stream would keep in host memory, but for
  /// LayerShare::host_memory: so a model may be larger than both memories. Each pass reads them while the layers before
  /// are copied and computed, and takes at least the time of that. What was read does not stay in the system's file
  /// cache; host_memory says what memory there is. The folder should be on a fast disk of its own machine; files are as
  /// those of `cache_folder`. A pass whose reads fail gives its requests their io_error, and the engine goes on.
  /// Results are those without it, bit for bit. Each rank's option counts for its own layers. Empty: none. Errors of
  /// the load: as of `cache_folder`.
  std::string stream_folder{};
  /// Pages of the KV cache that no sequence has any more are kept until others need their room, and prompts that begin
  /// with the same tokens, in whole pages of kPageTokens, compute that beginning once, whoever computes it first:
  /// another request, session or chat, or the same one before its pages were taken. Results are those without it, bit
  /// for bit (on GPUs: with GpuOptions::batch_invariant). How long a prompt takes then tells what others have sent:
  /// where that must not be known, see SessionOptions::cache_salt. false: sequences share what they fork.
  bool prefix_cache = true;
  std::int32_t max_batch_tokens = 256;  ///< tokens of one forward pass, 1 to 65536; longer prompts go in chunks
  std::int32_t max_sequences = 64;      ///< sequences that one forward pass serves at most, 1 to 65536
  std::int32_t max_queue = 1024;        ///< requests that wait at most, 1 or more; beyond it Error{queue_full}
  LogCallback on_log{};
  ProgressCallback on_progress{};
};

/// What one backend would hold. Bytes.
struct MemoryShare {
  std::string backend;           ///< its description of itself
  std::int32_t first_layer = 0;  ///< from 0
  std::int32_t layers = 0;
  std::int32_t shard = 0, shards = 1;  ///< with EngineOptions::tensor_parallel: which part of those layers
  std::int64_t weights = 0, cache = 0, activations = 0;
  /// Of weights in host memory, which each pass copies to the backend (LayerShare::stream), and of the buffers through
  /// which those in files go there.
  std::int64_t streamed = 0;
  std::int64_t disk_weights = 0;  ///< of weights in files, which each pass reads (EngineOptions::stream_folder)
  /// Of KV pages in host memory, where `cache` is what the backend holds of them (EngineOptions::device_cache_tokens).
  std::int64_t host_cache = 0;
  std::int64_t disk_cache = 0;  ///< of KV pages in files, in place of memory (EngineOptions::cache_folder)
  /// What counts for LayerShare::memory: all but `streamed`, `disk_weights`, `host_cache` and `disk_cache`. The slots
  /// that streamed weights are copied to count as activations.
  std::int64_t total() const noexcept { return weights + cache + activations; }
};

/// What a load would take, before it is done. Bytes.
struct MemoryPlan {
  std::int64_t weights = 0;      ///< in the form that the backend's kernels read
  std::int64_t cache = 0;        ///< KV pages
  std::int64_t activations = 0;  ///< scratch of one forward pass
  std::int64_t streamed = 0;     ///< weights that stay in host memory, beside `weights`; see MemoryShare
  std::int64_t disk_weights = 0;  ///< weights in files, which are no part of total(); see MemoryShare
  std::int64_t host_cache = 0;   ///< KV pages in host memory, beside `cache`; see MemoryShare
  std::int64_t disk_cache = 0;   ///< KV pages in files, which are no part of total()
  std::int64_t file = 0;         ///< the checkpoint's own size: mapped while loading, each tensor's pages given back
  std::int64_t parameters = 0;   ///< a count
  /// Of each backend: one, or as many as EngineOptions::split has; of each rank, where there are several. The rest of
  /// `activations` is for what goes from one backend to the next.
  std::vector<MemoryShare> shares{};
  std::int64_t total() const noexcept { return weights + cache + activations + streamed + host_cache; }
};

/// What happens when a sequence reaches the context length.
enum class OverflowPolicy : std::uint8_t {
  stop,   ///< generation ends with FinishReason::length; a prompt that does not fit is Error{context_overflow}
  /// Forget the oldest half after the first `keep_tokens`, and compute the rest again at its new positions. Needs a
  /// context of at least 2 tokens.
  shift,
};

enum class FinishReason : std::uint8_t {
  end_token,  ///< the model ended its answer
  stop,       ///< a stop string or stop token of the request
  length,     ///< max_tokens, or the context is full
  cancelled,
  deadline,
};
LLMINFER_API std::string_view to_string(FinishReason reason) noexcept;

/// One generated token, as the callback sees it.
struct GeneratedToken {
  Token token = 0;        ///< -1 in a last call that brings text which was held back until the end
  std::string_view text;  ///< text that became certain with it; may be empty (an unfinished character or stop string).
                          ///< Valid during the call, as `top` is
  float logprob = 0.0f;   ///< if SamplingOptions::logprobs > 0
  std::span<const TokenLogprob> top;  ///< likewise
};
/// Called on the engine's thread, once per token, in order; must be quick, must not call into the engine, and must
/// not own an Engine, Session, Chat, ChatStream or Completion: the last handle of an engine waits for that thread.
/// Returning false ends the request with FinishReason::cancelled.
using TokenCallback = std::function<bool(const GeneratedToken&)>;

struct SessionOptions {
  /// Only sequences with the same one find each other's tokens in the cache (EngineOptions::prefix_cache): one for each
  /// party that must not learn what others send.
  std::string cache_salt{};
};

struct GenerateOptions {
  SamplingOptions sampling{};
  std::int32_t max_tokens = 0;       ///< >= 0; 0: until the model ends or the context is full
  std::vector<std::string> stop{};   ///< texts that end the answer; they are not part of it. At most 64, none empty
  std::vector<Token> stop_tokens{};  ///< tokens that end the answer, beside the model's own
  bool ignore_end = false;           ///< go on past the model's end tokens
  OverflowPolicy overflow = OverflowPolicy::stop;
  std::int32_t keep_tokens = 0;  ///< for OverflowPolicy::shift: the first tokens that stay, at most half the context
  TokenCallback on_token{};
  std::optional<CancelToken> cancel{};                  ///< also interrupts a prefill
  std::optional<std::chrono::milliseconds> deadline{};  ///< from submission, not negative
};

}  // namespace llminfer::inline v0
