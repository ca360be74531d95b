#include "engine/shard_group.hpp"

#include <algorithm>
#include <utility>

#include "core/error.hpp"
#include "engine/rank_messages.hpp"

namespace llminfer::inline v0::engine {

ShardGroup::ShardGroup(std::shared_ptr<Communicator> communicator, int first, int count, std::int64_t most_floats)
    : communicator_(std::move(communicator)), first_(first), count_(count) {
  if (count == 1) return;
  sum_.reserve(static_cast<std::size_t>(most_floats));
  received_.reserve(static_cast<std::size_t>(most_floats));
  heard_.resize(static_cast<std::size_t>(count));
}

Result<void> ShardGroup::sum(std::span<float> rows) {
  if (broken_) return core::copy_of(*broken_);
  if (failed_) return core::copy_of(*failed_);
  return exchange({}, rows);
}

Result<void> ShardGroup::compute(Plan& plan, const Batch& batch, std::span<CacheStorage* const> caches) {
  LLMINFER_TRY(plan.submit(batch, caches));
  submitted_ = true;
  return plan.wait();
}

Result<void> ShardGroup::finish(Result<void> own) {
  const bool submitted = std::exchange(submitted_, false);
  if (count_ == 1) return own;
  if (collective_) return finish_on_devices(std::move(own), submitted && !collective_->aborted());
  if (!failed_ && !broken_) (void)core::guarded([&] { return exchange(own, {}); });
  if (broken_) return core::copy_of(*broken_);
  if (failed_) return *std::exchange(failed_, std::nullopt);
  return own;
}

/// Pairs of ranks meet in ascending order of the pair, lower rank sending first, so that none waits in a circle even
/// where sending waits for the receiver. A rank that has lost one tells those that it meets after.
Result<void> ShardGroup::exchange(const Result<void>& own, std::span<float> rows) {
  const int self = communicator_->rank() - first_;
  Result<void> first_error;
  const auto messages = [&]() -> Result<void> {
    sum_.resize(rows.size());
    Result<void> lost;
    for (int other = 0; other < count_; ++other) {
      Result<void> theirs;
      const Result<void>& mine = lost ? own : lost;
      const auto meet = [&]() -> Result<void> {
        if (other > self) LLMINFER_TRY(send(first_ + other, mine, rows));
        LLMINFER_TRY(receive(first_ + other, theirs, mine.has_value(), rows.size()));
        return other < self ? send(first_ + other, mine, rows) : Result<void>();
      };
      if (other == self) {
        if (!own) theirs = core::copy_of(own.error());
      } else if (auto met = meet(); !met) {
        if (lost) lost = std::move(met);
        continue;
      }
      if (!theirs && first_error) first_error = std::move(theirs);
      if (!first_error || !own || !lost) continue;
      const float* const x = other == self ? rows.data() : received_.data();
      if (other == 0) {
        std::copy_n(x, rows.size(), sum_.data());
      } else {
        for (std::size_t i = 0; i < rows.size(); ++i) sum_[i] += x[i];
      }
    }
    return lost;
  };
  auto exchanged = core::guarded(messages);
  if (!exchanged) {
    broken_ = core::copy_of(exchanged.error());
    return exchanged;
  }
  if (!first_error) {
    failed_ = core::copy_of(first_error.error());
    return first_error;
  }
  std::copy(sum_.begin(), sum_.end(), rows.begin());
  return {};
}

Result<void> ShardGroup::send(int to, const Result<void>& own, std::span<const float> rows) {
  OutcomeMessage message = own ? OutcomeMessage() : OutcomeMessage(own.error());
  message.floats = own ? static_cast<std::int64_t>(rows.size()) : 0;
  LLMINFER_TRY(send_message(*communicator_, to, message));
  return message.floats == 0 ? Result<void>() : communicator_->send(to, std::as_bytes(rows));
}

/// Into `received_`, also where this rank has failed and has no use for it.
Result<void> ShardGroup::receive(int from, Result<void>& outcome, bool fits, std::size_t floats) {
  const auto message = LLMINFER_TRY(receive_message<OutcomeMessage>(*communicator_, from));
  outcome = message.outcome();
  const auto sent = static_cast<std::size_t>(std::max<std::int64_t>(message.floats, 0));
  if (sent > received_.capacity() || (outcome && fits && sent != floats)) {
    return core::fail(ErrorCode::corrupt, "rank ", from, " sums ", sent, " values; expected ", floats);
  }
  received_.resize(sent);
  return sent == 0 ? Result<void>() : communicator_->receive(from, std::as_writable_bytes(std::span(received_)));
}

}  // namespace llminfer::inline v0::engine
