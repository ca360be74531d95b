// NVIDIA ModelOpt: the layers of its algorithms, one for all or one for each, and factors of their inputs.
#include <algorithm>
#include <map>
#include <optional>
#include <utility>
#include <vector>

#include "core/error.hpp"
#include "load/packing.hpp"

namespace llminfer::load {
namespace {

using core::fail;
using core::Json;
using enum ElementType;
using Kind = InputQuantization::Kind;

constexpr const char* kPlace = "quantization_config";
constexpr std::int64_t kBlock = 32;

enum class Form : std::uint8_t { fp8, fp8_rows, fp8_blocks, int8, int4, nvfp4, mxfp4, mxfp8 };

/// Inputs of NVFP4, MXFP4 and MXFP8 stay as precise as they are: rounding them as the hardware for these does serves
/// speed only.
struct Algorithm {
  std::string_view name;
  Form form;
  Kind inputs = Kind::none;     ///< how they are rounded, with the scale that each layer has
  std::int64_t group_size = 0;  ///< of columns that share a scale; 0: any, as the scales' shape tells
  bool groups = false;          ///< such settings as "group_size" make sense
};
constexpr Algorithm kAlgorithms[] = {
    {"FP8", Form::fp8, Kind::fp8},
    {"FP8_PER_CHANNEL_PER_TOKEN", Form::fp8_rows},
    {"FP8_PB_WO", Form::fp8_blocks},
    {"fp8_pb_wo", Form::fp8_blocks},
    {"W8A16", Form::int8},
    {"W8A8_SQ_PER_CHANNEL", Form::int8, Kind::int8},
    {"W4A16_AWQ", Form::int4, Kind::none, 0, true},
    {"W4A8_AWQ", Form::int4, Kind::fp8, 0, true},
    {"NVFP4", Form::nvfp4, Kind::none, 16, true},
    {"NVFP4_AWQ", Form::nvfp4, Kind::none, 16, true},
    {"W4A16_NVFP4", Form::nvfp4, Kind::none, 16, true},
    {"W4A8_NVFP4_FP8", Form::nvfp4, Kind::fp8, 0, true},
    {"MXFP4", Form::mxfp4, Kind::none, 32, true},
    {"mxfp4", Form::mxfp4, Kind::none, 32, true},
    {"W4A8_MXFP4_FP8", Form::mxfp4, Kind::fp8, 32, true},
    {"MXFP8", Form::mxfp8, Kind::none, 32, true},
};

/// The algorithm of `settings`, which may also say how many columns make a group. Errors: unsupported, corrupt.
Result<Algorithm> read_algorithm(const Json& settings, const std::string& place) {
  const std::string name = LLMINFER_TRY(setting_text(settings, "quant_algo", "", place));
  std::string known;
  for (const Algorithm& candidate : kAlgorithms) {
    known.append(known.empty() ? "" : ", ").append(candidate.name);
    if (candidate.name != name) continue;
    Algorithm algorithm = candidate;
    const auto size = LLMINFER_TRY(setting_int(settings, "group_size", algorithm.group_size, place));
    if (size == algorithm.group_size) return algorithm;
    if (!algorithm.groups || size < 1 || algorithm.group_size != 0) {
      return fail(algorithm.groups ? ErrorCode::corrupt : ErrorCode::unsupported, place, ": ", name,
                  " with \"group_size\" ", size, ", expected ", algorithm.group_size);
    }
    algorithm.group_size = size;
    return algorithm;
  }
  return fail(ErrorCode::unsupported, place, ": \"quant_algo\" is \"", name, "\", expected ", known,
              " or, with \"quantized_layers\", MIXED_PRECISION");
}

/// Integers of 4 bits, signed, two rows to a row of bytes, the lower nibbles the first. Scales [rows, groups].
struct Int4Layer {
  std::int64_t rows = 0, cols = 0, group_size = 0;
  TensorInfo weight, scales;
  std::vector<float> row_factors;  ///< that the rows' values are multiplied by; empty: none
};

class Int4Packing final : public Packing {
 public:
  explicit Int4Packing(Int4Layer layer) : layer_(std::move(layer)) {}

