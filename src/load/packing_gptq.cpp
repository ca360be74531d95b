// GPTQ (Frantar et al. 2022, arXiv:2210.17323) as AutoGPTQ, GPTQModel and AutoRound write it, and AWQ (Lin et al. 2023,
// arXiv:2306.00978) in the layouts of AutoAWQ; both also in the layout of Marlin.
#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "core/error.hpp"
#include "load/packing.hpp"

namespace llminfer::load {
namespace {

using core::fail;

constexpr const char* kPlace = "quantization_config";
constexpr auto kFloats = {ElementType::f16, ElementType::bf16, ElementType::f32};

/// What the settings say of all layers.
struct Scheme {
  std::int64_t bits = 4, group_size = 128;
  bool symmetric = false;
  bool varies = false;  ///< settings per layer ("dynamic"): bits and groups are those that the tensors show
  std::vector<std::int64_t> layer_group_sizes;  ///< those that settings per layer name
};

/// -1 is one group. `of`: whose settings these are, for messages.
Result<std::int64_t> read_group_size(const core::Json& settings, const char* key, const std::string& of) {
  const std::int64_t size = LLMINFER_TRY(setting_int(settings, key, 128, kPlace));
  if (size == -1 || (size >= 1 && size <= 1 << 30)) return size;
  return fail(ErrorCode::corrupt, kPlace, ": \"", key, "\"", of, " is ", size,
              ", expected -1 (one group) or a positive number");
}

/// Settings per layer are objects by the layers' names or patterns of them; null or none: no layer has its own.
Result<void> read_layer_settings(const core::Json* layers, const char* key, Scheme& scheme) {
  if (!layers || layers->is_null()) return {};
  if (!layers->is_object()) return fail(ErrorCode::corrupt, kPlace, ": \"", key, "\" is no object");
  for (const auto& [name, settings] : layers->object()) {
    scheme.varies = true;
    if (!settings.is_object() || !settings.find("group_size")) continue;
    scheme.layer_group_sizes.push_back(LLMINFER_TRY(read_group_size(settings, "group_size", " of \"" + name + '"')));
  }
  return {};
}

/// The one size among the settings' that makes as many groups as there are. Columns over groups would do only where
/// the last group is whole.
Result<std::int64_t> group_size_of(const Scheme& scheme, const AffineLayer& layer) {
  std::int64_t found = 0;
  const auto consider = [&](std::int64_t size) -> Result<void> {
    if (size == -1) size = layer.cols;
    if ((layer.cols + size - 1) / size != layer.groups || size == found) return {};
    if (found) {
      return fail(ErrorCode::unsupported, "tensor ", layer.scales.name, ": its ", layer.groups, " groups of ",
                  layer.cols, " columns may have ", found, " or ", size, " by ", kPlace);
    }
    found = size;
    return {};
  };
  LLMINFER_TRY(consider(scheme.group_size));
  for (const std::int64_t size : scheme.layer_group_sizes) LLMINFER_TRY(consider(size));
  if (found) return found;
  return fail(ErrorCode::corrupt, "tensor ", layer.scales.name, " has ", layer.groups, " groups for ", layer.cols,
              " columns, which no \"group_size\" of ", kPlace, " makes");
}

Result<Scheme> read_scheme(const core::Json& settings, const char* bits_key, const char* group_key) {
  Scheme scheme;
  scheme.bits = LLMINFER_TRY(setting_int(settings, bits_key, 4, kPlace));
  if (scheme.bits != 2 && scheme.bits != 3 && scheme.bits != 4 && scheme.bits != 8) {
    return fail(ErrorCode::unsupported, kPlace, ": \"", bits_key, "\" is ", scheme.bits, ", expected 2, 3, 4 or 8");
  }
  scheme.group_size = LLMINFER_TRY(read_group_size(settings, group_key, ""));
  return scheme;
}

/// The number of groups must be that of the group size, unless the order of columns says otherwise.
Result<void> check_groups(const std::string& name, const AffineLayer& layer, std::int64_t group_size) {
  const std::int64_t size = group_size == -1 ? layer.cols : group_size;
  if (layer.groups == (layer.cols + size - 1) / size) return {};
  return fail(ErrorCode::corrupt, "tensor ", name, " has ", layer.groups, " groups, but ", layer.cols,
              " columns and \"group_size\" ", group_size, " make ", (layer.cols + size - 1) / size);
}

/// Only GPTQ has a shorter last group.
Result<void> check_whole_groups(const AffineLayer& layer) {
  if (layer.cols % layer.group_size == 0) return {};
  return fail(ErrorCode::corrupt, "tensor ", layer.codes.name, " has ", layer.cols, " columns, which \"group_size\" ",
              layer.group_size, " does not divide");
}

Result<void> add_gptq_layer(const std::string& prefix, const Scheme& scheme, bool v2, Layers& layers) {
  using enum ElementType;
  AffineLayer layer;
  layer.order = AffineLayer::Order::down;
  layer.zeros = v2 ? AffineLayer::Zeros::stored : AffineLayer::Zeros::stored_minus;
  layer.scales = LLMINFER_TRY(layers.need(prefix + ".scales", kFloats, {-1, -1}));
  layer.groups = layer.scales.shape[0];
  layer.rows = layer.scales.shape[1];
  layer.codes = LLMINFER_TRY(layers.need(prefix + ".qweight", {i32}, {-1, layer.rows}));
  layer.zero_points = LLMINFER_TRY(layers.need(prefix + ".qzeros", {i32}, {layer.groups, -1}));
  const std::int64_t zero_words = layer.zero_points.shape[1];
  layer.bits = static_cast<int>(scheme.bits);
  if (scheme.varies) {
    const std::int64_t bits = zero_words * 32 / layer.rows;
    if (bits == 2 || bits == 3 || bits == 4 || bits == 8) layer.bits = static_cast<int>(bits);
  }
  const std::int64_t word_bits = layer.codes.shape[0] * 32;
  layer.cols = word_bits / layer.bits;
  if (layer.cols * layer.bits != word_bits || (layer.bits == 3 && layer.cols % 32 != 0) || layer.cols > INT32_MAX) {
    return fail(ErrorCode::corrupt, "tensor ", layer.codes.name, " has ", layer.codes.shape[0],
                " rows of words, which are no whole number of columns of ", layer.bits, " bits");
  }
  if (zero_words != (layer.rows * layer.bits + 31) / 32) {
    return fail(ErrorCode::shape_mismatch, "tensor ", layer.zero_points.name, " has ", zero_words,
                " words for a group, expected ", (layer.rows * layer.bits + 31) / 32, " for ", layer.rows, " rows of ",
                layer.bits, " bits");
  }
  if (layer.groups > layer.cols) {
    return fail(ErrorCode::corrupt, "tensor ", layer.scales.name, " has ", layer.groups, " groups for ", layer.cols,
                " columns");
  }
  if (scheme.varies) {
    layer.group_size = LLMINFER_TRY(group_size_of(scheme, layer));
  } else {
    LLMINFER_TRY(check_groups(layer.scales.name, layer, scheme.group_size));
    layer.group_size = scheme.group_size == -1 ? layer.cols : scheme.group_size;
  }
  if (layers.find(prefix + ".g_idx")) {
    const TensorInfo index = LLMINFER_TRY(layers.need(prefix + ".g_idx", {i32}, {layer.cols}));
    layer.group_of = LLMINFER_TRY(read_group_index(layers.checkpoint(), index, layer.groups));
  }
  layer.symmetric = scheme.symmetric && !scheme.varies && layer.bits >= 4;
  for (const char* part : {".qweight", ".qzeros", ".scales", ".g_idx"}) layers.take(prefix + part);
  return add_affine(prefix, std::move(layer), {}, layers);
}

/// AutoAWQ's GEMM: words of 8 rows.
Result<void> add_awq_gemm(const std::string& prefix, const Scheme& scheme, Layers& layers) {
  using enum ElementType;
  AffineLayer layer;
  layer.order = AffineLayer::Order::interleaved;
  layer.zeros = AffineLayer::Zeros::stored;
  layer.scales = LLMINFER_TRY(layers.need(prefix + ".scales", kFloats, {-1, -1}));
  layer.groups = layer.scales.shape[0];
  layer.rows = layer.scales.shape[1];
  if (layer.rows % 8 != 0) {
    return fail(ErrorCode::corrupt, "tensor ", layer.scales.name, " has ", layer.rows,
                " columns, expected a multiple of 8");
  }
  layer.codes = LLMINFER_TRY(layers.need(prefix + ".qweight", {i32}, {-1, layer.rows / 8}));
  layer.cols = layer.codes.shape[0];
  layer.zero_points = LLMINFER_TRY(layers.need(prefix + ".qzeros", {i32}, {layer.groups, layer.rows / 8}));
  LLMINFER_TRY(check_groups(layer.scales.name, layer, scheme.group_size));
  layer.group_size = scheme.group_size == -1 ? layer.cols : scheme.group_size;
  LLMINFER_TRY(check_whole_groups(layer));
  for (const char* part : {".qweight", ".qzeros", ".scales"}) layers.take(prefix + part);
  return add_affine(prefix, std::move(layer), {}, layers);
}

/// AutoAWQ's GEMV: rows of words, of zero points and of scales; the latter two padded to whole words for groups of 128,
/// 64 and 32 to 1, 2 and 4 of them.
Result<void> add_awq_gemv(const std::string& prefix, const Scheme& scheme, Layers& layers) {
  using enum ElementType;
  AffineLayer layer;
  layer.order = AffineLayer::Order::along;
  layer.zeros = AffineLayer::Zeros::stored_rows;
  layer.codes = LLMINFER_TRY(layers.need(prefix + ".qweight", {i32}, {-1, -1}));
  layer.rows = layer.codes.shape[0];
  layer.cols = layer.codes.shape[1] * 8;
  layer.group_size = scheme.group_size == -1 ? layer.cols : scheme.group_size;
  layer.groups = layer.cols / layer.group_size;
  LLMINFER_TRY(check_whole_groups(layer));
  const std::int64_t multiple = layer.group_size >= 128 ? 1 : layer.group_size >= 64 ? 2 : 4;
  const std::int64_t words = ((layer.groups + 7) / 8 + multiple - 1) / multiple * multiple;
  layer.zero_points = LLMINFER_TRY(layers.need(prefix + ".qzeros", {i32}, {layer.rows, words}));
  layer.scales = LLMINFER_TRY(layers.need(prefix + ".scales", kFloats, {layer.rows, words * 8}));
  for (const char* part : {".qweight", ".qzeros", ".scales"}) layers.take(prefix + part);
  return add_affine(prefix, std::move(layer), {}, layers);
}

/// Marlin (Frantar et al. 2024, arXiv:2408.11743), whose tensors AutoGPTQ calls B and s.
Result<void> add_marlin(const std::string& prefix, const Scheme& scheme, bool gptq, Layers& layers) {
  using enum ElementType;
  const std::string codes = prefix + (gptq ? ".B" : ".qweight"), scales = prefix + (gptq ? ".s" : ".scales");
  AffineLayer layer;
  layer.order = AffineLayer::Order::marlin;
  layer.scales = LLMINFER_TRY(layers.need(scales, kFloats, {-1, -1}));
  layer.groups = layer.scales.shape[0];
  layer.rows = layer.scales.shape[1];
  if (layer.rows % 64 != 0) {
    return fail(ErrorCode::corrupt, "tensor ", scales, " has ", layer.rows, " columns, expected a multiple of 64");
  }
  layer.codes = LLMINFER_TRY(layers.need(codes, {i32}, {-1, layer.rows * 2}));
  layer.cols = layer.codes.shape[0] * 16;
  LLMINFER_TRY(check_groups(scales, layer, scheme.group_size));
  layer.group_size = scheme.group_size == -1 ? layer.cols : scheme.group_size;
  LLMINFER_TRY(check_whole_groups(layer));
  for (const std::string& part : {codes, scales, prefix + ".workspace"}) layers.take(part);
  return add_affine(prefix, std::move(layer), {}, layers);
}

/// Marlin has 4 bits, symmetric.
Result<void> add_all_marlin(const Scheme& scheme, bool gptq, Layers& layers) {
  const char* const suffix = gptq ? ".B" : ".qweight";
  const auto prefixes = layers.with(suffix);
  if (scheme.bits != 4) return fail(ErrorCode::unsupported, kPlace, ": Marlin with ", scheme.bits, " bits, expected 4");
  if (prefixes.empty()) {
    return fail(ErrorCode::missing_tensor, kPlace, " says marlin, but no tensor is named *", suffix);
  }
  for (const std::string& prefix : prefixes) LLMINFER_TRY(add_marlin(prefix, scheme, gptq, layers));
  return {};
}

Result<void> add_all_gptq(const Scheme& scheme, bool v2, Layers& layers) {
  const auto prefixes = layers.with(".qweight");
  if (prefixes.empty()) return fail(ErrorCode::missing_tensor, kPlace, " says gptq, but no tensor is named *.qweight");
  for (const std::string& prefix : prefixes) LLMINFER_TRY(add_gptq_layer(prefix, scheme, v2, layers));
  return {};
}

/// Layers of MXFP4, MXFP8 and NVFP4; settings per layer change nothing of what the tensors' names and types tell.
Result<void> add_auto_round_blocks(Layers& layers) {
  const auto packed = layers.with(".weight_packed");
  for (const std::string& prefix : packed) LLMINFER_TRY(add_packed_fp4(prefix, layers));
  const auto whole = layers.with(".weight_scale");
  for (const std::string& prefix : whole) LLMINFER_TRY(add_mxfp8(prefix, layers));
  if (!packed.empty() || !whole.empty()) return {};
  return fail(ErrorCode::missing_tensor, kPlace,
              " says auto-round, but no tensor is named *.weight_packed or *.weight_scale");
}

Result<void> add_all_awq(const Scheme& scheme, bool gemv, Layers& layers) {
  if (scheme.bits != 4) {
    return fail(ErrorCode::unsupported, kPlace, ": AWQ with ", scheme.bits, " bits, expected 4");
  }
  const auto prefixes = layers.with(".qweight");
  if (prefixes.empty()) return fail(ErrorCode::missing_tensor, kPlace, " says awq, but no tensor is named *.qweight");
  for (const std::string& prefix : prefixes) {
    LLMINFER_TRY(gemv ? add_awq_gemv(prefix, scheme, layers) : add_awq_gemm(prefix, scheme, layers));
  }
  return {};
}

}  // namespace

Result<void> add_gptq(const core::Json& settings, Layers& layers) {
  Scheme scheme = LLMINFER_TRY(read_scheme(settings, "bits", "group_size"));
  scheme.symmetric = LLMINFER_TRY(setting_flag(settings, "sym", false, kPlace));
  LLMINFER_TRY(read_layer_settings(settings.find("dynamic"), "dynamic", scheme));
  std::string format = LLMINFER_TRY(setting_text(settings, "checkpoint_format", "", kPlace));
  if (format.empty()) format = LLMINFER_TRY(setting_text(settings, "format", "gptq", kPlace));
  if (LLMINFER_TRY(setting_flag(settings, "is_marlin_format", false, kPlace))) format = "marlin";
  if (format == "marlin") return add_all_marlin(scheme, true, layers);
  if (format != "gptq" && format != "gptq_v2") {
    return fail(ErrorCode::unsupported, kPlace, ": \"checkpoint_format\" is \"", format,
                "\", expected gptq, gptq_v2 or marlin");
  }
  const std::string dtype = LLMINFER_TRY(setting_text(settings, "pack_dtype", "int32", kPlace));
  if (dtype != "int32") {
    return fail(ErrorCode::unsupported, kPlace, ": \"pack_dtype\" is \"", dtype, "\", expected int32");
  }
  return add_all_gptq(scheme, format == "gptq_v2", layers);
}

Result<void> add_awq(const core::Json& settings, Layers& layers) {
  // quant_config.json of early AutoAWQ has the names of its arguments.
  const bool early = settings.find("w_bit");
  const Scheme scheme = LLMINFER_TRY(early ? read_scheme(settings, "w_bit", "q_group_size")
                                           : read_scheme(settings, "bits", "group_size"));
  // The layout: AutoAWQ's "version", or, where that is missing, what GPTQModel and transformers call it.
  std::string version;
  const char* key = "version";
  for (const char* const name : {"version", "checkpoint_format", "format"}) {
    if (!version.empty()) break;
    version = LLMINFER_TRY(setting_text(settings, name, "", kPlace));
    if (!version.empty()) key = name;
  }
  std::transform(version.begin(), version.end(), version.begin(),
                 [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c; });
  if (version == "marlin") return add_all_marlin(scheme, false, layers);
  // ExLlama's and IPEX's kernels arrange GEMM's words when they have been read.
  for (const char* const same : {"", "exllama", "ipex"}) {
    if (version == same) version = "gemm";
  }
  if (version != "gemm" && version != "gemv") {
    return fail(ErrorCode::unsupported, kPlace, ": AWQ \"", key, "\" is \"", version,
                "\", expected gemm, gemv, marlin, exllama or ipex");
  }
  return add_all_awq(scheme, version == "gemv", layers);
}

/// AutoRound (Cheng et al. 2023, arXiv:2309.05516) packs as others do; its own form is GPTQ's with the zero points as
/// they are.
Result<void> add_auto_round(const core::Json& settings, Layers& layers) {
  const std::string data_type = LLMINFER_TRY(setting_text(settings, "data_type", "int", kPlace));
  if (data_type == "fp" || data_type == "fp8") return add_fp8(settings, layers);
  if (data_type == "mx_fp" || data_type == "nv_fp") return add_auto_round_blocks(layers);
  const std::int64_t inputs = LLMINFER_TRY(setting_int(settings, "act_bits", 16, kPlace));
  if (data_type != "int" || inputs < 16) {
    return fail(ErrorCode::unsupported, kPlace, ": AutoRound with \"data_type\" \"", data_type, "\" and \"act_bits\" ",
                inputs, ", expected int and 16, or fp, mx_fp or nv_fp");
  }
  Scheme scheme = LLMINFER_TRY(read_scheme(settings, "bits", "group_size"));
  scheme.symmetric = LLMINFER_TRY(setting_flag(settings, "sym", true, kPlace));
  LLMINFER_TRY(read_layer_settings(settings.find("extra_config"), "extra_config", scheme));
  const std::string format = LLMINFER_TRY(setting_text(settings, "packing_format", "auto_round:auto_gptq", kPlace));
  if (format.find("awq") != std::string::npos) return add_all_awq(scheme, false, layers);
  if (format == "auto_round" || format == "auto_round:gptqmodel") return add_all_gptq(scheme, true, layers);
  if (format == "auto_round:auto_gptq" || format == "auto_round:gptq") return add_all_gptq(scheme, false, layers);
  return fail(ErrorCode::unsupported, kPlace, ": \"packing_format\" is \"", format,
              "\", expected auto_round, auto_round:auto_gptq, auto_round:gptqmodel or auto_round:auto_awq");
}

}  // namespace llminfer::load
