#include "backends/gpu/emulator/device.hpp"

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>

#include "backends/gpu/emulator/emulator.hpp"
#include "core/error.hpp"

namespace llminfer::gpu {
namespace emulated_ptx {
const KernelTable& kernel_table();
}
namespace emulated_mfma {
const KernelTable& kernel_table();
}
namespace emulated_fma {
const KernelTable& kernel_table();
}

namespace {

std::atomic<std::int64_t> memory_in_use{0};

class EmulatedDevice final : public Device {
 public:
  explicit EmulatedDevice(const EmulatorOptions& options) : options_(options) {
    machine_.warp_width = options.warp_width;
    machine_.seed = options.seed;
    info_.kind = "emulator";
    info_.name = "host emulator";
    info_.architecture = "warps of " + std::to_string(options.warp_width);
    info_.memory = options.memory;
    info_.units = options.units;
  }

  const DeviceInfo& info() const noexcept override { return info_; }
  const KernelTable& kernels() const noexcept override {
    switch (options_.mma) {
      case EmulatorOptions::Mma::mfma:
        return emulated_mfma::kernel_table();
      case EmulatorOptions::Mma::fma:
        return emulated_fma::kernel_table();
      case EmulatorOptions::Mma::ptx:
        break;
    }
    return emulated_ptx::kernel_table();
  }
  void* stream() noexcept override { return &machine_; }
  int enter() noexcept override { return 0; }
  void leave(int) noexcept override {}

  Result<void*> allocate(std::int64_t bytes) override {
    const std::lock_guard lock(mutex_);
    void* memory = used_ + bytes <= options_.memory ? std::malloc(static_cast<std::size_t>(bytes)) : nullptr;
    if (!memory) return core::fail(ErrorCode::out_of_memory, "no ", bytes, " bytes on the emulated device");
    std::memset(memory, 0xff, static_cast<std::size_t>(bytes));  // NaN: what was never written shows
    sizes_[memory] = bytes;
    used_ += bytes;
    memory_in_use += bytes;
    return memory;
  }
  void release(void* memory) noexcept override {
    const std::lock_guard lock(mutex_);
    const auto it = sizes_.find(memory);
    used_ -= it->second;
    memory_in_use -= it->second;
    sizes_.erase(it);
    std::free(memory);
  }
  Result<void*> allocate_host(std::int64_t bytes) override {
    void* memory = std::malloc(static_cast<std::size_t>(bytes));
    if (!memory) return core::fail(ErrorCode::out_of_memory, "no ", bytes, " bytes of host memory");
    return memory;
  }
  void release_host(void* memory) noexcept override { std::free(memory); }

  Result<void> copy(void* to, const void* from, std::int64_t bytes) override {
    std::memcpy(to, from, static_cast<std::size_t>(bytes));
    return {};
  }
  Result<void> copy_pieces(void* to, const void* from, std::int64_t bytes, std::int64_t pitch,
                           std::int64_t height) override {
    for (std::int64_t i = 0; i < height; ++i) {
      std::memcpy(static_cast<std::byte*>(to) + i * pitch, static_cast<const std::byte*>(from) + i * pitch,
                  static_cast<std::size_t>(bytes));
    }
    return {};
  }
  Result<void> clear(void* memory, std::int64_t bytes) override {
    std::memset(memory, 0, static_cast<std::size_t>(bytes));
    return {};
  }
  Result<void> wait() override { return {}; }
  Result<void> mark(int) override { return {}; }
  Result<void> wait_for(int) override { return {}; }

  Result<void> check(int error, const char* what) override {
    if (error == 0 && launches_++ != options_.fail_launch) return {};
    if (error == emulator::deadlock) {
      return core::fail(ErrorCode::device_error, what, ": threads wait for others that never come");
    }
    return core::fail(ErrorCode::device_error, what, ": launch failed with error ", error);
  }

 private:
  const EmulatorOptions options_;
  emulator::Machine machine_;
  DeviceInfo info_;
  std::mutex mutex_;
  std::map<void*, std::int64_t> sizes_;
  std::int64_t used_ = 0, launches_ = 0;
};

}  // namespace

std::shared_ptr<Device> make_emulated_device(const EmulatorOptions& options) {
  return std::make_shared<EmulatedDevice>(options);
}

std::int64_t emulated_memory_in_use() noexcept { return memory_in_use; }

}  // namespace llminfer::gpu
