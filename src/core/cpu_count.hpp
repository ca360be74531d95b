// How many threads the process can use well.
#pragma once

#include <optional>
#include <string>

namespace llminfer::core {

/// min(processors that the process may run on, its cgroup's quota, physical cores), at least 1.
int usable_cpus();

/// The same for a process that may run on the processors of `mask`, bit i of byte i / 8 for processor i, on the system
/// whose /proc and /sys lie below `root`.
int usable_cpus(const std::string& root, const std::string& mask);

/// The processors that the CPU quota of the process's cgroup (version 2 or 1) amounts to, rounded up; nullopt if there
/// is none. `root` is put in front of /proc and /sys.
std::optional<int> cgroup_cpu_quota(const std::string& root);

/// Physical cores among the processors [0, 8 * mask.size()) whose bit is set; 0 if the system does not tell.
int physical_cores(const std::string& root, const std::string& mask);

}  // namespace llminfer::core
