// A checkpoint in memory with one small layer of each packing, for fuzzing settings against tensors.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "core/file.hpp"
#include "load/checkpoint.hpp"

namespace llminfer::fuzz {

inline load::Checkpoint packed_layers() {
  using enum load::ElementType;
  static const std::vector<std::byte> data(4096, std::byte{0x11});
  load::Checkpoint checkpoint;
  checkpoint.sources.push_back(core::memory_source("memory", data, nullptr));
  const auto add = [&](const char* name, load::ElementType element, std::uint64_t size,
                       std::vector<std::int64_t> shape) {
    load::TensorInfo tensor;
    tensor.name = name;
    tensor.element = element;
    tensor.shape = shape;
    tensor.cols = shape.back();
    std::uint64_t count = 1;
    for (const std::int64_t side : shape) count *= static_cast<std::uint64_t>(side);
    tensor.rows = static_cast<std::int64_t>(count) / tensor.cols;
    tensor.bytes = count * size;
    checkpoint.by_name.emplace(tensor.name, checkpoint.tensors.size());
    checkpoint.tensors.push_back(std::move(tensor));
  };
  add("g.qweight", i32, 4, {8, 8});  // GPTQ of 4 bits [8, 64], AWQ [64, 8]
  add("g.qzeros", i32, 4, {2, 1});
  add("g.scales", f16, 2, {2, 8});
  add("p.weight_packed", i32, 4, {8, 8});
  add("p.weight_scale", bf16, 2, {8, 2});
  add("p.weight_shape", i64, 8, {2});
  add("f.weight", f8_e4m3, 1, {8, 64});
  add("f.weight_scale", bf16, 2, {8, 1});
  add("f.weight_scale_inv", f32, 4, {1, 1});
  add("i.weight", i8, 1, {8, 64});
  add("i.weight_scale", bf16, 2, {8, 1});
  add("b.weight", i8, 1, {8, 64});
  add("b.SCB", f32, 4, {8});
  return checkpoint;
}

}  // namespace llminfer::fuzz