  Result<WeightView> read(const Checkpoint& checkpoint, const TensorInfo& tensor, core::Team* team) const override {
    const Int4Layer& l = layer_;
    const std::vector<float> scales = LLMINFER_TRY(read_floats(checkpoint, l.scales));
    LLMINFER_TRY(check_scales(scales, l.scales.name, l.row_factors));
    const core::Bytes bytes = LLMINFER_TRY(read_bytes(checkpoint, l.weight));
    const auto* const packed = reinterpret_cast<const std::uint8_t*>(bytes.data.data());
    BlockBuffer blocks(tensor.type, l.rows, l.cols);
    const auto convert = [&](std::int64_t n) {
      const std::uint8_t* const from = packed + n / 2 * l.cols;
      const float* const row_scales = scales.data() + n * (l.cols / l.group_size);
      const float factor = l.row_factors.empty() ? 1.0f : l.row_factors[static_cast<std::size_t>(n)];
      std::uint8_t* out = blocks.row(n);
      const auto bits_of = [&](std::int64_t k) { return from[k] >> (n % 2 * 4) & 15; };
      if (tensor.type == WeightType::f32) {
        for (std::int64_t k = 0; k < l.cols; ++k) {
          const int code = (bits_of(k) ^ 8) - 8;
          write_float(row_scales[k / l.group_size] * factor * static_cast<float>(code), out + 4 * k);
        }
        return;
      }
      for (std::int64_t k = 0; k < l.cols; k += kBlock, out += 4 + kBlock / 2) {
        std::uint8_t codes[kBlock];
        for (std::int64_t i = 0; i < kBlock; ++i) codes[i] = static_cast<std::uint8_t>(bits_of(k + i) ^ 8);
        write_integer_block(tensor.type, row_scales[k / l.group_size] * factor, 8, codes, out);
      }
    };
    LLMINFER_TRY(for_rows(team, l.rows, [&](std::int64_t first, std::int64_t last, std::size_t) {
      for (std::int64_t n = first; n < last; ++n) convert(n);
    }));
    return blocks.view(tensor);
  }

 private:
  const Int4Layer layer_;
};

class ModelOpt {
 public:
  /// `all`: the algorithm of all layers; empty: each has its own in `of_layer`.
  ModelOpt(std::optional<Algorithm> all, std::map<std::string, Algorithm> of_layer, Layers& layers)
      : all_(all), of_layer_(std::move(of_layer)), layers_(layers) {}

  Result<void> add_all() {
    const auto prefixes = layers_.with(".weight_scale");
    if (prefixes.empty()) {
      return fail(ErrorCode::missing_tensor, kPlace, " says ", all_ ? all_->name : "MIXED_PRECISION",
                  ", but no tensor is named *.weight_scale");
    }
    for (const std::string& prefix : prefixes) {
      if (all_) of_layer_[prefix] = *all_;
    }
    LLMINFER_TRY(read_factors());
    for (const std::string& prefix : prefixes) {
      const auto found = of_layer_.find(prefix);
      if (found == of_layer_.end()) {
        return fail(ErrorCode::corrupt, "tensor ", prefix, ".weight is quantized, but \"quantized_layers\" of ", kPlace,
                    " does not name its layer");
      }
      LLMINFER_TRY(add(prefix, found->second));
    }
    for (auto& [prefix, factors] : column_factors_) layers_.multiply_columns(prefix, std::move(factors));
    return {};
  }

