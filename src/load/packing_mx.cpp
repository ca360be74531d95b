// NVFP4, MXFP4, MXFP6 and MXFP8 as compressed-tensors and AutoRound store them. Inputs stay as precise as they are.
#include <utility>
#include <vector>

#include "core/error.hpp"
#include "load/packing.hpp"

namespace llminfer::load {

using core::fail;
using enum ElementType;

Result<void> add_packed_fp4(const std::string& prefix, Layers& layers) {
  const std::string global_name = prefix + ".weight_global_scale", scale_name = prefix + ".weight_scale";
  const bool nvfp4 = layers.find(global_name) != nullptr;
  NibbleLayer layer;
  layer.weight = LLMINFER_TRY(layers.need(prefix + ".weight_packed", {u8}, {-1, -1}));
  layer.rows = layer.weight.shape[0];
  layer.cols = layer.weight.shape[1] * 2;
  layer.per_scale = nvfp4 ? 16 : 32;
  if (layer.cols % layer.per_scale != 0) {
    return fail(ErrorCode::corrupt, "tensor ", layer.weight.name, " has rows of ", layer.cols,
                " values, expected a multiple of ", layer.per_scale);
  }
  const std::vector<std::int64_t> shape = {layer.rows, layer.cols / layer.per_scale};
  if (nvfp4) {
    const TensorInfo scales = LLMINFER_TRY(layers.need(scale_name, {f8_e4m3}, shape));
    const TensorInfo global = LLMINFER_TRY(layers.need(global_name, {f32}, {1}));
    layer.read_scales = [=](const Checkpoint& checkpoint) -> Result<std::vector<float>> {
      const float divisor = LLMINFER_TRY(read_floats(checkpoint, global))[0];
      if (!(divisor > 0)) {
        return fail(ErrorCode::corrupt, "tensor ", global.name, " is ", divisor, ", expected a positive number");
      }
      std::vector<float> values = LLMINFER_TRY(read_floats(checkpoint, scales));
      for (float& value : values) value /= divisor;
      return values;
    };
  } else {
    const TensorInfo scales = LLMINFER_TRY(layers.need(scale_name, {u8, f8_e8m0}, shape));
    layer.read_scales = [=](const Checkpoint& checkpoint) { return read_floats(checkpoint, scales); };
  }
  for (const char* part : {".weight_packed", ".weight_scale", ".weight_global_scale", ".input_global_scale"}) {
    layers.take(prefix + part);
  }
  return add_nibbles(prefix, nvfp4 ? WeightType::fp4_16 : WeightType::mxfp4, std::move(layer), layers);
}

Result<void> add_mxfp6(const std::string& prefix, Layers& layers) {
  ByteLayer layer;
  layer.e2m3 = true;
  layer.weight = LLMINFER_TRY(layers.need(prefix + ".weight_packed", {u8}, {-1, -1}));
  layer.rows = layer.weight.shape[0];
  layer.cols = layer.weight.shape[1] / 3 * 4;
  layer.block_cols = 32;
  if (layer.weight.shape[1] % 24 != 0) {
    return fail(ErrorCode::corrupt, "tensor ", layer.weight.name, " has rows of ", layer.weight.shape[1],
                " bytes, expected a multiple of 24, those of 32 values of 6 bits");
  }
  layer.scales = LLMINFER_TRY(layers.need(prefix + ".weight_scale", {u8, f8_e8m0}, {layer.rows, layer.cols / 32}));
  for (const char* part : {".weight_packed", ".weight_scale"}) layers.take(prefix + part);
  return add_bytes(prefix, std::move(layer), {}, layers);
}

Result<void> add_mxfp8(const std::string& prefix, Layers& layers) {
  ByteLayer layer;
  layer.weight = LLMINFER_TRY(layers.need(prefix + ".weight", {f8_e4m3}, {-1, -1}));
  layer.rows = layer.weight.shape[0];
  layer.cols = layer.weight.shape[1];
  layer.block_cols = 32;
  if (layer.cols % 32 != 0) {
    return fail(ErrorCode::corrupt, "tensor ", layer.weight.name, " has rows of ", layer.cols,
                " values, expected a multiple of 32");
  }
  layer.scales = LLMINFER_TRY(layers.need(prefix + ".weight_scale", {u8, f8_e8m0}, {layer.rows, layer.cols / 32}));
  for (const char* part : {".weight", ".weight_scale"}) layers.take(prefix + part);
  return add_bytes(prefix, std::move(layer), {}, layers);
}

}  // namespace llminfer::load
