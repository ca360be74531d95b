// FP8 as transformers, DeepSeek and Qwen write it: E4M3 weights with scales per block, row or tensor.
#include <utility>

#include "core/error.hpp"
#include "load/packing.hpp"

namespace llminfer::load {
namespace {

using core::fail;
using enum ElementType;

constexpr const char* kPlace = "quantization_config";

struct Scheme {
  std::int64_t block_rows = 0, block_cols = 0;  ///< 0: not said
  bool divide = false;
  bool dynamic_inputs = false, static_inputs = false;
};

Result<Scheme> read_scheme(const core::Json& settings) {
  Scheme scheme;
  if (const core::Json* block = settings.find("weight_block_size"); block && !block->is_null()) {
    const auto side = [&](std::size_t i) {
      const std::int64_t value = block->array()[i].integer().value_or(0);
      return value <= 1 << 20 ? value : 0;
    };
    if (!block->is_array() || block->size() != 2 || side(0) < 1 || side(1) < 1) {
      return fail(ErrorCode::corrupt, kPlace, ": \"weight_block_size\" must be two positive numbers");
    }
    scheme.block_rows = side(0);
    scheme.block_cols = side(1);
  }
  const std::string format = LLMINFER_TRY(setting_text(settings, "fmt", "e4m3", kPlace));
  if (format != "e4m3") return fail(ErrorCode::unsupported, kPlace, ": \"fmt\" is \"", format, "\", expected e4m3");
  // The same tensor name stands for a factor (transformers, DeepSeek) and for a divisor (GPTQModel).
  const std::string semantics = LLMINFER_TRY(setting_text(settings, "weight_scale_semantics", "", kPlace));
  if (!semantics.empty() && semantics != "inverse") {
    return fail(ErrorCode::unsupported, kPlace, ": \"weight_scale_semantics\" is \"", semantics,
                "\", expected inverse");
  }
  scheme.divide = semantics == "inverse";
  const std::string activations = LLMINFER_TRY(setting_text(settings, "activation_scheme", "none", kPlace));
  scheme.dynamic_inputs = activations == "dynamic";
  scheme.static_inputs = activations == "static";
  if (!scheme.dynamic_inputs && !scheme.static_inputs && activations != "none") {
    return fail(ErrorCode::unsupported, kPlace, ": \"activation_scheme\" is \"", activations,
                "\", expected dynamic or static");
  }
  return scheme;
}

Result<void> add_layer(const std::string& prefix, const Scheme& scheme, Layers& layers) {
  ByteLayer layer;
  layer.weight = LLMINFER_TRY(layers.need(prefix + ".weight", {f8_e4m3}, {-1, -1}));
  layer.rows = layer.weight.shape[0];
  layer.cols = layer.weight.shape[1];
  layer.divide = scheme.divide;
  const std::string scale_name = prefix + ".weight_scale_inv";
  const TensorInfo* const found = layers.find(scale_name);
  const std::size_t sides = found ? found->shape.size() : 0;
  if (scheme.block_rows != 0) {
    layer.block_rows = scheme.block_rows;
    layer.block_cols = scheme.block_cols;
    layer.scales = LLMINFER_TRY(layers.need(scale_name, {f32, bf16, f16},
                                            {(layer.rows + layer.block_rows - 1) / layer.block_rows,
                                             (layer.cols + layer.block_cols - 1) / layer.block_cols}));
  } else {
    layer.block_cols = layer.cols;
    const bool one = found && found->rows * found->cols == 1;
    const std::int64_t count = one ? 1 : layer.rows;
    if (one) layer.block_rows = layer.rows;
    const std::vector<std::int64_t> shape = sides == 0   ? std::vector<std::int64_t>{}
                                            : sides == 1 ? std::vector<std::int64_t>{count}
                                                         : std::vector<std::int64_t>{count, 1};
    layer.scales = LLMINFER_TRY(layers.need(scale_name, {f32, bf16, f16}, shape));
  }
  InputQuantization input;
  if (scheme.dynamic_inputs) {
    input.kind = InputQuantization::Kind::fp8;
    input.group = static_cast<std::int32_t>(scheme.block_cols);
  }
  const std::string activation = prefix + ".activation_scale";
  if (scheme.static_inputs) {
    const TensorInfo* tensor = layers.find(activation);
    const auto shape = tensor && tensor->shape.empty() ? std::vector<std::int64_t>{} : std::vector<std::int64_t>{1};
    input = LLMINFER_TRY(static_input(layers.checkpoint(), InputQuantization::Kind::fp8,
                                      LLMINFER_TRY(layers.need(activation, {f32, bf16, f16}, shape)), nullptr));
    layers.take(activation);
  }
  layers.take(layer.weight.name);
  layers.take(scale_name);
  return add_bytes(prefix, std::move(layer), input, layers);
}

}  // namespace

Result<void> add_fp8(const core::Json& settings, Layers& layers) {
  const Scheme scheme = LLMINFER_TRY(read_scheme(settings));
  const auto prefixes = layers.with(".weight_scale_inv");
  if (prefixes.empty()) {
    return fail(ErrorCode::missing_tensor, kPlace, " says fp8, but no tensor is named *.weight_scale_inv");
  }
  for (const std::string& prefix : prefixes) LLMINFER_TRY(add_layer(prefix, scheme, layers));
  return {};
}

}  // namespace llminfer::load
