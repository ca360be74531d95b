// ShardGroup: the ranks that compute the shards of one stage side by side, and how they sum what each has a part of.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include <llminfer/backend.hpp>
#include <llminfer/communicator.hpp>

namespace llminfer::inline v0::engine {

/// In each pass all ranks of a group make the same exchanges: the sums of its Reduce operations in their order, then
/// that of finish(). With each goes whether the rank is still well. One that is not makes no further sums of the pass,
/// nor do the others, who learn of it in the exchange in which they meet; so all come to the same outcome, and begin
/// the next pass together.
///
/// A sum is ((x0 + x1) + x2) + … in floats, in the order of the shards: the same bits on all ranks, whoever was first.
///
/// Or the ranks' devices sum by themselves, through a Collective (docs/adr/0031). Then the ranks meet only at the end
/// of a pass, where each sends how it went as soon as it knows, and whether it has made its sums. If one has not, the
/// others find its message where they wait for their devices, and all abort the collective; later passes sum as above.
class ShardGroup {
 public:
  /// Ranks [first, first + count), with this one. A sum has at most `most_floats`. Throws std::bad_alloc.
  ShardGroup(std::shared_ptr<Communicator> communicator, int first, int count, std::int64_t most_floats);

  int first() const noexcept { return first_; }
  int count() const noexcept { return count_; }

  /// Bytes that a group holds beside its ranks' plans.
  static std::int64_t bytes(std::int64_t most_floats) noexcept { return 2 * most_floats * std::int64_t{sizeof(float)}; }
  /// All ranks call it together, between passes: the sums of `plan`, which outlives the group's passes, go to the
  /// devices, if every rank's can; one whose host waits for copies cannot watch over the sums before them. Gives the
  /// collective's description, or the first error that a rank had; the outcome is the same on all.
  Result<std::string> start_collective(Backend& backend, Plan& plan, bool copies_block);

  // A pass.
  /// Submits it to the plan whose reductions are this group's, and waits for it.
  Result<void> compute(Plan& plan, const Batch& batch, std::span<CacheStorage* const> caches);
  /// As Reduction. Errors: the first one that a rank had in this pass; those of messages.
  Result<void> sum(std::span<float> rows);
  /// Ends the pass. `own`: how it went here. Gives how it went on all: the first error in the order of the shards.
  Result<void> finish(Result<void> own);
  /// A message has failed: who waits for what is not known any more, and the group is of no more use.
  const std::optional<Error>& broken() const noexcept { return broken_; }

 private:
  Result<void> exchange(const Result<void>& own, std::span<float> rows);
  Result<void> send(int to, const Result<void>& own, std::span<const float> rows);
  Result<void> receive(int from, Result<void>& outcome, bool fits, std::size_t floats);
  // shard_collective.cpp
  Result<void> named(Result<void> own) const noexcept;
  Result<void> finish_on_devices(Result<void> own, bool made);
  Result<void> watch();
  void hear(int other);

  const std::shared_ptr<Communicator> communicator_;
  const int first_, count_;
  std::vector<float> sum_, received_;  ///< kept for their memory
  std::optional<Error> failed_;        ///< of this pass, as all know
  std::optional<Error> broken_;

  std::shared_ptr<Collective> collective_;  ///< or null
  bool submitted_ = false;                  ///< the plan took the pass
  /// Of another rank: how its pass went, and whether it has made its sums.
  struct Heard {
    Result<void> outcome;
    bool made = false;
  };
  std::vector<std::optional<Heard>> heard_;  ///< [count] in this pass
};

}  // namespace llminfer::inline v0::engine
