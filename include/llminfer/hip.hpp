// The HIP backend. Link llminfer::hip; a program that does starts on any machine that has ROCm's runtime (libamdhip64),
// with or without a GPU.
#pragma once

#include <memory>

#include <llminfer/backend.hpp>
#include <llminfer/gpu.hpp>

namespace llminfer::inline v0 {

/// A backend on one AMD GPU, for EngineOptions::custom_backend. One engine at a time uses it; engines that share a
/// GPU have a backend each. Errors: invalid_argument (threads < 0), no_device (no driver, no GPU, or none of that
/// number), unsupported (the library holds no code for that GPU), out_of_memory, device_error (what the runtime says).
///
/// A device_error from a kernel is the end of the process's context on that GPU: all later calls to it fail, those of
/// other engines and of the host's own code too, until the process ends. Engines on the CPU go on.
LLMINFER_API Result<std::shared_ptr<Backend>> make_hip_backend(const GpuOptions& options = {});

}  // namespace llminfer::inline v0
