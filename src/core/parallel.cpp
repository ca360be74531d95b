#include "core/parallel.hpp"

#include <algorithm>
#include <chrono>
#include <new>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "core/error.hpp"

namespace llminfer::core {
namespace {

constexpr std::uint64_t kTag = std::uint64_t{Team::kMaxChunks} + 1;  ///< one phase in the word
constexpr int chunks_of(std::uint64_t word) noexcept { return static_cast<int>(word % kTag); }
constexpr std::uint64_t tag_of(std::uint64_t word) noexcept { return word - word % kTag; }

void pause() noexcept {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("isb" ::: "memory");
#endif
}

/// Longer than most waits of a pass that has the processors to itself, far shorter than a scheduler's time slice; and
/// longer than it takes to sample a token, after which the next pass begins.
constexpr std::chrono::microseconds kSpin{50}, kSpinBetween{200};

/// Returns when `word` is no longer `old`.
void wait_change(std::atomic<std::uint64_t>& word, std::uint64_t old) noexcept {
  const auto changed = [&] { return word.load(std::memory_order_acquire) != old; };
  for (int i = 0; i < 64; ++i) {
    if (changed()) return;
    pause();
  }
  const auto end = std::chrono::steady_clock::now() + (chunks_of(old) == 0 ? kSpinBetween : kSpin);
  while (std::chrono::steady_clock::now() < end) {
    for (int i = 0; i < 16; ++i) {
      if (changed()) return;
      pause();
    }
  }
  while (!changed()) word.wait(old, std::memory_order_acquire);
}

/// The host's threads.
class LentTeam final : public Team {
 public:
  LentTeam(int threads, Lent lent) : Team(threads), lent_(std::move(lent)) {}

 private:
  void start() override {
    lent_(threads(), [this](int index, int) {
      if (index >= 0 && index < threads()) take_part(index);
    });
  }

  Lent lent_;
};

/// Threads that sleep between regions; the caller is thread 0.
class ThreadTeam final : public Team {
 public:
  explicit ThreadTeam(int threads) : Team(threads) {
    pool_.reserve(static_cast<std::size_t>(threads - 1));
    try {
      for (int i = 1; i < threads; ++i) pool_.emplace_back([this, i] { serve(i, stop_); });
    } catch (...) {
      stop();
      throw;
    }
  }
  ~ThreadTeam() override { stop(); }

 private:
  void start() override { take_part(0); }

  void stop() noexcept {
    stop_ = true;
    open(word());
    for (std::thread& thread : pool_) thread.join();
  }

  std::vector<std::thread> pool_;
  std::atomic<bool> stop_{false};
};

}  // namespace

Team::Team(int threads) : threads_(threads), cursors_(std::make_unique<Cursor[]>(static_cast<std::size_t>(threads))) {}

Result<std::unique_ptr<Team>> Team::make(int threads, Lent lent) {
  if (lent) return std::unique_ptr<Team>(std::make_unique<LentTeam>(threads, std::move(lent)));
  try {
    return std::unique_ptr<Team>(std::make_unique<ThreadTeam>(threads));
  } catch (const std::system_error&) {
    return fail(ErrorCode::out_of_memory, "cannot start ", threads, " threads");
  }
}

Result<void> Team::run(std::span<const int> chunks, Body body) {
  return run(chunks, kMaxChunks, [&](int phase, int chunk, int, int thread) { body(phase, chunk, thread); });
}

Result<void> Team::run_ranges(std::span<const int> chunks, RangeBody body) { return run(chunks, 4, body); }

Result<void> Team::run(std::span<const int> chunks, std::uint64_t parts, RangeBody body) {
  chunks_ = chunks;
  parts_.store(parts, std::memory_order_relaxed);
  body_ = &body;
  phase_ = -1;
  open(word());
  try {
    start();
  } catch (const std::bad_alloc&) {
    throw;
  } catch (const std::exception& e) {
    return fail(ErrorCode::callback_failed, "the executor threw: ", e.what());
  } catch (...) {
    return fail(ErrorCode::callback_failed, "the executor threw");
  }
  if (chunks_of(word()) != 0) return fail(ErrorCode::callback_failed, "the executor returned before the work was done");
  return {};
}

/// Opens the first phase after phase_ that has chunks, or ends the region. The tag becomes a new one.
void Team::open(std::uint64_t word) noexcept {
  done_.store(0, std::memory_order_relaxed);
  const auto phases = static_cast<int>(chunks_.size());
  do ++phase_;
  while (phase_ < phases && chunks_[static_cast<std::size_t>(phase_)] == 0);
  const int chunks = phase_ < phases ? chunks_[static_cast<std::size_t>(phase_)] : 0;
  // Sequentially consistent, since the library's notify first looks whether there are sleepers, and must not look
  // before the new word can be seen.
  word_.store(tag_of(word) + kTag + static_cast<std::uint64_t>(chunks), std::memory_order_seq_cst);
  word_.notify_all();
}

/// Takes chunks of the phase that `word` says is open until none is left; false if there was none. Of a phase that is
/// over every chunk has been taken, so a thread that comes late finds none and touches nothing of the region.
bool Team::work(int index, std::uint64_t word) noexcept {
  const int chunks = chunks_of(word);
  const std::uint64_t tag = tag_of(word);
  int mine = 0;
  for (int i = 0; i < threads_; ++i) {
    const int owner = index + i < threads_ ? index + i : index + i - threads_;
    const auto bound = [&](int thread) {
      return static_cast<std::uint64_t>(chunks) * static_cast<unsigned>(thread) / static_cast<unsigned>(threads_);
    };
    const std::uint64_t share = bound(owner + 1) - bound(owner);
    std::atomic<std::uint64_t>& cursor = cursors_[static_cast<std::size_t>(owner)].taken;
    for (std::uint64_t now = cursor.load(std::memory_order_relaxed);;) {
      // Behind the tag: used in an earlier phase last. Beyond all shares: in a later one.
      const std::uint64_t taken = static_cast<std::int64_t>(now - tag) > 0 ? now - tag : 0;
      if (taken >= share) break;
      const std::uint64_t count = std::max<std::uint64_t>((share - taken) / parts_.load(std::memory_order_relaxed), 1);
      if (!cursor.compare_exchange_weak(now, tag + taken + count, std::memory_order_relaxed)) continue;
      now = tag + taken + count;
      const auto first = static_cast<int>(bound(owner) + taken), last = first + static_cast<int>(count);
      (*body_)(phase_, first, last, index);
      mine += last - first;
    }
  }
  if (mine > 0 && done_.fetch_add(mine, std::memory_order_acq_rel) + mine == chunks) open(word);
  return mine > 0;
}

void Team::take_part(int index) noexcept {
  for (std::uint64_t now; chunks_of(now = word()) != 0;) {
    if (!work(index, now)) wait_change(word_, now);
  }
}

void Team::serve(int index, const std::atomic<bool>& stop) noexcept {
  for (;;) {
    const std::uint64_t now = word();
    if (chunks_of(now) != 0 && work(index, now)) continue;
    if (stop.load(std::memory_order_acquire)) return;
    wait_change(word_, now);
  }
}

}  // namespace llminfer::core
