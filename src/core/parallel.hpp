// Team: the threads of the library, its only user of threads. Runs one parallel region at a time; inside it, threads
// share out work and meet at barriers that spin briefly and then sleep, so that nothing spins while idle and a busy
// neighbour costs its share of the processor and no more. Knows nothing of models.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
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

/// What the threads of a running region share.
struct RegionState {
  struct alignas(64) Cursor {
    std::atomic<int> taken{0};
  };
  alignas(64) std::atomic<std::uint32_t> arrived{0};
  alignas(64) std::atomic<std::uint32_t> generation{0};
  std::unique_ptr<Cursor[]> cursors;  ///< [3][threads], see Worker::share
  int threads = 0;
};

/// One thread's view of a running region. Every thread of the region makes the same sequence of calls.
class Worker {
 public:
  Worker(RegionState& state, int index, int count) noexcept : state_(state), index_(index), count_(count) {}

  int index() const noexcept { return index_; }
  int count() const noexcept { return count_; }

  /// Returns when every thread of the region has come here; what they wrote before is visible after.
  void barrier() noexcept;

  /// Calls body(first, last) for ranges of at most `grain` items that cover [0, items) exactly once over all threads.
  /// Each thread starts with a share that depends only on `items` (so that it meets the same weights in each pass), and
  /// then takes what slower threads have left. There must be a barrier between two calls.
  template <class Body>
  void share(int items, int grain, Body&& body) noexcept {
    if (count_ == 1) {
      if (items > 0) body(0, items);
      return;
    }
    // Three sets of cursors in turn: the set of the call after the next is clean again, since all threads have left it.
    RegionState::Cursor* const now = state_.cursors.get() + static_cast<std::ptrdiff_t>(calls_ % 3) * state_.threads;
    RegionState::Cursor* const later =
        state_.cursors.get() + static_cast<std::ptrdiff_t>((calls_ + 2) % 3) * state_.threads;
    later[index_].taken.store(0, std::memory_order_relaxed);
    ++calls_;
    for (int i = 0; i < count_; ++i) {
      const int owner = index_ + i < count_ ? index_ + i : index_ + i - count_;
      const int begin = bound(items, owner), end = bound(items, owner + 1);
      if (begin == end) continue;
      for (;;) {
        const int first = begin + now[owner].taken.fetch_add(grain, std::memory_order_relaxed);
        if (first >= end) break;
        body(first, std::min(first + grain, end));
      }
    }
  }

 private:
  int bound(int items, int owner) const noexcept {
    return static_cast<int>(static_cast<std::int64_t>(items) * owner / count_);
  }

  RegionState& state_;
  const int index_;
  const int count_;
  unsigned calls_ = 0;
};

/// Used by one thread at a time.
class Team {
 public:
  using Body = FunctionRef<void(Worker&)>;
  /// As llminfer::Executor.
  using Lent = std::function<void(int count, const std::function<void(int index, int count)>& body)>;

  /// A team of `threads` (at least 1) threads, the caller of run() among them. With `lent`, the host's threads run it.
  /// Errors: out_of_memory if the threads cannot be made.
  static Result<std::unique_ptr<Team>> make(int threads, Lent lent);
  virtual ~Team() = default;

  int threads() const noexcept { return state_.threads; }

  /// Runs `body`, which must not throw, on all threads at once and returns when all have ended. The region may have
  /// fewer threads than threads() if the machine gives no more. Errors: out_of_memory if threads cannot be started,
  /// callback_failed if the lent executor throws.
  Result<void> run(Body body);

 protected:
  explicit Team(int threads);
  virtual void start(Body body) = 0;

  RegionState state_;
};

}  // namespace llminfer::core
