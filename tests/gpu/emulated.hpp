// Emulated GPUs for the tests: each kind of matrix unit, at the warp widths that it has.
#pragma once

#include <string>
#include <vector>

#include "backends/gpu/backend.hpp"
#include "backends/gpu/emulator/device.hpp"

namespace llminfer::test {

struct Emulated {
  std::string name;
  gpu::EmulatorOptions options;
};

inline std::vector<Emulated> emulated_machines(std::uint64_t seed = 1) {
  using Mma = gpu::EmulatorOptions::Mma;
  std::vector<Emulated> machines(4);
  machines[0] = {"ptx, warps of 32", {}};
  machines[1] = {"mfma, waves of 64", {}};
  machines[1].options.mma = Mma::mfma;
  machines[1].options.warp_width = 64;
  machines[2] = {"fma, warps of 32", {}};
  machines[2].options.mma = Mma::fma;
  machines[3] = {"fma, waves of 64", {}};
  machines[3].options.mma = Mma::fma;
  machines[3].options.warp_width = 64;
  for (Emulated& machine : machines) machine.options.seed = seed;
  return machines;
}

inline std::shared_ptr<Backend> emulated_backend(const gpu::EmulatorOptions& options = {}, bool batch_invariant = false) {
  return gpu::make_backend(gpu::make_emulated_device(options), batch_invariant);
}

}  // namespace llminfer::test
