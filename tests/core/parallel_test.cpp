// Threads: barriers under stress, sharing of work, lent executors, and the count of usable processors.
#include "core/parallel.hpp"

#include <atomic>
#include <catch2/catch.hpp>
#include <chrono>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <numeric>
#include <stdexcept>
#include <thread>
#include <vector>

#include "core/cpu_count.hpp"

using namespace llminfer;
using core::Team;
using core::Worker;

namespace {

/// Runs the bodies on threads of its own, as a host's pool would.
core::Team::Lent host_threads() {
  return [](int count, const std::function<void(int, int)>& body) {
    std::vector<std::thread> threads;
    for (int i = 1; i < count; ++i) threads.emplace_back([&body, i, count] { body(i, count); });
    body(0, count);
    for (std::thread& thread : threads) thread.join();
  };
}

void check_team(Team& team, int threads) {
  constexpr int kRounds = 300;
  std::vector<int> sums(static_cast<std::size_t>(threads) * 16, 0);
  std::atomic<int> torn{0};
  int round_of[1] = {0};
  auto body = [&](Worker& worker) {
    for (int round = 0; round < kRounds; ++round) {
      // Everyone writes, everyone reads what the others wrote in the same round: any barrier that leaks shows.
      sums[static_cast<std::size_t>(worker.index()) * 16] = round;
      worker.barrier();
      for (int i = 0; i < worker.count(); ++i) {
        if (sums[static_cast<std::size_t>(i) * 16] != round) ++torn;
      }
      if (worker.index() == 0) round_of[0] = round;
      worker.barrier();
      if (round_of[0] != round) ++torn;
    }
  };
  REQUIRE(team.run(body));
  CHECK(torn == 0);
}

void check_sharing(Team& team, int items, int grain) {
  std::vector<std::atomic<int>> done(static_cast<std::size_t>(items) * 4);
  auto body = [&](Worker& worker) {
    for (int round = 0; round < 40; ++round) {
      worker.share(items, grain, [&](int first, int last) {
        for (int i = first; i < last; ++i) {
          done[static_cast<std::size_t>(round % 4) * static_cast<std::size_t>(items) + static_cast<std::size_t>(i)]++;
        }
      });
      worker.barrier();
    }
  };
  REQUIRE(team.run(body));
  for (const auto& count : done) REQUIRE(count == 10);
}

}  // namespace

TEST_CASE("a team's threads meet at every barrier") {
  for (const int threads : {1, 2, 3, 4, 7}) {
    CAPTURE(threads);
    auto team = Team::make(threads, {}).value();
    CHECK(team->threads() == threads);
    for (int i = 0; i < 3; ++i) check_team(*team, threads);
  }
}

TEST_CASE("every item is done once") {
  for (const int threads : {1, 2, 3, 5}) {
    auto team = Team::make(threads, {}).value();
    for (const int items : {0, 1, 2, 5, 64, 1000}) {
      for (const int grain : {1, 3, 64}) {
        CAPTURE(threads, items, grain);
        if (items > 0) check_sharing(*team, items, grain);
      }
    }
  }
}

TEST_CASE("a slow thread's share is taken by the others") {
  auto team = Team::make(2, {}).value();
  std::atomic<int> by_first{0}, count{0};
  auto body = [&](Worker& worker) {
    if (worker.index() == 0) count = worker.count();
    worker.share(100, 1, [&](int, int) {
      if (worker.index() == 0) {
        ++by_first;
      } else {
        std::this_thread::sleep_for(std::chrono::milliseconds(20));
      }
    });
  };
  REQUIRE(team->run(body));
  CHECK((count == 1 || by_first > 50));
}

TEST_CASE("a team on threads that the host lends") {
  auto team = Team::make(3, host_threads()).value();
  check_team(*team, 3);
  check_sharing(*team, 100, 2);
}

TEST_CASE("an executor that throws is an error, not the end of the program") {
  auto team = Team::make(2, [](int, const auto&) { throw std::runtime_error("no threads today"); }).value();
  auto body = [](Worker&) {};
  const auto result = team->run(body);
  REQUIRE_FALSE(result);
  CHECK(result.error().code == ErrorCode::callback_failed);
  CHECK(result.error().message.find("no threads today") != std::string::npos);
}

TEST_CASE("a team that waits long sleeps") {
  auto team = Team::make(2, {}).value();
  auto body = [](Worker& worker) {
    if (worker.index() == 0) std::this_thread::sleep_for(std::chrono::milliseconds(300));
    worker.barrier();
  };
  const std::clock_t before = std::clock();
  REQUIRE(team->run(body));
  const double cpu_seconds = static_cast<double>(std::clock() - before) / CLOCKS_PER_SEC;
  CHECK(cpu_seconds < 0.15);
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
  fs::remove_all(root);
  CHECK(core::usable_cpus() >= 1);
}
