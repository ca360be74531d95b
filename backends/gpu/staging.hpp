// Staging: host memory through which weights go to the device, part by part: while some parts are copied, threads write
// the next one. Knows nothing of what weights are.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include <llminfer/gpu.hpp>

#include "backends/gpu/device.hpp"
#include "core/parallel.hpp"

namespace llminfer::gpu {

/// Of all parts, unless what has to be in one is larger.
inline constexpr std::int64_t kStagingBytes = std::int64_t{16} << 20;

/// Used by one thread. What is sent goes through Stream::copies.
class Staging {
 public:
  static constexpr int kParts = 4;

  /// `threads`: of its team; 0: as many as the process can use well. `executor`: as GpuOptions'. Memory is taken when
  /// it is needed first. Errors: out_of_memory, device_error.
  static Result<std::unique_ptr<Staging>> make(std::shared_ptr<Device> device, int threads = 1,
                                               const Executor& executor = {}, std::int64_t bytes = kStagingBytes);
  Staging(const Staging&) = delete;

  const std::shared_ptr<Device>& device() const noexcept { return device_; }
  core::Team& team() noexcept { return *team_; }

  /// Parts are at least this large from now on. Nothing is being copied. Errors: out_of_memory, device_error.
  Result<void> reserve(std::int64_t part_bytes);
  std::int64_t part_bytes() const noexcept { return memory_.bytes() / kParts; }
  /// The next part, once all that was sent out of it is copied.
  Result<std::byte*> next();
  Result<void> send(void* to, const std::byte* from, std::int64_t bytes);
  /// No more is sent out of this part.
  Result<void> sent();
  /// Waits until all is copied, in front of the release of what it is copied from and to, and of what reads it.
  Result<void> finish();

 private:
  Staging(std::shared_ptr<Device> device, std::int64_t bytes) : device_(std::move(device)), bytes_(bytes) {}

  const std::shared_ptr<Device> device_;
  const std::int64_t bytes_;
  std::unique_ptr<core::Team> team_;
  std::vector<Event> copied_;  ///< [kParts]
  Buffer memory_;
  int part_ = 0;
};

}  // namespace llminfer::gpu
