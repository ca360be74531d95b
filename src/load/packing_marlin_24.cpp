// compressed-tensors' marlin-24: integers of 4 or 8 bits of which two of each four along K are kept, in the order in
// which the kernels of Sparse-Marlin (IST-DASLab/Sparse-Marlin) load them. Becomes a weight of all columns.
#include <algorithm>
#include <cstring>
#include <utility>

#include "core/error.hpp"
#include "load/packing.hpp"
#include "quant/format.hpp"

namespace llminfer::load {
namespace {

using core::fail;
using enum ElementType;

constexpr std::int64_t kBlock = 32;

struct Marlin24Layer {
  TensorInfo codes;   ///< [cols / 32, rows * 16 * bits / 32]
  TensorInfo meta;    ///< [cols / 32, rows * 2]: for each four the two columns that are kept, 2 bits each
  TensorInfo scales;  ///< [groups, rows]
  int bits = 4;
  std::int64_t rows = 0, cols = 0, groups = 0, group_size = 0;
};

/// Which of the 1024 codes of a tile (16 kept columns, 64 rows) is that of kept column k, row n. A thread of a warp has
/// the columns of two neighbours and their like 8 further on; the codes of a word take turns.
std::int64_t place_in_tile(std::int64_t k, std::int64_t n, int per_word) {
  const std::int64_t thread = 4 * (n / 8) + k % 8 / 2;
  const std::int64_t place = thread * 32 + n % 4 * 8 + n % 8 / 4 * 4 + k / 8 * 2 + k % 2;
  const std::int64_t in_word = place % per_word;
  return place - in_word + in_word % 2 * (per_word / 2) + in_word / 2;
}

/// Where the 16 bits of meta of row n, columns 16 * c and on, lie in a matrix with `rows` rows: CUTLASS's interleaved
/// columns, in which neighbours in 2 x 2 are swapped across.
std::int64_t place_of_meta(std::int64_t n, std::int64_t c, std::int64_t rows) {
  std::int64_t row = n / 64 * 64 + n % 2 * 2 + n % 8 / 4 + n % 4 / 2 * 32 + n % 64 / 8 * 4;
  const std::int64_t swap = row % 2 == 0 && c % 2 == 1 ? 1 : row % 2 == 1 && c % 2 == 0 ? -1 : 0;
  row += swap;
  c -= swap;
  return c / 2 * rows * 2 + row * 2 + c % 2;
}

/// Where row n's scale lies among those of its group. The writer leaves them in order if a group has as many columns as
/// are kept.
std::int64_t place_of_scale(std::int64_t n, bool in_order) {
  constexpr std::int64_t kPlace[8] = {0, 2, 4, 6, 1, 3, 5, 7};
  return in_order ? n : n / 8 * 8 + kPlace[n % 8];
}

class Marlin24Packing final : public Packing {
 public:
  explicit Marlin24Packing(Marlin24Layer layer) : layer_(std::move(layer)) {}

  Result<WeightView> read(const Checkpoint& checkpoint, const TensorInfo& tensor, core::Team* team) const override {
    const Marlin24Layer& l = layer_;
    const std::vector<float> scales = LLMINFER_TRY(read_floats(checkpoint, l.scales));
    const core::Bytes words = LLMINFER_TRY(read_bytes(checkpoint, l.codes));
    const core::Bytes meta_bytes = LLMINFER_TRY(read_bytes(checkpoint, l.meta));
    std::vector<std::uint16_t> meta(static_cast<std::size_t>(l.rows * l.cols / 16));
    std::memcpy(meta.data(), meta_bytes.data.data(), meta.size() * 2);
    for (std::size_t i = 0; i < meta.size(); ++i) {
      for (int shift = 0; shift < 16; shift += 4) {
        if ((meta[i] >> shift & 3) < (meta[i] >> (shift + 2) & 3)) continue;
        return fail(ErrorCode::corrupt, "tensor ", l.meta.name, ": element ", i, " keeps columns ",
                    meta[i] >> shift & 3, " and ", meta[i] >> (shift + 2) & 3, " of four, expected ascending ones");
      }
    }
    const bool scales_in_order = l.group_size >= l.cols / 2;
    BlockBuffer blocks(tensor.type, l.rows, l.cols);
    const int block_bytes = quant::format(tensor.type).block_bytes;
    const auto convert = [&](std::int64_t n) {
      std::uint8_t* out = blocks.row(n);
      for (std::int64_t k = 0; k < l.cols; k += kBlock, out += block_bytes) {
        std::uint8_t codes[kBlock];
        std::fill_n(codes, kBlock, static_cast<std::uint8_t>(1 << (l.bits - 1)));
        for (std::int64_t i = 0; i < kBlock / 2; ++i) {  // kept columns
          const std::int64_t kept = k / 2 + i, four = i / 2;
          const std::uint16_t m = meta[static_cast<std::size_t>(place_of_meta(n, k / 16 + four / 4, l.rows))];
          codes[four * 4 + (m >> (four % 4 * 4 + i % 2 * 2) & 3)] = code(words.data.data(), kept, n);
        }
        const std::int64_t at = k / l.group_size * l.rows + place_of_scale(n, scales_in_order);
        write_integer_block(tensor.type, scales[static_cast<std::size_t>(at)], 0, codes, out);
      }
    };
    LLMINFER_TRY(for_rows(team, l.rows, [&](std::int64_t first, std::int64_t last, std::size_t) {
      for (std::int64_t n = first; n < last; ++n) convert(n);
    }));
    return blocks.view(tensor);
  }

