// FP8 as transformers, DeepSeek, Qwen, AutoFP8 and FBGEMM write it: E4M3 weights with scales per block, row or tensor.
#include <utility>
#include <vector>

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
  bool powers = false;  ///< scales, those of inputs too, are powers of two
};

/// Whose names the tensors have.
struct Names {
  const char *scale, *input_scale;
};
constexpr Names kNames = {".weight_scale_inv", ".activation_scale"};
constexpr Names kAutoFp8Names = {".weight_scale", ".input_scale"};

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
  const std::string scales = LLMINFER_TRY(setting_text(settings, "scale_fmt", "float", kPlace));
  scheme.powers = scales == "ue8m0";
  if (!scheme.powers && scales != "float") {
    return fail(ErrorCode::unsupported, kPlace, ": \"scale_fmt\" is \"", scales, "\", expected float or ue8m0");
  }
  const std::string activations = LLMINFER_TRY(setting_text(settings, "activation_scheme", "none", kPlace));
  scheme.dynamic_inputs = activations == "dynamic";
  scheme.static_inputs = activations == "static";
  if (!scheme.dynamic_inputs && !scheme.static_inputs && activations != "none") {
    return fail(ErrorCode::unsupported, kPlace, ": \"activation_scheme\" is \"", activations,
                "\", expected dynamic or static");
  }
  return scheme;
}

/// [count, 1], [count] or, of a single one, [], whichever the tensor has.
std::vector<std::int64_t> scale_shape(const TensorInfo* tensor, std::int64_t count) {
  if (!tensor || tensor->shape.empty()) return {};
  if (tensor->shape.size() == 1) return {count};
  return {count, 1};
}

Result<void> add_layer(const std::string& prefix, const Scheme& scheme, const Names& names, Layers& layers) {
  ByteLayer layer;
  layer.weight = LLMINFER_TRY(layers.need(prefix + ".weight", {f8_e4m3}, {-1, -1}));
  layer.rows = layer.weight.shape[0];
  layer.cols = layer.weight.shape[1];
  layer.divide = scheme.divide;
  const std::string scale_name = prefix + names.scale;
  const TensorInfo* const found = layers.find(scale_name);
  std::vector<std::int64_t> shape;
  if (scheme.block_rows != 0) {
    layer.block_rows = scheme.block_rows;
    layer.block_cols = scheme.block_cols;
    shape = {(layer.rows + layer.block_rows - 1) / layer.block_rows,
             (layer.cols + layer.block_cols - 1) / layer.block_cols};
  } else {
    layer.block_cols = layer.cols;
    const bool one = found && found->rows * found->cols == 1;
    if (one) layer.block_rows = layer.rows;
    shape = scale_shape(found, one ? 1 : layer.rows);
  }
  layer.scales = LLMINFER_TRY(layers.need(scale_name, {f32, bf16, f16, f8_e8m0}, shape));
  InputQuantization input;
  if (scheme.dynamic_inputs) {
    input.kind = InputQuantization::Kind::fp8;
    input.group = static_cast<std::int32_t>(scheme.block_cols);
    input.powers = scheme.powers;
  }
  const std::string activation = prefix + names.input_scale;
  if (scheme.static_inputs) {
    const auto one = scale_shape(layers.find(activation), 1);
    input = LLMINFER_TRY(static_input(layers.checkpoint(), InputQuantization::Kind::fp8,
                                      LLMINFER_TRY(layers.need(activation, {f32, bf16, f16}, one)), nullptr));
  }
  for (const std::string& part : {layer.weight.name, scale_name, activation}) layers.take(part);
  return add_bytes(prefix, std::move(layer), input, layers);
}

}  // namespace

Result<void> add_fp8(const core::Json& settings, Layers& layers) {
  const Scheme scheme = LLMINFER_TRY(read_scheme(settings));
  std::size_t found = 0;
  for (const Names& names : {kNames, kAutoFp8Names}) {
    for (const std::string& prefix : layers.with(names.scale)) {
      LLMINFER_TRY(add_layer(prefix, scheme, names, layers));
      ++found;
    }
  }
  if (found > 0) return {};
  return fail(ErrorCode::missing_tensor, kPlace,
              " says fp8, but no tensor is named *.weight_scale_inv or *.weight_scale");
}

/// Rows of E4M3 with a scale each. Inputs, too, have a scale per token, which is bounded, so that a token with a few
/// large values keeps its small ones (The Llama 3 Herd of Models, arXiv:2407.21783, 6.2).
Result<void> add_fbgemm_fp8(const core::Json& settings, Layers& layers) {
  const double limit = LLMINFER_TRY(core::json_number(settings, "activation_scale_ub", kPlace)).value_or(1200.0);
  if (!(limit >= 1e-12 && limit <= 1e30)) {
    return fail(ErrorCode::corrupt, kPlace, ": \"activation_scale_ub\" is ", limit, ", expected 1e-12 … 1e30");
  }
  InputQuantization input;
  input.kind = InputQuantization::Kind::fp8;
  input.limit = static_cast<float>(limit);
  const auto prefixes = layers.with(".weight_scale");
  if (prefixes.empty()) {
    return fail(ErrorCode::missing_tensor, kPlace, " says fbgemm_fp8, but no tensor is named *.weight_scale");
  }
  for (const std::string& prefix : prefixes) {
    ByteLayer layer;
    layer.weight = LLMINFER_TRY(layers.need(prefix + ".weight", {f8_e4m3}, {-1, -1}));
    layer.rows = layer.weight.shape[0];
    layer.block_cols = layer.cols = layer.weight.shape[1];
    layer.scales = LLMINFER_TRY(layers.need(prefix + ".weight_scale", {f32, bf16, f16}, {layer.rows, 1}));
    // A copy of the setting, which some files have and transformers overwrites.
    for (const char* part : {".weight", ".weight_scale", ".input_scale_ub"}) layers.take(prefix + part);
    LLMINFER_TRY(add_bytes(prefix, std::move(layer), input, layers));
  }
  return {};
}

}  // namespace llminfer::load
