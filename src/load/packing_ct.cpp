// compressed-tensors (llm-compressor): pack-quantized, int-quantized, float-quantized, mxfp8-quantized, nvfp4-, mxfp4-
// and mxfp6-pack-quantized, marlin-24, and masks of elements that are not zero.
// A layer's scheme is the one of config_groups whose "targets" name it; its tensors must fit it.
#include <algorithm>
#include <charconv>
#include <optional>
#include <system_error>
#include <utility>

#include "core/error.hpp"
#include "load/module_list.hpp"
#include "load/packing.hpp"

namespace llminfer::load {
namespace {

using core::fail;
using core::Json;
using enum ElementType;

constexpr const char* kPlace = "quantization_config";
constexpr auto kFloats = {bf16, f16, f32};
constexpr std::string_view kDense = "dense";
constexpr std::string_view kFormats[] = {kDense,
                                         "pack-quantized",
                                         "int-quantized",
                                         "float-quantized",
                                         "naive-quantized",
                                         "nvfp4-pack-quantized",
                                         "mxfp4-pack-quantized",
                                         "mxfp6-pack-quantized",
                                         "mxfp8-quantized",
                                         "marlin-24"};

/// What one of config_groups says.
struct Scheme {
  std::string name;    ///< for messages
  std::string format;  ///< "pack-quantized", …
  std::int64_t bits = 0, group_size = 0;
  std::int64_t block_rows = 0, block_cols = 0;
  std::string strategy;
  bool integers = true, symmetric = true;
  InputQuantization input;  ///< of static inputs all but the numbers
  bool unknown_input = false;
};

struct Schemes {
  std::vector<Scheme> all;  ///< of config_groups
  ModuleList targets;       ///< of which stand for their indices
  ModuleList ignore;
};

/// "strategy", or what the group size makes it where it is left out.
Result<std::string> read_strategy(const Json& json, std::int64_t group_size, const std::string& place) {
  return setting_text(json, "strategy", group_size > 0 ? "group" : group_size == -1 ? "channel" : "tensor", place);
}

/// Inputs of NVFP4 and MXFP4, and those under scales that are powers of two (MXFP8), stay as precise as they are, like
/// ModelOpt's.
Result<void> read_input(const Json& json, Scheme& scheme) {
  const std::string place = scheme.name + ".input_activations";
  const std::int64_t bits = LLMINFER_TRY(setting_int(json, "num_bits", 8, place));
  const std::string type = LLMINFER_TRY(setting_text(json, "type", "int", place));
  const std::string scales = LLMINFER_TRY(setting_text(json, "scale_dtype", "", place));
  if (type == "float" && ((scheme.bits == 4 && !scheme.integers) || scales == "torch.uint8")) return {};
  const std::int64_t group_size = LLMINFER_TRY(setting_int(json, "group_size", 0, place));
  const std::string strategy = LLMINFER_TRY(read_strategy(json, group_size, place));
  const Json* dynamic = json.find("dynamic");
  if (bits != 8 || (type != "int" && type != "float") || (dynamic && dynamic->is_string())) {
    scheme.unknown_input = true;  // an error only if a layer has this scheme
    return {};
  }
  InputQuantization& input = scheme.input;
  input.kind = type == "int" ? InputQuantization::Kind::int8 : InputQuantization::Kind::fp8;
  input.dynamic = LLMINFER_TRY(setting_flag(json, "dynamic", false, place));
  const bool symmetric = LLMINFER_TRY(setting_flag(json, "symmetric", true, place));
  if (input.dynamic && strategy == "group") {
    if (group_size < 1 || group_size > 1 << 20) {
      return fail(ErrorCode::corrupt, place, ": \"group_size\" is ", group_size, ", expected a positive number");
    }
    input.group = static_cast<std::int32_t>(group_size);
  }
  // One dynamic scale for a whole batch would let its tokens change each other: each has its own.
  const bool known = strategy == "tensor" || (input.dynamic && (strategy == "token" || strategy == "group"));
  scheme.unknown_input = !known || (input.dynamic && !symmetric);
  return {};
}

/// Two numbers, or, in old files, "128x128".
Result<void> read_block(const Json& block, Scheme& scheme) {
  bool fits = false;
  if (block.is_string()) {
    const std::string& text = block.string();
    const char* const end = text.data() + text.size();
    const auto [middle, first] = std::from_chars(text.data(), end, scheme.block_rows);
    if (first == std::errc() && middle != end && *middle == 'x') {
      const auto [last, second] = std::from_chars(middle + 1, end, scheme.block_cols);
      fits = second == std::errc() && last == end;
    }
  } else if (block.is_array() && block.size() == 2) {
    scheme.block_rows = block.array()[0].integer().value_or(0);
    scheme.block_cols = block.array()[1].integer().value_or(0);
    fits = true;
  }
  for (const std::int64_t side : {scheme.block_rows, scheme.block_cols}) fits = fits && side >= 1 && side <= 1 << 20;
  if (fits) return {};
  return fail(ErrorCode::corrupt, scheme.name, ": \"block_structure\" must be two positive numbers");
}

Result<Scheme> read_scheme(const std::string& name, const Json& json, const std::string& default_format) {
  Scheme scheme;
  scheme.name = std::string(kPlace) + ": config_groups." + name;
  const Json* weights = json.find("weights");
  const bool of_inputs = json.is_object() && (!weights || weights->is_null());
  if (of_inputs) {  // which stay as precise as they are, and so do the weights
    scheme.format = kDense;
    return scheme;
  }
  if (!weights || !weights->is_object()) {
    return fail(ErrorCode::corrupt, scheme.name, ": expected an object with an object \"weights\", or none");
  }
  scheme.format = LLMINFER_TRY(setting_text(json, "format", default_format.c_str(), scheme.name));
  scheme.bits = LLMINFER_TRY(setting_int(*weights, "num_bits", 8, scheme.name));
  scheme.integers = LLMINFER_TRY(setting_text(*weights, "type", "int", scheme.name)) == "int";
  scheme.symmetric = LLMINFER_TRY(setting_flag(*weights, "symmetric", true, scheme.name));
  scheme.group_size = LLMINFER_TRY(setting_int(*weights, "group_size", 0, scheme.name));
  if (scheme.group_size < -1 || scheme.group_size > 1 << 30) {
    return fail(ErrorCode::corrupt, scheme.name, ": \"group_size\" is ", scheme.group_size);
  }
  scheme.strategy = LLMINFER_TRY(read_strategy(*weights, scheme.group_size, scheme.name));
  if (const Json* block = weights->find("block_structure"); block && !block->is_null()) {
    LLMINFER_TRY(read_block(*block, scheme));
  }
  const Json* input = json.find("input_activations");
  if (input && input->is_object()) LLMINFER_TRY(read_input(*input, scheme));
  return scheme;
}

bool is_float(const TensorInfo& tensor) noexcept {
  return tensor.element == f32 || tensor.element == f16 || tensor.element == bf16;
}

class CompressedTensors {
 public:
  /// `sparse`: what add_sparse gave.
  CompressedTensors(Schemes schemes, std::map<std::string, SparseMatrix> sparse, Layers& layers)
      : schemes_(std::move(schemes)), sparse_(std::move(sparse)), layers_(layers) {}

