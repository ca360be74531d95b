#include "backends/gpu/emulator/streams.hpp"

#include <thread>
#include <utility>

#include "backends/gpu/emulator/emulator.hpp"

namespace llminfer::gpu::emulator {
namespace {

/// A device waits no longer for another.
constexpr std::chrono::seconds kLongest{60};

}  // namespace

std::uint32_t Streams::random(std::uint32_t below) {
  std::uint64_t z = random_ += 0x9e3779b97f4a7c15u;  // splitmix64
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return static_cast<std::uint32_t>((z ^ (z >> 31)) >> 32) % below;
}

bool Streams::can_run(int stream) const {
  const auto& items = items_[static_cast<std::size_t>(stream)];
  if (items.empty()) return false;
  const Item& first = items.front();
  return !first.follows || first.follows->reached >= first.times || stream == deaf_;
}

bool Streams::run_first(int stream) {
  auto& items = items_[static_cast<std::size_t>(stream)];
  Item item = std::move(items.front());
  items.pop_front();
  if (item.records) {
    ++item.records->reached;
    item.records->time = Clock::now();
  }
  if (!item.work) return true;
  const int error = item.work();
  if (error == again) {
    items.push_front(std::move(item));
    if (!stalled_) stalled_ = Clock::now();
    return false;
  }
  stalled_.reset();
  if (error_ == 0) error_ = error;
  return true;
}

void Streams::push(int stream, Item item) {
  items_[static_cast<std::size_t>(stream)].push_back(std::move(item));
  // Mostly the favourite stays, so that one stream is far ahead of the other, or the host of both.
  if (random(8) == 0) favourite_ = static_cast<int>(random(kCount + 1));
  while (favourite_ < kCount && can_run(favourite_) && run_first(favourite_)) continue;
}

void Streams::add(int stream, Work work) { push(stream, {std::move(work), {}, {}}); }

void Streams::record(int stream, std::shared_ptr<Event> event) {
  push(stream, {{}, event, {}});
  ++event->recorded;
}

void Streams::follow(int stream, std::shared_ptr<Event> event) {
  const std::uint64_t times = event->recorded;
  push(stream, {{}, {}, std::move(event), times});
}

/// False: nothing can run.
bool Streams::run_some() {
  if (random(8) == 0) favourite_ = static_cast<int>(random(kCount + 1));
  int stream = favourite_ < kCount ? favourite_ : static_cast<int>(random(kCount));
  for (int tries = 0; tries < kCount && !can_run(stream); ++tries) stream = (stream + 1) % kCount;
  if (!can_run(stream)) return false;
  if (!run_first(stream)) std::this_thread::yield();  // for another device's thread
  return true;
}

template <class Done>
int Streams::run_until(Done done) {
  while (!done()) {
    if (!run_some() || (stalled_ && Clock::now() - *stalled_ > kLongest)) return deadlock;
  }
  return std::exchange(error_, 0);
}

bool Streams::reached(const Event& event) {
  const std::uint64_t times = event.recorded;
  for (std::uint32_t left = random(64); left > 0 && event.reached < times && run_some(); --left) continue;
  return event.reached >= times;
}

int Streams::wait(int stream) {
  const auto& items = items_[static_cast<std::size_t>(stream)];
  return run_until([&] { return items.empty(); });
}

int Streams::wait(const Event& event) {
  const std::uint64_t times = event.recorded;
  return run_until([&] { return event.reached >= times; });
}

}  // namespace llminfer::gpu::emulator
