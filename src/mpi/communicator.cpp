// The Communicator over MPI's point-to-point messages. Waiting is probing with pauses: MPI's own waiting calls keep a
// core busy, and say nothing of a rank that has left.
#include <mpi.h>
#include <sched.h>

#include <algorithm>
#include <chrono>
#include <climits>
#include <cstring>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

#include <llminfer/mpi.hpp>

#include "core/error.hpp"

namespace llminfer::inline v0 {
namespace {

using core::fail;
using Clock = std::chrono::steady_clock;

constexpr int kDataTag = 1, kByeTag = 2;
/// MPI counts in int: larger messages go in parts.
constexpr std::size_t kPartBytes = std::size_t{1} << 30;
/// Sending so few bytes does not wait for their receiver: see Communicator::ready.
constexpr std::size_t kSmallBytes = 1024;

Result<void> checked(int code, const char* call) {
  if (code == MPI_SUCCESS) return {};
  char text[MPI_MAX_ERROR_STRING] = {};
  int length = 0;
  MPI_Error_string(code, text, &length);
  return fail(ErrorCode::peer_lost, call, ": ", text);
}

/// Short waits are answered at once, long ones cost nothing.
class Pause {
 public:
  void operator()() {
    const auto waited = Clock::now() - begin_;
    if (waited < std::chrono::milliseconds(2)) {
      ::sched_yield();
    } else {
      std::this_thread::sleep_for(std::chrono::microseconds(waited < std::chrono::seconds(1) ? 50 : 1000));
    }
  }

 private:
  const Clock::time_point begin_ = Clock::now();
};

/// MPI as long as somebody uses it. Finalizes what it initialized.
class Runtime {
 public:
  static Result<std::shared_ptr<Runtime>> get() {
    // MPI is one for the process, and so is what knows its users.
    static std::mutex mutex;
    static std::weak_ptr<Runtime> current;
    const std::lock_guard lock(mutex);
    if (auto runtime = current.lock()) return runtime;
    auto runtime = std::make_shared<Runtime>();
    int is = 0, level = MPI_THREAD_SINGLE;
    MPI_Finalized(&is);
    if (is) return Error{ErrorCode::invalid_state, "MPI was finalized, and cannot begin again"};
    MPI_Initialized(&is);
    if (is) {
      MPI_Query_thread(&level);
    } else {
      if (MPI_Init_thread(nullptr, nullptr, MPI_THREAD_MULTIPLE, &level) != MPI_SUCCESS) {
        return Error{ErrorCode::io_error, "MPI_Init_thread failed"};
      }
      runtime->own_ = true;
    }
    if (level < MPI_THREAD_SERIALIZED) {
      return Error{ErrorCode::unsupported,
                   "MPI was initialized for calls of one thread alone; expected MPI_THREAD_SERIALIZED or more"};
    }
    current = runtime;
    return runtime;
  }
  ~Runtime() {
    if (own_) MPI_Finalize();
  }

 private:
  bool own_ = false;
};

class MpiCommunicator final : public Communicator {
 public:
  static Result<std::shared_ptr<Communicator>> make() {
    auto made = std::make_shared<MpiCommunicator>();
    made->runtime_ = LLMINFER_TRY(Runtime::get());
    if (MPI_Comm_dup(MPI_COMM_WORLD, &made->communicator_) != MPI_SUCCESS) {
      made->communicator_ = MPI_COMM_NULL;
      return Error{ErrorCode::io_error, "MPI_Comm_dup failed"};
    }
    MPI_Comm_set_errhandler(made->communicator_, MPI_ERRORS_RETURN);
    MPI_Comm_rank(made->communicator_, &made->rank_);
    MPI_Comm_size(made->communicator_, &made->size_);
    return std::shared_ptr<Communicator>(std::move(made));
  }

  /// Says good-bye and waits until all have said it, so that no message is left behind for a later communicator.
  ~MpiCommunicator() override {
    if (communicator_ == MPI_COMM_NULL) return;
    for (int other = 0; other < size_; ++other) {
      if (other != rank_)
        MPI_Send(nullptr, 0, MPI_BYTE, other, kByeTag, communicator_);  // so small a one waits for nobody
    }
    for (int other = 0; other < size_; ++other) {
      if (other == rank_) continue;
      for (Pause pause; !probe(other, kByeTag, nullptr);) pause();
      MPI_Recv(nullptr, 0, MPI_BYTE, other, kByeTag, communicator_, MPI_STATUS_IGNORE);
      drop_data(other);
    }
    for (Sent& sent : sent_) MPI_Wait(&sent.request, MPI_STATUS_IGNORE);  // the others drop what they have not taken
    MPI_Comm_free(&communicator_);
  }

  int rank() const noexcept override { return rank_; }
  int size() const noexcept override { return size_; }

