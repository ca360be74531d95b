// The Backend interface over a Device, whichever it is.
#pragma once

#include <memory>

#include <llminfer/backend.hpp>
#include <llminfer/gpu.hpp>

#include "backends/gpu/device.hpp"

namespace llminfer::gpu {

/// `options`: but for the number of the device. Throws std::bad_alloc.
std::shared_ptr<Backend> make_backend(std::shared_ptr<Device> device, const GpuOptions& options);

}  // namespace llminfer::gpu
