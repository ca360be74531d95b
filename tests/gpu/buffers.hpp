// Random values, and a device's memory made of values. For tests.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <random>
#include <vector>

#include "backends/gpu/device.hpp"

namespace llminfer::test {

/// A buffer of the device that holds these values.
template <class T>
gpu::Buffer to_device(const std::shared_ptr<gpu::Device>& device, const std::vector<T>& values) {
  gpu::Buffer buffer = gpu::Buffer::make(device, static_cast<std::int64_t>(values.size() * sizeof(T))).value();
  if (values.empty()) return buffer;
  device->copy(buffer.at(), values.data(), buffer.bytes()).value();
  device->wait().value();
  return buffer;
}

/// The values that a buffer holds.
template <class T = float>
std::vector<T> to_host(const std::shared_ptr<gpu::Device>& device, const gpu::Buffer& buffer) {
  std::vector<T> values(static_cast<std::size_t>(buffer.bytes()) / sizeof(T));
  device->copy(values.data(), buffer.at(), buffer.bytes()).value();
  device->wait().value();
  return values;
}

inline std::vector<float> random_floats(std::size_t count, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(count);
  for (float& x : values) x = normal(random);
  return values;
}

}  // namespace llminfer::test
