// Weights of whole bytes (int8, FP8) with scales per rectangle of rows and columns, and weights of 4-bit floats (NF4,
// FP4, MXFP4, NVFP4), to blocks.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "core/error.hpp"
#include "core/half.hpp"
#include "load/packing.hpp"
#include "quant/format.hpp"

namespace llminfer::load {
namespace {

using core::fail;

constexpr std::int64_t kBlock = 32;

float factor_of(const std::vector<float>& row_factors, std::int64_t row) noexcept {
  return row_factors.empty() ? 1.0f : row_factors[static_cast<std::size_t>(row)];
}

/// Four numbers of E2M3 in three bytes, times 8: 0 to 60, with a sign.
void unpack_e2m3(const std::uint8_t* from, std::uint8_t* to) noexcept {
  const std::uint32_t word = static_cast<std::uint32_t>(from[0] | from[1] << 8 | from[2] << 16);
  for (int i = 0; i < 4; ++i) {
    const int code = static_cast<int>(word >> (6 * i) & 63), power = code >> 3 & 3, places = code & 7;
    const int size = power == 0 ? places : (8 + places) << (power - 1);
    to[i] = static_cast<std::uint8_t>(code & 32 ? -size : size);
  }
}

class BytePacking final : public Packing {
 public:
  explicit BytePacking(ByteLayer layer) : layer_(std::move(layer)) {}

  Result<WeightView> read(const Checkpoint& checkpoint, const TensorInfo& tensor, core::Team* team) const override {
    const ByteLayer& l = layer_;
    std::vector<float> scales = LLMINFER_TRY(read_floats(checkpoint, l.scales));
    for (float& scale : scales) {
      if (l.divide && scale == 0.0f) {
        return fail(ErrorCode::corrupt, "tensor ", l.scales.name, ": a divisor is zero");
      }
      scale = l.divide ? 1.0f / scale : scale / l.scale_divisor;
    }
    LLMINFER_TRY(check_scales(scales, l.scales.name, l.row_factors));
    std::vector<std::int64_t> zeros;
    if (l.zeros) zeros = LLMINFER_TRY(read_integers(checkpoint, *l.zeros));
    core::Bytes bytes;
    std::vector<std::uint8_t> expanded;
    const std::uint8_t* codes = nullptr;
    if (l.sparse) {
      expanded.resize(static_cast<std::size_t>(l.rows * l.cols));
      LLMINFER_TRY(expand(checkpoint, *l.sparse, team, expanded.data()));
      codes = expanded.data();
    } else {
      bytes = LLMINFER_TRY(read_bytes(checkpoint, l.weight));
      codes = reinterpret_cast<const std::uint8_t*>(bytes.data.data());
    }
    if (l.e2m3) {
      expanded.resize(static_cast<std::size_t>(l.rows * l.cols));
      for (std::size_t i = 0; i < expanded.size(); i += 4) unpack_e2m3(codes + i / 4 * 3, expanded.data() + i);
      codes = expanded.data();
    }
    const bool floats = l.weight.element == ElementType::f8_e4m3;
    if (floats) {
      const std::uint8_t* const end = codes + l.rows * l.cols;
      const auto* nan = std::find_if(codes, end, [](std::uint8_t u) { return (u & 0x7f) == 0x7f; });
      if (nan != end) {
        return fail(ErrorCode::corrupt, "tensor ", l.weight.name, ": element ", nan - codes, " is not a number");
      }
    }
    BlockBuffer blocks(tensor.type, l.rows, l.cols);
    const std::int64_t per_row = (l.cols + l.block_cols - 1) / l.block_cols;
    const auto convert = [&](std::int64_t n) {
      const std::uint8_t* const row = codes + n * l.cols;
      const float* const row_scales = scales.data() + n / l.block_rows * per_row;
      const std::int64_t* const row_zeros = l.zeros ? zeros.data() + n / l.block_rows * per_row : nullptr;
      const float factor = factor_of(l.row_factors, n);
      std::uint8_t* out = blocks.row(n);
      if (tensor.type == WeightType::f32) {
        for (std::int64_t k = 0; k < l.cols; ++k) {
          const std::int64_t zero = row_zeros ? row_zeros[k / l.block_cols] : 0;
          const float value =
              floats ? core::e4m3_to_float(row[k]) : static_cast<float>(static_cast<std::int8_t>(row[k]) - zero);
          write_float(row_scales[k / l.block_cols] * factor * value, out + 4 * k);
        }
        return;
      }
      if (row_zeros) {
        for (std::int64_t k = 0; k < l.cols; k += kBlock, out += quant::format(tensor.type).block_bytes) {
          std::uint8_t unsigned_codes[kBlock];
          for (std::int64_t i = 0; i < kBlock; ++i) unsigned_codes[i] = row[k + i] ^ 0x80;
          const int zero = static_cast<int>(row_zeros[k / l.block_cols]) + 128;
          write_integer_block(tensor.type, row_scales[k / l.block_cols] * factor, zero, unsigned_codes, out);
        }
        return;
      }
      for (std::int64_t k = 0; k < l.cols; k += kBlock, out += 4 + kBlock) {
        write_float(row_scales[k / l.block_cols] * factor, out);
        std::memcpy(out + 4, row + k, kBlock);
      }
    };
    LLMINFER_TRY(for_rows(team, l.rows, [&](std::int64_t first, std::int64_t last, std::size_t) {
      for (std::int64_t n = first; n < last; ++n) convert(n);
    }));
    return blocks.view(tensor);
  }

