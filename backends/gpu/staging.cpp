#include "backends/gpu/staging.hpp"

#include <algorithm>

#include "core/cpu_count.hpp"
#include "core/error.hpp"

namespace llminfer::gpu {

Result<std::unique_ptr<Staging>> Staging::make(std::shared_ptr<Device> device, int threads, const Executor& executor,
                                               std::int64_t bytes) {
  std::unique_ptr<Staging> staging(new Staging(std::move(device), bytes));
  staging->team_ = LLMINFER_TRY(core::Team::make(threads > 0 ? threads : core::usable_cpus(), executor));
  for (int part = 0; part < kParts; ++part) {
    staging->copied_.push_back(LLMINFER_TRY(Event::make(staging->device_)));
  }
  return staging;
}

Result<void> Staging::reserve(std::int64_t part_bytes) {
  const std::int64_t need = std::max(bytes_, (part_bytes + 63) / 64 * 64 * kParts);
  if (memory_.bytes() >= need) return {};
  memory_ = Buffer();
  memory_ = LLMINFER_TRY(Buffer::make(device_, need, true));
  return {};
}

Result<std::byte*> Staging::next() {
  LLMINFER_TRY(copied_[static_cast<std::size_t>(part_)].wait());
  return memory_.at(part_ * part_bytes());
}

Result<void> Staging::send(void* to, const std::byte* from, std::int64_t bytes) {
  return device_->copy(to, from, bytes, Stream::copies);
}

Result<void> Staging::sent() {
  LLMINFER_TRY(copied_[static_cast<std::size_t>(part_)].record(Stream::copies));
  part_ = (part_ + 1) % kParts;
  return {};
}

Result<void> Staging::finish() { return device_->wait(Stream::copies); }

}  // namespace llminfer::gpu