  Result<void> add_all() {
    std::size_t found = 0;
    for (const std::string& prefix : layers_.with(".weight_packed")) LLMINFER_TRY(add_packed(prefix)), ++found;
    for (const std::string& prefix : layers_.with(".weight_scale")) LLMINFER_TRY(add_whole(prefix)), ++found;
    for (const auto& [prefix, matrix] : sparse_) {
      return fail(ErrorCode::missing_tensor, "no tensor ", prefix, ".weight_scale, but ", matrix.values.name,
                  " is of type ", name_of(matrix.values.element));
    }
    for (const char* part : {".input_scale", ".input_global_scale"}) {
      for (const std::string& prefix : layers_.with(part)) LLMINFER_TRY(drop_input_scales(prefix));
    }
    const auto dense = [](const Scheme& scheme) { return scheme.format == kDense; };
    if (found > 0 || std::all_of(schemes_.all.begin(), schemes_.all.end(), dense)) return check_floats();
    return fail(ErrorCode::missing_tensor, kPlace,
                " says compressed-tensors, but no tensor is named *.weight_packed or *.weight_scale");
  }

 private:
  /// The scheme of a layer, one of whose tensors is named for messages. Errors: corrupt (no target names the layer,
  /// "ignore" does, its tensors are of another form), unsupported (a format, or a quantization of inputs, that is not
  /// known).
  template <class Fits>
  Result<Scheme> scheme_of(const std::string& prefix, const std::string& tensor, const Fits& fits) {
    if (LLMINFER_TRY(schemes_.ignore.find(prefix))) {
      return fail(ErrorCode::corrupt, "tensor ", tensor, " is quantized, but ", kPlace, ": \"ignore\" names its layer");
    }
    const std::optional<std::size_t> index = LLMINFER_TRY(schemes_.targets.find(prefix));
    if (!index) {
      return fail(ErrorCode::corrupt, "tensor ", tensor, " is quantized, but no \"targets\" of ", kPlace,
                  ": config_groups name its layer");
    }
    const Scheme& scheme = schemes_.all[*index];
    if (std::find(std::begin(kFormats), std::end(kFormats), scheme.format) == std::end(kFormats)) {
      return fail(ErrorCode::unsupported, "tensor ", tensor, ": \"format\" of ", scheme.name, " is \"", scheme.format,
                  "\", which is not known");
    }
    if (!fits(scheme)) {
      return fail(ErrorCode::corrupt, "tensor ", tensor, " does not fit ", scheme.name,
                  ", whose \"targets\" name its layer, by its type and size");
    }
    if (scheme.unknown_input) {
      return fail(ErrorCode::unsupported, scheme.name,
                  ": \"input_activations\" are neither int8 nor FP8, or dynamic and not symmetric, or their "
                  "\"strategy\" is not tensor, token (dynamic) or group (dynamic)");
    }
    return scheme;
  }