  Result<void> send(int to, std::span<const std::byte> data) override {
    return core::guarded([&]() -> Result<void> {
      LLMINFER_TRY(check(to));
      do {
        const auto part = data.first(std::min(data.size(), kPartBytes));
        LLMINFER_TRY(send_part(to, part));
        data = data.subspan(part.size());
      } while (!data.empty());
      return {};
    });
  }

  Result<void> receive(int from, std::span<std::byte> data) override {
    return core::guarded([&]() -> Result<void> {
      LLMINFER_TRY(check(from));
      do {
        const auto part = data.first(std::min(data.size(), kPartBytes));
        LLMINFER_TRY(receive_part(from, part));
        data = data.subspan(part.size());
      } while (!data.empty());
      return {};
    });
  }

  std::optional<bool> ready(int from) noexcept override {
    if (from < 0 || from >= size_ || from == rank_) return true;
    return probe(from, kDataTag, nullptr) || probe(from, kByeTag, nullptr);
  }

 private:
  Result<void> check(int other) const {
    if (other >= 0 && other < size_ && other != rank_) return {};
    return fail(ErrorCode::invalid_argument, "rank ", rank_, " of ", size_, " has no messages for rank ", other);
  }
  bool probe(int from, int tag, MPI_Status* status) const {
    int there = 0;
    const int code = MPI_Iprobe(from, tag, communicator_, &there, status ? status : MPI_STATUS_IGNORE);
    return code == MPI_SUCCESS && there;
  }
  static Error lost(int other) { return fail(ErrorCode::peer_lost, "rank ", other, " is gone"); }

  /// The message lies in memory of this object until MPI is done with it, also where the receiver leaves before, or is
  /// not waited for.
  Result<void> send_part(int to, std::span<const std::byte> part) {
    if (probe(to, kByeTag, nullptr)) return lost(to);
    std::vector<std::byte> message = std::move(spare_);
    message.assign(part.begin(), part.end());
    std::erase_if(sent_, [](Sent& sent) {
      int done = 0;
      return MPI_Test(&sent.request, &done, MPI_STATUS_IGNORE) == MPI_SUCCESS && done;
    });
    sent_.reserve(sent_.size() + 1);
    MPI_Request request = MPI_REQUEST_NULL;
    LLMINFER_TRY(checked(
        MPI_Isend(message.data(), static_cast<int>(message.size()), MPI_BYTE, to, kDataTag, communicator_, &request),
        "MPI_Isend"));
    for (Pause pause;; pause()) {
      int done = 0;
      LLMINFER_TRY(checked(MPI_Test(&request, &done, MPI_STATUS_IGNORE), "MPI_Test"));
      if (done) break;
      const bool gone = probe(to, kByeTag, nullptr);
      if (!gone && part.size() > kSmallBytes) continue;
      sent_.push_back({std::move(message), request});
      return gone ? Result<void>(lost(to)) : Result<void>();
    }
    spare_ = std::move(message);
    return {};
  }

  Result<void> receive_part(int from, std::span<std::byte> part) {
    MPI_Status status;
    for (Pause pause; !probe(from, kDataTag, &status); pause()) {
      // What was sent before the good-bye has come before it.
      if (probe(from, kByeTag, nullptr) && !probe(from, kDataTag, nullptr)) return lost(from);
    }
    int bytes = 0;
    MPI_Get_count(&status, MPI_BYTE, &bytes);
    if (static_cast<std::size_t>(bytes) != part.size()) {
      drop_message(from, bytes);
      return fail(ErrorCode::corrupt, "a message of ", bytes, " bytes from rank ", from, "; expected ", part.size());
    }
    return checked(MPI_Recv(part.data(), bytes, MPI_BYTE, from, kDataTag, communicator_, MPI_STATUS_IGNORE),
                   "MPI_Recv");
  }

  void drop_message(int from, int bytes) {
    std::vector<std::byte> unwanted(static_cast<std::size_t>(bytes));
    MPI_Recv(unwanted.data(), bytes, MPI_BYTE, from, kDataTag, communicator_, MPI_STATUS_IGNORE);
  }
  /// Messages that nobody has waited for.
  void drop_data(int from) noexcept {
    (void)core::guarded([&]() -> Result<void> {
      for (MPI_Status status; probe(from, kDataTag, &status);) {
        int bytes = 0;
        MPI_Get_count(&status, MPI_BYTE, &bytes);
        drop_message(from, bytes);
      }
      return {};
    });
  }

  std::shared_ptr<Runtime> runtime_;
  MPI_Comm communicator_ = MPI_COMM_NULL;
  int rank_ = 0, size_ = 1;
  std::vector<std::byte> spare_;  ///< memory of the last message
  struct Sent {
    std::vector<std::byte> message;
    MPI_Request request;
  };
  std::vector<Sent> sent_;  ///< to ranks that were not waited for, or left before they took them
};

}  // namespace

Result<std::shared_ptr<Communicator>> make_mpi_communicator() {
  return core::guarded([] { return MpiCommunicator::make(); });
}

}  // namespace llminfer::inline v0
