// Team: the threads of the library, its only user of compute threads. Runs one region of work at a time: phases one
// after the other, each cut into chunks that any thread may compute. Knows nothing of models.
//
// No thread is waited for, only chunks are: a phase ends when all its chunks are done, whoever did them, and the thread
// that ends it opens the next. A thread that the system keeps from running, or that is still asleep, holds nobody up
// unless it is inside of a chunk. So a region proceeds at the speed of the threads that do run.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <type_traits>

#include <llminfer/result.hpp>

namespace llminfer::core {

/// A reference to a callable; it must outlive the call that it is passed to.
template <class Signature>
class FunctionRef;
template <class R, class... Args>
class FunctionRef<R(Args...)> {
 public:
  template <class F>
  requires(!std::is_same_v<std::remove_cvref_t<F>, FunctionRef>) FunctionRef(F&& f)
      : object_(const_cast<void*>(static_cast<const void*>(std::addressof(f)))),
        call_([](void* object, Args... args) -> R {
          return (*static_cast<std::remove_reference_t<F>*>(object))(args...);
        }) {}
  R operator()(Args... args) const { return call_(object_, args...); }

 private:
  void* object_;
  R (*call_)(void*, Args...);
};

/// Used by one thread at a time.
class Team {
 public:
  /// Computes chunk `chunk` of phase `phase` on thread `thread` of the team; must not throw. What earlier phases wrote
  /// is visible. A thread computes one chunk at a time, so memory per thread needs no lock.
  using Body = FunctionRef<void(int phase, int chunk, int thread)>;
  /// The same of chunks [first, last).
  using RangeBody = FunctionRef<void(int phase, int first, int last, int thread)>;
  /// As llminfer::Executor.
  using Lent = std::function<void(int count, const std::function<void(int index, int count)>& body)>;

  static constexpr int kMaxChunks = (1 << 20) - 1;

  /// A team of `threads` (at least 1) threads, the caller of run() among them. With `lent`, the host's threads run it.
  /// Errors: out_of_memory if the threads cannot be made.
  static Result<std::unique_ptr<Team>> make(int threads, Lent lent);
  virtual ~Team() = default;

  int threads() const noexcept { return threads_; }

  /// Runs phases 0, 1, … of chunks[phase] chunks each (0 to kMaxChunks) and returns when all are done. Each thread
  /// begins a phase with a share that depends only on the number of chunks (so that it meets the same weights in each
  /// pass), and then takes what others have left. Errors: callback_failed if the lent executor throws or runs nothing.
  Result<void> run(std::span<const int> chunks, Body body);
  /// The same, with several chunks taken at a time: a quarter of what is left of a thread's share, so that taking costs
  /// little and the last ones are still small.
  Result<void> run_ranges(std::span<const int> chunks, RangeBody body);

 protected:
  explicit Team(int threads);
  /// Has threads call take_part, at least one, and returns when they have.
  virtual void start() = 0;

  /// What thread `index` does in a region: returns when that is over.
  void take_part(int index) noexcept;
  /// As take_part, for region after region until `stop` is set and the word changes.
  void serve(int index, const std::atomic<bool>& stop) noexcept;
  void open(std::uint64_t tag) noexcept;
  std::uint64_t word() const noexcept { return word_.load(std::memory_order_acquire); }

 private:
  struct alignas(64) Cursor {
    std::atomic<std::uint64_t> taken{0};  ///< tag of the phase that it was used in last, plus chunks taken in that
  };
  Result<void> run(std::span<const int> chunks, std::uint64_t parts, RangeBody body);
  bool work(int index, std::uint64_t word) noexcept;

  const int threads_;
  /// Of what is left of a share a thread takes one part in so many at a time, but at least a chunk. Atomic for those
  /// that come late, who take nothing.
  std::atomic<std::uint64_t> parts_{1};
  /// The number of phases opened so far, shifted by 20 bits (its "tag"), plus the chunks of the one that is open; none
  /// between regions. 44 bits of phases last for years.
  alignas(64) std::atomic<std::uint64_t> word_{0};
  alignas(64) std::atomic<int> done_{0};  ///< chunks of the open phase
  std::unique_ptr<Cursor[]> cursors_;     ///< [threads]

  // The region. Only read by a thread that has taken a chunk, and written when none has.
  std::span<const int> chunks_;
  const RangeBody* body_ = nullptr;
  int phase_ = 0;
};

}  // namespace llminfer::core
