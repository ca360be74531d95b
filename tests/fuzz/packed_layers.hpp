// Checkpoints in memory with a small layer of one packing each, for fuzzing settings and tensors against each other.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "core/file.hpp"
#include "load/checkpoint.hpp"
#include "load/packing.hpp"
#include "quant/traits_w.hpp"

namespace llminfer::fuzz {

class PackedLayer {
 public:
  /// Its bytes are `content`, repeated.
  PackedLayer& add(const char* name, load::ElementType element, std::vector<std::int64_t> shape,
                   std::string_view content = "\x11") {
    tensors_.push_back({name, element, std::move(shape), std::string(content)});
    return *this;
  }
  template <class T>
  PackedLayer& add_numbers(const char* name, load::ElementType element, std::vector<std::int64_t> shape,
                           const std::vector<T>& numbers) {
    return add(name, element, std::move(shape),
               {reinterpret_cast<const char*>(numbers.data()), numbers.size() * sizeof(T)});
  }
  PackedLayer& with_experts(std::int32_t experts) {
    experts_ = experts;
    return *this;
  }
  /// Changes tensors as `bytes` say, five for each change: a type, a side, bytes at the begin, or that there is none.
  void edit(std::string_view bytes) {
    for (; bytes.size() >= 5 && !tensors_.empty(); bytes.remove_prefix(5)) {
      const auto at = [&](std::size_t i) { return static_cast<std::uint8_t>(bytes[i]); };
      Tensor& tensor = tensors_[at(0) % tensors_.size()];
      switch (at(1) % 4) {
        case 0:
          tensor.element = static_cast<load::ElementType>(at(2) % (static_cast<int>(load::ElementType::i16) + 1));
          break;
        case 1:
          if (!tensor.shape.empty()) tensor.shape[at(2) % tensor.shape.size()] = at(3);
          break;
        case 2:
          tensor.content.replace(0, std::min<std::size_t>(tensor.content.size(), 3), bytes.substr(2, 3));
          break;
        default:
          if (at(2) == 0) tensors_.erase(tensors_.begin() + at(0) % static_cast<long>(tensors_.size()));
      }
    }
  }
  load::Checkpoint checkpoint() const {
    load::Checkpoint checkpoint;
    auto data = std::make_shared<std::vector<std::byte>>();
    for (const Tensor& from : tensors_) {
      load::TensorInfo tensor;
      tensor.name = from.name;
      tensor.element = from.element;
      tensor.shape = from.shape;
      tensor.cols = from.shape.empty() ? 1 : from.shape.back();
      std::uint64_t count = 1;
      for (const std::int64_t side : from.shape) count *= static_cast<std::uint64_t>(side);
      if (count == 0 || count > 1 << 16) continue;  // no file has the one; the other takes long
      tensor.rows = static_cast<std::int64_t>(count) / tensor.cols;
      tensor.offset = data->size();
      tensor.bytes = count * load::bytes_of(tensor.element);
      for (std::uint64_t i = 0; i < tensor.bytes; ++i) {
        data->push_back(static_cast<std::byte>(from.content[i % from.content.size()]));
      }
      checkpoint.by_name.emplace(tensor.name, checkpoint.tensors.size());
      checkpoint.tensors.push_back(std::move(tensor));
    }
    checkpoint.sources.push_back(core::memory_source("memory", *data, data));
    checkpoint.config.layers = experts_ > 0 ? 1 : 0;
    checkpoint.config.experts = experts_;
    return checkpoint;
  }

