#include "backends/gpu/emulator/device.hpp"

#include <atomic>
#include <cstring>
#include <functional>
#include <utility>
#include <vector>

#include "backends/gpu/emulator/emulator.hpp"
#include "backends/gpu/emulator/memory.hpp"
#include "backends/gpu/emulator/streams.hpp"
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

std::atomic<std::int64_t> memory_in_use{0}, pinned_memory_in_use{0}, fetched{0};

class EmulatedDevice final : public Device {
 public:
  explicit EmulatedDevice(const EmulatorOptions& options)
      : options_(options), streams_(options.seed, options.deaf ? static_cast<int>(*options.deaf) : -1) {
    machine_.warp_width = options.warp_width;
    machine_.seed = options.seed;
    machine_.later = [this](std::function<int()> work) { add(std::move(work)); };
    if (options.dependent_launch) machine_.written = &memory_;
    info_.kind = "emulator";
    info_.name = "host emulator";
    info_.architecture = "warps of " + std::to_string(options.warp_width);
    info_.memory = options.memory;
    info_.units = options.units;
    info_.collectives = options.collectives;
    info_.warpgroups = options.warpgroups && kernels().linear_warpgroups != nullptr;
    info_.resident_blocks = options.resident_blocks;
    machine_.resident_blocks = static_cast<unsigned>(options.resident_blocks);
    info_.copies = options.copies && kernels().linear_stages != nullptr;
    info_.e4m3 = options.e4m3 && kernels().linear_e4m3_stages != nullptr;
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
  void begin_in_turn() noexcept override { machine_.after_kernel = false; }
  void* runtime_stream() noexcept override { return &machine_; }
  int enter() noexcept override { return 0; }
  void leave(int) noexcept override {}

  Result<void*> allocate(std::int64_t bytes) override { return allocate(bytes, false); }
  void release(void* memory) noexcept override { memory_in_use -= memory_.release(memory).bytes; }
  Result<void*> allocate_host(std::int64_t bytes) override { return allocate(bytes, true); }
  void release_host(void* memory) noexcept override { pinned_memory_in_use -= memory_.release(memory).bytes; }

  Result<void> copy(void* to, const void* from, std::int64_t bytes, Stream stream) override {
    return copy(to, from, bytes, 0, 1, stream);
  }
  Result<void> copy_pieces(void* to, const void* from, std::int64_t bytes, std::int64_t pitch,
                           std::int64_t height) override {
    return copy(to, from, bytes, pitch, height, Stream::work);
  }
  Result<void> clear(void* memory, std::int64_t bytes) override {
    LLMINFER_TRY(working());
    add([=, this] {
      memory_.copied(memory, bytes, Stream::work);
      std::memset(memory, 0, static_cast<std::size_t>(bytes));
      return emulator::ok;
    });
    return {};
  }
  Result<void> wait(Stream stream) override {
    ++counts_.waits;
    return settled(streams_.wait(static_cast<int>(stream)), stream);
  }
  Result<void*> make_event(bool timed) override {
    LLMINFER_TRY(next_allocation("an event"));
    auto event = std::make_shared<Timed>();
    event->timed = timed;
    Mark* const mark = new Mark(std::move(event));
    ++counts_.events;
    return static_cast<void*>(mark);
  }
  void release_event(void* event) noexcept override {
    --counts_.events;
    delete static_cast<Mark*>(event);
  }
  Result<void> record(void* event, Stream stream) override {
    LLMINFER_TRY(working());
    if (stream == Stream::work) machine_.after_kernel = false;
    streams_.record(static_cast<int>(stream), *static_cast<Mark*>(event));
    return {};
  }
  Result<void> follow(void* event, Stream stream) override {
    LLMINFER_TRY(working());
    if (stream == Stream::work) machine_.after_kernel = false;
    streams_.follow(static_cast<int>(stream), *static_cast<Mark*>(event));
    return {};
  }
  Result<bool> reached(void* event) override {
    const bool is = streams_.reached(**static_cast<Mark*>(event));
    LLMINFER_TRY(working());
    return is;
  }
  Result<void> wait_for_event(void* event) override { return ran(streams_.wait(**static_cast<Mark*>(event))); }
  Result<double> seconds_between(void* earlier, void* later) override {
    LLMINFER_TRY(working());
    const auto time = [](void* event) -> Result<std::chrono::steady_clock::time_point> {
      const auto& e = static_cast<const Timed&>(**static_cast<Mark*>(event));
      if (e.timed && e.recorded > 0 && e.reached == e.recorded) return e.time;
      return core::fail(ErrorCode::device_error, "the time of an event that has none");
    };
    const auto begin = LLMINFER_TRY(time(earlier)), end = LLMINFER_TRY(time(later));
    return std::chrono::duration<double>(end - begin).count();
  }
  Result<void*> make_graph(const Enqueue& enqueue) override {
    LLMINFER_TRY(next_allocation("a graph"));
    auto graph = std::make_unique<Nodes>();
    graph->machine = machine_;
    graph->machine.after_kernel = false;
    graph->machine.later = [&graph](std::function<int()> work) { graph->work.push_back(std::move(work)); };
    building_ = true;
    Result<void> enqueued = core::guarded([&] { return enqueue(&graph->machine); });
    building_ = false;
    LLMINFER_TRY(std::move(enqueued));
    if (counts_.graphs_made >= options_.graphs) return core::fail(ErrorCode::out_of_memory, "no memory for a graph");
    ++counts_.graphs_made;
    ++counts_.graphs;
    return static_cast<void*>(graph.release());
  }
  void release_graph(void* graph) noexcept override {
    --counts_.graphs;
    delete static_cast<Nodes*>(graph);
  }
  Result<void> launch(void* graph) override {
    LLMINFER_TRY(working());
    if (counts_.graph_launches >= options_.graph_launches) {
      return core::fail(ErrorCode::out_of_memory, "no memory to launch a graph");
    }
    ++counts_.graph_launches;
    for (const emulator::Streams::Work& node : static_cast<Nodes*>(graph)->work) add(node);
    return {};
  }
  const EmulatedCounts& counts() const noexcept { return counts_; }
  Result<void> mark(int place) override { return record(&marks_[place], Stream::work); }
  Result<void> wait_for(int place) override { return settled(streams_.wait(*marks_[place]), Stream::work); }

  Result<void> check(int error, const char* what) override {
    LLMINFER_TRY(working());
    if (error == 0 && counts_.launches++ != options_.fail_launch) return {};
    return core::fail(ErrorCode::device_error, what, ": launch failed with error ", error);
  }

 private:
  using Piece = emulator::Memory::Piece;
  using Mark = std::shared_ptr<emulator::Streams::Event>;
  struct Timed final : emulator::Streams::Event {  ///< what make_event gives
    bool timed = false;
  };
  struct Nodes {
    emulator::Machine machine;
    std::vector<emulator::Streams::Work> work;
  };
  // Errors beside those of the emulator.
  static constexpr int kReleased = 1000;  ///< of a copy to or from memory that is gone
  static constexpr int kNoLaunch = 1001;  ///< of anything but a launch while a graph is built
  static constexpr int kBroken = 1002;    ///< of all that runs once the device is broken

  void add(emulator::Streams::Work work, Stream stream = Stream::work) {
    if (building_) work = [] { return kNoLaunch; };
    work = [this, number = counts_.enqueued++, does = std::move(work)] {
      broken_ = broken_ || number == options_.break_at;
      if (broken_) return kBroken;
      return options_.run ? options_.run(does) : does();
    };
    if (stream == Stream::work) machine_.after_kernel = false;
    streams_.add(static_cast<int>(stream), std::move(work));
  }
  static Result<void> outcome(int error) {
    switch (error) {
      case emulator::ok:
        return {};
      case emulator::deadlock:
        return core::fail(ErrorCode::device_error, "threads or streams wait for others that never come");
      case emulator::unordered:
        return core::fail(ErrorCode::device_error, "a thread of a kernel has ended without after_former()");
      case emulator::early_write:
        return core::fail(ErrorCode::device_error, "a kernel wrote to memory before after_former()");
      case emulator::misused:
        return core::fail(ErrorCode::device_error, "an instruction was used otherwise than it may be");
      case kBroken:
        return core::fail(ErrorCode::device_error, "the device is broken");
      case kReleased:
        return core::fail(ErrorCode::device_error, "memory was released before the copy that reads or writes it");
      case kNoLaunch:
        return core::fail(ErrorCode::device_error, "what is no launch was enqueued while a graph was built");
    }
    return core::fail(ErrorCode::device_error, "error ", error);
  }

  Result<void> working() const { return ran(emulator::ok); }
  Result<void> next_allocation(const char* what) {
    LLMINFER_TRY(working());
    if (counts_.allocations++ != options_.fail_allocation) return {};
    return core::fail(ErrorCode::out_of_memory, "no memory for ", what);
  }

  /// The host knows that copies in the stream are done.
  Result<void> settled(int error, Stream stream) {
    memory_.settle(stream);
    return ran(error);
  }
  Result<void> ran(int error) const { return outcome(broken_ ? kBroken : error); }
  Result<void*> allocate(std::int64_t bytes, bool pinned) {
    LLMINFER_TRY(next_allocation("that"));
    void* memory = memory_.allocate(bytes, pinned, pinned ? options_.pinned_memory : options_.memory);
    if (!memory) {
      return core::fail(ErrorCode::out_of_memory, "no ", bytes, " bytes ",
                        pinned ? "of pinned memory" : "on the emulated device");
    }
    (pinned ? pinned_memory_in_use : memory_in_use) += bytes;
    return memory;
  }
  bool known(const void* memory, std::int64_t bytes) { return memory_.piece_of(memory, bytes).has_value(); }

  Result<void> copy(void* to, const void* from, std::int64_t bytes, std::int64_t pitch, std::int64_t height,
                    Stream stream) {
    LLMINFER_TRY(working());
    const std::int64_t all = pitch * (height - 1) + bytes;
    if (options_.lose_uploads && counts_.graph_launches > 0 && memory_.piece_of(from, all).value_or(Piece()).pinned)
      return {};
    const bool checks_to = known(to, all), checks_from = known(from, all);  // of pageable memory nothing is known
    const auto is_on_device = [&](const void* memory) {
      return !memory_.piece_of(memory, all).value_or(Piece{0, true}).pinned;
    };
    if (is_on_device(from) && !is_on_device(to)) fetched += bytes * height;
    add(
        [=, this]() -> int {
          if ((checks_to && !known(to, all)) || (checks_from && !known(from, all))) return kReleased;
          memory_.copied(to, all, stream);
          for (std::int64_t i = 0; i < height; ++i) {
            std::memcpy(static_cast<std::byte*>(to) + i * pitch, static_cast<const std::byte*>(from) + i * pitch,
                        static_cast<std::size_t>(bytes));
          }
          return emulator::ok;
        },
        stream);
    return {};
  }

  const EmulatorOptions options_;
  emulator::Memory memory_;
  emulator::Machine machine_;
  emulator::Streams streams_;
  Mark marks_[kMarks] = {std::make_shared<Mark::element_type>(), std::make_shared<Mark::element_type>(),
                         std::make_shared<Mark::element_type>(), std::make_shared<Mark::element_type>()};
  DeviceInfo info_;
  std::atomic<bool> broken_{false};
  bool building_ = false;  ///< a graph, which what is enqueued otherwise would not be in
  EmulatedCounts counts_;
};

}  // namespace

std::shared_ptr<Device> make_emulated_device(const EmulatorOptions& options) {
  return std::make_shared<EmulatedDevice>(options);
}

const EmulatedCounts& emulated_counts(const Device& device) {
  return dynamic_cast<const EmulatedDevice&>(device).counts();
}

std::int64_t emulated_memory_in_use() noexcept { return memory_in_use; }
std::int64_t emulated_pinned_memory_in_use() noexcept { return pinned_memory_in_use; }
std::int64_t emulated_bytes_fetched() noexcept { return fetched; }

}  // namespace llminfer::gpu