 private:
  /// AWQ and SmoothQuant have inputs multiplied by factors (pre_quant_scale). Where all that makes an input are the
  /// rows of another layer, these are multiplied instead.
  Result<void> read_factors() {
    for (const std::string& prefix : layers_.with(".pre_quant_scale")) {
      const std::string name = prefix + ".pre_quant_scale";
      const TensorInfo tensor = LLMINFER_TRY(layers_.need(name, {f32, bf16, f16}, {-1}));
      const auto layer = of_layer_.find(prefix);
      const TensorInfo* const weight = layers_.find(prefix + ".weight");
      if (layer == of_layer_.end() || !weight) {
        return fail(ErrorCode::corrupt, "tensor ", name, ": its layer is not quantized");
      }
      const bool nibbles = layer->second.form == Form::nvfp4 || layer->second.form == Form::mxfp4;
      if (const std::int64_t cols = weight->cols * (nibbles ? 2 : 1); cols != tensor.shape[0]) {
        return fail(ErrorCode::shape_mismatch, "tensor ", name, " has ", tensor.shape[0], " factors, expected ", cols,
                    ", one per column of ", weight->name);
      }
      std::vector<float> factors = LLMINFER_TRY(read_floats(layers_.checkpoint(), tensor));
      layers_.take(name);
      auto [producer, of_rows] = producer_of(prefix, factors);
      (of_rows.empty() ? column_factors_[prefix] : row_factors_[producer]) =
          std::move(of_rows.empty() ? factors : of_rows);
    }
    return {};
  }

  /// The layer whose rows the factors may multiply, and one factor for each of them; none where there is no such layer.
  std::pair<std::string, std::vector<float>> producer_of(const std::string& prefix,
                                                         const std::vector<float>& factors) const {
    const ModelConfig& config = layers_.checkpoint().config;
    const std::size_t dot = prefix.rfind('.') + 1;  // 0 where there is none
    const std::string own = prefix.substr(dot);
    const bool of_values = own == "o_proj";
    const char* const name = of_values ? "v_proj" : own == "down_proj" ? "up_proj" : own == "w2" ? "w3" : "";
    const std::string producer = prefix.substr(0, dot) + name;
    const auto found = of_layer_.find(producer);
    // gpt-oss clamps what its up_proj gives.
    if (!*name || config.architecture == "gpt-oss" || found == of_layer_.end() || found->second.form == Form::mxfp4 ||
        layers_.find(producer + ".bias")) {
      return {};
    }
    if (!of_values) return {producer, factors};
    // Heads that share values must have the same factors.
    const std::int64_t dim = config.head_dim, shared = config.kv_heads > 0 ? config.heads / config.kv_heads : 0;
    if (shared < 1 || static_cast<std::int64_t>(factors.size()) != config.heads * dim) return {};
    std::vector<float> rows;
    for (std::int64_t head = 0; head < config.heads; ++head) {
      const auto* const from = factors.data() + head * dim;
      if (head % shared == 0) {
        rows.insert(rows.end(), from, from + dim);
      } else if (!std::equal(from, from + dim, from - dim)) {
        return {};
      }
    }
    return {producer, rows};
  }

  Result<void> add(const std::string& prefix, const Algorithm& algorithm) {
    InputQuantization input;
    const std::string input_scale = prefix + ".input_scale";
    if (algorithm.form == Form::fp8_rows) {
      input.kind = Kind::fp8;
    } else if (algorithm.inputs != Kind::none && layers_.find(input_scale)) {
      input = LLMINFER_TRY(
          static_input(layers_.checkpoint(), algorithm.inputs, LLMINFER_TRY(need_scalar(input_scale)), nullptr));
    } else if (algorithm.inputs == Kind::int8) {
      return fail(ErrorCode::missing_tensor, "no tensor ", input_scale, ", which ", algorithm.name, " needs");
    }
    const auto factors = row_factors_.find(prefix);
    std::vector<float> row_factors = factors == row_factors_.end() ? std::vector<float>{} : factors->second;
    for (const char* part : {".weight", ".weight_scale", ".weight_scale_2", ".input_scale"})
      layers_.take(prefix + part);
    switch (algorithm.form) {
      case Form::int4:
        return add_int4(prefix, algorithm, input, std::move(row_factors));
      case Form::nvfp4:
      case Form::mxfp4:
        return add_fp4(prefix, algorithm, input, std::move(row_factors));
      default:
        return add_whole(prefix, algorithm, input, std::move(row_factors));
    }
  }

  /// A tensor of one number: [] or [1].
  Result<TensorInfo> need_scalar(const std::string& name) const {
    const TensorInfo* tensor = layers_.find(name);
    const bool bare = tensor && tensor->shape.empty();
    return layers_.need(name, {f32}, bare ? std::vector<std::int64_t>{} : std::vector<std::int64_t>{1});
  }

