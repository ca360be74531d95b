// Backend: what runs a Program. A host may write its own against this header and hand it to Engine::load.
//
// A backend is used by one engine thread at a time unless a function says otherwise, and so by one engine: another that
// is loaded with it is refused until the first is gone. No function may throw; allocation failure is
// Error{out_of_memory}.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <llminfer/config.hpp>
#include <llminfer/profile.hpp>
#include <llminfer/program.hpp>
#include <llminfer/result.hpp>
#include <llminfer/weight.hpp>

namespace llminfer::inline v0 {

/// Changes whenever this header changes in a way that a compiled backend would notice.
inline constexpr int kBackendInterfaceVersion = 15;

namespace engine {
class UsedBackend;
}

/// Runs `body(index, count)` for some or all of the indexes in [0, count), no index twice, on as many threads as it
/// can, and returns when all have ended. The bodies share one piece of work, whoever runs first; each returns when that
/// is done. A host may lend its own thread pool this way.
using Executor = std::function<void(int count, const std::function<void(int index, int count)>& body)>;

/// How cached keys and values are stored. int8: rounded to 8 bits with one scale per token and KV head. The CPU backend
/// stores f16 and bf16 alike, rounded to 15 bits in the same way, which is closer to the floats than either. int4: a
/// page that is full is rounded to 4 bits, keys with a scale and a minimum per dimension, values per token
/// (KIVI, arXiv:2402.02750); a sequence's last page stays in floats, and each token reads its own page so. fp8 (GPU
/// backends): E4M3 numbers with one scale per token and KV head, chosen as the tokens come; scales that a checkpoint
/// has for a cache of its own are not used.
enum class CacheType : std::uint8_t { f16, f32, bf16, int8, int4, fp8 };

struct BackendOptions {
  int threads = 0;  ///< CPU threads; 0: as many as affinity, cgroup quota and physical cores allow
  /// Exact mode: float arithmetic on exactly unpacked weights, no quantization of activations. Slow; the reference.
  bool exact = false;
  int activation_bits = 16;  ///< of the CPU backend, as EngineOptions::activation_bits
  std::string
      cpu_level{};      ///< forces an instruction set level of the CPU backend ("scalar", "avx2", …); empty: the best
  Executor executor{};  ///< the host's threads; empty: the backend's own
  /// Gets the time of every step of every pass. Costs nothing when empty, and little otherwise.
  ProfileCallback on_profile{};
};

/// A weight in the form that the backend's kernels read.
class PreparedWeight {
 public:
  virtual ~PreparedWeight() = default;
  /// Memory it occupies beyond the checkpoint's own mapping, or room in a WeightStorage.
  virtual std::int64_t bytes() const noexcept = 0;
  /// What Backend::restore makes the same weight of, as long as this one lives; empty: it has to be prepared again.
  virtual std::span<const std::byte> stored() const noexcept { return {}; }
  /// Whether nothing is left to prepare of what Backend::prepare_later() made. Any thread.
  virtual bool complete() const noexcept { return true; }
};

/// Gives back what memory bytes [offset, offset + count) of a weight's data take, which stay readable. Does not throw;
/// any thread, several at a time.
using ReleaseBytes = std::function<void(std::size_t offset, std::size_t count)>;

/// Where weights lie that memory has no room for: a file, say.
class WeightStorage {
 public:
  virtual ~WeightStorage() = default;
  virtual Result<void> write(std::int64_t offset, std::span<const std::byte> bytes) = 0;
  /// Any thread, several at a time.
  virtual Result<void> read(std::int64_t offset, std::span<std::byte> bytes) = 0;
};

/// How many pages of a cache one pass may use, each counted once.
struct PassPages {
  std::int32_t resident = std::numeric_limits<std::int32_t>::max();  ///< that the device has room for
  std::int32_t most = resident;  ///< more than that: some layers are copied to the device in each pass
};

/// The pages of one cache group. Pages are numbered from 0; the backend owns their layout.
class CacheStorage {
 public:
  virtual ~CacheStorage() = default;
  virtual std::int64_t bytes() const noexcept = 0;
  /// Copies tokens [0, tokens) of a page in all layers (copy-on-write). Pages differ.
  virtual Result<void> copy_page(std::int32_t from, std::int32_t to, std::int32_t tokens) = 0;
  /// Bytes of a page in the canonical layout: for each layer, K then V, each float [tokens][kv_heads][head_dim].
  virtual std::int64_t canonical_page_bytes() const noexcept = 0;
  virtual Result<void> export_page(std::int32_t page, std::span<std::byte> out) = 0;
  virtual Result<void> import_page(std::int32_t page, std::span<const std::byte> in) = 0;
  /// A full page changes once later tokens are computed: a sequence that is to be shorter loses the page it ends in,
  /// and computes it again. Where this is true, tokens [0, n) of a page are copied only while it is not full.
  virtual bool seals_pages() const noexcept { return false; }
  /// The page is full, and the pass that filled it has succeeded: what was kept to do that again may go.
  virtual void finish_page([[maybe_unused]] std::int32_t page) noexcept {}
  /// No sequence has the page any more. Called on any thread, but not while a pass uses the page.
  virtual void forget_page([[maybe_unused]] std::int32_t page) noexcept {}
  virtual PassPages pass_pages() const noexcept { return {}; }
  /// Bytes of pages that were copied between host and device so far. Any thread.
  virtual std::int64_t moved_bytes() const noexcept { return 0; }
};

/// Consecutive new tokens of one sequence: a chunk of a prompt, or one decoded token. All are causal.
struct Run {
  std::int32_t first_row = 0;       ///< index of its first token in the batch's arrays
  std::int32_t rows = 0;            ///< at least 1
  std::int32_t first_position = 0;  ///< tokens of the sequence that are cached already
  /// Per cache group the sequence's pages: entry i holds tokens [i * kPageTokens, (i + 1) * kPageTokens), those of this
  /// run included. Pages that a sliding window has left behind may be -1.
  std::vector<std::span<const std::int32_t>> block_tables;
};

/// A token and its logit.
struct TokenLogit {
  std::int32_t token = -1;
  float logit = 0.0f;
};

/// What is wanted of a row in place of its logits.
struct CandidateWish {
  std::int32_t count = 0;  ///< so many of the highest logits, at most Plan::max_candidates(); 0: the row's logits
  bool sum = false;        ///< and Batch::candidate_sums; not without a count
  /// Above 0: and Batch::draws, at this temperature; not without a count.
  double temperature = 0.0;
  double place = 0.0;  ///< of the draw, in [0, 1)
};

/// A token drawn from a row whose tokens, in ascending order, have the weights exp((logit - highest) / temperature).
struct DrawnToken {
  std::int32_t token = -1;  ///< that `place` times the sum of all weights falls on; -1: rounding leaves it open
  float logit = 0.0f;
  double below = 0.0;  ///< sum of the weights of lower tokens
  double weight = 0.0;
  double sum = 0.0;  ///< of all weights
};

/// The input of one forward pass: token runs of many sequences. Spans belong to the caller and live until wait().
struct Batch {
  std::span<const std::int32_t> tokens;     ///< [rows] token ids; -1 where the row has an embedding instead
  std::span<const float> embeddings;        ///< [rows, hidden_size], or empty when every row is a token
  std::span<const std::int32_t> positions;  ///< [rows]
  std::span<const Run> runs;
  std::span<const std::int32_t> logit_rows;   ///< ascending batch rows whose logits are wanted
  std::span<const std::int32_t> hidden_rows;  ///< ascending batch rows whose last hidden state is wanted
  std::span<float> logits;                    ///< out [logit_rows that want no candidates, vocab_size]
  std::span<float> hidden;                    ///< out [hidden_rows, hidden_size]
  /// Empty, or one per logit row.
  std::span<const CandidateWish> candidate_wishes;
  std::int32_t candidate_tokens = 0;  ///< 1 to vocab_size: only tokens below it are candidates
  /// Out, the wished counts one after the other: a row's tokens by logit, highest first, equal ones by token, lowest
  /// first. NaN and -infinity are no candidates: after the last one come tokens of -1.
  std::span<TokenLogit> candidates;
  /// Out, one per logit row or empty if no row wishes it: the sum of exp(logit - highest logit) over the row's tokens
  /// below candidate_tokens but NaN and -infinity, in double precision, its relative error at most kCandidateSumError.
  /// The order of additions is the same in each pass; nothing is promised where the highest logit is infinite.
  std::span<double> candidate_sums;
  /// Out, one per logit row or empty if no row wishes it, of the tokens that candidate_sums are of: what lies at the
  /// wish's place. Sums are off by at most kCandidateSumError times the sum of all.
  std::span<DrawnToken> draws;
  /// Says whether to abandon the pass; called at least once per layer, on any thread but on one at a time, and must not
  /// throw. Once it is true, wait() gives `cancelled`, and what the pass wrote to the cache is undefined. May be empty.
  std::function<bool()> interrupted;
};

inline constexpr double kCandidateSumError = 0x1p-42;

/// Adds on the devices of several ranks what each of them has computed, without the host. Of use to the plans of the
/// backend that made it.
class Collective {
 public:
  virtual ~Collective() = default;
  /// A line for people: the library and its version.
  virtual std::string description() const = 0;
  /// Ends sums that wait for ranks which do not come, and the collective itself: no plan sums with it any more.
  virtual void abort() noexcept = 0;
  virtual bool aborted() const noexcept = 0;
};

/// Called again and again while other ranks are waited for. An error: one of them will not come.
using Watch = std::function<Result<void>()>;

/// A compiled Program. One batch is in flight at a time.
class Plan {
 public:
  virtual ~Plan() = default;
  virtual std::int64_t bytes() const noexcept = 0;  ///< activations and scratch
  /// Starts a forward pass over `batch`, at most `max_batch_rows` rows. `caches` has one storage per cache group.
  virtual Result<void> submit(const Batch& batch, std::span<CacheStorage* const> caches) = 0;
  /// Waits for the end of the pass that was submitted and gives its outcome.
  virtual Result<void> wait() = 0;
  /// From the next pass on, the operations that PlanOptions::reduce is for sum with `collective`, until that is
  /// aborted; null: they go back to `reduce`. All ranks then make the same sums in each pass: one whose submit() has
  /// succeeded makes all of them, whatever becomes of the pass, or aborts the collective. Errors: unsupported;
  /// invalid_argument (the collective of another backend).
  virtual Result<void> sum_with([[maybe_unused]] std::shared_ptr<Collective> collective) {
    return Error{ErrorCode::unsupported, "the backend's plans sum in host memory"};
  }
  /// The most candidates that a row may have; 0: the plan gives nothing but logits, and refuses a wish.
  virtual std::int32_t max_candidates() const noexcept { return 0; }
  /// Between wait(), after success, and the next submit(): the logits [vocab_size] of an entry of the batch's
  /// logit_rows, the very ones that its candidates are of.
  virtual Result<void> fetch_logits([[maybe_unused]] std::size_t index, [[maybe_unused]] std::span<float> logits) {
    return Error{ErrorCode::unsupported, "the plan keeps no logits"};
  }
};

/// Replaces `rows` by their sum over all shards of a program. Waits for the others, and fails if one of them does.
using Reduction = std::function<Result<void>(std::span<float> rows)>;

struct PlanOptions {
  std::int32_t max_batch_rows = 512;
  /// For programs with an op::Reduce. Called once per such operation and pass, in their order, on any thread but on one
  /// at a time, with the rows of its input without gaps: all rows of the batch, or past the last attention those whose
  /// logits or hidden states are wanted, and not at all where there are none. Its error is the pass's.
  Reduction reduce{};
  /// Empty, or per weight of the program -1, or the number of a group of weights that prepare_streamed() or
  /// prepare_streamed_in() made: the plan copies them to its device in each pass, group by group, while it computes with
  /// the group before. A pass reads the groups in ascending order, one after the other: a layer is such a group. An
  /// error of a WeightStorage is that of the pass that needs the weight; a later one reads it again.
  std::vector<std::int32_t> streamed{};
};

class Backend {
 public:
  virtual ~Backend() = default;

