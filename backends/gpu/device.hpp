// Device: the little that the GPU backend needs of a runtime (CUDA, HIP, the host emulator): memory, copies, two
// streams, and the table of kernels. Knows nothing of programs, weights or batches.
//
// All launches of a Device, and all copies but those that name the other stream, go to Stream::work, in order. Every
// function leaves the calling thread's current device of the runtime as it found it. Used by one thread at a time, but
// for allocation and release.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <functional>
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
  bool warpgroups = false;   ///< KernelTable::linear_warpgroups runs
  bool copies = false;       ///< KernelTable::linear_stages runs
  bool e4m3 = false;         ///< KernelTable::linear_e4m3_stages runs
  int resident_blocks = 0;   ///< of KernelTable::persistent that are on the device at once; 0: it does not run
  std::string collectives;   ///< file of the library that sums over such devices (nccl.hpp); empty: none
};

/// What goes to one of them is in no order with what goes to the other but by events.
enum class Stream : std::uint8_t { work, copies };

class Device {
 public:
  virtual ~Device() = default;
  virtual const DeviceInfo& info() const noexcept = 0;
  virtual const KernelTable& kernels() const noexcept = 0;
  /// The KernelTable's first argument.
  virtual void* stream() noexcept = 0;
  /// Kernels may begin before those before them have ended (docs/adr/0033); the next one does not.
  virtual void begin_in_turn() noexcept = 0;
  /// Stream::work as the runtime's own libraries take it, for what they enqueue next.
  virtual void* runtime_stream() noexcept = 0;
  /// Before and after launches: makes this device the calling thread's, and puts back what was.
  virtual int enter() noexcept = 0;
  virtual void leave(int previous) noexcept = 0;

  /// Memory of the device, and memory of the host that it can read by itself. Errors: out_of_memory, device_error.
  virtual Result<void*> allocate(std::int64_t bytes) = 0;
  virtual void release(void* memory) noexcept = 0;
  virtual Result<void*> allocate_host(std::int64_t bytes) = 0;
  virtual void release_host(void* memory) noexcept = 0;

  /// Enqueues a copy between device and host, either way, or on the device. Host memory is that of allocate_host; any
  /// other will do as well, but then the call may return only once the copy was made.
  virtual Result<void> copy(void* to, const void* from, std::int64_t bytes, Stream stream = Stream::work) = 0;
  /// The same for `height` pieces of `bytes`, `pitch` apart in both.
  virtual Result<void> copy_pieces(void* to, const void* from, std::int64_t bytes, std::int64_t pitch,
                                   std::int64_t height) = 0;
  virtual Result<void> clear(void* memory, std::int64_t bytes) = 0;
  /// Waits for all that was enqueued in the stream. Errors: device_error.
  virtual Result<void> wait(Stream stream = Stream::work) = 0;
  /// Events order one stream after the other: what is enqueued in `stream` after follow() comes after what was enqueued
  /// before the event's last record(), if there was one.
  virtual Result<void*> make_event(bool timed) = 0;
  virtual void release_event(void* event) noexcept = 0;
  virtual Result<void> record(void* event, Stream stream) = 0;
  virtual Result<void> follow(void* event, Stream stream) = 0;
  /// Whether what was enqueued before the event's last record() is done. Errors: device_error.
  virtual Result<bool> reached(void* event) = 0;
  /// Waits until it is. Errors: device_error.
  virtual Result<void> wait_for_event(void* event) = 0;
  /// The time that the device took from one timed event to a later one, both reached. Errors: device_error.
  virtual Result<double> seconds_between(void* earlier, void* later) = 0;
  /// A graph is a list of launches that are enqueued at once. Those that `enqueue` makes with the KernelTable's first
  /// argument that it is given go into a new one, with their arguments as they are then; kernels run in the same order.
  /// `enqueue` does nothing else with the device. Errors: its own, unsupported, out_of_memory, device_error.
  using Enqueue = std::function<Result<void>(void* stream)>;
  virtual Result<void*> make_graph(const Enqueue& enqueue) = 0;
  /// What was launched has ended.
  virtual void release_graph(void* graph) noexcept = 0;
  virtual Result<void> launch(void* graph) = 0;
  /// Marks the end of what was enqueued so far in Stream::work, in one of kMarks places; wait_for waits for it.
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
    return Result<Buffer>(Buffer(std::move(device), *memory, bytes, host ? Kind::pinned : Kind::device));
  }
  /// Host memory that the device can read by itself, or if there is no more of it any host memory, from which copies
  /// are slower (Device::copy).
  static Result<Buffer> make_host(std::shared_ptr<Device> device, std::int64_t bytes) {
    auto pinned = make(device, bytes, true);
    if (pinned || pinned.error().code != ErrorCode::out_of_memory) return pinned;
    void* const memory = std::malloc(static_cast<std::size_t>(bytes));
    if (!memory) return pinned;
    return Result<Buffer>(Buffer(std::move(device), memory, bytes, Kind::pageable));
  }
  Buffer(Buffer&& other) noexcept { swap(other); }
  Buffer& operator=(Buffer&& other) noexcept {
    Buffer(std::move(other)).swap(*this);
    return *this;
  }
  ~Buffer() {
    if (!data_) return;
    if (kind_ == Kind::device) device_->release(data_);
    if (kind_ == Kind::pinned) device_->release_host(data_);
    if (kind_ == Kind::pageable) std::free(data_);
  }
  void swap(Buffer& other) noexcept {
    std::swap(device_, other.device_);
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    std::swap(kind_, other.kind_);
  }

  template <class T = std::byte>
  T* at(std::int64_t byte_offset = 0) const noexcept {
    return reinterpret_cast<T*>(static_cast<std::byte*>(data_) + byte_offset);
  }
  std::int64_t bytes() const noexcept { return bytes_; }

 private:
  enum class Kind : std::uint8_t { device, pinned, pageable };
  Buffer(std::shared_ptr<Device> device, void* data, std::int64_t bytes, Kind kind) noexcept
      : device_(std::move(device)), data_(data), bytes_(bytes), kind_(kind) {}

  std::shared_ptr<Device> device_;
  void* data_ = nullptr;
  std::int64_t bytes_ = 0;
  Kind kind_ = Kind::device;
};