  /// Of a weight with rows of `rows` values. Errors: shape_mismatch.
  Result<void> check_factors(const std::string& prefix, const std::vector<float>& factors, std::int64_t rows) const {
    if (factors.empty() || static_cast<std::int64_t>(factors.size()) == rows) return {};
    return fail(ErrorCode::shape_mismatch, "tensor ", prefix, ".weight has ", rows, " rows, expected ", factors.size(),
                ", as many as the layer that reads them has factors");
  }

  /// Whole bytes: E4M3 or int8.
  Result<void> add_whole(const std::string& prefix, const Algorithm& algorithm, const InputQuantization& input,
                         std::vector<float> row_factors) {
    const Form form = algorithm.form;
    const std::string scale_name = prefix + ".weight_scale";
    ByteLayer layer;
    layer.weight = LLMINFER_TRY(layers_.need(prefix + ".weight", {form == Form::int8 ? i8 : f8_e4m3}, {-1, -1}));
    layer.rows = layer.weight.shape[0];
    layer.cols = layer.block_cols = layer.weight.shape[1];
    if (form == Form::fp8) {
      layer.block_rows = layer.rows;
      layer.scales = LLMINFER_TRY(need_scalar(scale_name));
    } else if (form == Form::mxfp8) {
      layer.block_cols = kBlock;
      const std::int64_t groups = (layer.cols + kBlock - 1) / kBlock;
      layer.scales = LLMINFER_TRY(layers_.need(scale_name, {u8, f8_e8m0}, {layer.rows, groups}));
    } else if (form == Form::fp8_blocks) {  // [rows, 1, columns, 1] of blocks; a single one is a number
      constexpr std::int64_t kSide = 128;
      layer.block_rows = layer.block_cols = kSide;
      const std::int64_t down = (layer.rows + kSide - 1) / kSide, across = (layer.cols + kSide - 1) / kSide;
      const TensorInfo* const found = layers_.find(scale_name);
      const std::size_t sides = found ? found->shape.size() : 0;
      using Shape = std::vector<std::int64_t>;
      layer.scales = LLMINFER_TRY(layers_.need(scale_name, {f32, bf16, f16},
                                               sides == 0 && down * across == 1 ? Shape{}
                                               : sides == 4                     ? Shape{down, 1, across, 1}
                                                                                : Shape{down, across}));
    } else {
      layer.scales = LLMINFER_TRY(layers_.need(scale_name, {f32, bf16, f16}, {layer.rows}));
    }
    LLMINFER_TRY(check_factors(prefix, row_factors, layer.rows));
    layer.row_factors = std::move(row_factors);
    return add_bytes(prefix, std::move(layer), input, layers_);
  }

  Result<void> add_int4(const std::string& prefix, const Algorithm& algorithm, const InputQuantization& input,
                        std::vector<float> row_factors) {
    Int4Layer layer;
    layer.weight = LLMINFER_TRY(layers_.need(prefix + ".weight", {u8}, {-1, -1}));
    layer.rows = layer.weight.shape[0] * 2;
    layer.cols = layer.weight.shape[1];
    layer.scales = LLMINFER_TRY(layers_.need(prefix + ".weight_scale", {f32, bf16, f16}, {layer.rows, -1}));
    const std::int64_t groups = layer.scales.shape[1];
    layer.group_size = algorithm.group_size > 0 ? algorithm.group_size : layer.cols / std::max<std::int64_t>(groups, 1);
    if (layer.group_size * groups != layer.cols) {
      return fail(ErrorCode::corrupt, "tensor ", layer.scales.name, " has ", groups, " groups for ", layer.cols,
                  " columns", algorithm.group_size > 0 ? ", expected groups of " : ", which they do not divide; ",
                  layer.group_size);
    }
    LLMINFER_TRY(check_factors(prefix, row_factors, layer.rows));
    layer.row_factors = std::move(row_factors);
    const bool whole = layer.group_size % kBlock == 0;
    WeightDetails details;
    details.input = input;
    if (whole) details.scale_columns = layer.group_size;
    const TensorInfo weight = layer.weight;
    const std::int64_t rows = layer.rows, cols = layer.cols;
    layers_.add(prefix, whole ? WeightType::w4_sym : WeightType::f32, rows, cols, weight,
                std::make_shared<Int4Packing>(std::move(layer)), std::move(details));
    return {};
  }

