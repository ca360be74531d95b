// The streams of an emulated device: work in each runs in its order, and among streams in a random one, which events
// alone constrain. Nothing runs before it must, unless the schedule happens to choose it; so what forgets to wait for
// an event reads what is not there yet, or overwrites what is still read.
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <optional>

namespace llminfer::gpu::emulator {

/// Used by one thread at a time.
class Streams {
 public:
  static constexpr int kCount = 2;
  /// Gives an error of the kind that wait() passes on, 0 for none, or `again` (emulator.hpp).
  using Work = std::function<int()>;
  struct Event {
    std::uint64_t recorded = 0, reached = 0;       ///< how many times
    std::chrono::steady_clock::time_point time{};  ///< when it was last reached
  };

  /// A stream of the number `deaf`, if there is one, does not wait for events.
  explicit Streams(std::uint64_t seed, int deaf = -1) : random_(seed), deaf_(deaf) {}

  void add(int stream, Work work);
  void record(int stream, std::shared_ptr<Event> event);
  /// What is added to the stream from now on comes after what `event` was recorded after.
  void follow(int stream, std::shared_ptr<Event> event);
  /// Until the stream has nothing left, or the event was reached; other streams run as far as they happen to. Gives the
  /// first error of any work since the last call, or `deadlock` (emulator.hpp) where work waits for what never comes.
  int wait(int stream);
  int wait(const Event& event);
  /// Whether the event was reached; some of what can run does before.
  bool reached(const Event& event);

 private:
  using Clock = std::chrono::steady_clock;
  struct Item {
    Work work;                       ///< or null
    std::shared_ptr<Event> records;  ///< or null
    std::shared_ptr<Event> follows;  ///< or null; runs once that was reached so many times
    std::uint64_t times = 0;
  };
  std::uint32_t random(std::uint32_t below);
  bool can_run(int stream) const;
  /// False: it has to be tried again.
  bool run_first(int stream);
  bool run_some();
  void push(int stream, Item item);
  template <class Done>
  int run_until(Done done);

  std::uint64_t random_;
  const int deaf_;
  std::array<std::deque<Item>, kCount> items_;
  int favourite_ = kCount;  ///< the stream that runs as soon as it can; kCount: none
  int error_ = 0;
  std::optional<Clock::time_point> stalled_;  ///< since when work waits for another device
};

}  // namespace llminfer::gpu::emulator