  /// Layers that targets name one by one must be quantized. (Classes have members that tools leave as they are.)
  Result<void> check_floats() {
    return schemes_.targets.for_names([&](const std::string& module, std::size_t index) -> Result<void> {
      const TensorInfo* weight = layers_.find(module + ".weight");
      if (!weight || schemes_.all[index].format == kDense) return {};
      if (!is_float(*weight) || LLMINFER_TRY(schemes_.ignore.find(module))) return {};
      return fail(ErrorCode::corrupt, "tensor ", weight->name, " is of type ", name_of(weight->element), ", but ",
                  schemes_.all[index].name, " names its layer as quantized");
    });
  }

  /// Those of a layer whose weights are not quantized.
  Result<void> drop_input_scales(const std::string& prefix) {
    const std::optional<std::size_t> index = LLMINFER_TRY(schemes_.targets.find(prefix));
    if (!index || schemes_.all[*index].format != kDense) return {};
    for (const char* part : {".input_scale", ".input_zero_point", ".input_global_scale"}) layers_.take(prefix + part);
    return {};
  }

  /// compressed-tensors has no shorter last group.
  Result<void> check_group_size(const Scheme& scheme, const std::string& tensor, std::int64_t cols) const {
    if (scheme.strategy != "group" || scheme.group_size < 1 || cols % scheme.group_size == 0) return {};
    return fail(ErrorCode::corrupt, "tensor ", tensor, " has ", cols, " columns, which \"group_size\" ",
                scheme.group_size, " of ", scheme.name, " does not divide");
  }

  Result<InputQuantization> input_of(const std::string& prefix, const Scheme& scheme) {
    InputQuantization input = scheme.input;
    if (input.kind == InputQuantization::Kind::none || input.dynamic) return input;
    const std::string scale = prefix + ".input_scale", zero = prefix + ".input_zero_point";
    const TensorInfo scale_tensor = LLMINFER_TRY(layers_.need(scale, kFloats, {1}));
    layers_.take(scale);
    const TensorInfo* zero_tensor = layers_.find(zero);
    TensorInfo checked;
    if (zero_tensor) {
      checked = LLMINFER_TRY(layers_.need(zero, {i8}, {1}));
      layers_.take(zero);
    }
    return static_input(layers_.checkpoint(), input.kind, scale_tensor, zero_tensor ? &checked : nullptr);
  }

