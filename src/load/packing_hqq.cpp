// HQQ (Badri and Shaji 2023, "Half-Quadratic Quantization of Large Machine Learning Models") as transformers and hqq
// write it: a layer's settings are tensors beside its codes, and zero points are floats. Groups that lie along rows
// become blocks with float minimums; those across rows, or of odd sizes, an F32 weight.
#include <algorithm>
#include <array>
#include <cstring>
#include <limits>
#include <utility>

#include "core/error.hpp"
#include "load/packing.hpp"
#include "quant/format.hpp"

namespace llminfer::load {
namespace {

using core::fail;
using enum ElementType;

constexpr const char* kPlace = "quantization_config";
constexpr std::int64_t kBlock = 32;
constexpr auto kFloats = {f16, bf16, f32};

/// How codes are packed: a unit holds one of each `codes` parts of the grouped matrix's rows, the first part in the
/// highest bits.
struct Bits {
  std::string_view name;  ///< as the tensor "packing" says
  int bits, codes;
  std::int64_t unit_bytes;
  WeightType type;
};
constexpr std::array kPackings = {
    Bits{"8bit_u8", 8, 1, 1, WeightType::w8_min}, Bits{"4bit_u8", 4, 2, 1, WeightType::w4_min},
    Bits{"3bit_32", 3, 10, 4, WeightType::w3_min}, Bits{"2bit_u8", 2, 4, 1, WeightType::w2_min},
    Bits{"1bit_u8", 1, 8, 1, WeightType::w2_min}};

struct Layer {
  Bits packing{};
  std::int64_t rows = 0, cols = 0, group_size = 0;
  bool along_rows = true;  ///< axis 1: a group is consecutive elements; else every groups-th one
  TensorInfo codes, scales, zeros;

  std::int64_t groups() const { return rows * cols / group_size; }
  /// Sides of the matrix that is packed along its rows: [groups, group_size], or transposed.
  std::int64_t packed_rows() const { return along_rows ? groups() : group_size; }
  std::int64_t packed_cols() const { return along_rows ? group_size : groups(); }
  std::int64_t unit_rows() const { return (packed_rows() + packing.codes - 1) / packing.codes; }
};

class HqqPacking final : public Packing {
 public:
  explicit HqqPacking(Layer layer) : layer_(std::move(layer)) {}

  Result<WeightView> read(const Checkpoint& checkpoint, const TensorInfo& tensor, core::Team* team) const override {
    const std::vector<float> scales = LLMINFER_TRY(read_floats(checkpoint, layer_.scales));
    const std::vector<float> zeros = LLMINFER_TRY(read_floats(checkpoint, layer_.zeros));
    std::vector<float> minimums = scales;
    for (std::size_t g = 0; g < scales.size(); ++g) minimums[g] *= zeros[g];
    LLMINFER_TRY(check_scales(scales, layer_.scales.name));
    LLMINFER_TRY(check_scales(minimums, layer_.zeros.name));
    const core::Bytes units = LLMINFER_TRY(read_bytes(checkpoint, layer_.codes));
    BlockBuffer blocks(tensor.type, layer_.rows, layer_.cols);
    LLMINFER_TRY(for_rows(team, layer_.rows, [&](std::int64_t first, std::int64_t last, std::size_t) {
      for (std::int64_t n = first; n < last; ++n) {
        if (tensor.type == WeightType::f32) {
          write_floats(n, units.data.data(), scales, zeros, blocks.row(n));
        } else {
          write_blocks(tensor.type, n, units.data.data(), scales, zeros, blocks.row(n));
        }
      }
    }));
    return blocks.view(tensor);
  }

 private:
  std::uint8_t code(std::int64_t element, const std::byte* units) const {
    const Bits& p = layer_.packing;
    const std::int64_t row = element / layer_.packed_cols(), step = layer_.unit_rows();
    const std::int64_t at = row % step * layer_.packed_cols() + element % layer_.packed_cols();
    std::uint32_t unit = 0;
    std::memcpy(&unit, units + at * p.unit_bytes, static_cast<std::size_t>(p.unit_bytes));
    const int shift = p.bits * (p.codes - 1 - static_cast<int>(row / step));
    return static_cast<std::uint8_t>(unit >> shift & ((1u << p.bits) - 1));
  }

  void write_floats(std::int64_t n, const std::byte* units, const std::vector<float>& scales,
                    const std::vector<float>& zeros, std::uint8_t* out) const {
    for (std::int64_t k = 0; k < layer_.cols; ++k, out += 4) {
      const std::int64_t element = n * layer_.cols + k;
      const auto g =
          static_cast<std::size_t>(layer_.along_rows ? element / layer_.group_size : element % layer_.packed_cols());
      write_float((static_cast<float>(code(element, units)) - zeros[g]) * scales[g], out);
    }
  }

