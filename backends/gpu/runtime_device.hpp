// RuntimeDevice: a Device on the CUDA runtime or on HIP's, which are the same but for names. `Api` has the names
// (backends/cuda/runtime.cpp, backends/hip/runtime.cpp): static functions that give the runtime's error code.
#pragma once

#include <cstddef>
#include <cstring>
#include <deque>
#include <memory>
#include <sstream>
#include <utility>

#include <llminfer/gpu.hpp>

#include "backends/gpu/device.hpp"
#include "core/error.hpp"

namespace llminfer::gpu {

template <class Api>
class RuntimeDevice final : public Device {
 public:
  /// Errors: invalid_argument, no_device, unsupported, out_of_memory, device_error.
  static Result<std::shared_ptr<Device>> make(const GpuOptions& options) {
    using core::fail;
    if (options.threads < 0) {
      return fail(ErrorCode::invalid_argument, "GpuOptions::threads is ", options.threads, "; expected 0 or more");
    }
    const int index = options.device;
    int count = 0;
    if (const int error = Api::device_count(&count); error != 0 || count == 0) {
      (void)Api::take_error();
      return fail(ErrorCode::no_device, "no ", Api::kVendor, " GPU: ", error ? Api::message(error) : "none found");
    }
    if (index < 0 || index >= count) {
      return fail(ErrorCode::no_device, "GpuOptions::device is ", index, "; this machine has ", count, " ",
                  Api::kVendor, count == 1 ? " GPU" : " GPUs");
    }
    const std::shared_ptr<RuntimeDevice> device(new RuntimeDevice(index));
    const Current current(*device);
    LLMINFER_TRY(device->status(Api::describe(index, device->info_), "device properties"));
    for (typename Api::Stream& stream : device->streams_)
      LLMINFER_TRY(device->status(Api::make_stream(&stream), "a stream"));
    for (typename Api::Event& mark : device->marks_)
      LLMINFER_TRY(device->status(Api::make_event(&mark, false), "an event"));
    const Buffer found = LLMINFER_TRY(Buffer::make(device, 3 * sizeof(std::int32_t)));
    const ProbeArgs probe{found.at<std::int32_t>()};
    if (const int error = device->kernels().probe(device->stream(), probe); error != 0) {
      (void)Api::take_error();
      return fail(ErrorCode::unsupported, "this build has no code for ", device->info_.name, " (",
                  device->info_.architecture, "): ", Api::message(error));
    }
    if (options.dependent_launch) device->try_overlap(probe);
    device->count_resident_blocks();
    std::int32_t has[3] = {};
    LLMINFER_TRY(device->copy(has, probe.found, sizeof has, Stream::work));
    LLMINFER_TRY(device->wait(Stream::work));
    device->info_.warpgroups = has[0] == 1;
    device->info_.copies = has[1] == 1;
    device->info_.e4m3 = has[2] == 1;
    return std::shared_ptr<Device>(device);
  }

  ~RuntimeDevice() override {
    const Current current(*this);
    for (const typename Api::Stream stream : streams_) {
      if (stream) (void)Api::wait(stream);
    }
    for (const typename Api::Event mark : marks_) {
      if (mark) (void)Api::destroy_event(mark);
    }
    for (const typename Api::Stream stream : streams_) {
      if (stream) (void)Api::destroy_stream(stream);
    }
  }

  const DeviceInfo& info() const noexcept override { return info_; }
  const KernelTable& kernels() const noexcept override { return Api::kernels(); }
  void* stream() noexcept override { return &queue_; }
  void begin_in_turn() noexcept override { after_kernel_ = false; }
  void* runtime_stream() noexcept override { return in_turn(Stream::work); }
  int enter() noexcept override {
    int previous = index_;
    (void)Api::get_device(&previous);
    if (previous != index_) (void)Api::set_device(index_);
    return previous;
  }
  void leave(int previous) noexcept override {
    if (previous != index_) (void)Api::set_device(previous);
  }

