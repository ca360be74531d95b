// The device of a runtime, on one that takes notes: which kernels may begin before the one before them has ended.
#include <catch2/catch.hpp>

#include <string>
#include <vector>

#include "backends/gpu/runtime_device.hpp"

using namespace llminfer;
using namespace llminfer::gpu;

namespace {

int probe(void* stream, const ProbeArgs& args) {
  const Queue& queue = *static_cast<const Queue*>(stream);
  return queue.put(queue.owner, {&args, {1, 1, 1}, 32, 0, &args, sizeof(args), false});
}
int persistent(void* stream, const PersistentArgs& args) {
  const Queue& queue = *static_cast<const Queue*>(stream);
  return queue.put(queue.owner, {&args, {1, 1, 1}, 32, 0, &args, sizeof(args), true});
}
constexpr KernelTable kTable = [] {
  KernelTable table{};
  table.probe = probe;
  table.persistent = persistent;
  return table;
}();

/// k: a kernel, K: one that may begin early, t: one whose blocks are there together; n and N: the same as nodes of a
/// graph; -: anything else in Stream::work.
struct Notes {
  std::string text;
  bool waits = true;    ///< the kernels' code does
  bool takes = true;    ///< kernels that may begin early
  int fails = -1;       ///< the launch of that number, from now on
  int fails_call = -1;  ///< likewise, the call that makes, copies or waits
  int held = 0;         ///< streams, events and memory that exist
  int timed = 0;        ///< timed events that were made
} notes;

struct Api {
  using Stream = int*;
  using Event = int*;
  using Graph = int*;
  using Node = int*;
  using ReadyGraph = int*;
  static constexpr const char* kVendor = "no";
  static constexpr int kOutOfMemory = 2, kNotReady = 3;
  static inline int handle = 0, streams[2] = {};

  /// What a call gives that makes `made` things.
  static int call(int made = 0) {
    if (notes.fails_call-- == 0) return 1;
    notes.held += made;
    return 0;
  }
  static int drop() { return --notes.held, 0; }

  static const KernelTable& kernels() noexcept { return kTable; }
  static const char* message(int) { return "failed"; }
  static int take_error() { return 0; }
  static int device_count(int* count) { return *count = 2, call(); }
  static int get_device(int* index) { return *index = 0, 0; }
  static int set_device(int) { return 0; }
  static int describe(int, DeviceInfo& info) { return info.kind = "notes", info.units = 4, call(); }
  static int allocate(void** memory, std::size_t) { return *memory = &handle, call(1) ? kOutOfMemory : 0; }
  static int release(void*) { return drop(); }
  static int allocate_host(void**, std::size_t) { return kOutOfMemory; }
  static int release_host(void*) { return 0; }

  static int note(Stream stream) {
    if (stream == &streams[0]) notes.text += '-';
    return 0;
  }
  static int copy(void*, const void*, std::size_t, Stream stream) { return note(stream), call(); }
  static int copy_pieces(void*, const void*, std::size_t, std::size_t, std::size_t, Stream stream) {
    return note(stream);
  }
  static int clear(void*, std::size_t, Stream stream) { return note(stream); }
  static int make_stream(Stream* stream) {  // Stream::work comes first
    static int made = 0;
    if (call(1)) return made = 0, 1;
    return *stream = &streams[made++ % 2], 0;
  }
  static int destroy_stream(Stream) { return drop(); }
  static int wait(Stream) { return call(); }
  static int make_event(Event* event, bool timed) {
    if (call(1)) return 1;
    notes.timed += timed;
    return *event = &handle, 0;
  }
  static int destroy_event(Event) { return drop(); }
  static int record(Event, Stream stream) { return note(stream); }
  static int wait_event(Event) { return 0; }
  static int query_event(Event) { return 0; }
  static int elapsed(float* milliseconds, Event, Event) { return *milliseconds = 1500, call(); }
  static int follow_event(Stream stream, Event) { return note(stream); }
  static bool waits_for_former(const void*) { return notes.waits; }
  static int resident_blocks(const KernelLaunch& launch) { return launch.together ? 5 : -1; }
  static int launch(const KernelLaunch& launch, void**, Stream, bool early) {
    if (notes.fails-- == 0 || (early && !notes.takes)) return 1;
    notes.text += early ? 'K' : launch.together ? 't' : 'k';
    return 0;
  }
  static int make_graph(Graph* graph) { return *graph = &handle, 0; }
  static int add_kernel(Node* node, Graph, Node former, const KernelLaunch&, void**, bool early) {
    notes.text += former && early ? 'N' : 'n';
    return *node = &handle, 0;
  }
  static int instantiate(ReadyGraph* ready, Graph) { return *ready = &handle, 0; }
  static int launch_graph(ReadyGraph, Stream stream) { return note(stream); }
  static int destroy_graph(Graph) { return 0; }
  static int destroy_ready_graph(ReadyGraph) { return 0; }
};

std::shared_ptr<Device> make(const GpuOptions& options = {}) {
  auto device = RuntimeDevice<Api>::make(options).value();
  notes.text.clear();
  notes.fails = -1;
  return device;
}
int launch(const std::shared_ptr<Device>& device) { return device->kernels().probe(device->stream(), {}); }

/// What the runtime gets of a kernel, `between`, and two kernels.
template <class F>
std::string notes_of(const std::shared_ptr<Device>& device, F between) {
  device->clear(nullptr, 1).value();
  notes.text.clear();
  launch(device);
  between();
  launch(device);
  launch(device);
  return notes.text;
}

}  // namespace

