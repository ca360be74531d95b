#include "core/parallel.hpp"

#include <chrono>
#include <new>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "core/error.hpp"

#if defined(_OPENMP)
#include <omp.h>
#endif

namespace llminfer::core {
namespace {

void pause() noexcept {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("isb" ::: "memory");
#endif
}

/// Longer than most waits of a pass that has the processors to itself, far shorter than a scheduler's time slice.
constexpr std::chrono::microseconds kSpin{50};

/// Returns when `word` is no longer `old`.
void wait_change(std::atomic<std::uint32_t>& word, std::uint32_t old) noexcept {
  const auto changed = [&] { return word.load(std::memory_order_acquire) != old; };
  for (int i = 0; i < 64; ++i) {
    if (changed()) return;
    pause();
  }
  const auto end = std::chrono::steady_clock::now() + kSpin;
  while (std::chrono::steady_clock::now() < end) {
    for (int i = 0; i < 16; ++i) {
      if (changed()) return;
      pause();
    }
  }
  while (!changed()) word.wait(old, std::memory_order_acquire);
}

/// Sets `word` and wakes those who wait for it. Sequentially consistent, since the library's notify first looks whether
/// there are sleepers, and must not look before the new value can be seen.
void change(std::atomic<std::uint32_t>& word, std::uint32_t value) noexcept {
  word.store(value, std::memory_order_seq_cst);
  word.notify_all();
}

/// The host's threads.
class LentTeam final : public Team {
 public:
  LentTeam(int threads, Lent lent) : Team(threads), lent_(std::move(lent)) {}

 private:
  void start(Body body) override {
    lent_(threads(), [&](int index, int count) {
      Worker worker(state_, index, count);
      body(worker);
    });
  }

  Lent lent_;
};

#if defined(_OPENMP)

/// Throws std::system_error if the system does not give `count` more threads.
void try_threads(int count) {
  std::vector<std::thread> threads;
  std::atomic<std::uint32_t> leave{0};
  const auto join = [&] {
    change(leave, 1);
    for (std::thread& thread : threads) thread.join();
  };
  threads.reserve(static_cast<std::size_t>(count));
  try {
    for (int i = 0; i < count; ++i) threads.emplace_back([&] { wait_change(leave, 0); });
  } catch (...) {
    join();
    throw;
  }
  join();
}

class OpenMpTeam final : public Team {
 public:
  explicit OpenMpTeam(int threads) : Team(threads) {}

 private:
  void start(Body body) override {
    // OpenMP makes threads for each thread that opens a region, in its first one. Where it gets none, libgomp ends the
    // process; so whether there are enough is tried before.
    if (caller_ != std::this_thread::get_id()) {
      try_threads(threads() - 1);
      caller_ = std::this_thread::get_id();
    }
#pragma omp parallel num_threads(threads())
    {
      Worker worker(state_, omp_get_thread_num(), omp_get_num_threads());
      body(worker);
    }
  }

  std::thread::id caller_;  ///< the last thread that opened a region
};

#else

/// Threads that sleep between regions; the caller is thread 0.
class ThreadTeam final : public Team {
 public:
  explicit ThreadTeam(int threads) : Team(threads) {
    pool_.reserve(static_cast<std::size_t>(threads - 1));
    try {
      for (int i = 1; i < threads; ++i) pool_.emplace_back([this, i] { serve(i); });
    } catch (...) {
      stop();
      throw;
    }
  }
  ~ThreadTeam() override { stop(); }

 private:
  void start(Body body) override {
    body_ = &body;
    running_.store(static_cast<std::uint32_t>(pool_.size()), std::memory_order_relaxed);
    change(region_, region_.load(std::memory_order_relaxed) + 1);
    Worker worker(state_, 0, threads());
    body(worker);
    while (const std::uint32_t left = running_.load(std::memory_order_acquire)) wait_change(running_, left);
  }

  void serve(int index) noexcept {
    for (std::uint32_t seen = 0;; ++seen) {
      wait_change(region_, seen);
      if (stopping_) return;
      Worker worker(state_, index, threads());
      (*body_)(worker);
      if (running_.fetch_sub(1, std::memory_order_seq_cst) == 1) running_.notify_all();
    }
  }

  void stop() noexcept {
    stopping_ = true;
    change(region_, region_.load(std::memory_order_relaxed) + 1);
    for (std::thread& thread : pool_) thread.join();
  }

  std::vector<std::thread> pool_;
  std::atomic<std::uint32_t> region_{0};   ///< number of regions started
  std::atomic<std::uint32_t> running_{0};  ///< pool threads that are still in the region
  const Body* body_ = nullptr;             ///< written before region_ changes
  bool stopping_ = false;                  ///< likewise
};

#endif

}  // namespace

void Worker::barrier() noexcept {
  if (count_ == 1) return;
  // The generation cannot change before this thread has arrived.
  const std::uint32_t generation = state_.generation.load(std::memory_order_relaxed);
  if (state_.arrived.fetch_add(1, std::memory_order_acq_rel) + 1 == static_cast<std::uint32_t>(count_)) {
    state_.arrived.store(0, std::memory_order_relaxed);
    change(state_.generation, generation + 1);
  } else {
    wait_change(state_.generation, generation);
  }
}

Team::Team(int threads) {
  state_.threads = threads;
  state_.cursors = std::make_unique<RegionState::Cursor[]>(3 * static_cast<std::size_t>(threads));
}

Result<std::unique_ptr<Team>> Team::make(int threads, Lent lent) {
  if (lent) return std::unique_ptr<Team>(std::make_unique<LentTeam>(threads, std::move(lent)));
  try {
#if defined(_OPENMP)
    return std::unique_ptr<Team>(std::make_unique<OpenMpTeam>(threads));
#else
    return std::unique_ptr<Team>(std::make_unique<ThreadTeam>(threads));
#endif
  } catch (const std::system_error&) {
    return fail(ErrorCode::out_of_memory, "cannot start ", threads, " threads");
  }
}

Result<void> Team::run(Body body) {
  for (int i = 0; i < 3 * state_.threads; ++i) state_.cursors[static_cast<std::size_t>(i)].taken = 0;
  state_.arrived = 0;
  try {
    start(body);
  } catch (const std::bad_alloc&) {
    throw;
  } catch (const std::system_error& e) {
    return fail(ErrorCode::out_of_memory, "cannot start ", threads(), " threads: ", e.what());
  } catch (const std::exception& e) {
    return fail(ErrorCode::callback_failed, "the executor threw: ", e.what());
  } catch (...) {
    return fail(ErrorCode::callback_failed, "the executor threw");
  }
  return {};
}

}  // namespace llminfer::core
