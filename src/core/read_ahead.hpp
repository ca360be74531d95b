// ReadAhead: threads that read pieces of storages into memory, place after place, while others go on. Knows nothing of
// what is read.
#pragma once

#include <array>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <thread>
#include <vector>

#include <llminfer/backend.hpp>

namespace llminfer::core {

/// Used by one thread at a time.
class ReadAhead {
 public:
  static constexpr std::size_t kPlaces = 2;
  /// Disks give most to several reads at once.
  static constexpr int kThreads = 4;

  struct Piece {
    WeightStorage* storage;
    std::int64_t from;  ///< in the storage
    std::int64_t to;    ///< in the place's memory
    std::int64_t bytes;
  };

  /// Errors: out_of_memory, if the threads cannot be made.
  static Result<std::unique_ptr<ReadAhead>> make();
  ~ReadAhead();
  ReadAhead(const ReadAhead&) = delete;

  /// Begins to read the pieces into `memory`; both outlive it. The place is not being read to.
  void start(std::size_t place, std::span<const Piece> pieces, std::byte* memory) noexcept;
  /// Whether all was read that start() said.
  bool ready(std::size_t place) noexcept;
  /// Waits until it was, or gives the error of a piece that failed. `interrupted`, if there is one, is asked again and
  /// again; once it is true, the outcome is `cancelled`, and the place is read on.
  Result<void> wait(std::size_t place, const std::function<bool()>& interrupted);
  /// Reads no more of the place's pieces than have begun. It may start() again.
  void stop(std::size_t place) noexcept;

 private:
  struct Place {
    std::span<const Piece> pieces;
    std::byte* memory = nullptr;
    std::uint64_t number = 0;  ///< of start(), from 1
    std::size_t begun = 0, ended = 0;
    std::size_t stale = 0;  ///< pieces of an earlier start() that have not ended: memory is not written to before
    std::optional<Error> error;
    bool done() const noexcept { return ended == pieces.size() || (error && ended == begun); }
  };

  ReadAhead() = default;
  void run() noexcept;
  /// Of the places that have a piece to begin, the one that was started first; or null.
  Place* next() noexcept;

  std::mutex mutex_;
  std::condition_variable work_, ended_;
  std::array<Place, kPlaces> places_;
  std::uint64_t starts_ = 0;
  bool end_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace llminfer::core
