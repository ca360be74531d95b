// Ranks that are threads of one process: a queue of messages for each pair of them.
#include <condition_variable>
#include <cstring>
#include <deque>
#include <mutex>
#include <optional>
#include <utility>

#include <llminfer/communicator.hpp>

#include "core/error.hpp"

namespace llminfer::inline v0 {
namespace {

using core::fail;

constexpr int kMostRanks = 1024;

struct Shared {
  explicit Shared(int size)
      : queues(static_cast<std::size_t>(size) * static_cast<std::size_t>(size)),
        gone(static_cast<std::size_t>(size), false) {}

  std::mutex mutex;
  std::condition_variable changed;
  std::vector<std::deque<std::vector<std::byte>>> queues;  ///< [from, to]
  std::vector<bool> gone;
};

class ThreadCommunicator final : public Communicator {
 public:
  ThreadCommunicator(std::shared_ptr<Shared> shared, int rank) : shared_(std::move(shared)), rank_(rank) {}
  ~ThreadCommunicator() override {
    const std::lock_guard lock(shared_->mutex);
    shared_->gone[static_cast<std::size_t>(rank_)] = true;
    shared_->changed.notify_all();
  }

  int rank() const noexcept override { return rank_; }
  int size() const noexcept override { return static_cast<int>(shared_->gone.size()); }

  Result<void> send(int to, std::span<const std::byte> data) override {
    return core::guarded([&]() -> Result<void> {
      LLMINFER_TRY(check(to));
      std::vector<std::byte> message(data.begin(), data.end());
      const std::lock_guard lock(shared_->mutex);
      if (shared_->gone[static_cast<std::size_t>(to)]) return lost(to);
      queue(rank_, to).push_back(std::move(message));
      shared_->changed.notify_all();
      return {};
    });
  }

  Result<void> receive(int from, std::span<std::byte> data) override {
    return core::guarded([&]() -> Result<void> {
      LLMINFER_TRY(check(from));
      std::unique_lock lock(shared_->mutex);
      auto& messages = queue(from, rank_);
      shared_->changed.wait(lock, [&] { return !messages.empty() || shared_->gone[static_cast<std::size_t>(from)]; });
      if (messages.empty()) return lost(from);
      const std::vector<std::byte> message = std::move(messages.front());
      messages.pop_front();
      if (message.size() != data.size()) {
        return fail(ErrorCode::corrupt, "a message of ", message.size(), " bytes from rank ", from, "; expected ",
                    data.size());
      }
      if (!data.empty()) std::memcpy(data.data(), message.data(), data.size());
      return {};
    });
  }

  std::optional<bool> ready(int from) noexcept override {
    if (from < 0 || from >= size() || from == rank_) return true;
    const std::lock_guard lock(shared_->mutex);
    return !queue(from, rank_).empty() || shared_->gone[static_cast<std::size_t>(from)];
  }

 private:
  Result<void> check(int other) const {
    if (other >= 0 && other < size() && other != rank_) return {};
    return fail(ErrorCode::invalid_argument, "rank ", rank_, " of ", size(), " has no messages for rank ", other);
  }
  static Error lost(int other) { return fail(ErrorCode::peer_lost, "rank ", other, " is gone"); }
  std::deque<std::vector<std::byte>>& queue(int from, int to) const {
    return shared_->queues[static_cast<std::size_t>(from) * shared_->gone.size() + static_cast<std::size_t>(to)];
  }

  const std::shared_ptr<Shared> shared_;
  const int rank_;
};

}  // namespace

Result<std::vector<std::shared_ptr<Communicator>>> make_thread_communicators(int size) {
  return core::guarded([&]() -> Result<std::vector<std::shared_ptr<Communicator>>> {
    if (size < 1 || size > kMostRanks) {
      return fail(ErrorCode::invalid_argument, "make_thread_communicators: size is ", size, ", expected 1 to ",
                  kMostRanks);
    }
    const auto shared = std::make_shared<Shared>(size);
    std::vector<std::shared_ptr<Communicator>> ranks;
    for (int rank = 0; rank < size; ++rank) ranks.push_back(std::make_shared<ThreadCommunicator>(shared, rank));
    return ranks;
  });
}

}  // namespace llminfer::inline v0
