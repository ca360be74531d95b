// The HIP backend. Link llminfer::hip; a program that does starts on any machine, with or without a GPU.
#pragma once

#include <memory>

#include <llminfer/backend.hpp>
#include <llminfer/gpu.hpp>

namespace llminfer::inline v0 {

/// A backend on one AMD GPU, for EngineOptions::custom_backend. It may serve several engines, of one thread at a time
/// each. Errors: no_device (no driver, no GPU, or none of that number), unsupported (the library holds no code for that
/// GPU), out_of_memory, device_error (what the runtime says).
LLMINFER_API Result<std::shared_ptr<Backend>> make_hip_backend(const GpuOptions& options = {});

}  // namespace llminfer::inline v0
