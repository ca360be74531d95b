// The machines that the tests of the GPU backend run on: emulated ones, of each kind of matrix unit at the warp widths
// that it has; or, where LLMINFER_TEST_GPU is defined, this machine's GPU.
#pragma once

#include <string>
#include <vector>

#include "backends/gpu/backend.hpp"
#include "backends/gpu/emulator/device.hpp"

namespace llminfer::test {

#ifdef LLMINFER_TEST_GPU
/// Of the runtime that the program has: real_device.cpp.
Result<std::shared_ptr<gpu::Device>> make_real_device(const GpuOptions& options);
/// What all processes have taken of the GPU's memory.
std::int64_t memory_in_use();
#else
/// What is taken of the memory of all emulated devices, and of pinned memory.
inline std::int64_t memory_in_use() {
  return gpu::emulated_memory_in_use() + gpu::emulated_pinned_memory_in_use();
}
#endif

struct Machine {
  std::string name;
  gpu::EmulatorOptions options;
};

inline std::vector<Machine> machines(std::uint64_t seed = 1) {
  (void)seed;
#ifdef LLMINFER_TEST_GPU
  return {{"the device", {}}};
#else
  using Mma = gpu::EmulatorOptions::Mma;
  std::vector<Machine> all = {
      {"ptx, warps of 32", {}}, {"mfma, waves of 64", {}}, {"fma, warps of 32", {}}, {"fma, waves of 64", {}}};
  for (Machine& machine : all) machine.options.seed = seed;
  all[1].options.mma = Mma::mfma;
  all[1].options.warp_width = 64;
  all[2].options.mma = Mma::fma;
  all[3].options.mma = Mma::fma;
  all[3].options.warp_width = 64;
  return all;
#endif
}

/// An emulated machine, or a new Device on the GPU, whatever the options but for dependent_launch.
inline std::shared_ptr<gpu::Device> make_machine(const gpu::EmulatorOptions& options = {}) {
#ifdef LLMINFER_TEST_GPU
  return make_real_device({.dependent_launch = options.dependent_launch}).value();
#else
  return gpu::make_emulated_device(options);
#endif
}

/// Whether so much is allocated on all emulated devices, and of pinned memory; on a GPU nobody counts.
inline bool holds([[maybe_unused]] std::int64_t memory, [[maybe_unused]] std::int64_t pinned) {
#ifdef LLMINFER_TEST_GPU
  return true;
#else
  return gpu::emulated_memory_in_use() == memory && gpu::emulated_pinned_memory_in_use() == pinned;
#endif
}

inline std::shared_ptr<Backend> make_machine_backend(const gpu::EmulatorOptions& options = {},
                                                     bool batch_invariant = false, bool graphs = true) {
  return gpu::make_backend(make_machine(options), {0, batch_invariant, graphs});
}

}  // namespace llminfer::test
