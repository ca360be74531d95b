// A library with the functions of NCCL that llminfer uses. Ranks are threads of this process, their devices emulated
// ones, whose memory is the host's. A sum is work of its device's stream: it reads and writes when its turn comes
// there, and waits for the others' turns. As NCCL may, it puts some sums into the stream only once it was asked how
// they are.
#include "tests/gpu/fake_nccl.hpp"

#include <algorithm>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "backends/gpu/emulator/emulator.hpp"

namespace {

namespace emulator = llminfer::gpu::emulator;

enum Status : int { success = 0, internal_error = 3, invalid_argument = 4, remote_error = 6, in_progress = 7 };
/// What emulated work gives where ranks do not make the same sums.
constexpr int kMismatch = 77;

struct Id {
  char bytes[128];
};
struct Config {
  std::size_t size;
  unsigned magic, version;
  int blocking;
};

struct Sum {
  std::vector<std::vector<float>> parts;  ///< [rank]
  int arrived = 0, left = 0;
};
struct Group {
  std::mutex mutex;
  int ranks = 0, joined = 0, aborted = 0;
  std::condition_variable changed;
  std::map<std::uint64_t, Sum> sums;
};
struct Member {
  std::shared_ptr<Group> group;
  int rank = 0;
  std::uint64_t sums = 0;
  std::atomic<bool> aborted{false};
  int state = success;
  std::function<void()> later{};  ///< what is not yet in the stream
};
using Handle = std::shared_ptr<Member>;

struct Library {
  llminfer::test::FakeNccl control;
  std::mutex mutex;
  std::uint64_t ids = 0;
  std::map<std::string, std::weak_ptr<Group>> groups;
};
Library& library() {
  static Library all;
  return all;
}

Member& member(void* handle) { return **static_cast<Handle*>(handle); }

/// Whether it is time for the error that `number` counts down to; then there will be none.
bool due(std::atomic<int>& number) {
  int expected = 0;
  if (number.compare_exchange_strong(expected, -1)) return true;
  if (expected > 0) --number;
  return false;
}

int work(Member& self, std::uint64_t number, const float* in, float* out, std::size_t count) {
  if (self.aborted) return emulator::ok;
  Group& group = *self.group;
  const std::lock_guard lock(group.mutex);
  Sum& sum = group.sums[number];
  sum.parts.resize(static_cast<std::size_t>(group.ranks));
  auto& own = sum.parts[static_cast<std::size_t>(self.rank)];
  if (own.empty()) {
    own.assign(in, in + count);
    ++sum.arrived;
  }
  if (sum.arrived < group.ranks) return emulator::again;
  std::vector<float> total = sum.parts[0];
  for (std::size_t rank = 1; rank < sum.parts.size(); ++rank) {
    if (sum.parts[rank].size() != count) return kMismatch;
    for (std::size_t i = 0; i < count; ++i) total[i] += sum.parts[rank][i];
  }
  std::copy(total.begin(), total.end(), out);
  if (++sum.left == group.ranks) group.sums.erase(number);
  return emulator::ok;
}

}  // namespace

extern "C" {

llminfer::test::FakeNccl* fake_nccl() { return &library().control; }

int ncclGetVersion(int* version) {
  *version = 22803;
  return success;
}

const char* ncclGetErrorString(int status) { return status == remote_error ? "fake remote error" : "fake error"; }

int ncclGetUniqueId(Id* id) {
  Library& all = library();
  const std::lock_guard lock(all.mutex);
  *id = {};
  const std::string name = "fake " + std::to_string(++all.ids);
  name.copy(id->bytes, sizeof id->bytes - 1);
  return success;
}

int ncclCommInitRankConfig(void** handle, int ranks, Id id, int rank, Config* config) {
  *handle = nullptr;
  if (config->magic != 0xcafebeef || config->size != sizeof(Config) || config->blocking != 0) return invalid_argument;
  Library& all = library();
  if (all.control.fail_init == rank) return internal_error;
  auto made = std::make_shared<Member>();
  {
    const std::lock_guard lock(all.mutex);
    auto& known = all.groups[id.bytes];
    made->group = known.lock();
    if (!made->group) known = made->group = std::make_shared<Group>();
  }
  {
    const std::lock_guard lock(made->group->mutex);
    made->group->ranks = ranks;
    ++made->group->joined;
  }
  made->rank = rank;
  ++all.control.communicators;
  *handle = new Handle(std::move(made));
  return in_progress;
}

int ncclCommAbort(void* handle) {
  Member& self = member(handle);
  self.aborted = true;
  {
    std::unique_lock lock(self.group->mutex);
    ++self.group->aborted;
    self.group->changed.notify_all();
    if (library().control.abort_waits) {
      self.group->changed.wait(lock, [&] { return self.group->aborted == self.group->joined; });
    }
  }
  --library().control.communicators;
  delete static_cast<Handle*>(handle);
  return success;
}

int ncclCommGetAsyncError(void* handle, int* error) {
  Member& self = member(handle);
  {
    const std::lock_guard lock(self.group->mutex);
    *error = self.group->joined < self.group->ranks ? static_cast<int>(in_progress) : self.state;
  }
  if (!self.later) return success;
  std::exchange(self.later, nullptr)();  // which may run it
  self.state = success;
  return success;
}

int ncclAllReduce(const void* in, void* out, std::size_t count, int type, int operation, void* handle, void* stream) {
  llminfer::test::FakeNccl& control = library().control;
  Member& self = member(handle);
  if (type != 7 || operation != 0 || self.state != success || due(control.fail_sum)) return invalid_argument;
  const std::uint64_t number = self.sums++;
  auto enqueue = [handle = *static_cast<Handle*>(handle), number, in, out, count, stream] {
    static_cast<emulator::Machine*>(stream)->later(
        [=] { return work(*handle, number, static_cast<const float*>(in), static_cast<float*>(out), count); });
  };
  ++control.sums;
  if (due(control.break_sum)) {
    self.state = remote_error;
    return success;  // and it never runs
  }
  if (number % 3 == 2) {
    self.later = std::move(enqueue);
    self.state = in_progress;
    return in_progress;
  }
  enqueue();
  return success;
}

}  // extern "C"
