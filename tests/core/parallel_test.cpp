// Threads: order of phases under stress, late and missing threads, lent executors, threads that cannot be made,
// idleness, and the count of usable processors.
#include "core/parallel.hpp"

#include <atomic>
#include <catch2/catch.hpp>
#include <chrono>
#include <cstdint>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <mutex>
#include <stdexcept>
#include <thread>
#include <vector>

#include "core/cpu_count.hpp"
#include "tests/failing_threads.hpp"

using namespace llminfer;
using core::Team;
using namespace std::chrono_literals;

namespace {

/// Runs the bodies on threads of its own, as a host's pool would.
Team::Lent host_threads() {
  return [](int count, const std::function<void(int, int)>& body) {
    std::vector<std::thread> threads;
    for (int i = 1; i < count; ++i) threads.emplace_back([&body, i, count] { body(i, count); });
    body(0, count);
    for (std::thread& thread : threads) thread.join();
  };
}

/// Every chunk is computed once, after all chunks of the phases before it, and a thread computes one at a time.
bool runs_right(Team& team, const std::vector<int>& chunks, bool ranges) {
  std::vector<std::vector<int>> done;  // not atomic: a phase that starts early or a chunk that is done twice is a race
  for (const int count : chunks) done.emplace_back(count, 0);
  std::vector<std::atomic<int>> busy(static_cast<std::size_t>(team.threads()));
  std::atomic<int> wrong{0};
  auto body = [&](int phase, int chunk, int thread) {
    if (busy[static_cast<std::size_t>(thread)]++ != 0) ++wrong;
    int before = phase - 1;
    while (before >= 0 && chunks[static_cast<std::size_t>(before)] == 0) --before;
    if (before >= 0) {
      for (const int count : done[static_cast<std::size_t>(before)]) wrong += count != 1;
    }
    ++done[static_cast<std::size_t>(phase)][static_cast<std::size_t>(chunk)];
    --busy[static_cast<std::size_t>(thread)];
  };
  auto range = [&](int phase, int first, int last, int thread) {
    const int share = (chunks[static_cast<std::size_t>(phase)] + team.threads() - 1) / team.threads();
    if (last <= first || last - first > std::max(1, share / 4)) ++wrong;
    for (int chunk = first; chunk < last; ++chunk) body(phase, chunk, thread);
  };
  if (!(ranges ? team.run_ranges(chunks, range) : team.run(chunks, body))) return false;
  for (const auto& phase : done) {
    for (const int count : phase) wrong += count != 1;
  }
  return wrong == 0;
}

void check_region(Team& team, const std::vector<int>& chunks) {
  REQUIRE(runs_right(team, chunks, false));
  REQUIRE(runs_right(team, chunks, true));
}

std::vector<int> many_phases() {
  std::vector<int> chunks;
  for (int i = 0; i < 200; ++i) chunks.insert(chunks.end(), {1, 2, 0, 5, 16, 0, 64});
  return chunks;
}

double cpu_seconds() { return static_cast<double>(std::clock()) / CLOCKS_PER_SEC; }

std::ptrdiff_t threads_alive() {
  return std::distance(std::filesystem::directory_iterator("/proc/self/task"), std::filesystem::directory_iterator());
}

}  // namespace

TEST_CASE("every chunk is done once, phase after phase") {
  for (const int threads : {1, 2, 3, 4, 7, 16}) {  // also more than there are processors
    CAPTURE(threads);
    auto team = Team::make(threads, {}).value();
    CHECK(team->threads() == threads);
    for (int i = 0; i < 3; ++i) check_region(*team, many_phases());
    check_region(*team, {});
    check_region(*team, {0, 0});
    check_region(*team, {1000, 0, 1, 0});
  }
}

TEST_CASE("teams side by side do not disturb each other") {
  std::vector<std::thread> hosts;
  std::atomic<int> wrong{0};
  for (int i = 0; i < 3; ++i) {
    hosts.emplace_back([&] {
      auto team = Team::make(3, {}).value();
      for (int round = 0; round < 5; ++round) wrong += !runs_right(*team, many_phases(), round % 2 == 1);
    });
  }
  for (std::thread& host : hosts) host.join();
  CHECK(wrong == 0);
}