 private:
  struct Tensor {
    std::string name;
    load::ElementType element;
    std::vector<std::int64_t> shape;
    std::string content;
  };
  std::vector<Tensor> tensors_;
  std::int32_t experts_ = 0;
};

/// Most are [8, 64] in groups of 32.
inline const std::vector<PackedLayer>& packed_layers() {
  using enum load::ElementType;
  using Sides = std::vector<std::int64_t>;
  static const std::vector<PackedLayer> layers = [] {
    std::vector<PackedLayer> all;
    const auto put = [&](PackedLayer& layer) { all.push_back(std::move(layer)); };
    const Sides sides = {8, 64};
    const std::string_view state = R"({"blocksize": 64, "shape": [8, 64]})";
    const auto length = static_cast<std::int64_t>(state.size());
    const std::vector<float> nf4(std::begin(quant::kNf4Values), std::end(quant::kNf4Values));
    const std::vector<float> fp4(std::begin(quant::kFp4Values), std::end(quant::kFp4Values));
    put(PackedLayer().add("x.qweight", i32, {8, 8}).add("x.qzeros", i32, {2, 1}).add("x.scales", f16, {2, 8}));
    put(PackedLayer().add("x.qweight", i32, {64, 1}).add("x.qzeros", i32, {2, 1}).add("x.scales", f16, {2, 8}));
    put(PackedLayer().add("x.qweight", i32, {8, 8}).add("x.qzeros", i32, {8, 4}).add("x.scales", f16, {8, 32}));
    put(PackedLayer().add("x.B", i32, {4, 128}).add("x.s", f16, {1, 64}));
    put(PackedLayer().add("x.qweight", i32, {4, 128}).add("x.scales", f16, {2, 64}));
    put(PackedLayer()
            .add("x.weight_packed", i32, {8, 8})
            .add("x.weight_scale", bf16, {8, 2})
            .add_numbers("x.weight_shape", i64, {2}, sides)
            .add("x.weight_zero_point", i32, {1, 2})
            .add("x.weight_g_idx", i32, {64}, std::string_view("\0\0\0\0\1\0\0\0", 8)));
    put(PackedLayer()
            .add("x.weight_packed", u8, {8, 32})
            .add("x.weight_scale", f8_e4m3, {8, 4})
            .add("x.weight_global_scale", f32, {1}));
    put(PackedLayer().add("x.weight_packed", u8, {8, 32}).add("x.weight_scale", u8, {8, 2}));
    put(PackedLayer()
            .add("x.weight_packed", i32, {2, 128})
            .add("x.scale_packed", f16, {1, 64})
            .add("x.meta", i16, {2, 128}, "\x44"));
    put(PackedLayer()
            .add("x.weight", i8, {8, 64})
            .add("x.weight_scale", bf16, {8, 1})
            .add("x.input_scale", bf16, {1})
            .add("x.input_zero_point", i8, {1}));
    put(PackedLayer()
            .add("x.weight", i8, {8, 64})
            .add("x.weight_scale", bf16, {8, 1})
            .add("x.weight_zero_point", i8, {8, 1}));
    put(PackedLayer().add("x.weight_packed", u8, {8, 48}).add("x.weight_scale", u8, {8, 2}));
    put(PackedLayer().add("x.weight", f8_e4m3, {8, 64}).add("x.weight_scale", bf16, {8, 1}));
    put(PackedLayer().add("x.weight", f8_e4m3, {8, 64}).add("x.weight_scale_inv", f8_e8m0, {1, 1}));
    put(PackedLayer()
            .add("x.up_proj.weight", u8, {16, 64})
            .add("x.up_proj.weight_scale", f32, {32, 2})
            .add("x.down_proj.weight", u8, {4, 32})
            .add("x.down_proj.weight_scale", f32, {8, 1})
            .add("x.down_proj.pre_quant_scale", bf16, {32}));
    put(PackedLayer()
            .add("x.weight", u8, {8, 32})
            .add("x.weight_scale", f8_e4m3, {8, 4})
            .add("x.weight_scale_2", f32, {})
            .add("x.pre_quant_scale", bf16, {64}));
    put(PackedLayer().add("x.weight", f8_e4m3, {8, 64}).add("x.weight_scale", f32, {}).add("x.input_scale", f32, {}));
    put(PackedLayer()
            .add("x.compressed", i8, {128})
            .add("x.bitmask", u8, {8, 8})
            .add_numbers("x.shape", i64, {2}, sides)
            .add("x.weight_scale", bf16, {8, 1}));
    put(PackedLayer()
            .add("x.compressed", bf16, {8, 32})
            .add("x.bitmask", u8, {8, 8}, "\x55")
            .add_numbers("x.shape", i64, {2, 1}, sides));
    put(PackedLayer().add("x.weight", i8, {8, 64}).add("x.SCB", f32, {8}));
    put(PackedLayer()
            .add("x.weight", u8, {256, 1})
            .add("x.weight.absmax", f32, {8})
            .add("x.weight.quant_state.bitsandbytes__nf4", u8, {length}, state)
            .add_numbers("x.weight.quant_map", f32, {16}, nf4));
    put(PackedLayer()
            .add("x.weight", bf16, {128, 1})
            .add("x.weight.absmax", f32, {8})
            .add("x.weight.quant_state.bitsandbytes__fp4", u8, {length}, state)
            .add_numbers("x.weight.quant_map", f32, {16}, fp4));
    put(PackedLayer().add("x.weight", f8_e4m3, {8, 64}).add("x.weight_scale", u8, {8, 2}));
    const auto scalar = [](std::int32_t value) { return std::vector{value}; };
    put(PackedLayer()
            .add("mlp.up_proj.W_q", u8, {8, 32})
            .add("mlp.up_proj.scale", f32, {16, 1})
            .add("mlp.up_proj.zero", f32, {16, 1})
            .add_numbers("mlp.up_proj.nbits", i32, {}, scalar(4))
            .add_numbers("mlp.up_proj.group_size", i32, {}, scalar(32))
            .add_numbers("mlp.up_proj.axis", i32, {}, scalar(1))
            .add_numbers("mlp.up_proj.shape", i64, {2}, sides)
            .add("mlp.up_proj.packing", u8, {7}, "4bit_u8"));
    PackedLayer experts;
    experts.add("experts.gate_up_proj_blocks", u8, {2, 4, 2, 16}).add("experts.gate_up_proj_scales", u8, {2, 4, 2});
    experts.add("experts.down_proj_blocks", u8, {2, 3, 1, 16}).add("experts.down_proj_scales", u8, {2, 3, 1});
    put(experts.with_experts(2));
    return all;
  }();
  return layers;
}

}  // namespace llminfer::fuzz
