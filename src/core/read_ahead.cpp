#include "core/read_ahead.hpp"

#include <chrono>
#include <system_error>
#include <utility>

#include "core/error.hpp"

namespace llminfer::core {

namespace {

/// How long an interruption may wait.
constexpr std::chrono::milliseconds kPatience{5};

}  // namespace

Result<std::unique_ptr<ReadAhead>> ReadAhead::make() {
  std::unique_ptr<ReadAhead> made(new ReadAhead);
  made->threads_.reserve(kThreads);
  try {
    for (int i = 0; i < kThreads; ++i) made->threads_.emplace_back([self = made.get()] { self->run(); });
  } catch (const std::system_error&) {
    return fail(ErrorCode::out_of_memory, "cannot start ", kThreads, " threads");
  }
  return made;
}

ReadAhead::~ReadAhead() {
  {
    const std::lock_guard lock(mutex_);
    end_ = true;
  }
  work_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

void ReadAhead::start(std::size_t place, std::span<const Piece> pieces, std::byte* memory) noexcept {
  {
    const std::lock_guard lock(mutex_);
    Place& p = places_[place];
    p.stale += p.begun - p.ended;
    p.pieces = pieces;
    p.memory = memory;
    p.number = ++starts_;
    p.begun = p.ended = 0;
    p.error.reset();
  }
  work_.notify_all();
}

bool ReadAhead::ready(std::size_t place) noexcept {
  const std::lock_guard lock(mutex_);
  return places_[place].done() && !places_[place].error;
}

Result<void> ReadAhead::wait(std::size_t place, const std::function<bool()>& interrupted) {
  const Place& p = places_[place];
  std::unique_lock lock(mutex_);
  while (!p.done()) {
    if (!interrupted) {
      ended_.wait(lock);
      continue;
    }
    lock.unlock();
    if (interrupted()) return fail(ErrorCode::cancelled, "the pass was interrupted while its weights were read");
    lock.lock();
    if (!p.done()) ended_.wait_for(lock, kPatience);
  }
  if (p.error) return copy_of(*p.error);
  return {};
}

void ReadAhead::stop(std::size_t place) noexcept { start(place, {}, nullptr); }

ReadAhead::Place* ReadAhead::next() noexcept {
  Place* first = nullptr;
  for (Place& place : places_) {
    const bool waits = place.begun == place.pieces.size() || place.stale > 0 || place.error;
    if (!waits && (!first || place.number < first->number)) first = &place;
  }
  return first;
}

void ReadAhead::run() noexcept {
  std::unique_lock lock(mutex_);
  for (;;) {
    Place* place = nullptr;
    work_.wait(lock, [&] { return end_ || (place = next()); });
    if (end_) return;
    const Piece& piece = place->pieces[place->begun++];
    const std::uint64_t number = place->number;
    std::byte* const to = place->memory + piece.to;
    lock.unlock();
    Result<void> read = guarded([&] {
      return piece.storage->read(piece.from, {to, static_cast<std::size_t>(piece.bytes)});
    });
    lock.lock();
    if (place->number == number) {
      ++place->ended;
      if (!read && !place->error) place->error = std::move(read).error();
      if (place->done()) ended_.notify_all();
    } else if (--place->stale == 0) {
      work_.notify_all();
    }
  }
}

}  // namespace llminfer::core