TEST_CASE("short regions in a row, so that threads come late to most of them") {
  auto team = Team::make(4, {}).value();
  for (int i = 0; i < 3000; ++i) {
    int sum = 0;
    auto body = [&](int phase, int chunk, int) { sum += 10 * phase + chunk; };  // one chunk a phase: no two at once
    const int chunks[] = {1, 1, 1};
    REQUIRE(team->run(chunks, body));
    REQUIRE(sum == 30);
    if (i % 100 == 0) std::this_thread::sleep_for(200us);
  }
}

TEST_CASE("a slow thread's share is taken by the others") {
  auto team = Team::make(2, {}).value();
  std::atomic<int> by_first{0};
  auto body = [&](int, int, int thread) {
    if (thread == 0) {
      ++by_first;
    } else {
      std::this_thread::sleep_for(20ms);
    }
  };
  const int chunks[] = {100};
  REQUIRE(team->run(chunks, body));
  CHECK(by_first > 50);
}

TEST_CASE("a thread inside of a chunk is waited for, in sleep") {
  auto team = Team::make(3, {}).value();
  std::atomic<int> early{0};
  std::atomic<bool> ended{false};
  auto body = [&](int phase, int chunk, int) {
    if (phase == 0 && chunk == 0) {
      std::this_thread::sleep_for(300ms);
      ended = true;
    } else if (phase == 1 && !ended) {
      ++early;
    }
  };
  const double before = cpu_seconds();
  const int chunks[] = {3, 6};
  REQUIRE(team->run(chunks, body));
  CHECK(early == 0);
  CHECK(cpu_seconds() - before < 0.1);
}

TEST_CASE("threads sleep between regions") {
  auto team = Team::make(4, {}).value();
  check_region(*team, {16, 16});
  const double before = cpu_seconds();
  std::this_thread::sleep_for(300ms);
  CHECK(cpu_seconds() - before < 0.02);
}

TEST_CASE("a team on threads that the host lends") {
  auto team = Team::make(3, host_threads()).value();
  for (int i = 0; i < 3; ++i) check_region(*team, many_phases());
}

TEST_CASE("an executor may run fewer threads than it was asked for, or one after the other") {
  int calls = 0;
  auto one = Team::make(3, [&](int count, const auto& body) { ++calls, body(count - 1, count); }).value();
  check_region(*one, many_phases());
  CHECK(calls == 2);
  auto in_turn = Team::make(3, [](int count, const auto& body) {
                   for (int i = 0; i < count; ++i) body(i, count);
                 }).value();
  check_region(*in_turn, many_phases());
  auto late = Team::make(2, [](int count, const auto& body) {
                std::thread second([&] {
                  std::this_thread::sleep_for(2ms);
                  body(1, count);
                });
                body(0, count);
                second.join();
              }).value();
  for (int i = 0; i < 5; ++i) check_region(*late, many_phases());
}

TEST_CASE("an executor that fails is an error, not the end of the program") {
  const int chunks[] = {4, 4};
  auto nothing = [](int, int, int) {};
  auto throws = Team::make(2, [](int, const auto&) { throw std::runtime_error("no threads today"); }).value();
  auto result = throws->run(chunks, nothing);
  REQUIRE_FALSE(result);
  CHECK(result.error().code == ErrorCode::callback_failed);
  CHECK(result.error().message.find("no threads today") != std::string::npos);

  bool idle = true;
  auto forgets = Team::make(2, [&](int count, const auto& body) {
                   if (!idle) body(0, count);
                 }).value();
  result = forgets->run(chunks, nothing);
  REQUIRE_FALSE(result);
  CHECK(result.error().code == ErrorCode::callback_failed);
  idle = false;  // and the next region is whole
  check_region(*forgets, many_phases());

  auto strange = Team::make(2, [](int, const auto& body) { body(2, 2), body(-1, 2), body(0, 2); }).value();
  check_region(*strange, {8, 8});
}

