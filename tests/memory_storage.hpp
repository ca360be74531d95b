// A WeightStorage in memory whose reads tests count, hold up and let fail.
#pragma once

#include <llminfer/backend.hpp>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <map>
#include <mutex>
#include <span>
#include <vector>

namespace llminfer::test {

class MemoryStorage final : public WeightStorage {
 public:
  Result<void> write(std::int64_t offset, std::span<const std::byte> bytes) override {
    const std::lock_guard lock(mutex_);
    if (writes_fail_) return Error{ErrorCode::io_error, "no room"};
    const auto end = static_cast<std::size_t>(offset) + bytes.size();
    if (bytes_.size() < end) bytes_.resize(end);
    std::copy(bytes.begin(), bytes.end(), bytes_.begin() + offset);
    return {};
  }
  Result<void> read(std::int64_t offset, std::span<std::byte> bytes) override {
    std::unique_lock lock(mutex_);
    const std::int64_t number = begun_++;
    reading_[number] = offset;
    changed_.notify_all();
    changed_.wait(lock, [&] { return number < let_; });
    reading_.erase(number);
    changed_.notify_all();
    if (++reads_ == failing_read_ || reads_fail_) return Error{ErrorCode::io_error, "the disk is gone"};
    std::copy_n(bytes_.begin() + offset, bytes.size(), bytes.begin());
    return {};
  }

  void fail_writes() {
    set([&] { writes_fail_ = true; });
  }
  void fail_reads(bool all) {
    set([&] { reads_fail_ = all; });
  }
  /// Counted from now and 1.
  void fail_read(std::int64_t number) {
    set([&] { failing_read_ = reads_ + number; });
  }
  /// Reads that begin from now on wait. Those that wait already go on.
  void hold() {
    set([&] { let_ = begun_; });
  }
  void let_all() {
    set([&] { let_ = kAll; });
  }
  /// Waits until at least so many reads wait, and gives their offsets, lowest first.
  std::vector<std::int64_t> await_held(std::size_t count) {
    std::unique_lock lock(mutex_);
    std::vector<std::int64_t> offsets;
    changed_.wait(lock, [&] {
      offsets.clear();
      for (auto held = reading_.lower_bound(let_); held != reading_.end(); ++held) offsets.push_back(held->second);
      return offsets.size() >= count;
    });
    std::sort(offsets.begin(), offsets.end());
    return offsets;
  }
  /// Whether so many end in time.
  bool await_reads(std::int64_t count) {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, std::chrono::seconds(10), [&] { return reads_ >= count; });
  }
  std::int64_t reads() const {
    const std::lock_guard lock(mutex_);
    return reads_;
  }

 private:
  static constexpr std::int64_t kAll = std::int64_t{1} << 60;

  template <class F>
  void set(F f) {
    const std::lock_guard lock(mutex_);
    f();
    changed_.notify_all();
  }

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<std::byte> bytes_;
  std::map<std::int64_t, std::int64_t> reading_;  ///< offsets of reads by number
  std::int64_t begun_ = 0, reads_ = 0, failing_read_ = -1;
  std::int64_t let_ = kAll;  ///< number of the first read that waits
  bool writes_fail_ = false, reads_fail_ = false;
};

}  // namespace llminfer::test