 private:
  std::uint8_t code(const std::byte* words, std::int64_t kept, std::int64_t n) const {
    const int per_word = 32 / layer_.bits;
    const std::int64_t place = n / 64 * 1024 + place_in_tile(kept % 16, n % 64, per_word);
    std::uint32_t word = 0;
    std::memcpy(&word, words + 4 * (kept / 16 * (layer_.rows * 16 / per_word) + place / per_word), 4);
    return static_cast<std::uint8_t>(word >> (place % per_word * layer_.bits) & ((1u << layer_.bits) - 1u));
  }

  const Marlin24Layer layer_;
};

}  // namespace

Result<void> add_marlin_24(const std::string& prefix, int bits, std::int64_t group_size, Layers& layers) {
  Marlin24Layer l;
  l.bits = bits;
  l.scales = LLMINFER_TRY(layers.need(prefix + ".scale_packed", {f16}, {-1, -1}));
  l.groups = l.scales.shape[0];
  l.rows = l.scales.shape[1];
  l.codes = LLMINFER_TRY(layers.need(prefix + ".weight_packed", {i32}, {-1, -1}));
  if (l.rows % 64 != 0) {
    return fail(ErrorCode::corrupt, "tensor ", l.scales.name, " has ", l.rows,
                " rows of the layer, expected a multiple of 64");
  }
  const std::int64_t tiles = l.codes.shape[0];
  l.codes = LLMINFER_TRY(layers.need(l.codes.name, {i32}, {tiles, l.rows / 2 * bits}));
  l.meta = LLMINFER_TRY(layers.need(prefix + ".meta", {i16}, {tiles, l.rows * 2}));
  if (tiles > INT32_MAX / 32) {
    return fail(ErrorCode::limit_exceeded, "tensor ", l.codes.name, ": ", tiles, " times 32 columns");
  }
  l.cols = tiles * 32;
  l.group_size = group_size > 0 ? std::min(group_size, l.cols) : l.cols;
  if (l.group_size % kBlock != 0) {
    return fail(ErrorCode::unsupported, "tensor ", l.scales.name, ": groups of ", l.group_size,
                " columns, expected a multiple of ", kBlock);
  }
  if (const std::int64_t groups = (l.cols + l.group_size - 1) / l.group_size; l.groups != groups) {
    return fail(ErrorCode::corrupt, "tensor ", l.scales.name, " has ", l.groups, " groups, but ", l.cols,
                " columns and \"group_size\" ", l.group_size, " make ", groups);
  }
  for (const char* part : {".weight_packed", ".scale_packed", ".meta"}) layers.take(prefix + part);
  WeightDetails details;
  details.scale_columns = l.group_size;
  const TensorInfo codes = l.codes;
  const std::int64_t rows = l.rows, cols = l.cols;
  layers.add(prefix, bits == 4 ? WeightType::q4_0 : WeightType::q8_0, rows, cols, codes,
             std::make_shared<Marlin24Packing>(std::move(l)), std::move(details));
  return {};
}

}  // namespace llminfer::load
