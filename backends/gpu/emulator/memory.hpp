// The memory of an emulated device, what of it is allocated, and what kernels and copies have written to it (Written).
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <mutex>
#include <optional>
#include <vector>

#include "backends/gpu/device.hpp"
#include "backends/gpu/emulator/emulator.hpp"

namespace llminfer::gpu::emulator {

/// Allocation and release may come from any thread; the rest is used by one at a time.
class Memory final : public Written {
 public:
  struct Piece {
    std::int64_t bytes = 0;
    bool pinned = false;
    std::vector<std::byte> before{};  ///< kernels and copies wrote to it; empty: allocated since
    /// Per step of `before` the streams, as bits, in which copies went there since the host has waited: nothing says
    /// that a kernel which begins early sees them, though the one before it began after them.
    std::vector<std::uint8_t> copied{};
  };

  /// `limit` bytes at most, of pinned memory or the device's. Null: there are no more.
  void* allocate(std::int64_t bytes, bool pinned, std::int64_t limit);
  /// Gives what the piece was.
  Piece release(void* memory) noexcept;
  /// The bytes and kind of the memory that it is a part of, if that is allocated.
  std::optional<Piece> piece_of(const void* memory, std::int64_t bytes);
  /// That a copy goes there; of memory that is not the device's nothing is noted.
  void copied(const void* to, std::int64_t bytes, Stream stream);
  /// That the host has waited for the stream's copies.
  void settle(Stream stream);

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

  std::map<void*, Piece>::iterator find(const void* memory, std::int64_t bytes);

  std::mutex mutex_;
  std::unique_lock<std::mutex> hidden_{};  ///< held while something is
  std::map<void*, Piece> pieces_;
  std::int64_t used_[2] = {};  ///< of the device's memory, and pinned
  std::vector<Change> changes_;
};

}  // namespace llminfer::gpu::emulator
