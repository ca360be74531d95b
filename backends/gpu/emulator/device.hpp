// A Device that runs kernels in the host emulator. For tests.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "backends/gpu/device.hpp"

namespace llminfer::gpu {

struct EmulatorOptions {
  /// Whose matrix units: PTX has 32 lanes, MFMA 64, FMA runs at either width.
  enum class Mma { ptx, mfma, fma } mma = Mma::ptx;
  int warp_width = 32;
  std::uint64_t seed = 1;
  std::int64_t memory = std::int64_t{1} << 32;         ///< allocations beyond it fail
  std::int64_t pinned_memory = std::int64_t{1} << 32;  ///< likewise, of host memory
  int units = 4;
  std::int64_t fail_launch = -1;      ///< the launch of that number fails
  std::int64_t fail_allocation = -1;  ///< the allocation of that number (EmulatedCounts) finds no memory
  /// What is enqueued as that number fails when it runs, and from then on all that the device is asked for, as a GPU
  /// does whose kernel reads what is no memory; only memory and handles are still released.
  std::int64_t break_at = -1;
  std::int64_t graphs = 1 << 20;          ///< so many can be made
  bool lose_uploads = false;              ///< once a graph was launched, copies from pinned memory do nothing
  std::int64_t graph_launches = 1 << 20;  ///< so many succeed
  bool dependent_launch = true;           ///< kernels may begin before those before them have ended
  /// The stream that does not wait for events, to show that this shows.
  std::optional<Stream> deaf{};
  std::string collectives{};  ///< as DeviceInfo's
  bool warpgroups = true;     ///< likewise, with PTX's matrix units; those of others have none
  bool copies = true;         ///< likewise
  bool e4m3 = true;           ///< likewise
  int resident_blocks = 3;    ///< likewise
  /// Runs each piece of work that was enqueued, and gives what that gives; empty: it is just run.
  std::function<int(const std::function<int()>&)> run{};
};
std::shared_ptr<Device> make_emulated_device(const EmulatorOptions& options = {});

struct EmulatedCounts {
  std::atomic<std::int64_t> allocations{0};  ///< tried: of memory of both kinds, events and graphs
  std::atomic<std::int64_t> events{0};       ///< that exist
  std::int64_t enqueued = 0;                 ///< kernels, copies and clearings, those of graphs when they are launched
  std::int64_t launches = 0;                 ///< calls of KernelTables: into streams, graphs and lists of steps
  std::int64_t graphs = 0;                   ///< that exist
  std::int64_t graphs_made = 0;              ///< ever
  std::int64_t graph_launches = 0;           ///< that succeeded
  std::int64_t waits = 0;                    ///< of the host for all that a stream has
};
/// Of a device that make_emulated_device made.
const EmulatedCounts& emulated_counts(const Device& device);

/// Memory that is allocated now, by all emulated devices of this process. For tests of leaks.
std::int64_t emulated_memory_in_use() noexcept;
std::int64_t emulated_pinned_memory_in_use() noexcept;
/// Bytes that they all have copied from device memory to host memory so far.
std::int64_t emulated_bytes_fetched() noexcept;

}  // namespace llminfer::gpu