TEST_CASE("A kernel may begin early after another one, and after nothing else") {
  notes = {};
  const auto device = make();
  const Event event = Event::make(device).value();
  CHECK(notes_of(device, [] {}) == "kKK");
  CHECK(notes_of(device, [&] { device->copy(nullptr, nullptr, 1).value(); }) == "k-kK");
  CHECK(notes_of(device, [&] { device->copy(nullptr, nullptr, 1, Stream::copies).value(); }) == "kKK");
  CHECK(notes_of(device, [&] { device->copy_pieces(nullptr, nullptr, 1, 1, 1).value(); }) == "k-kK");
  CHECK(notes_of(device, [&] { device->clear(nullptr, 1).value(); }) == "k-kK");
  CHECK(notes_of(device, [&] { device->mark(0).value(); }) == "k-kK");
  CHECK(notes_of(device, [&] { event.record(Stream::work).value(); }) == "k-kK");
  CHECK(notes_of(device, [&] { event.record(Stream::copies).value(); }) == "kKK");
  CHECK(notes_of(device, [&] { event.follow(Stream::work).value(); }) == "k-kK");
  CHECK(notes_of(device, [&] { (void)device->runtime_stream(); }) == "kkK");  // for a sum, say
  CHECK(notes_of(device, [&] { device->begin_in_turn(); }) == "kkK");
  CHECK(notes_of(device, [&] {
          notes.fails = 0;
          CHECK(launch(device) != 0);
        }) == "kKK");
  CHECK(notes_of(device, [&] { CHECK(device->kernels().persistent(device->stream(), {}) == 0); }) == "ktkK");
}

TEST_CASE("A device that fails while it is made is a typed error and leaves nothing") {
  std::vector<ErrorCode> errors;
  for (int call = 0;; ++call) {
    notes = {};
    notes.fails_call = call;
    const auto device = RuntimeDevice<Api>::make({});
    if (device) break;
    errors.push_back(device.error().code);
    CHECK(notes.held == 0);
  }
  // The count, properties, two streams, events, memory, the copy of what the probe found, the wait for it.
  std::vector<ErrorCode> expected(4 + Device::kMarks + 3, ErrorCode::device_error);
  expected[0] = ErrorCode::no_device;
  expected[4 + Device::kMarks] = ErrorCode::out_of_memory;
  CHECK(errors == expected);
  CHECK(notes.held == 0);
  for (int launch = 0; launch < 2; ++launch) {  // the probe; those that try to begin early are no errors
    notes = {};
    notes.fails = launch;
    const auto device = RuntimeDevice<Api>::make({});
    CHECK((device ? ErrorCode{} : device.error().code) == (launch == 0 ? ErrorCode::unsupported : ErrorCode{}));
  }
  CHECK(notes.held == 0);
}

TEST_CASE("Events are timed where that is asked for") {
  notes = {};
  const auto device = make();
  const Event event = Event::make(device).value();
  CHECK(notes.timed == 0);
  const Event begin = Event::make(device, true).value(), end = Event::make(device, true).value();
  CHECK(notes.timed == 2);
  CHECK(end.seconds_since(begin).value() == 1.5);
  notes.fails_call = 0;
  CHECK(end.seconds_since(begin).error().code == ErrorCode::device_error);
}

TEST_CASE("Threads are 0 or more") {
  GpuOptions options;
  options.threads = -1;
  CHECK(RuntimeDevice<Api>::make(options).error().code == ErrorCode::invalid_argument);
}

TEST_CASE("A device counts the blocks that fit on it together") { CHECK(make()->info().resident_blocks == 4 * 5); }

TEST_CASE("A launch that fails is no kernel") {
  notes = {};
  const auto device = make();
  device->clear(nullptr, 1).value();
  notes.fails = 0;
  CHECK(launch(device) != 0);
  CHECK(launch(device) == 0);
  CHECK(notes.text == "-k");
}

TEST_CASE("In a graph each kernel but the first may begin early, and none before or after the graph") {
  notes = {};
  const auto device = make();
  device->clear(nullptr, 1).value();
  launch(device);
  const Graph graph = Graph::make(device, [&](void* stream) -> Result<void> {
                        for (int i = 0; i < 3; ++i) CHECK(device->kernels().probe(stream, {}) == 0);
                        return {};
                      }).value();
  graph.launch().value();
  launch(device);
  CHECK(notes.text == "-knNN-k");
}

TEST_CASE("No kernel begins early where it may not, where its code does not wait, or the runtime does not take it") {
  const auto none = [](const Notes& runtime, const GpuOptions& options) {
    notes = runtime;
    const auto device = make(options);
    const std::string of_stream = notes_of(device, [] {});
    notes.text.clear();
    const Graph graph = Graph::make(device, [&](void* stream) -> Result<void> {
                          for (int i = 0; i < 2; ++i) CHECK(device->kernels().probe(stream, {}) == 0);
                          return {};
                        }).value();
    return of_stream == "kkk" && notes.text == "nn";
  };
  CHECK_FALSE(none({}, {}));
  CHECK(none({}, {.dependent_launch = false}));
  CHECK(none(Notes{{}, false}, {}));
  CHECK(none(Notes{{}, true, false}, {}));
}