  virtual std::string_view name() const noexcept = 0;
  /// Not to be overridden: records the header that the backend was compiled with.
  virtual int interface_version() const noexcept { return kBackendInterfaceVersion; }
  /// A line for people: the device, its level and threads.
  virtual std::string description() const = 0;

  /// Whether the backend can run the program with weights of these types (one per weight of the program).
  virtual Result<void> supports(const Program& program, std::span<const WeightType> types) = 0;
  /// Bytes that prepare() of such a weight would take.
  virtual std::int64_t prepared_bytes(WeightType type, std::int64_t rows, std::int64_t cols,
                                      const WeightDetails& details) = 0;
  /// Bytes that a Plan would take. `weights`: one per weight of the program, without data.
  virtual std::int64_t plan_bytes(const Program& program, std::span<const WeightView> weights,
                                  const PlanOptions& options) = 0;
  /// Bytes of one page of a group, all its layers. 0: the backend has no caches of that type, and refuses to make one.
  virtual std::int64_t page_bytes(const CacheGroup& group, CacheType type) = 0;
  /// Bytes that a page takes beside these until it is full and finish_page() was called.
  virtual std::int64_t open_page_bytes([[maybe_unused]] const CacheGroup& group, [[maybe_unused]] CacheType type) {
    return 0;
  }

