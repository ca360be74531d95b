// Device: the little that the GPU backend needs of a runtime (CUDA, HIP, the host emulator): memory, copies, one
// stream, and the table of kernels. Knows nothing of programs, weights or batches.
//
// All copies and launches of a Device go to its one stream, in order. Every function leaves the calling thread's
// current device of the runtime as it found it. Used by one thread at a time, but for allocation and release.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include <llminfer/result.hpp>

#include "backends/gpu/args.hpp"

namespace llminfer::gpu {

struct DeviceInfo {
  std::string kind;          ///< "cuda", "hip", "emulator"
  std::string name;          ///< of the GPU
  std::string architecture;  ///< "sm_90", "gfx90a", …
  std::int64_t memory = 0;   ///< bytes
  int units = 1;             ///< multiprocessors
};

class Device {
 public:
  virtual ~Device() = default;
  virtual const DeviceInfo& info() const noexcept = 0;
  virtual const KernelTable& kernels() const noexcept = 0;
  /// The KernelTable's first argument.
  virtual void* stream() noexcept = 0;
  /// Before and after launches: makes this device the calling thread's, and puts back what was.
  virtual int enter() noexcept = 0;
  virtual void leave(int previous) noexcept = 0;

  /// Memory of the device, and memory of the host that it can read by itself. Errors: out_of_memory, device_error.
  virtual Result<void*> allocate(std::int64_t bytes) = 0;
  virtual void release(void* memory) noexcept = 0;
  virtual Result<void*> allocate_host(std::int64_t bytes) = 0;
  virtual void release_host(void* memory) noexcept = 0;

  /// Enqueues a copy between device and host, either way, or on the device. Host memory is that of allocate_host.
  virtual Result<void> copy(void* to, const void* from, std::int64_t bytes) = 0;
  /// The same for `height` pieces of `bytes`, `pitch` apart in both.
  virtual Result<void> copy_pieces(void* to, const void* from, std::int64_t bytes, std::int64_t pitch,
                                   std::int64_t height) = 0;
  virtual Result<void> clear(void* memory, std::int64_t bytes) = 0;
  /// Waits for all that was enqueued. Errors: device_error.
  virtual Result<void> wait() = 0;
  /// Marks the end of what was enqueued so far, in one of kMarks places; wait_for waits for it.
  static constexpr int kMarks = 4;
  virtual Result<void> mark(int place) = 0;
  virtual Result<void> wait_for(int place) = 0;
  /// The runtime's error of a launch, in words. `what` names the kernel.
  virtual Result<void> check(int error, const char* what) = 0;
};

/// Makes the device current for as long as it lives.
class Current {
 public:
  explicit Current(Device& device) noexcept : device_(device), previous_(device.enter()) {}
  ~Current() { device_.leave(previous_); }
  Current(const Current&) = delete;
  Current& operator=(const Current&) = delete;

 private:
  Device& device_;
  int previous_;
};

/// A piece of device memory, or of host memory that the device can read.
class Buffer {
 public:
  Buffer() = default;
  static Result<Buffer> make(std::shared_ptr<Device> device, std::int64_t bytes, bool host = false) {
    auto memory = bytes > 0 ? (host ? device->allocate_host(bytes) : device->allocate(bytes)) : Result<void*>(nullptr);
    if (!memory) return std::move(memory).error();
    Buffer buffer;
    buffer.device_ = std::move(device);
    buffer.data_ = *memory;
    buffer.bytes_ = bytes;
    buffer.host_ = host;
    return Result<Buffer>(std::move(buffer));  // nvcc does not move by itself here
  }
  Buffer(Buffer&& other) noexcept { swap(other); }
  Buffer& operator=(Buffer&& other) noexcept {
    Buffer(std::move(other)).swap(*this);
    return *this;
  }
  ~Buffer() {
    if (data_) host_ ? device_->release_host(data_) : device_->release(data_);
  }
  void swap(Buffer& other) noexcept {
    std::swap(device_, other.device_);
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    std::swap(host_, other.host_);
  }

  template <class T = std::byte>
  T* at(std::int64_t byte_offset = 0) const noexcept {
    return reinterpret_cast<T*>(static_cast<std::byte*>(data_) + byte_offset);
  }
  std::int64_t bytes() const noexcept { return bytes_; }

 private:
  std::shared_ptr<Device> device_;
  void* data_ = nullptr;
  std::int64_t bytes_ = 0;
  bool host_ = false;
};

}  // namespace llminfer::gpu
