#include "core/cpu_count.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <fstream>
#include <set>
#include <sstream>
#include <string_view>
#include <thread>

#if defined(__linux__)
#include <sched.h>
#endif

namespace llminfer::core {
namespace {

std::optional<std::string> first_line(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  if (!file || !std::getline(file, line)) return std::nullopt;
  return line;
}

std::optional<int> cpus_of(double quota, double period) {
  if (!(quota > 0) || !(period > 0)) return std::nullopt;
  return static_cast<int>(std::clamp(std::ceil(quota / period), 1.0, 1e6));
}

std::optional<int> smaller(std::optional<int> a, std::optional<int> b) {
  if (!a || !b) return a ? a : b;
  return std::min(*a, *b);
}

/// cpu.max holds "quota period" or "max period" (version 2).
std::optional<int> quota_v2(const std::string& folder) {
  std::istringstream line(first_line(folder + "/cpu.max").value_or(""));
  double quota = 0, period = 0;
  if (!(line >> quota >> period)) return std::nullopt;
  return cpus_of(quota, period);
}

std::optional<int> quota_v1(const std::string& folder) {
  std::istringstream quota(first_line(folder + "/cpu.cfs_quota_us").value_or("")),
      period(first_line(folder + "/cpu.cfs_period_us").value_or(""));
  double q = 0, p = 0;
  if (!(quota >> q) || !(period >> p)) return std::nullopt;
  return cpus_of(q, p);
}

/// The smallest quota of a group and those that hold it. Inside a container the path may not exist below the mount
/// point, which then is the group itself.
template <class Quota>
std::optional<int> quota_up(const std::string& mount, std::string group, Quota quota) {
  std::optional<int> least = quota(mount);
  while (!group.empty() && group != "/") {
    least = smaller(least, quota(mount + group));
    group.resize(group.find_last_of('/'));
  }
  return least;
}

}  // namespace

std::optional<int> cgroup_cpu_quota(const std::string& root) {
  std::ifstream groups(root + "/proc/self/cgroup");
  std::optional<int> least;
  for (std::string line; std::getline(groups, line);) {  // "id:controllers:/path"
    const std::size_t a = line.find(':'), b = line.find(':', a + 1);
    if (a == std::string::npos || b == std::string::npos || b + 1 >= line.size() || line[b + 1] != '/') continue;
    const std::string path = line.substr(b + 1);
    std::string controllers = line.substr(a, b - a + 1);
    controllers.front() = controllers.back() = ',';
    if (b == a + 1) {
      least = smaller(least, quota_up(root + "/sys/fs/cgroup", path, quota_v2));
    } else if (controllers.find(",cpu,") != std::string::npos) {
      least = smaller(least, quota_up(root + "/sys/fs/cgroup/cpu", path, quota_v1));
    }
  }
  return least;
}

int physical_cores(const std::string& root, const std::string& mask) {
  std::set<std::string> cores;  // each core is named by the list of its hardware threads
  for (std::size_t cpu = 0; cpu < 8 * mask.size(); ++cpu) {
    if (!(static_cast<unsigned char>(mask[cpu / 8]) >> (cpu % 8) & 1)) continue;
    const auto siblings =
        first_line(root + "/sys/devices/system/cpu/cpu" + std::to_string(cpu) + "/topology/thread_siblings_list");
    if (!siblings) return 0;
    cores.insert(*siblings);
  }
  return static_cast<int>(cores.size());
}

int usable_cpus(const std::string& root, const std::string& mask) {
  int cpus = 0;
  for (const char byte : mask) cpus += std::popcount(static_cast<unsigned char>(byte));
  if (const int cores = physical_cores(root, mask)) cpus = std::min(cpus, cores);
  if (const auto quota = cgroup_cpu_quota(root)) cpus = std::min(cpus, *quota);
  return std::max(1, cpus);
}

int usable_cpus() {
#if defined(__linux__)
  std::string mask(1 << 13, '\0');  // 65536 processors
  if (sched_getaffinity(0, mask.size(), reinterpret_cast<cpu_set_t*>(mask.data())) == 0) return usable_cpus("", mask);
#endif
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

}  // namespace llminfer::core
