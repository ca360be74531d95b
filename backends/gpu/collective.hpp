// GpuCollective: sums over the devices of several ranks through NCCL or RCCL, in the order of Stream::work. Wherever it
// or a plan that uses it waits for the device, and so for other ranks, it looks whether these still come; if one does
// not, it ends what waits. Knows nothing of plans, nor how ranks talk to each other.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include <llminfer/backend.hpp>

#include "backends/gpu/device.hpp"
#include "backends/gpu/nccl.hpp"

namespace llminfer::gpu {

class GpuCollective final : public Collective {
 public:
  /// See Backend::make_collective. Errors: not_found, unsupported, invalid_argument, device_error (the library's own,
  /// or that the others did not come in time), those of `watch`.
  static Result<std::shared_ptr<GpuCollective>> make(std::shared_ptr<Device> device, std::span<const std::byte> id,
                                                     int rank, int ranks, Watch watch);
  static Result<std::vector<std::byte>> make_id(const Device& device);
  ~GpuCollective() override { abort(); }

  std::string description() const override { return nccl_->name; }
  void abort() noexcept override;
  bool aborted() const noexcept override { return !communicator_; }
  const Device* device() const noexcept { return device_.get(); }

  // After an error of these the collective is aborted, and the device has nothing left to do.
  /// Enqueues out = the sum of what all ranks have in `in`: so many floats on the device, in the same place or apart.
  /// Waits until the device is only a few sums behind.
  Result<void> sum(const float* in, float* out, std::int64_t floats);
  /// Waits for all that was enqueued in Stream::work.
  Result<void> wait();

 private:
  GpuCollective(std::shared_ptr<const Nccl> nccl, std::shared_ptr<Device> device, Watch watch)
      : nccl_(std::move(nccl)), device_(std::move(device)), watch_(std::move(watch)) {}
  Result<void> check(const char* what, int status) const;
  Result<void> look();
  template <class Done>
  Result<void> wait_until(Done done);
  Result<void> give_up(Result<void> outcome);

  static constexpr int kAhead = 4;  ///< sums: about two layers

  const std::shared_ptr<const Nccl> nccl_;
  const std::shared_ptr<Device> device_;
  const Watch watch_;
  Nccl::Communicator communicator_ = nullptr;
  std::vector<Event> sums_;  ///< [kAhead], by turns
  std::vector<Event> end_;   ///< [1]
  std::uint64_t count_ = 0;  ///< of sums
};

}  // namespace llminfer::gpu
