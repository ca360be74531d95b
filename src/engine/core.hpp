// EngineCore: one loaded model and the thread that runs it. Requests of all sessions are batched step by step
// (continuous batching: Yu et al., "Orca", 2022) over the paged KV cache (Kwon et al., "PagedAttention", 2023).
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include <llminfer/engine.hpp>

#include "engine/cache_size.hpp"
#include "engine/model.hpp"
#include "engine/page_pool.hpp"
#include "engine/prefix_cache.hpp"
#include "engine/request.hpp"
#include "engine/sequence.hpp"

namespace llminfer::inline v0::engine {

class EngineCore {
 public:
  EngineCore(std::unique_ptr<Model> model, const EngineOptions& options);
  ~EngineCore();
  EngineCore(const EngineCore&) = delete;
  EngineCore& operator=(const EngineCore&) = delete;

  const Model& model() const noexcept { return *model_; }
  EngineStats stats() const;

  // Any thread.
  std::shared_ptr<Sequence> new_sequence(std::string salt = {});
  /// Gives the pages back. The sequence is idle.
  void close(const std::shared_ptr<Sequence>& sequence) noexcept;
  /// A copy that shares all pages. The sequence is idle.
  std::shared_ptr<Sequence> fork(const Sequence& sequence);
  /// Forgets all but the first `count` tokens, 0 <= count <= size. The sequence is idle.
  void truncate(Sequence& sequence, std::int32_t count);

  /// Checks the request's options and puts it in the queue. Its sequence holds all tokens to compute; after an error it
  /// is as it was before the request.
  Result<void> submit(const std::shared_ptr<Request>& request) noexcept;
  Result<void> check_tokens(std::span<const Token> tokens) const;

 private:
  /// A request's share of one forward pass.
  struct Share {
    std::shared_ptr<Request> request;
    std::int32_t rows = 0;
  };

  /// What with_room() counts of a cache group.
  struct PassRoom {
    PassPages limit;
    std::int64_t used = 0, room = 0;     ///< pages
    std::vector<std::uint64_t> counted;  ///< per page: the last call that has counted it
  };

  void run() noexcept;
  void prepare_more() noexcept;
  void drop_complete() noexcept;
  Result<void> enqueue(const std::shared_ptr<Request>& request);
  void begin_step();
  Result<void> begin_step(const std::shared_ptr<Request>& request);
  void drop_done() noexcept;
  void admit();
  Result<void> schedule(std::vector<Share>& shares);
  std::vector<Share> with_room();
  void find_prefix(Request& request) noexcept;
  Result<bool> make_room(Request& request, std::int32_t rows);
  bool evict_prefix(std::size_t group) noexcept;
  bool reclaim_pages(const Request& asking);
  void free_pages(Sequence& sequence, std::int32_t keep_tokens) noexcept;
  bool seals_pages() const noexcept;
  std::size_t first_kept(std::size_t group, std::int32_t cached) const noexcept;
  void release_page(std::size_t group, std::int32_t page) noexcept;
  void gather(std::span<const Share> shares);
  Result<void> forward(std::span<const Share> shares);
  void hand_out(std::span<const Share> shares);
  void commit(std::span<const Share> shares);

  Result<void> advance(Request& request);
  Result<Sample> choose(Request& request);
  Result<void> fetch_logits(Request& request);
  void emit(Request& request, Token token, std::string_view text, const Sample* sample);
  void end_answer(Request& request, FinishReason reason);
  void shift(Request& request);
  void restore(Request& request) noexcept;
  void finish(const std::shared_ptr<Request>& request, Result<void> outcome) noexcept;

  const std::unique_ptr<Model> model_;
  const std::int32_t max_batch_tokens_, max_sequences_, max_queue_;

  mutable std::mutex mutex_;  ///< guards what follows and the page state of all sequences
  std::condition_variable wake_;
  bool stopping_ = false;
  std::deque<std::shared_ptr<Request>> waiting_;
  std::vector<PagePool> pools_;          ///< per cache group
  std::optional<PrefixCache> prefixes_;  ///< as EngineOptions::prefix_cache says
  std::vector<PassRoom> rooms_;          ///< per cache group; empty, if passes may use all pages
  std::vector<std::weak_ptr<Sequence>> sequences_;
  std::uint64_t use_counter_ = 0, room_counter_ = 0;
  EngineStats stats_;

  std::vector<PendingWeight> pending_;             ///< the engine thread's own, the next one last
  std::vector<std::shared_ptr<Request>> running_;  ///< the engine thread's own, oldest first

  // Arrays of the pass in flight, kept for their memory.
  struct {
    std::vector<Token> tokens;
    std::vector<float> embeddings;
    std::vector<std::int32_t> positions, logit_rows, hidden_rows;
    std::vector<Run> runs;
    std::vector<CandidateWish> wishes;
    std::vector<TokenLogit> candidates;
    std::vector<double> sums;
    std::vector<DrawnToken> draws;
    std::vector<float> logits, hidden;
  } pass_;

  std::thread thread_;  // last: runs with everything above made
};

}  // namespace llminfer::inline v0::engine