  /// A symmetric layer has none, or zeros.
  Result<void> check_no_zero_points(const std::string& prefix, const Scheme& scheme) const {
    const std::string name = prefix + ".weight_zero_point";
    if (!layers_.find(name)) return {};
    const TensorInfo tensor = LLMINFER_TRY(layers_.need(name, {i8, i32}, layers_.find(name)->shape));
    for (const std::int64_t zero : LLMINFER_TRY(read_integers(layers_.checkpoint(), tensor))) {
      if (zero == 0) continue;
      return fail(ErrorCode::corrupt, "tensor ", name, " is not zero, but ", scheme.name, " says \"symmetric\"");
    }
    return {};
  }

  Result<void> add_packed(const std::string& prefix) {
    const std::string name = prefix + ".weight_packed";
    if (layers_.find(prefix + ".scale_packed")) return add_marlin(prefix, name);
    const TensorInfo packed = LLMINFER_TRY(layers_.need(name, {i32, u8}, {-1, -1}));
    return packed.element == i32 ? add_integers(prefix, packed) : add_floats(prefix, packed);
  }

  Result<void> add_marlin(const std::string& prefix, const std::string& name) {
    const Scheme scheme = LLMINFER_TRY(scheme_of(prefix, name, [&](const Scheme& s) {
      return s.format == "marlin-24" && s.integers && s.symmetric && (s.bits == 4 || s.bits == 8) &&
             (s.strategy == "channel" || (s.strategy == "group" && s.group_size > 0));
    }));
    if (scheme.input.kind != InputQuantization::Kind::none) {
      return fail(ErrorCode::unsupported, scheme.name, ": marlin-24 with inputs that are rounded");
    }
    return add_marlin_24(prefix, static_cast<int>(scheme.bits), scheme.strategy == "group" ? scheme.group_size : 0,
                         layers_);
  }

  /// Streams of integers along K.
  Result<void> add_integers(const std::string& prefix, const TensorInfo& packed) {
    const std::string shape_name = prefix + ".weight_shape";
    const TensorInfo shape_tensor = LLMINFER_TRY(layers_.need(shape_name, {i64, i32}, {2}));
    const auto shape = LLMINFER_TRY(read_integers(layers_.checkpoint(), shape_tensor));
    AffineLayer layer;
    layer.order = AffineLayer::Order::along;
    layer.rows = shape[0];
    layer.cols = shape[1];
    if (layer.rows != packed.shape[0] || layer.cols < 1 || layer.cols > INT32_MAX) {
      return fail(ErrorCode::corrupt, "tensor ", shape_name, " says [", layer.rows, ", ", layer.cols, "], but ",
                  packed.name, " has ", packed.shape[0], " rows");
    }
    const Scheme scheme = LLMINFER_TRY(scheme_of(prefix, packed.name, [&](const Scheme& s) {
      const bool width = s.bits >= 2 && s.bits <= 8;
      return s.format == "pack-quantized" && s.integers && width && packed.shape[1] == (layer.cols * s.bits + 31) / 32;
    }));
    LLMINFER_TRY(check_group_size(scheme, packed.name, layer.cols));
    layer.bits = static_cast<int>(scheme.bits);
    layer.codes = packed;
    layer.scales = LLMINFER_TRY(layers_.need(prefix + ".weight_scale", kFloats, {layer.rows, -1}));
    layer.groups = layer.scales.shape[1];
    layer.group_size = scheme.strategy == "group" && scheme.group_size > 0 ? scheme.group_size : layer.cols;
    if (layer.groups != layer.cols / layer.group_size) {
      return fail(ErrorCode::corrupt, "tensor ", layer.scales.name, " has ", layer.groups, " groups, but ", layer.cols,
                  " columns and \"group_size\" ", layer.group_size, " make ", layer.cols / layer.group_size);
    }
    if (scheme.symmetric) {
      LLMINFER_TRY(check_no_zero_points(prefix, scheme));
    } else {
      layer.zeros = AffineLayer::Zeros::stored;
      layer.zero_points = LLMINFER_TRY(
          layers_.need(prefix + ".weight_zero_point", {i32}, {(layer.rows * layer.bits + 31) / 32, layer.groups}));
    }
    if (layers_.find(prefix + ".weight_g_idx")) {
      const TensorInfo index = LLMINFER_TRY(layers_.need(prefix + ".weight_g_idx", {i32}, {layer.cols}));
      layer.group_of = LLMINFER_TRY(read_group_index(layers_.checkpoint(), index, layer.groups, true));
    }
    const InputQuantization input = LLMINFER_TRY(input_of(prefix, scheme));
    for (const char* part :
         {".weight_packed", ".weight_shape", ".weight_scale", ".weight_zero_point", ".weight_g_idx"}) {
      layers_.take(prefix + part);
    }
    return add_affine(prefix, std::move(layer), input, layers_);
  }