/// A handle of a device's, given back by `kRelease`.
template <void (Device::*kRelease)(void*) noexcept>
class Handle {
 public:
  Handle() = default;
  Handle(Handle&& other) noexcept : device_(std::move(other.device_)), handle_(std::exchange(other.handle_, nullptr)) {}
  Handle& operator=(Handle&& other) noexcept {
    std::swap(device_, other.device_);
    std::swap(handle_, other.handle_);
    return *this;
  }
  ~Handle() {
    if (handle_) (device_.get()->*kRelease)(handle_);
  }
  explicit operator bool() const noexcept { return handle_ != nullptr; }

 protected:
  Handle(std::shared_ptr<Device> device, void* handle) noexcept : device_(std::move(device)), handle_(handle) {}

  std::shared_ptr<Device> device_;
  void* handle_ = nullptr;
};

/// An event of a device.
class Event : public Handle<&Device::release_event> {
 public:
  /// `timed`: seconds_since() may be asked.
  static Result<Event> make(std::shared_ptr<Device> device, bool timed = false) {
    auto handle = device->make_event(timed);
    if (!handle) return std::move(handle).error();
    return Result<Event>(Event(std::move(device), *handle));
  }
  Result<void> record(Stream stream) const { return device_->record(handle_, stream); }
  Result<void> follow(Stream stream) const { return device_->follow(handle_, stream); }
  Result<bool> reached() const { return device_->reached(handle_); }
  Result<void> wait() const { return device_->wait_for_event(handle_); }
  Result<double> seconds_since(const Event& earlier) const {
    return device_->seconds_between(earlier.handle_, handle_);
  }

 private:
  using Handle::Handle;
};

/// A graph of a device, or none.
class Graph : public Handle<&Device::release_graph> {
 public:
  Graph() = default;
  static Result<Graph> make(std::shared_ptr<Device> device, const Device::Enqueue& enqueue) {
    auto handle = device->make_graph(enqueue);
    if (!handle) return std::move(handle).error();
    return Result<Graph>(Graph(std::move(device), *handle));
  }
  Result<void> launch() const { return device_->launch(handle_); }

 private:
  using Handle::Handle;
};

}  // namespace llminfer::gpu