  virtual Result<std::unique_ptr<PreparedWeight>> prepare(const WeightView& weight) = 0;
  /// prepare(), parts of which may be done later: by prepare_more(), and by plans that need them. `weight.data` is
  /// readable as long as `weight.keep` lives; `release`, if it is not empty, is told which bytes of it are not needed any
  /// more, each once. Errors: as prepare().
  virtual Result<std::unique_ptr<PreparedWeight>> prepare_later(const WeightView& weight,
                                                                ReleaseBytes release) {
    auto prepared = prepare(weight);
    if (prepared && release) release(0, weight.data.size());
    return prepared;
  }
  /// Prepares some of what is left of a weight that prepare_later() made: so little that others do not wait for long.
  /// False: nothing was left, and `weight.keep` was let go. Not while a pass runs that uses the weight.
  virtual Result<bool> prepare_more([[maybe_unused]] const PreparedWeight& weight) { return false; }
  /// Whether the backend has a memory of its own, and can copy weights to it in each pass: PlanOptions::streamed.
  virtual bool streams() const noexcept { return false; }
  /// The same weight, of as many bytes, in host memory. Errors: as prepare(), and unsupported unless streams().
  virtual Result<std::unique_ptr<PreparedWeight>> prepare_streamed([[maybe_unused]] const WeightView& weight) {
    return Error{ErrorCode::unsupported, "the backend streams no weights"};
  }
  /// Bytes of host memory through which a plan reads groups of weights from a WeightStorage, the largest of so many
  /// bytes; 0: the backend cannot.
  virtual std::int64_t stream_buffer_bytes([[maybe_unused]] std::int64_t group_bytes) const noexcept { return 0; }
  /// prepare_streamed(), but in `storage` from `offset` on. Errors: as there, those of the storage, and unsupported
  /// where stream_buffer_bytes() is 0.
  virtual Result<std::unique_ptr<PreparedWeight>> prepare_streamed_in(
      [[maybe_unused]] std::shared_ptr<WeightStorage> storage, [[maybe_unused]] std::int64_t offset,
      [[maybe_unused]] const WeightView& weight) {
    return Error{ErrorCode::unsupported, "the backend reads no weights from a storage"};
  }
  /// Names the form of PreparedWeight::stored: what one backend stored, restore() of another of the same form takes.
  /// Empty: weights of this backend are not stored.
  virtual std::string stored_form() const { return {}; }
  /// The weight that `stored` was got from; `weight` has all but data, and `keep` owns `stored`. Errors: corrupt (bytes
  /// that do not fit the weight), unsupported.
  virtual Result<std::unique_ptr<PreparedWeight>> restore([[maybe_unused]] const WeightView& weight,
                                                          [[maybe_unused]] std::span<const std::byte> stored,
                                                          [[maybe_unused]] std::shared_ptr<const void> keep) {
    return Error{ErrorCode::unsupported, "the backend stores no weights"};
  }
  /// `weights` are in the program's order and shared with the plan.
  virtual Result<std::unique_ptr<Plan>> compile(const Program& program,
                                                std::vector<std::shared_ptr<const PreparedWeight>> weights,
                                                const PlanOptions& options) = 0;
  /// Names what the backend's collectives are made with; backends that say the same can have one together. Errors:
  /// unsupported, not_found (a library that is not installed).
  virtual Result<std::string> collective_kind() {
    return Error{ErrorCode::unsupported, "the backend has no collectives"};
  }
  /// What make_collective() needs on all ranks: one of them asks for it and tells the others, who may be processes on
  /// other machines. At most 256 bytes.
  virtual Result<std::vector<std::byte>> collective_id() {
    return Error{ErrorCode::unsupported, "the backend has no collectives"};
  }
  /// All ranks, 0 to ranks - 1, call it at about the same time: it waits for the others, and calls `watch` meanwhile,
  /// as the plans will that sum with the collective.
  virtual Result<std::shared_ptr<Collective>> make_collective([[maybe_unused]] std::span<const std::byte> id,
                                                              [[maybe_unused]] int rank, [[maybe_unused]] int ranks,
                                                              [[maybe_unused]] Watch watch) {
    return Error{ErrorCode::unsupported, "the backend has no collectives"};
  }
  virtual Result<std::unique_ptr<CacheStorage>> make_cache(const CacheGroup& group, CacheType type,
                                                           std::int32_t pages) = 0;
  /// Whether the backend has a memory of its own, and can keep pages of a cache in the host's: make_swapped_cache().
  virtual bool swaps() const noexcept { return false; }
  /// The same in host memory, with device memory for `resident` pages, 1 to `pages`: page_bytes() of all pages there,
  /// and of the resident ones here. Results of passes are those of make_cache(), bit for bit. A pass may use
  /// `resident` pages; or, where the group has several layers, as many as `resident` pages of all layers have room for
  /// in two of them. Errors: as make_cache(), and unsupported unless swaps().
  virtual Result<std::unique_ptr<CacheStorage>> make_swapped_cache([[maybe_unused]] const CacheGroup& group,
                                                                   [[maybe_unused]] CacheType type,
                                                                   [[maybe_unused]] std::int32_t pages,
                                                                   [[maybe_unused]] std::int32_t resident) {
    return Error{ErrorCode::unsupported, "the backend keeps no cache in host memory"};
  }
  /// Whether pages that lie in host memory can lie where the caller says: make_cache_in().
  virtual bool takes_cache_memory() const noexcept { return false; }
  /// make_swapped_cache(), or if the backend has no memory of its own make_cache(), which `resident` does not matter to.
  /// All pages lie in `memory`, which is zeros, page_bytes() for each, on a multiple of 64 bytes. Errors: as these, and
  /// unsupported unless takes_cache_memory().
  virtual Result<std::unique_ptr<CacheStorage>> make_cache_in([[maybe_unused]] std::shared_ptr<std::byte> memory,
                                                              [[maybe_unused]] const CacheGroup& group,
                                                              [[maybe_unused]] CacheType type,
                                                              [[maybe_unused]] std::int32_t pages,
                                                              [[maybe_unused]] std::int32_t resident) {
    return Error{ErrorCode::unsupported, "the backend's caches have memory of their own"};
  }

 private:
  friend class engine::UsedBackend;
  std::atomic<bool> used_{false};  ///< by an engine
};

/// The CPU backend. Errors: invalid_argument (an unknown cpu_level, or one that this machine cannot run; threads < 0).
/// The environment variable LLMINFER_CPU_LEVEL forces a level where options.cpu_level is empty.
LLMINFER_API Result<std::shared_ptr<Backend>> make_cpu_backend(const BackendOptions& options);

/// The instruction set levels of the CPU backend that this machine can run, slowest first: "scalar", "avx2", …. Empty
/// if memory is out.
LLMINFER_API std::vector<std::string> cpu_levels();

}  // namespace llminfer::inline v0