  Result<void*> allocate(std::int64_t bytes) override {
    const Current current(*this);
    void* memory = nullptr;
    LLMINFER_TRY(status(Api::allocate(&memory, static_cast<std::size_t>(bytes)), bytes, "bytes of device memory"));
    return memory;
  }
  void release(void* memory) noexcept override {
    const Current current(*this);
    (void)Api::release(memory);
  }
  Result<void*> allocate_host(std::int64_t bytes) override {
    const Current current(*this);
    void* memory = nullptr;
    LLMINFER_TRY(status(Api::allocate_host(&memory, static_cast<std::size_t>(bytes)), bytes, "bytes of pinned memory"));
    return memory;
  }
  void release_host(void* memory) noexcept override {
    const Current current(*this);
    (void)Api::release_host(memory);
  }

  Result<void> copy(void* to, const void* from, std::int64_t bytes, Stream stream) override {
    const Current current(*this);
    return status(Api::copy(to, from, static_cast<std::size_t>(bytes), in_turn(stream)), "a copy of", bytes, "bytes");
  }
  Result<void> copy_pieces(void* to, const void* from, std::int64_t bytes, std::int64_t pitch,
                           std::int64_t height) override {
    const Current current(*this);
    return status(Api::copy_pieces(to, from, static_cast<std::size_t>(bytes), static_cast<std::size_t>(pitch),
                                   static_cast<std::size_t>(height), in_turn(Stream::work)),
                  "a copy of", height, "pieces");
  }
  Result<void> clear(void* memory, std::int64_t bytes) override {
    const Current current(*this);
    return status(Api::clear(memory, static_cast<std::size_t>(bytes), in_turn(Stream::work)), "clearing", bytes,
                  "bytes");
  }
  Result<void> wait(Stream stream) override {
    const Current current(*this);
    return status(Api::wait(of(stream)), "the work that was given to it");
  }
  Result<void*> make_event(bool timed) override {
    const Current current(*this);
    typename Api::Event event = nullptr;
    LLMINFER_TRY(status(Api::make_event(&event, timed), "an event"));
    return static_cast<void*>(event);
  }
  void release_event(void* event) noexcept override {
    const Current current(*this);
    (void)Api::destroy_event(static_cast<typename Api::Event>(event));
  }
  Result<void> record(void* event, Stream stream) override {
    const Current current(*this);
    return status(Api::record(static_cast<typename Api::Event>(event), in_turn(stream)), "an event");
  }
  Result<void> follow(void* event, Stream stream) override {
    const Current current(*this);
    return status(Api::follow_event(in_turn(stream), static_cast<typename Api::Event>(event)), "an event");
  }
  Result<bool> reached(void* event) override {
    const Current current(*this);
    const int error = Api::query_event(static_cast<typename Api::Event>(event));
    if (error == Api::kNotReady) {
      (void)Api::take_error();
      return false;
    }
    LLMINFER_TRY(status(error, "the work that was given to it"));
    return true;
  }
  Result<void> wait_for_event(void* event) override {
    const Current current(*this);
    return status(Api::wait_event(static_cast<typename Api::Event>(event)), "the work that was given to it");
  }
  Result<double> seconds_between(void* earlier, void* later) override {
    const Current current(*this);
    float milliseconds = 0;
    LLMINFER_TRY(status(
        Api::elapsed(&milliseconds, static_cast<typename Api::Event>(earlier), static_cast<typename Api::Event>(later)),
        "the time between events"));
    return double{milliseconds} * 1e-3;
  }
  Result<void*> make_graph(const Enqueue& enqueue) override {
    const Current current(*this);
    auto graph = std::make_unique<GraphParts>();
    graph->overlaps = overlaps_;
    LLMINFER_TRY(status(Api::make_graph(&graph->nodes), "a graph"));
    Queue queue{graph.get(), add};
    LLMINFER_TRY(enqueue(&queue));
    LLMINFER_TRY(status(Api::instantiate(&graph->ready, graph->nodes), "a graph of", graph->args.size(), "kernels"));
    return static_cast<void*>(graph.release());
  }
  void release_graph(void* graph) noexcept override {
    const Current current(*this);
    delete static_cast<GraphParts*>(graph);
  }
  Result<void> launch(void* graph) override {
    const Current current(*this);
    return status(Api::launch_graph(static_cast<GraphParts*>(graph)->ready, in_turn(Stream::work)),
                  "the launch of a graph");
  }
  Result<void> mark(int place) override {
    const Current current(*this);
    return status(Api::record(marks_[place], in_turn(Stream::work)), "an event");
  }
  Result<void> wait_for(int place) override {
    const Current current(*this);
    return status(Api::wait_event(marks_[place]), "the work that was given to it");
  }
  Result<void> check(int error, const char* what) override { return status(error, "kernel", what); }

