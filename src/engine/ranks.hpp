// Ranks: what the ranks of a Communicator that share a model say to each other. Rank 0, the leader, has the engine; the
// others, its followers, compute their part of each pass. Each stage, some layers, has as many ranks as
// EngineOptions::tensor_parallel says, its shards: rank r has shard r % shards of stage r / shards.
//
// leader to each follower:    Setup once, then commands until `stop`
// follower to leader:         Reply, once it has loaded its part
// a rank to that of the next  in each pass an outcome: rows, or the error of whichever rank had one. Those of the first
//   stage with its shard:     stage have it from the leader, those of the last one give it to the leader
// shards to one another:      see ShardGroup
// follower to leader:         once it was told to sum on the devices, how that went: an outcome
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include <llminfer/backend.hpp>
#include <llminfer/communicator.hpp>

#include "engine/forgotten_pages.hpp"
#include "engine/shard_group.hpp"

namespace llminfer::inline v0::engine {

/// What a follower has to know to load its stage.
struct Setup {
  std::vector<std::int64_t> model;  ///< numbers that tell models apart
  std::int32_t context_length = 0;
  std::int32_t pages = 0, windows = 0, resident = 0;  ///< see CacheSize
  std::int32_t max_batch_rows = 0;
  CacheType cache_type = CacheType::f16;
  std::int32_t shards = 1;           ///< of each stage
  std::vector<std::int32_t> places;  ///< [stages + 1], see Borders
};
inline constexpr std::size_t kModelNumbers = 7;

/// What a follower holds.
struct Reply {
  std::string backend;  ///< its description
  std::int64_t weight_bytes = 0;
  std::int64_t cache_bytes = 0;
  bool seals_pages = false;  ///< see CacheStorage
  struct Limit {
    std::size_t group = 0;  ///< of the whole program
    PassPages pages;
  };
  std::vector<Limit> limits;  ///< of the cache groups that it has
};

/// A stage, or a shard of one, that has been loaded.
struct RankStage {
  std::shared_ptr<Backend> backend;
  std::shared_ptr<ShardGroup> group;  ///< of its shards; null without ranks. The plan's reductions go to it
  std::unique_ptr<Plan> plan;
  std::vector<std::size_t> groups;                    ///< per cache group of the stage its index in the whole program
  std::vector<std::unique_ptr<CacheStorage>> caches;  ///< per cache group of the stage
  std::vector<std::int32_t> pages;                    ///< likewise
  std::int64_t weight_bytes = 0;
  std::int64_t hidden_size = 0;
  std::int64_t vocab_size = 0;  ///< that the stage gives logits of
  std::int32_t max_batch_rows = 0;
  bool copies_block = false;  ///< copies of a cache's pages between a file and a device make the host wait

  /// The stage's part of a group of the whole program; null if it has none.
  CacheStorage* cache(std::size_t whole_group) const noexcept;
  std::vector<CacheStorage*> all_caches() const;
};

/// The leader's side. Once a message has failed, all calls give the same error: who waits for what is not known any
/// more.
class Leader {
 public:
  explicit Leader(std::shared_ptr<Communicator> communicator) : communicator_(std::move(communicator)) {}
  /// Releases the followers, wherever they are.
  ~Leader() { release(); }
  Leader(const Leader&) = delete;
  Leader& operator=(const Leader&) = delete;

  int ranks() const noexcept { return communicator_->size(); }
  Result<void> begin(const Setup& setup);
  /// Has the others end, and sends no more; what is left of them goes side by side with rank 0's.
  void release() noexcept;
  /// Waits until all have loaded. Errors: the first one that a follower had, naming its rank.
  Result<std::vector<Reply>> ready();
  /// Has the shards of each stage sum on their devices, if they can, those of rank 0's stage among them. Gives for each
  /// rank what ShardGroup::start_collective() gave. Errors: those of messages.
  Result<std::vector<Result<std::string>>> start_collectives(const RankStage& own);

  Result<void> copy_page(std::size_t group, std::int32_t from, std::int32_t to, std::int32_t tokens);
  /// What no sequence has any more; the followers learn of it with the next pass, if that is of use to them.
  ForgottenPages& forgotten() noexcept { return forgotten_; }
  // A pass, in this order. Rank 0's own stage computes when its turn comes.
  /// Tells all followers what the pass is.
  Result<void> announce(const Batch& batch);
  /// What a rank has to go on with.
  Result<void> give(int rank, const Result<void>& outcome, std::span<const float> rows);
  /// Waits for the last stage and fills the batch's outputs. Rank 0, if it is a shard of that stage, has its own part
  /// of the logits, which has `own_logits` then, and the hidden states.
  Result<void> collect(const Batch& batch, std::int64_t vocab_size, std::span<const float> own_logits);
  /// That a message of this rank's shards has failed. Gives the error.
  Result<void> lost(const Error& error);

 private:
  Result<void> checked(Result<void> outcome);

  const std::shared_ptr<Communicator> communicator_;
  enum class State : std::uint8_t { fresh, begun, ready, released } state_ = State::fresh;
  int shards_ = 1;
  std::vector<bool> ended_;  ///< per rank: a follower that could not load, and does not wait for commands
  std::optional<Error> broken_;
  ForgottenPages forgotten_;
  std::vector<std::int32_t> words_;  ///< of a pass; kept for its memory
  std::vector<float> logits_;        ///< of another rank; likewise
};

// The followers' side, in this order.

/// Errors: peer_lost, if rank 0 is gone or has given up.
Result<Setup> receive_setup(Communicator& communicator);
/// Tells rank 0 how the load went.
Result<void> send_reply(Communicator& communicator, const Result<RankStage>& stage);
/// Does what rank 0 says until it says stop.
class Follower {
 public:
  virtual ~Follower() = default;
  virtual Result<void> run() = 0;
};
/// To be made before the reply: it has the memory for what has to be received. `communicator` and `stage` outlive it.
/// Throws std::bad_alloc.
std::unique_ptr<Follower> make_follower(Communicator& communicator, const RankStage& stage);

}  // namespace llminfer::inline v0::engine