TEST_CASE("threads that cannot be made are an error, and those made before it end") {
  const auto before = threads_alive();
  for (const int allowed : {0, 1, 5}) {
    test::allow_threads(allowed);
    const auto team = Team::make(8, {});
    test::allow_threads(-1);
    REQUIRE_FALSE(team);
    CHECK(team.error().code == ErrorCode::out_of_memory);
    CHECK(team.error().message.find("8 threads") != std::string::npos);
    CHECK(threads_alive() == before);
  }
  check_region(*Team::make(8, {}).value(), {16, 16});
}

TEST_CASE("quotas of control groups") {
  namespace fs = std::filesystem;
  const fs::path root = fs::temp_directory_path() / ("llminfer_cgroup_" + std::to_string(std::clock()));
  const auto write = [&](const std::string& path, const std::string& text) {
    fs::create_directories((root / path).parent_path());
    std::ofstream(root / path) << text;
  };
  CHECK_FALSE(core::cgroup_cpu_quota(root.string()));
  write("proc/self/cgroup", "0::/a/b\n");
  CHECK_FALSE(core::cgroup_cpu_quota(root.string()));
  write("sys/fs/cgroup/a/b/cpu.max", "max 100000\n");
  CHECK_FALSE(core::cgroup_cpu_quota(root.string()));
  write("sys/fs/cgroup/a/cpu.max", "250000 100000\n");
  CHECK(core::cgroup_cpu_quota(root.string()) == 3);
  write("sys/fs/cgroup/a/b/cpu.max", "50000 100000\n");
  CHECK(core::cgroup_cpu_quota(root.string()) == 1);
  write("proc/self/cgroup", "4:memory:/x\n3:cpu,cpuacct:/x\n");
  write("sys/fs/cgroup/cpu/x/cpu.cfs_quota_us", "-1\n");
  write("sys/fs/cgroup/cpu/x/cpu.cfs_period_us", "100000\n");
  CHECK_FALSE(core::cgroup_cpu_quota(root.string()));
  write("sys/fs/cgroup/cpu/x/cpu.cfs_quota_us", "400000\n");
  CHECK(core::cgroup_cpu_quota(root.string()) == 4);
  // A path that the container does not see: the mount itself is the group.
  write("proc/self/cgroup", "0::/../outside\n");
  write("sys/fs/cgroup/cpu.max", "200000 100000\n");
  CHECK(core::cgroup_cpu_quota(root.string()) == 2);

  CHECK(core::physical_cores(root.string(), "\x03") == 0);
  for (const auto& [cpu, siblings] : {std::pair{"0", "0,2"}, {"1", "1,3"}, {"2", "0,2"}, {"3", "1,3"}}) {
    write(std::string("sys/devices/system/cpu/cpu") + cpu + "/topology/thread_siblings_list", siblings);
  }
  CHECK(core::physical_cores(root.string(), "\x0f") == 2);
  CHECK(core::physical_cores(root.string(), "\x05") == 1);

  // The least of the three counts.
  CHECK(core::usable_cpus(root.string(), "\x0f") == 2);  // two cores of two hardware threads, a quota of two
  CHECK(core::usable_cpus(root.string(), "\x05") == 1);  // both hardware threads of one core
  write("sys/fs/cgroup/cpu.max", "max 100000\n");
  CHECK(core::usable_cpus(root.string(), "\x03") == 2);  // affinity
  write("sys/fs/cgroup/cpu.max", "150000 100000\n");
  CHECK(core::usable_cpus(root.string(), "\x03") == 2);  // a quota of one and a half is rounded up
  write("sys/fs/cgroup/cpu.max", "20000 100000\n");
  CHECK(core::usable_cpus(root.string(), "\x0f") == 1);
  CHECK(core::usable_cpus(root.string(), "") == 1);
  fs::remove_all(root / "sys/devices");
  write("sys/fs/cgroup/cpu.max", "max 100000\n");
  CHECK(core::usable_cpus(root.string(), "\x0f") == 4);  // a system that does not tell its cores
  fs::remove_all(root);
  CHECK(core::usable_cpus() >= 1);
  CHECK(core::usable_cpus() <= static_cast<int>(std::thread::hardware_concurrency()));
}
