// Runs a list of steps by one kernel, for tests of kernels.
#pragma once

#include <cstring>
#include <memory>

#include "backends/gpu/device.hpp"
#include "backends/gpu/step_list.hpp"

namespace llminfer::test {

inline void run_steps(const std::shared_ptr<gpu::Device>& device, const gpu::StepList& list) {
  const auto bytes = static_cast<std::int64_t>(list.steps().size() * sizeof(gpu::PersistentStep));
  const gpu::Buffer steps = gpu::Buffer::make(device, bytes).value(), barrier = gpu::Buffer::make(device, 4).value();
  device->copy(steps.at(), list.steps().data(), bytes).value();
  device->clear(barrier.at(), barrier.bytes()).value();
  const gpu::PersistentArgs args{steps.at<gpu::PersistentStep>(), static_cast<int>(list.steps().size()),
                                 device->info().resident_blocks, barrier.at<std::uint32_t>()};
  const gpu::Current current(*device);
  device->check(device->kernels().persistent(device->stream(), args), "persistent").value();
  device->wait().value();
}

}  // namespace llminfer::test