  Result<void> add_floats(const std::string& prefix, const TensorInfo& packed) {
    const bool nvfp4 = layers_.find(prefix + ".weight_global_scale") != nullptr;
    const Scheme scheme = LLMINFER_TRY(scheme_of(prefix, packed.name, [&](const Scheme& s) {
      if (s.integers) return false;
      if (s.bits == 6) return s.format == "mxfp6-pack-quantized";
      return s.bits == 4 && s.format == (nvfp4 ? "nvfp4-pack-quantized" : "mxfp4-pack-quantized");
    }));
    return scheme.bits == 6 ? add_mxfp6(prefix, layers_) : add_packed_fp4(prefix, layers_);
  }

  /// Whole bytes: int8 or E4M3.
  Result<void> add_whole(const std::string& prefix) {
    ByteLayer layer;
    if (const TensorInfo* weight = layers_.find(prefix + ".weight"); weight && is_float(*weight)) {
      return fail(ErrorCode::unsupported, "tensor ", weight->name, " is of type ", name_of(weight->element),
                  ", but has ", prefix,
                  ".weight_scale: weights that are not yet rounded (\"quantization_status\" frozen)");
    }
    if (const auto found = sparse_.find(prefix); found != sparse_.end()) {
      layer.sparse = std::move(found->second);
      sparse_.erase(found);
      layer.weight = layer.sparse->values;
      layer.rows = layer.sparse->rows;
      layer.cols = layer.sparse->cols;
    } else {
      layer.weight = LLMINFER_TRY(layers_.need(prefix + ".weight", {i8, f8_e4m3}, {-1, -1}));
      layer.rows = layer.weight.shape[0];
      layer.cols = layer.weight.shape[1];
    }
    const bool integers = layer.weight.element == i8;
    const std::string scale_name = prefix + ".weight_scale", zero_name = prefix + ".weight_zero_point";
    const TensorInfo* const scales = layers_.find(scale_name);
    const bool mxfp8 = !integers && scales && (scales->element == u8 || scales->element == f8_e8m0);
    const Scheme scheme = LLMINFER_TRY(scheme_of(prefix, layer.weight.name, [&](const Scheme& s) {
      if (mxfp8) return s.format == "mxfp8-quantized" && !s.integers && s.bits == 8;
      const bool width = integers ? s.bits >= 2 && s.bits <= 8 : s.bits == 8;
      const char* const format = integers ? "int-quantized" : "float-quantized";
      return (s.format == format || s.format == "naive-quantized") && s.integers == integers && width;
    }));
    LLMINFER_TRY(check_group_size(scheme, layer.weight.name, layer.cols));
    std::vector<std::int64_t> shape;
    if (scheme.strategy == "tensor") {
      layer.block_rows = layer.rows;
      layer.block_cols = layer.cols;
      shape = {1};
    } else if (scheme.strategy == "channel") {
      layer.block_cols = layer.cols;
      shape = {layer.rows, 1};
    } else if (scheme.strategy == "group" && scheme.group_size > 0) {
      layer.block_cols = scheme.group_size;
      shape = {layer.rows, layer.cols / scheme.group_size};
    } else if (scheme.strategy == "block" && scheme.block_rows > 0) {
      layer.block_rows = scheme.block_rows;
      layer.block_cols = scheme.block_cols;
      shape = {(layer.rows + layer.block_rows - 1) / layer.block_rows,
               (layer.cols + layer.block_cols - 1) / layer.block_cols};
    } else {
      return fail(ErrorCode::unsupported, scheme.name, ": \"strategy\" is \"", scheme.strategy,
                  "\" without its size, expected tensor, channel, group or block");
    }
    layer.scales =
        LLMINFER_TRY(mxfp8 ? layers_.need(scale_name, {u8, f8_e8m0}, shape) : layers_.need(scale_name, kFloats, shape));
    if (scheme.symmetric) {
      LLMINFER_TRY(check_no_zero_points(prefix, scheme));
    } else {
      layer.zeros = LLMINFER_TRY(layers_.need(zero_name, {i8}, shape));
    }
    const InputQuantization input = LLMINFER_TRY(input_of(prefix, scheme));
    for (const std::string& part : {layer.weight.name, scale_name, zero_name}) layers_.take(part);
    return add_bytes(prefix, std::move(layer), input, layers_);
  }