  /// Weights of E2M1 under E4M3 scales, under one float (NVFP4), or under powers of two (MXFP4).
  Result<void> add_fp4(const std::string& prefix, const Algorithm& algorithm, const InputQuantization& input,
                       std::vector<float> row_factors) {
    const bool nvfp4 = algorithm.form == Form::nvfp4;
    NibbleLayer layer;
    layer.weight = LLMINFER_TRY(layers_.need(prefix + ".weight", {u8}, {-1, -1}));
    layer.rows = layer.weight.shape[0];
    layer.cols = layer.weight.shape[1] * 2;
    const std::string scale_name = prefix + ".weight_scale";
    layer.per_scale = algorithm.group_size;
    if (layer.per_scale == 0) {  // NVFP4 with groups of 16 or 32
      const TensorInfo* const found = layers_.find(scale_name);
      layer.per_scale = found && found->cols * 32 == layer.cols ? 32 : 16;
    }
    if (layer.cols % layer.per_scale != 0 || (nvfp4 && layer.per_scale != 16 && layer.per_scale != 32)) {
      return fail(ErrorCode::corrupt, "tensor ", layer.weight.name, " has rows of ", layer.cols,
                  " values, expected a multiple of ", nvfp4 ? "16 or 32" : "32", ", not of ", layer.per_scale);
    }
    const std::vector<std::int64_t> shape = {layer.rows, layer.cols / layer.per_scale};
    const TensorInfo scales = LLMINFER_TRY(nvfp4 ? layers_.need(scale_name, {f8_e4m3}, shape)
                                                 : layers_.need(scale_name, {u8, f8_e8m0}, shape));
    std::optional<TensorInfo> factor;
    if (nvfp4) factor = LLMINFER_TRY(need_scalar(prefix + ".weight_scale_2"));
    layer.read_scales = [=](const Checkpoint& checkpoint) -> Result<std::vector<float>> {
      std::vector<float> values = LLMINFER_TRY(read_floats(checkpoint, scales));
      if (!factor) return values;
      const float shared = LLMINFER_TRY(read_floats(checkpoint, *factor))[0];
      for (float& value : values) value *= shared;
      return values;
    };
    LLMINFER_TRY(check_factors(prefix, row_factors, layer.rows));
    layer.row_factors = std::move(row_factors);
    layer.input = input;
    return add_nibbles(prefix, nvfp4 ? WeightType::fp4_16 : WeightType::mxfp4, std::move(layer), layers_);
  }

  const std::optional<Algorithm> all_;
  std::map<std::string, Algorithm> of_layer_;
  std::map<std::string, std::vector<float>> row_factors_, column_factors_;
  Layers& layers_;
};

}  // namespace

Result<void> add_modelopt(const Json& settings, Layers& layers) {
  const std::string name = LLMINFER_TRY(setting_text(settings, "quant_algo", "", kPlace));
  if (name != "MIXED_PRECISION") {
    return ModelOpt(LLMINFER_TRY(read_algorithm(settings, kPlace)), {}, layers).add_all();
  }
  const Json* const listed = settings.find("quantized_layers");
  if (!listed || !listed->is_object()) {
    return fail(ErrorCode::corrupt, kPlace, ": MIXED_PRECISION without an object \"quantized_layers\"");
  }
  std::map<std::string, Algorithm> of_layer;
  for (const auto& [layer, own] : listed->object()) {
    const std::string place = std::string(kPlace) + ": quantized_layers." + std::string(layer);
    of_layer[std::string(layer)] = LLMINFER_TRY(read_algorithm(own, place));
  }
  return ModelOpt({}, std::move(of_layer), layers).add_all();
}

}  // namespace llminfer::load
