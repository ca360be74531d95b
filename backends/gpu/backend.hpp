// The Backend interface over a Device, whichever it is.
#pragma once

#include <memory>

#include <llminfer/backend.hpp>

#include "backends/gpu/device.hpp"

namespace llminfer::gpu {

/// Throws std::bad_alloc.
std::shared_ptr<Backend> make_backend(std::shared_ptr<Device> device, bool batch_invariant);

}  // namespace llminfer::gpu
