// bitsandbytes: NF4 and FP4 in blocks with or without quantized scales (QLoRA, Dettmers et al. 2023, arXiv:2305.14314),
// and LLM.int8() (Dettmers et al. 2022, arXiv:2208.07339).
#include <algorithm>
#include <iterator>
#include <string_view>
#include <utility>

#include "core/error.hpp"
#include "load/packing.hpp"
#include "quant/traits_w.hpp"

namespace llminfer::load {
namespace {

using core::fail;
using enum ElementType;

/// The JSON text of X.weight.quant_state.bitsandbytes__TYPE.
struct QuantState {
  std::int64_t rows = 0, cols = 0, block = 0;
  std::int64_t nested_block = 0;  ///< 0: scales are floats
  float nested_offset = 0;
};

Result<QuantState> read_state(const Checkpoint& checkpoint, const TensorInfo& tensor) {
  const core::Bytes bytes = LLMINFER_TRY(read_bytes(checkpoint, tensor));
  const std::string_view text(reinterpret_cast<const char*>(bytes.data.data()), bytes.data.size());
  const core::Json json = LLMINFER_TRY(core::parse_json(text, tensor.name));
  if (!json.is_object()) return fail(ErrorCode::corrupt, "tensor ", tensor.name, ": not a JSON object");
  const auto bounded = [&](const core::Json& value, std::int64_t max) {
    const std::int64_t number = value.integer().value_or(0);
    return number >= 1 && number <= max ? number : 0;
  };
  QuantState state;
  if (const core::Json* shape = json.find("shape"); shape && shape->is_array() && shape->size() == 2) {
    state.rows = bounded(shape->array()[0], INT32_MAX);
    state.cols = bounded(shape->array()[1], INT32_MAX);
  }
  if (const core::Json* block = json.find("blocksize")) state.block = bounded(*block, 1 << 20);
  if (const core::Json* block = json.find("nested_blocksize")) {
    state.nested_block = bounded(*block, 1 << 20);
    const double offset = LLMINFER_TRY(core::json_number(json, "nested_offset", tensor.name)).value_or(0);
    state.nested_offset = static_cast<float>(offset);
    if (state.nested_block == 0) return fail(ErrorCode::corrupt, "tensor ", tensor.name, ": \"nested_blocksize\"");
  }
  if (state.rows == 0 || state.cols == 0 || state.block == 0 || state.block % 32 != 0) {
    return fail(ErrorCode::corrupt, "tensor ", tensor.name,
                ": expected a \"shape\" of two sides and a \"blocksize\" that is a multiple of 32");
  }
  return state;
}

Result<void> check_table(const Checkpoint& checkpoint, const TensorInfo& tensor, const float (&expected)[16]) {
  const std::vector<float> table = LLMINFER_TRY(read_floats(checkpoint, tensor));
  for (std::size_t i = 0; i < 16; ++i) {
    if (table[i] == expected[i]) continue;
    return fail(ErrorCode::unsupported, "tensor ", tensor.name, ": entry ", i, " is ", table[i], ", expected ",
                expected[i], "; other tables are not supported");
  }
  return {};
}

/// The codes' bytes may be called elements of another type ("bnb_4bit_quant_storage"), as FSDP asks for.
Result<void> add_4bit(const std::string& prefix, bool nf4, Layers& layers) {
  const std::string weight = prefix + ".weight";
  const std::string state_name = weight + ".quant_state.bitsandbytes__" + (nf4 ? "nf4" : "fp4");
  const QuantState state =
      LLMINFER_TRY(read_state(layers.checkpoint(), LLMINFER_TRY(layers.need(state_name, {u8}, {-1}))));
  NibbleLayer layer;
  layer.rows = state.rows;
  layer.cols = state.cols;
  layer.per_scale = state.block;
  layer.high_first = true;
  const std::int64_t values = state.rows * state.cols;
  layer.weight = LLMINFER_TRY(layers.need(weight, {u8, i8, bf16, f16, f32}, {-1, 1}));
  if (layer.weight.bytes != static_cast<std::uint64_t>((values + 1) / 2)) {
    return fail(ErrorCode::shape_mismatch, "tensor ", weight, " has ", layer.weight.bytes, " bytes, expected ",
                (values + 1) / 2, " for [", state.rows, ", ", state.cols, "]");
  }
  const TensorInfo map = LLMINFER_TRY(layers.need(weight + ".quant_map", {f32}, {16}));
  LLMINFER_TRY(check_table(layers.checkpoint(), map, nf4 ? quant::kNf4Values : quant::kFp4Values));
  const std::int64_t scales = (values + state.block - 1) / state.block;
  layers.take(weight);
  layers.take(state_name);
  for (const char* part : {".quant_map", ".absmax", ".nested_absmax", ".nested_quant_map"}) layers.take(weight + part);
  if (state.nested_block == 0) {
    const TensorInfo absmax = LLMINFER_TRY(layers.need(weight + ".absmax", {f32}, {scales}));
    layer.read_scales = [absmax](const Checkpoint& checkpoint) { return read_floats(checkpoint, absmax); };
  } else {
    const TensorInfo codes = LLMINFER_TRY(layers.need(weight + ".absmax", {u8}, {scales}));
    const TensorInfo table = LLMINFER_TRY(layers.need(weight + ".nested_quant_map", {f32}, {256}));
    const std::int64_t count = (scales + state.nested_block - 1) / state.nested_block;
    const TensorInfo nested = LLMINFER_TRY(layers.need(weight + ".nested_absmax", {f32}, {count}));
    layer.read_scales = [=](const Checkpoint& checkpoint) -> Result<std::vector<float>> {
      const core::Bytes bytes = LLMINFER_TRY(read_bytes(checkpoint, codes));
      const std::vector<float> map = LLMINFER_TRY(read_floats(checkpoint, table));
      const std::vector<float> absmax = LLMINFER_TRY(read_floats(checkpoint, nested));
      std::vector<float> values(bytes.data.size());
      for (std::size_t i = 0; i < values.size(); ++i) {
        const float product =
            map[std::to_integer<std::size_t>(bytes.data[i])] * absmax[i / static_cast<std::size_t>(state.nested_block)];
        values[i] = product + state.nested_offset;
      }
      return values;
    };
  }
  return add_nibbles(prefix, nf4 ? WeightType::nf4 : WeightType::fp4, std::move(layer), layers);
}

/// Outliers of the activations need no list: a weight-only product with activations of 16 bits or more, which it asks
/// for, treats each of them at least as precisely.
Result<void> add_int8(const std::string& prefix, Layers& layers) {
  ByteLayer layer;
  layer.weight = LLMINFER_TRY(layers.need(prefix + ".weight", {i8}, {-1, -1}));
  layer.rows = layer.weight.shape[0];
  layer.block_cols = layer.cols = layer.weight.shape[1];
  layer.scales = LLMINFER_TRY(layers.need(prefix + ".SCB", {f32}, {layer.rows}));
  layer.scale_divisor = 127.0f;
  const std::string format = prefix + ".weight_format";
  if (const TensorInfo* tensor = layers.find(format)) {
    const TensorInfo checked = LLMINFER_TRY(layers.need(format, {u8, i8, i32, i64}, tensor->shape));
    if (const std::int64_t value = LLMINFER_TRY(read_integers(layers.checkpoint(), checked))[0]; value != 0) {
      return fail(ErrorCode::unsupported, "tensor ", format, " is ", value, ", expected 0 (rows)");
    }
  }
  for (const char* part : {".weight", ".SCB", ".weight_format"}) layers.take(prefix + part);
  return add_bytes(prefix, std::move(layer), {.outliers = true}, layers);
}

}  // namespace

Result<void> add_bitsandbytes(const core::Json& settings, Layers& layers) {
  const std::string storage =
      LLMINFER_TRY(setting_text(settings, "bnb_4bit_quant_storage", "uint8", "quantization_config"));
  constexpr std::string_view kStorages[] = {"uint8", "int8", "bfloat16", "float16", "float32"};
  if (std::find(std::begin(kStorages), std::end(kStorages), storage) == std::end(kStorages)) {
    return fail(ErrorCode::unsupported, "quantization_config: \"bnb_4bit_quant_storage\" is \"", storage,
                "\", expected uint8, int8, bfloat16, float16 or float32");
  }
  std::size_t found = 0;
  for (const bool nf4 : {true, false}) {
    const char* const suffix = nf4 ? ".weight.quant_state.bitsandbytes__nf4" : ".weight.quant_state.bitsandbytes__fp4";
    for (const std::string& prefix : layers.with(suffix)) LLMINFER_TRY(add_4bit(prefix, nf4, layers)), ++found;
  }
  for (const std::string& prefix : layers.with(".SCB")) LLMINFER_TRY(add_int8(prefix, layers)), ++found;
  for (const char* const part : {".weight.absmax", ".weight.quant_map"}) {  // such a weight may be called one of floats
    for (const std::string& prefix : layers.with(part)) {
      return fail(ErrorCode::missing_tensor, "no tensor ", prefix,
                  ".weight.quant_state.bitsandbytes__nf4 or …__fp4, but ", prefix, part);
    }
  }
  if (found == 0) {
    return fail(ErrorCode::missing_tensor,
                "quantization_config says bitsandbytes, but no tensor is named *.SCB or *.quant_state.bitsandbytes__…");
  }
  return {};
}

}  // namespace llminfer::load
