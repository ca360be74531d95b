// Drivers whose weights are streamed, for tests.
#pragma once

#include <cstdlib>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "tests/cpu/model.hpp"
#include "tests/gpu/machines.hpp"
#include "tests/memory_storage.hpp"

namespace llminfer::test {

/// The layer in a name such as blk.3.wq, or -1.
inline std::int32_t layer_of(const std::string& name) {
  return name.starts_with("blk.") ? std::atoi(name.c_str() + 4) : -1;
}

/// Each layer that `chosen` takes is a group; all its weights are streamed.
inline std::vector<std::int32_t> groups_of(const Program& program, const std::function<bool(std::int32_t)>& chosen) {
  std::vector<std::int32_t> groups;
  for (const WeightSpec& weight : program.weights) {
    const std::int32_t layer = layer_of(weight.name);
    groups.push_back(layer >= 0 && chosen(layer) ? layer : -1);
  }
  return groups;
}

/// The layers of which streamed weights lie in a storage.
struct Stored {
  std::shared_ptr<MemoryStorage> storage{};
  std::function<bool(std::int32_t)> has = [](std::int32_t) { return true; };
};

inline Result<std::unique_ptr<Plan>> compile_streamed(const Model& model, Backend& backend,
                                                      std::vector<std::int32_t> groups, std::int32_t max_rows = 256,
                                                      const Stored& stored = {}) {
  std::vector<std::shared_ptr<const PreparedWeight>> weights;
  std::int64_t offset = 0;
  for (std::size_t i = 0; i < model.types.size(); ++i) {
    const WeightView view = model.view(i);
    const bool in_storage = stored.storage && stored.has(layer_of(model.program.weights[i].name));
    auto weight = groups[i] < 0 ? backend.prepare(view)
                  : in_storage  ? backend.prepare_streamed_in(stored.storage, offset, view)
                                : backend.prepare_streamed(view);
    if (!weight) return std::move(weight).error();
    if (groups[i] >= 0 && in_storage) offset += (*weight)->bytes();
    weights.push_back(std::move(*weight));
  }
  return backend.compile(model.program, std::move(weights), {max_rows, {}, std::move(groups)});
}

/// A driver of that model; its plan streams these groups.
inline Driver streamed_driver(const Model& model, std::shared_ptr<Backend> backend, std::vector<std::int32_t> groups,
                              const Stored& stored = {}) {
  Driver driver(model, std::move(backend), CacheType::f16);
  driver.plan = nullptr;
  driver.plan = compile_streamed(model, *driver.backend, std::move(groups), 256, stored).value();
  return driver;
}

}  // namespace llminfer::test
