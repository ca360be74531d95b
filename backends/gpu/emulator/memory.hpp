// The memory of an emulated device, what of it is allocated, and what kernels have written to it (Written).
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <mutex>
#include <optional>
#include <vector>

#include "backends/gpu/emulator/emulator.hpp"

namespace llminfer::gpu::emulator {

/// Allocation and release may come from any thread; the rest is used by one at a time.
class Memory final : public Written {
 public:
  struct Piece {
    std::int64_t bytes = 0;
    bool pinned = false;
    std::vector<std::byte> before{};  ///< kernels wrote to it; empty: allocated since
  };

  /// `limit` bytes at most, of pinned memory or the device's. Null: there are no more.
  void* allocate(std::int64_t bytes, bool pinned, std::int64_t limit);
  /// Gives what the piece was.
  Piece release(void* memory) noexcept;
  /// The bytes and kind of the memory that it is a part of, if that is allocated.
  std::optional<Piece> piece_of(const void* memory, std::int64_t bytes);

  void begin() override;
  void update() override;
  void hide() override;
  bool show(bool anywhere) override;

 private:
  /// Bytes that have changed; `now` while they are hidden.
  struct Change {
    std::byte* at;
    const std::byte* before;
    std::vector<std::byte> now;
  };

  std::mutex mutex_;
  std::unique_lock<std::mutex> hidden_{};  ///< held while something is
  std::map<void*, Piece> pieces_;
  std::int64_t used_[2] = {};  ///< of the device's memory, and pinned
  std::vector<Change> changes_;
};

}  // namespace llminfer::gpu::emulator