  Schemes schemes_;
  std::map<std::string, SparseMatrix> sparse_;  ///< quantized, by prefix; those that are not yet added
  Layers& layers_;
};

/// sparse-bitmask, sparse-24-bitmask, or nothing.
std::string sparse_format(const Json& settings) {
  const Json* sparsity = settings.find("sparsity_config");
  const Json* format = sparsity ? sparsity->find("format") : nullptr;
  if (!format || !format->is_string() || !format->string().ends_with("-bitmask")) return "";
  return std::string(format->string());
}

Result<void> refuse_other_sparsity(const Json& settings, bool sparse) {
  const Json* found = settings.find("sparsity_config");
  if (sparse || !found || found->is_null() || (found->is_object() && found->size() == 0)) return {};
  const Json* format = found->find("format");
  if (format && format->is_string() && format->string() == kDense) return {};
  return fail(ErrorCode::unsupported, kPlace, ": \"sparsity_config\" is not empty");
}

}  // namespace

Result<void> add_compressed_tensors(const Json& settings, Layers& layers) {
  const std::string sparse = sparse_format(settings);
  LLMINFER_TRY(refuse_other_sparsity(settings, sparse == "sparse-bitmask" || sparse == "sparse-24-bitmask"));
  const std::string format = LLMINFER_TRY(setting_text(settings, "format", "", kPlace));
  const Json* groups = settings.find("config_groups");
  std::map<std::string, SparseMatrix> quantized;
  if (!sparse.empty()) {
    quantized = LLMINFER_TRY(add_sparse(sparse, layers));
    const bool none = !groups || groups->is_null() || groups->size() == 0;
    if (none && quantized.empty()) return {};  // sparse, but not quantized
  }
  const Json* cache = settings.find("kv_cache_scheme");
  if (groups && groups->size() == 0 && cache && cache->is_object()) return {};  // only keys and values are quantized
  if (!groups || !groups->is_object() || groups->size() == 0) {
    return fail(ErrorCode::corrupt, kPlace, ": expected an object \"config_groups\"");
  }
  Schemes schemes;
  for (const auto& [name, group] : groups->object()) {
    schemes.all.push_back(LLMINFER_TRY(read_scheme(name, group, format)));
    const Json* targets = group.find("targets");
    if (!targets) return fail(ErrorCode::corrupt, schemes.all.back().name, ": expected \"targets\"");
    LLMINFER_TRY(schemes.targets.add(*targets, schemes.all.size() - 1, schemes.all.back().name + ".targets"));
  }
  if (const Json* ignore = settings.find("ignore"); ignore && !ignore->is_null()) {
    LLMINFER_TRY(schemes.ignore.add(*ignore, 0, std::string(kPlace) + ": ignore"));
  }
  return CompressedTensors(std::move(schemes), std::move(quantized), layers).add_all();
}

}  // namespace llminfer::load