 private:
  const ByteLayer layer_;
};

class NibblePacking final : public Packing {
 public:
  explicit NibblePacking(NibbleLayer layer) : layer_(std::move(layer)) {}

  Result<WeightView> read(const Checkpoint& checkpoint, const TensorInfo& tensor, core::Team* team) const override {
    const NibbleLayer& l = layer_;
    const std::vector<float> scales = LLMINFER_TRY(l.read_scales(checkpoint));
    LLMINFER_TRY(check_scales(scales, l.weight.name, l.row_factors));
    const core::Bytes bytes = LLMINFER_TRY(read_bytes(checkpoint, l.weight));
    const auto* packed = reinterpret_cast<const std::uint8_t*>(bytes.data.data());
    BlockBuffer blocks(tensor.type, l.rows, l.cols);
    const int first_shift = l.high_first ? 4 : 0;
    const auto convert = [&](std::int64_t n) {
      const std::int64_t stored = l.first_row + n * l.row_step;
      const float factor = factor_of(l.row_factors, n);
      const std::uint8_t* from = packed + stored * (l.cols / 2);
      std::uint8_t* out = blocks.row(n);
      for (std::int64_t k = 0; k < l.cols; k += kBlock, from += kBlock / 2) {
        std::uint8_t codes[kBlock];
        for (int i = 0; i < kBlock / 2; ++i) {
          codes[2 * i] = from[i] >> first_shift & 15;
          codes[2 * i + 1] = from[i] >> (4 - first_shift) & 15;
        }
        const float* const scale = scales.data() + (stored * l.cols + k) / l.per_scale;
        if (tensor.type == WeightType::mxfp4) {
          *out++ = static_cast<std::uint8_t>(std::ilogb(*scale) + 127);  // a power of two
          for (int i = 0; i < 16; ++i) *out++ = static_cast<std::uint8_t>(codes[i] | codes[i + 16] << 4);
          continue;
        }
        write_float(scale[0] * factor, out);
        out += 4;
        if (tensor.type == WeightType::fp4_16) {
          write_float(scale[l.per_scale < kBlock ? 1 : 0] * factor, out);
          out += 4;
        }
        write_nibbles(codes, out);
        out += kBlock / 2;
      }
    };
    LLMINFER_TRY(for_rows(team, l.rows, [&](std::int64_t first, std::int64_t last, std::size_t) {
      for (std::int64_t n = first; n < last; ++n) convert(n);
    }));
    return blocks.view(tensor);
  }

 private:
  const NibbleLayer layer_;
};

}  // namespace

Result<void> add_bytes(const std::string& prefix, ByteLayer layer, const InputQuantization& input, Layers& layers) {
  const bool floats = layer.weight.element == ElementType::f8_e4m3;
  const std::int64_t rows = layer.rows, cols = layer.cols;
  layer.block_cols = std::min(layer.block_cols, cols);
  const bool whole = cols % kBlock == 0 && (layer.block_cols % kBlock == 0);
  WeightDetails details;
  details.input = input;
  if (whole) details.scale_columns = layer.block_cols;
  const WeightType type = !whole        ? WeightType::f32
                          : floats      ? WeightType::fp8
                          : layer.zeros ? WeightType::w8
                                        : WeightType::w8_sym;
  if (layer.e2m3) layer.scale_divisor *= 8.0f;
  const TensorInfo weight = layer.weight;
  layers.add(prefix, type, rows, cols, weight, std::make_shared<BytePacking>(std::move(layer)), std::move(details));
  return {};
}

Result<void> add_nibbles(const std::string& prefix, WeightType type, NibbleLayer layer, Layers& layers) {
  const std::int64_t rows = layer.rows, cols = layer.cols;
  if (cols % kBlock != 0) {
    return fail(ErrorCode::unsupported, "tensor ", layer.weight.name, ": rows of ", cols,
                " 4-bit floats, expected a multiple of ", kBlock);
  }
  WeightDetails details;
  const bool aligned = layer.per_scale % kBlock == 0 && cols % layer.per_scale == 0;
  details.scale_columns = aligned ? layer.per_scale : 0;
  details.input = layer.input;
  const TensorInfo weight = layer.weight;
  layers.add(prefix, type, rows, cols, weight, std::make_shared<NibblePacking>(std::move(layer)), std::move(details));
  return {};
}

Result<InputQuantization> static_input(const Checkpoint& checkpoint, InputQuantization::Kind kind,
                                       const TensorInfo& scale, const TensorInfo* zero) {
  InputQuantization input;
  input.kind = kind;
  input.dynamic = false;
  input.scale = LLMINFER_TRY(read_floats(checkpoint, scale))[0];
  if (!(input.scale > 0)) {
    return fail(ErrorCode::corrupt, "tensor ", scale.name, " is ", input.scale, ", expected a positive number");
  }
  if (zero) {
    const std::int64_t value = LLMINFER_TRY(read_integers(checkpoint, *zero))[0];
    if (value < -128 || value > 127) {
      return fail(ErrorCode::corrupt, "tensor ", zero->name, " is ", value, ", expected -128 … 127");
    }
    input.zero = static_cast<std::int32_t>(value);
  }
  return input;
}

}  // namespace llminfer::load