 private:
  /// A graph, and the arguments of its kernels, since not every version of HIP copies these.
  struct GraphParts {
    GraphParts() = default;
    GraphParts(const GraphParts&) = delete;
    ~GraphParts() {
      if (ready) (void)Api::destroy_ready_graph(ready);
      if (nodes) (void)Api::destroy_graph(nodes);
    }
    struct Args {
      std::unique_ptr<std::byte[]> bytes;
      void* pointer = nullptr;  ///< to them
    };
    std::deque<Args> args;  ///< which stay where they are
    typename Api::Graph nodes = nullptr;
    typename Api::ReadyGraph ready = nullptr;
    typename Api::Node last = nullptr;
    bool overlaps = false;
  };

  explicit RuntimeDevice(int index) : index_(index) {}

  /// To the stream of work, and to a graph: Queue::put.
  static int put(void* device, const KernelLaunch& launch) {
    auto& self = *static_cast<RuntimeDevice*>(device);
    void* args = const_cast<void*>(launch.args);
    const bool early = self.overlaps_ && self.after_kernel_ && !launch.together;
    const int error = Api::launch(launch, &args, self.of(Stream::work), early);
    if (error == 0) self.after_kernel_ = !launch.together;
    return error;
  }
  static int add(void* parts, const KernelLaunch& launch) {
    auto* const graph = static_cast<GraphParts*>(parts);
    auto bytes = std::make_unique<std::byte[]>(launch.arg_bytes);
    std::memcpy(bytes.get(), launch.args, launch.arg_bytes);
    void* const pointer = bytes.get();
    void** const args = &graph->args.emplace_back(typename GraphParts::Args{std::move(bytes), pointer}).pointer;
    const typename Api::Node former = graph->last;
    return Api::add_kernel(&graph->last, graph->nodes, former, launch, args, graph->overlaps);
  }

  /// Lets kernels begin before those before them have ended, if their code for this device waits for these, and two
  /// launches show that the runtime takes it.
  void try_overlap(const ProbeArgs& probe) {
    Queue asking{this, [](void* device, const KernelLaunch& launch) {
                   static_cast<RuntimeDevice*>(device)->overlaps_ = Api::waits_for_former(launch.kernel);
                   return 0;
                 }};
    (void)kernels().probe(&asking, probe);
    for (int i = 0; i < 2 && overlaps_; ++i) {
      if (kernels().probe(stream(), probe) != 0) overlaps_ = false;
    }
    (void)Api::take_error();
  }

  void count_resident_blocks() {
    Queue asking{this, [](void* device, const KernelLaunch& launch) {
                   DeviceInfo& info = static_cast<RuntimeDevice*>(device)->info_;
                   info.resident_blocks = info.units * Api::resident_blocks(launch);
                   return 0;
                 }};
    (void)kernels().persistent(&asking, {});
    (void)Api::take_error();
  }

  /// The stream for what is no kernel: the next kernel does not begin before it has ended.
  typename Api::Stream in_turn(Stream stream) noexcept {
    if (stream == Stream::work) after_kernel_ = false;
    return of(stream);
  }

  typename Api::Stream of(Stream stream) const noexcept { return streams_[static_cast<int>(stream)]; }
  template <class... Words>
  Result<void> status(int error, const Words&... words) {
    if (error == 0) return {};
    (void)Api::take_error();  // what is not sticky must not show up in the host's own calls
    const bool memory = error == Api::kOutOfMemory;
    std::ostringstream what;
    ((what << words << ' '), ...);
    return core::fail(memory ? ErrorCode::out_of_memory : ErrorCode::device_error, info_.kind, " device ", index_, ": ",
                      what.str(), "failed: ", Api::message(error));
  }

  const int index_;
  DeviceInfo info_;
  Queue queue_{this, put};
  bool overlaps_ = false;      ///< kernels may begin before kernels before them have ended (docs/adr/0033)
  bool after_kernel_ = false;  ///< the last that went to Stream::work is a kernel
  typename Api::Stream streams_[2] = {};
  typename Api::Event marks_[kMarks] = {};
};

}  // namespace llminfer::gpu
