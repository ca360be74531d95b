// The MXFP4 experts of gpt-oss.
#include <utility>

#include "core/error.hpp"
#include "load/packing.hpp"

namespace llminfer::load {

using core::fail;

/// Experts of gpt-oss: NAME_blocks [experts, rows, K / 32, 16], the lower nibble first, and NAME_scales [experts, rows,
/// K / 32]. They become a weight for each matrix: X.gate_up_proj, whose rows take turns, X.E.gate_proj.weight and
/// X.E.up_proj.weight, any other X.NAME X.E.NAME.weight.
Result<void> add_mxfp4(const core::Json&, Layers& layers) {
  const auto prefixes = layers.with("_blocks");
  if (prefixes.empty())
    return fail(ErrorCode::missing_tensor, "quantization_config says mxfp4, but no tensor is named *_blocks");
  const ModelConfig& config = layers.checkpoint().config;
  if (static_cast<std::int64_t>(prefixes.size()) > 2 * config.layers) {
    return fail(ErrorCode::corrupt, prefixes.size(), " tensors are named *_blocks, expected 2 in each of ",
                config.layers, " layers");
  }
  for (const std::string& prefix : prefixes) {
    const TensorInfo blocks = LLMINFER_TRY(layers.need(prefix + "_blocks", {ElementType::u8}, {-1, -1, -1, 16}));
    const std::vector<std::int64_t>& shape = blocks.shape;
    const TensorInfo scales =
        LLMINFER_TRY(layers.need(prefix + "_scales", {ElementType::u8}, {shape[0], shape[1], shape[2]}));
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