  /// See quant::AffineMinimum.
  void write_blocks(WeightType type, std::int64_t n, const std::byte* units, const std::vector<float>& scales,
                    const std::vector<float>& zeros, std::uint8_t* out) const {
    const quant::Format& format = quant::format(type);
    const int bits = format.shape.bits;
    std::fill_n(out, layer_.cols / kBlock * format.block_bytes, std::uint8_t{0});
    for (std::int64_t k = 0; k < layer_.cols; k += kBlock, out += format.block_bytes) {
      const std::int64_t element = n * layer_.cols + k;
      const auto g = static_cast<std::size_t>(element / layer_.group_size);
      write_float(scales[g], out);
      write_float(scales[g] * (zeros[g] - static_cast<float>(format.shape.zero)), out + 4);
      for (int i = 0; i < kBlock; ++i) {
        const unsigned value = static_cast<unsigned>(code(element + i, units)) << (i * bits % 8);
        out[8 + i * bits / 8] |= static_cast<std::uint8_t>(value);
        if (value > 255) out[8 + i * bits / 8 + 1] |= static_cast<std::uint8_t>(value >> 8);
      }
    }
  }

  const Layer layer_;
};

/// The number that a tensor of one element holds.
Result<double> number(const std::string& name, const Layers& layers) {
  const TensorInfo tensor = LLMINFER_TRY(layers.need(name, {i32, i64, u8, f32, f16}, {}));
  if (tensor.element == f32 || tensor.element == f16) {
    return LLMINFER_TRY(read_floats(layers.checkpoint(), tensor))[0];
  }
  return static_cast<double>(LLMINFER_TRY(read_integers(layers.checkpoint(), tensor))[0]);
}

Result<Bits> packing_of(const std::string& prefix, const Layers& layers) {
  const std::string name = prefix + ".packing";
  const TensorInfo tensor = LLMINFER_TRY(layers.need(name, {u8}, {-1}));
  const core::Bytes bytes = LLMINFER_TRY(read_bytes(layers.checkpoint(), tensor));
  const std::string text(reinterpret_cast<const char*>(bytes.data.data()),
                         std::min<std::size_t>(bytes.data.size(), 32));
  std::string known;
  for (const Bits& packing : kPackings) {
    if (packing.name == text) return packing;
    known += (known.empty() ? "" : ", ") + std::string(packing.name);
  }
  return fail(ErrorCode::unsupported, "tensor ", name, " says \"", text, "\", expected ", known);
}

/// What the settings say of this layer must be what its tensors say. `tag`: "self_attn.q_proj".
Result<void> check_settings(const core::Json& settings, const std::string& prefix, double bits, const Layer& layer) {
  const core::Json* config = settings.find("quant_config");
  if (!config || !config->is_object()) return fail(ErrorCode::corrupt, kPlace, ": expected an object \"quant_config\"");
  std::string place = "quant_config";
  if (!config->find("weight_quant_params")) {  // a scheme for each kind of layer
    const std::size_t dot = prefix.rfind('.', prefix.rfind('.') - 1);
    const std::string tag = prefix.substr(dot == std::string::npos ? 0 : dot + 1);
    config = config->find(tag);
    if (!config) {
      return fail(ErrorCode::corrupt, kPlace, ": ", prefix, " is packed, but \"quant_config\" has no \"", tag, "\"");
    }
    place += "." + tag;
  }
  const core::Json* weight = config->is_object() ? config->find("weight_quant_params") : nullptr;
  if (!weight || !weight->is_object()) {
    return fail(ErrorCode::corrupt, kPlace, ": expected an object \"weight_quant_params\" in ", place);
  }
  for (const char* key : {"scale_quant_params", "zero_quant_params"}) {
    if (const core::Json* found = config->find(key); found && !found->is_null()) {
      return fail(ErrorCode::unsupported, kPlace, ": \"", key, "\" in ", place, ": quantized scales and zero points");
    }
  }
  const auto nbits = LLMINFER_TRY(core::json_number(*weight, "nbits", place));
  const core::Json* size = weight->find("group_size");  // null: a whole row, or column
  const bool same_size = !size || size->is_null() || size->integer() == layer.group_size;
  const std::int64_t axis = LLMINFER_TRY(setting_int(*weight, "axis", layer.along_rows, place));
  if ((!nbits || std::abs(*nbits - bits) < 0.01) && same_size && axis == (layer.along_rows ? 1 : 0)) return {};
  return fail(ErrorCode::corrupt, "tensor ", layer.codes.name, " has ", bits, " bits in groups of ", layer.group_size,
              " along axis ", layer.along_rows ? 1 : 0, ", but ", place, " says otherwise");
}

Result<Layer> read_layer(const std::string& prefix, const core::Json& settings, const Layers& layers) {
  Layer layer;
  layer.packing = LLMINFER_TRY(packing_of(prefix, layers));
  const double bits = LLMINFER_TRY(number(prefix + ".nbits", layers));
  const int width = layer.packing.bits;
  // 5 and 6 bits lie in bytes, 1.58 in 2 bits.
  if (!(bits <= width && (bits == width || (width == 8 && bits > 4) || (width == 2 && bits > 1)))) {
    return fail(ErrorCode::corrupt, "tensor ", prefix, ".nbits is ", bits, ", which is not packed as ",
                layer.packing.name);
  }
  const std::string shape_name = prefix + ".shape";
  const auto shape =
      LLMINFER_TRY(read_integers(layers.checkpoint(), LLMINFER_TRY(layers.need(shape_name, {i64, i32}, {2}))));
  const double size = LLMINFER_TRY(number(prefix + ".group_size", layers));
  const double axis = LLMINFER_TRY(number(prefix + ".axis", layers));
  layer.rows = shape[0];
  layer.cols = shape[1];
  constexpr std::int64_t kMax = std::numeric_limits<std::int32_t>::max();
  if (layer.rows < 1 || layer.cols < 1 || layer.rows > kMax || layer.cols > kMax) {
    return fail(ErrorCode::corrupt, "tensor ", shape_name, " says [", layer.rows, ", ", layer.cols, "]");
  }
  if (!(size >= 1 && size <= static_cast<double>(kMax)) || layer.rows * layer.cols % static_cast<std::int64_t>(size)) {
    return fail(ErrorCode::corrupt, "tensor ", prefix, ".group_size is ", size, ", which does not divide ", layer.rows,
                " x ", layer.cols);
  }
  layer.group_size = static_cast<std::int64_t>(size);
  if (axis != 0 && axis != 1) {
    return fail(ErrorCode::corrupt, "tensor ", prefix, ".axis is ", axis, ", expected 0 or 1");
  }
  layer.along_rows = axis == 1;
  for (const char* key : {".quant_scale", ".quant_zero"}) {
    if (!layers.find(prefix + key)) continue;
    if (LLMINFER_TRY(number(prefix + key, layers)) != 0) {
      return fail(ErrorCode::unsupported, "tensor ", prefix, key, ": quantized scales and zero points");
    }
  }
  // With view_as_float the same bytes are called floats.
  const std::string codes = prefix + ".W_q";
  layer.codes = LLMINFER_TRY(layers.need(codes, {u8, i32, f16, bf16, f32}, {-1, -1}));
  const auto units = static_cast<std::uint64_t>(layer.unit_rows() * layer.packed_cols() * layer.packing.unit_bytes);
  const bool whole = layer.packing.bits == 3 || layer.packed_rows() % layer.packing.codes == 0;
  if (!whole || layer.codes.bytes != units) {
    return fail(ErrorCode::shape_mismatch, "tensor ", codes, " has ", layer.codes.bytes, " bytes, expected ", units,
                " for ", layer.groups(), " groups of ", layer.group_size, " codes as ", layer.packing.name);
  }
  const auto sides =
      layer.along_rows ? std::vector<std::int64_t>{layer.groups(), 1} : std::vector<std::int64_t>{1, layer.groups()};
  layer.scales = LLMINFER_TRY(layers.need(prefix + ".scale", kFloats, sides));
  layer.zeros = LLMINFER_TRY(layers.need(prefix + ".zero", kFloats, sides));
  LLMINFER_TRY(check_settings(settings, prefix, bits, layer));
  return layer;
}

}  // namespace

Result<void> add_hqq(const core::Json& settings, Layers& layers) {
  const auto prefixes = layers.with(".W_q");
  if (prefixes.empty()) return fail(ErrorCode::missing_tensor, kPlace, " says hqq, but no tensor is named *.W_q");
  for (const std::string& prefix : prefixes) {
    Layer layer = LLMINFER_TRY(read_layer(prefix, settings, layers));
    for (const char* part :
         {".W_q", ".scale", ".zero", ".nbits", ".group_size", ".axis", ".shape", ".packing", ".unpack_view_dtype",
          ".view_as_float", ".quant_scale", ".quant_zero", ".compute_dtype", ".offload_meta", ".encoded_state_dict",
          ".stores_quant_config", ".channel_wise", ".optimize", ".round_zero"}) {
      layers.take(prefix + part);
    }
    const bool blocks = layer.along_rows && layer.cols % kBlock == 0 && layer.group_size % kBlock == 0;
    WeightDetails details;
    if (blocks) {
      details.scale_columns = layer.cols % layer.group_size == 0   ? layer.group_size
                              : layer.group_size % layer.cols == 0 ? layer.cols
                                                                   : kBlock;
    }
    const TensorInfo codes = layer.codes;
    const std::int64_t rows = layer.rows, cols = layer.cols;
    layers.add(prefix, blocks ? layer.packing.type : WeightType::f32, rows, cols, codes,
               std::make_shared<HqqPacking>(std::move(layer)), std::move(details));
  }
  return {};
}

}  // namespace llminfer::load
