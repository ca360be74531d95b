// Pieces of storages that threads read into memory.
#include "core/read_ahead.hpp"

#include <algorithm>
#include <atomic>
#include <catch2/catch.hpp>
#include <memory>
#include <numeric>
#include <thread>
#include <vector>

#include "tests/failing_threads.hpp"
#include "tests/memory_storage.hpp"

using llminfer::ErrorCode;
using llminfer::core::ReadAhead;
using llminfer::test::MemoryStorage;
using Pieces = std::vector<ReadAhead::Piece>;

namespace {

constexpr std::int64_t kPieces = 20, kPiece = 10;

/// Bytes 0, 1, 2, …
void fill(MemoryStorage& storage) {
  std::vector<std::byte> bytes(kPieces * kPiece);
  for (std::size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<std::byte>(i);
  storage.write(0, bytes).value();
}
/// Pieces [first, last) of the storage, one after the other in memory.
Pieces pieces_of(MemoryStorage& storage, std::int64_t first, std::int64_t last) {
  Pieces pieces;
  for (std::int64_t i = first; i < last; ++i) pieces.push_back({&storage, i * kPiece, (i - first) * kPiece, kPiece});
  return pieces;
}
bool has(const std::vector<std::byte>& memory, std::int64_t first, std::int64_t last) {
  for (std::int64_t i = 0; i < (last - first) * kPiece; ++i) {
    if (memory[static_cast<std::size_t>(i)] != static_cast<std::byte>(first * kPiece + i)) return false;
  }
  return true;
}

}  // namespace

TEST_CASE("Places are read side by side, again and again") {
  MemoryStorage storage;
  fill(storage);
  std::vector<std::byte> memory[2] = {std::vector<std::byte>(kPieces * kPiece),
                                      std::vector<std::byte>(kPieces * kPiece)};
  const auto reader = ReadAhead::make().value();
  CHECK(reader->ready(0));
  CHECK(reader->wait(1, {}));
  for (std::int64_t turn = 0; turn < 50; ++turn) {
    const std::int64_t middle = turn % (kPieces + 1);
    const Pieces low = pieces_of(storage, 0, middle), high = pieces_of(storage, middle, kPieces);
    reader->start(0, low, memory[0].data());
    reader->start(1, high, memory[1].data());
    CHECK(reader->wait(1, {}));
    CHECK(reader->wait(0, {}));
    CHECK((reader->ready(0) && reader->ready(1)));
    CHECK(has(memory[0], 0, middle));
    CHECK(has(memory[1], middle, kPieces));
    for (auto& one : memory) std::fill(one.begin(), one.end(), std::byte{255});
  }
}

TEST_CASE("What was started first is read first, several pieces at a time") {
  static_assert(ReadAhead::kThreads == 4);
  for (const std::size_t place : {0, 1}) {
    MemoryStorage storage;
    fill(storage);
    storage.hold();
    const Pieces some = pieces_of(storage, 10, 16), others = pieces_of(storage, 0, 10);
    std::vector<std::byte> first(kPieces * kPiece), second = first;
    const auto reader = ReadAhead::make().value();
    reader->start(place, some, first.data());
    CHECK(storage.await_held(4) == std::vector<std::int64_t>{100, 110, 120, 130});
    reader->start(1 - place, others, second.data());
    storage.hold();
    CHECK(storage.await_held(4) == std::vector<std::int64_t>{0, 10, 140, 150});
    CHECK_FALSE(reader->ready(place));
    CHECK_FALSE(reader->ready(1 - place));
    storage.let_all();
    CHECK(reader->wait(1 - place, {}));
    CHECK(reader->wait(place, {}));
    CHECK(has(first, 10, 16));
    CHECK(has(second, 0, 10));
  }
}

TEST_CASE("A read that fails is its place's error alone, and no more than that one's pieces are left out") {
  MemoryStorage storage, broken;
  fill(storage);
  broken.fail_reads(true);
  std::vector<std::byte> memory(kPieces * kPiece), other = memory;
  const Pieces all = pieces_of(storage, 0, kPieces);
  Pieces some = all;
  some[7].storage = &broken;
  const auto reader = ReadAhead::make().value();
  reader->start(0, some, memory.data());
  reader->start(1, all, other.data());
  const auto outcome = reader->wait(0, {});
  REQUIRE_FALSE(outcome);
  CHECK(outcome.error().code == ErrorCode::io_error);
  CHECK(outcome.error().message == "the disk is gone");
  CHECK_FALSE(reader->ready(0));
  CHECK(reader->wait(1, {}));
  CHECK(has(other, 0, kPieces));
  reader->start(0, all, memory.data());
  CHECK(reader->wait(0, {}));
  CHECK(has(memory, 0, kPieces));
}

TEST_CASE("Nobody has to wait for a disk that hangs") {
  MemoryStorage storage, hangs;
  fill(storage);
  fill(hangs);
  hangs.hold();
  std::vector<std::byte> memory(kPieces * kPiece);
  const Pieces slow = pieces_of(hangs, 0, 1), all = pieces_of(storage, 0, kPieces);
  const auto reader = ReadAhead::make().value();
  reader->start(0, slow, memory.data());
  hangs.await_held(1);
  int asked = 0;
  CHECK(reader->wait(0, [&] { return ++asked == 3; }).error().code == ErrorCode::cancelled);
  CHECK(asked == 3);
  reader->stop(0);
  CHECK(reader->ready(0));
  // What hangs would write over what is read now.
  reader->start(0, all, memory.data());
  CHECK(reader->wait(0, [&] { return ++asked > 6; }).error().code == ErrorCode::cancelled);
  CHECK(storage.reads() == 0);
  hangs.let_all();
  CHECK(reader->wait(0, [] { return false; }));
  CHECK(has(memory, 0, kPieces));
}

TEST_CASE("Threads that cannot be made are an error") {
  for (const int allowed : {0, 2}) {
    llminfer::test::allow_threads(allowed);
    const auto reader = ReadAhead::make();
    CHECK(llminfer::test::allow_threads(-1) == 1);
    REQUIRE_FALSE(reader);
    CHECK(reader.error().code == ErrorCode::out_of_memory);
  }
}

TEST_CASE("A reader ends in the middle of its work") {
  MemoryStorage storage;
  fill(storage);
  std::vector<std::byte> memory(kPieces * kPiece);
  const Pieces all = pieces_of(storage, 0, kPieces);
  storage.hold();
  std::thread later;
  {
    const auto reader = ReadAhead::make().value();
    reader->start(0, all, memory.data());
    storage.await_held(ReadAhead::kThreads);
    later = std::thread([&] { storage.let_all(); });
  }
  CHECK(storage.reads() >= ReadAhead::kThreads);  // what had begun
  later.join();
}
