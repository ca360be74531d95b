// NVIDIA ModelOpt (FP8, NVFP4, MXFP4) and the MXFP4 experts of GPT-OSS.
#include <optional>
#include <utility>

#include "core/error.hpp"
#include "load/packing.hpp"

namespace llminfer::load {
namespace {

using core::fail;
using enum ElementType;

constexpr const char* kPlace = "quantization_config";

/// A tensor of one number: [] or [1].
Result<TensorInfo> need_scalar(const std::string& name, const Layers& layers) {
  const TensorInfo* tensor = layers.find(name);
  const bool bare = tensor && tensor->shape.empty();
  return layers.need(name, {f32}, bare ? std::vector<std::int64_t>{} : std::vector<std::int64_t>{1});
}

Result<void> add_fp8_layer(const std::string& prefix, Layers& layers) {
  ByteLayer layer;
  layer.weight = LLMINFER_TRY(layers.need(prefix + ".weight", {f8_e4m3}, {-1, -1}));
  layer.block_rows = layer.rows = layer.weight.shape[0];
  layer.block_cols = layer.cols = layer.weight.shape[1];
  layer.scales = LLMINFER_TRY(need_scalar(prefix + ".weight_scale", layers));
  InputQuantization input;
  const std::string input_scale = prefix + ".input_scale";
  if (layers.find(input_scale)) {
    input = LLMINFER_TRY(static_input(layers.checkpoint(), InputQuantization::Kind::fp8,
                                      LLMINFER_TRY(need_scalar(input_scale, layers)), nullptr));
  }
  for (const std::string& part : {layer.weight.name, layer.scales.name, input_scale}) layers.take(part);
  return add_bytes(prefix, std::move(layer), input, layers);
}

/// Weights of E2M1 under E4M3 scales per 16, under one float (NVFP4), or under powers of two per 32 (MXFP4). Inputs
/// stay as precise as they are: rounding them to 4 bits, as the hardware for these does, serves speed only.
Result<void> add_fp4_layer(const std::string& prefix, bool nvfp4, Layers& layers) {
  NibbleLayer layer;
  layer.weight = LLMINFER_TRY(layers.need(prefix + ".weight", {u8}, {-1, -1}));
  layer.rows = layer.weight.shape[0];
  layer.cols = layer.weight.shape[1] * 2;
  layer.per_scale = nvfp4 ? 16 : 32;
  if (layer.cols % layer.per_scale != 0) {
    return fail(ErrorCode::corrupt, "tensor ", layer.weight.name, " has rows of ", layer.cols,
                " values, expected a multiple of ", layer.per_scale);
  }
  const std::string scale_name = prefix + ".weight_scale";
  const std::vector<std::int64_t> shape = {layer.rows, layer.cols / layer.per_scale};
  const TensorInfo scales = LLMINFER_TRY(nvfp4 ? layers.need(scale_name, {f8_e4m3}, shape)
                                               : layers.need(scale_name, {u8, f8_e8m0}, shape));
  std::optional<TensorInfo> factor;
  if (nvfp4) factor = LLMINFER_TRY(need_scalar(prefix + ".weight_scale_2", layers));
  layer.read_scales = [=](const Checkpoint& checkpoint) -> Result<std::vector<float>> {
    std::vector<float> values = LLMINFER_TRY(read_floats(checkpoint, scales));
    if (!factor) return values;
    const float shared = LLMINFER_TRY(read_floats(checkpoint, *factor))[0];
    for (float& value : values) value *= shared;
    return values;
  };
  for (const char* part : {".weight", ".weight_scale", ".weight_scale_2", ".input_scale"}) layers.take(prefix + part);
  return add_nibbles(prefix, nvfp4 ? WeightType::fp4_16 : WeightType::mxfp4, std::move(layer), layers);
}

}  // namespace

Result<void> add_modelopt(const core::Json& settings, Layers& layers) {
  const std::string algorithm = LLMINFER_TRY(setting_text(settings, "quant_algo", "", kPlace));
  const bool fp8 = algorithm == "FP8", nvfp4 = algorithm == "NVFP4" || algorithm == "W4A16_NVFP4";
  if (!fp8 && !nvfp4 && algorithm != "mxfp4" && algorithm != "MXFP4") {
    return fail(ErrorCode::unsupported, kPlace, ": \"quant_algo\" is \"", algorithm,
                "\", expected FP8, NVFP4, W4A16_NVFP4 or mxfp4");
  }
  if (const auto prefixes = layers.with(".pre_quant_scale"); !prefixes.empty()) {
    return fail(ErrorCode::unsupported, "tensor ", prefixes.front(), ".pre_quant_scale: inputs with factors");
  }
  const std::int64_t own_size = fp8 ? 0 : nvfp4 ? 16 : 32;
  if (const auto size = LLMINFER_TRY(setting_int(settings, "group_size", own_size, kPlace)); size != own_size) {
    return fail(fp8 ? ErrorCode::unsupported : ErrorCode::corrupt, kPlace, ": ", algorithm, " with \"group_size\" ",
                size, ", expected ", own_size);
  }
  const char* const mark = nvfp4 ? ".weight_scale_2" : ".weight_scale";
  const auto prefixes = layers.with(mark);
  if (prefixes.empty()) {
    return fail(ErrorCode::missing_tensor, kPlace, " says ", algorithm, ", but no tensor is named *", mark);
  }
  for (const std::string& prefix : prefixes) {
    LLMINFER_TRY(fp8 ? add_fp8_layer(prefix, layers) : add_fp4_layer(prefix, nvfp4, layers));
  }
  return {};
}

/// Experts of gpt-oss: NAME_blocks [experts, rows, K / 32, 16], the lower nibble first, and NAME_scales [experts, rows,
/// K / 32]. They become a weight for each matrix: X.gate_up_proj, whose rows take turns, X.E.gate_proj.weight and
/// X.E.up_proj.weight, any other X.NAME X.E.NAME.weight.
Result<void> add_mxfp4(const core::Json&, Layers& layers) {
  const auto prefixes = layers.with("_blocks");
  if (prefixes.empty()) return fail(ErrorCode::missing_tensor, kPlace, " says mxfp4, but no tensor is named *_blocks");
  const ModelConfig& config = layers.checkpoint().config;
  if (static_cast<std::int64_t>(prefixes.size()) > 2 * config.layers) {
    return fail(ErrorCode::corrupt, prefixes.size(), " tensors are named *_blocks, expected 2 in each of ",
                config.layers, " layers");
  }
  for (const std::string& prefix : prefixes) {
    const TensorInfo blocks = LLMINFER_TRY(layers.need(prefix + "_blocks", {u8}, {-1, -1, -1, 16}));
    const std::vector<std::int64_t>& shape = blocks.shape;
    const TensorInfo scales = LLMINFER_TRY(layers.need(prefix + "_scales", {u8}, {shape[0], shape[1], shape[2]}));
    layers.take(blocks.name);
    layers.take(scales.name);
    const std::size_t dot = prefix.rfind('.') + 1;  // 0 where there is none
    const std::string name = prefix.substr(dot);
    const bool both = name == "gate_up_proj";
    if (shape[0] != config.experts) {
      return fail(ErrorCode::shape_mismatch, "tensor ", blocks.name, " has ", shape[0], " experts, expected ",
                  config.experts);
    }
    if (both && shape[1] % 2 != 0) {
      return fail(ErrorCode::shape_mismatch, "tensor ", blocks.name, " has ", shape[1],
                  " rows, expected an even number, those of gate and up");
    }
    for (std::int64_t e = 0; e < shape[0]; ++e) {
      for (std::int64_t part = 0; part < (both ? 2 : 1); ++part) {
        NibbleLayer layer;
        layer.weight = piece_of(blocks, e, shape[0]);
        layer.row_step = both ? 2 : 1;
        layer.first_row = part;
        layer.rows = shape[1] / layer.row_step;
        layer.cols = shape[2] * 32;
        layer.per_scale = 32;
        layer.read_scales = [of_expert = piece_of(scales, e, shape[0])](const Checkpoint& checkpoint) {
          return read_floats(checkpoint, of_expert);
        };
        const std::string matrix = !both ? name : part == 0 ? "gate_proj" : "up_proj";
        const std::string expert = prefix.substr(0, dot) + std::to_string(e) + "." + matrix;
        LLMINFER_TRY(add_nibbles(expert, WeightType::mxfp4, std::move(layer), layers));
      }
    }
  }
  return {};
}

}  // namespace llminfer::load
