// The AMD GPUs of this machine as the kernel's driver lists them, without HIP's runtime.
#pragma once

#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include <llminfer/result.hpp>

namespace llminfer::gpu {

/// What the driver's folder says, and the environment variables that choose GPUs; null: not set.
struct AmdGpus {
  std::filesystem::path nodes = "/sys/class/kfd/kfd/topology/nodes";
  const char* rocr_visible = nullptr;  ///< ROCR_VISIBLE_DEVICES
  const char* hip_visible = nullptr;   ///< HIP_VISIBLE_DEVICES
  const char* gfx_version = nullptr;   ///< HSA_OVERRIDE_GFX_VERSION
};

/// HIP's runtime before 5.7 ends the process at its first call if one of the GPUs that it sees is of an architecture for
/// which the program has no code. Error unsupported: it would, with code for these architectures, such as "gfx90a".
/// What cannot be found out is no error.
Result<void> check_amd_gpus(const AmdGpus& gpus, std::span<const std::string> architectures);

}  // namespace llminfer::gpu
