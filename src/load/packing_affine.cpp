// Integer codes whose groups of columns share a scale and a zero point, to blocks: GPTQ, AWQ, pack-quantized. Columns
// are sorted by group, so that every block has one scale; where groups are no whole blocks, the weight becomes F32.
#include <algorithm>
#include <cstring>
#include <numeric>
#include <utility>

#include "core/error.hpp"
#include "core/half.hpp"
#include "core/transpose.hpp"
#include "load/packing.hpp"
#include "quant/format.hpp"
#include "quant/traits_w.hpp"

namespace llminfer::load {
namespace {

using core::fail;

constexpr std::int64_t kBlock = 32;
constexpr int kNibbleOf[8] = {0, 4, 1, 5, 2, 6, 3, 7};  // AWQ: where column j of a word's 8 lies

/// Where Marlin (IST-DASLab/marlin) keeps the code of each place of a strip of 16 columns (K) and 64 rows (N): the
/// number of its nibble. Tensor cores take fragments of 16 x 16, four at a time, of which a thread holds 8 nibbles a
/// word.
struct MarlinOrder {
  std::int16_t nibble[4][16][16];  ///< [fragment][column][row]
  constexpr MarlinOrder() : nibble{} {
    constexpr int kInterleave[8] = {0, 2, 4, 6, 1, 3, 5, 7};
    for (int thread = 0; thread < 32; ++thread) {
      for (int fragment = 0; fragment < 4; ++fragment) {
        for (int i = 0; i < 8; ++i) {
          const int held = kInterleave[i], pair = held % 4;
          const int column = 2 * (thread % 4 + pair / 2 * 4) + pair % 2;
          const int row = thread / 4 + held / 4 * 8;
          nibble[fragment][column][row] = static_cast<std::int16_t>((thread * 4 + fragment) * 8 + i);
        }
      }
    }
  }
};
constexpr MarlinOrder kMarlin;

/// Marlin's order of the scales of a group: [8][8] transposed, or with one group per row pairs of [4][4] of 32.
std::int64_t marlin_scale(std::int64_t n, bool one_group) {
  if (!one_group) return n / 64 * 64 + n % 8 * 8 + n / 8 % 8;
  return n / 32 * 32 + n % 8 / 2 * 8 + n / 8 % 4 * 2 + n % 2;
}

class AffinePacking final : public Packing {
 public:
  AffinePacking(AffineLayer layer, std::vector<std::int32_t> order, bool sorted)
      : layer_(std::move(layer)), order_(std::move(order)), sorted_(sorted) {}

  Result<WeightView> read(const Checkpoint& checkpoint, const TensorInfo& tensor, core::Team* team) const override {
    const AffineLayer& l = layer_;
    auto scales = LLMINFER_TRY(read_floats(checkpoint, l.scales));
    LLMINFER_TRY(check_scales(scales, l.scales.name));
    if (l.order != AffineLayer::Order::along) {
      scales = transposed(l.order == AffineLayer::Order::marlin ? marlin_scales(scales) : scales, l.groups, l.rows);
    } else if (const std::int64_t width = l.scales.cols; width > l.groups) {
      for (std::int64_t n = 0; n < l.rows; ++n) {
        std::copy_n(scales.begin() + n * width, l.groups, scales.begin() + n * l.groups);
      }
    }
    const std::vector<std::uint8_t> zeros = LLMINFER_TRY(read_zeros(checkpoint));
    const core::Bytes words = LLMINFER_TRY(read_bytes(checkpoint, l.codes));

    BlockBuffer blocks(tensor.type, l.rows, l.cols);
    // The codes of kRowStep rows, some cache lines of each row of words, are unpacked together; then a row is sorted.
    const auto cols = static_cast<std::size_t>(l.cols);
    std::vector<std::uint8_t> scratch((kRowStep + 1) * cols * threads_of(team));
    const auto convert = [&](std::int64_t begin, std::int64_t end, std::size_t thread) {
      std::uint8_t* const codes = scratch.data() + thread * (kRowStep + 1) * cols;
      std::uint8_t* const row = codes + kRowStep * cols;
      for (std::int64_t first = begin; first < end; first += kRowStep) {
        const std::int64_t count = std::min(kRowStep, end - first);
        unpack(words.data.data(), first, count, codes);
        for (std::int64_t r = 0; r < count; ++r) {
          const std::uint8_t* from = codes + r * l.cols;
          if (!sorted_) {
            for (std::size_t i = 0; i < cols; ++i) row[i] = from[order_[i]];
            from = row;
          }
          const std::int64_t n = first + r;
          write_row(tensor.type, from, scales.data() + n * l.groups, zeros.data() + n * l.groups, blocks.row(n));
        }
      }
    };
    LLMINFER_TRY(for_rows(team, l.rows, convert));
    return blocks.view(tensor);
  }

 private:
  std::int64_t group_of(std::int64_t sorted_column) const {
    const std::int64_t column = sorted_ ? sorted_column : order_[static_cast<std::size_t>(sorted_column)];
    return layer_.group_of.empty() ? column / layer_.group_size : layer_.group_of[static_cast<std::size_t>(column)];
  }

  std::vector<float> marlin_scales(const std::vector<float>& stored) const {
    std::vector<float> scales(stored.size());
    for (std::int64_t i = 0; i < layer_.groups * layer_.rows; ++i) {
      const std::int64_t n = i % layer_.rows;
      scales[static_cast<std::size_t>(i)] =
          stored[static_cast<std::size_t>(i - n + marlin_scale(n, layer_.groups == 1))];
    }
    return scales;
  }

  /// codes // (cols, in sorted order) to the blocks of a row.
  void write_row(WeightType type, const std::uint8_t* codes, const float* scales, const std::uint8_t* zeros,
                 std::uint8_t* out) const {
    if (type == WeightType::f32) {
      for (std::int64_t k = 0; k < layer_.cols; ++k) {
        const std::int64_t g = group_of(k);
        write_float(scales[g] * static_cast<float>(codes[k] - zeros[g]), out + 4 * k);
      }
      return;
    }
    const int bytes = quant::format(type).block_bytes;
    for (std::int64_t k = 0; k < layer_.cols; k += kBlock, out += bytes) {
      const std::int64_t g = group_of(k);
      write_integer_block(type, scales[g], zeros[g], codes + k, out);
    }
  }

  /// The codes of rows [first, first + count) // (count, cols), columns as in the file.
  void unpack(const std::byte* words, std::int64_t first, std::int64_t count, std::uint8_t* codes) const {
    const AffineLayer& l = layer_;
    const auto word = [&](std::int64_t index) {
      std::uint32_t w;
      std::memcpy(&w, words + index * 4, 4);
      return w;
    };
    if (l.order == AffineLayer::Order::interleaved) {
      // Squares of 16 columns, each of them two words, and 16 rows.
      const auto eight = [&](std::int64_t k, std::int64_t r) {
        return quant::spread_codes<4>(word(k * (l.rows / 8) + (first + r) / 8));
      };
      const std::int64_t squares = l.cols / 16 * 16;
      for (std::int64_t r = 0; r < count; r += 16) {
        const bool both = r + 8 < count;
        for (std::int64_t k = 0; k < squares; k += 16) {
          std::uint64_t columns[16][2] = {};
          std::uint8_t rows[16][16];
          for (int i = 0; i < 16; ++i) {
            columns[i][0] = eight(k + i, r);
            if (both) columns[i][1] = eight(k + i, r + 8);
          }
          core::transpose_square<std::uint8_t>(reinterpret_cast<const std::uint8_t*>(columns), 16, rows[0], 16);
          for (int i = 0; i < (both ? 16 : 8); ++i) {
            std::memcpy(codes + (r + i) * l.cols + k, rows[i / 8 * 8 + kNibbleOf[i % 8]], 16);
          }
        }
        for (std::int64_t k = squares; k < l.cols; ++k) {
          for (std::int64_t i = 0; i < (both ? 16 : 8); ++i) {
            codes[(r + i) * l.cols + k] = static_cast<std::uint8_t>(eight(k, r + i) >> (8 * kNibbleOf[i % 8]));
          }
        }
      }
      return;
    }
    if (l.order == AffineLayer::Order::marlin) {
      for (std::int64_t k = 0; k < l.cols; ++k) {
        for (std::int64_t r = 0; r < count; ++r) {
          const std::int64_t n = first + r;
          const std::int64_t nibble = n / 64 * 1024 + kMarlin.nibble[n / 16 % 4][k % 16][n % 16];
          codes[r * l.cols + k] =
              static_cast<std::uint8_t>(word(k / 16 * (l.rows * 2) + nibble / 8) >> (4 * (nibble % 8)) & 15);
        }
      }
      return;
    }
    // Streams: words `step` apart, from `begin` on for row `first`, `next` further for each row after it.
    const bool down = l.order == AffineLayer::Order::down;
    const std::int64_t step = down ? l.rows : 1;
    const std::int64_t next = down ? 1 : (l.cols * l.bits + 31) / 32;
    if (32 % l.bits != 0) {
      for (std::int64_t r = 0; r < count; ++r) {
        const auto stream = [&](std::uint64_t i) {
          return word((first + r) * next + static_cast<std::int64_t>(i) * step);
        };
        for (std::int64_t k = 0; k < l.cols; ++k) {
          codes[r * l.cols + k] = static_cast<std::uint8_t>(bits_at(static_cast<std::uint64_t>(k), l.bits, stream));
        }
      }
      return;
    }
    const std::int64_t whole = l.cols / (32 / l.bits), rest = l.cols % (32 / l.bits);
    for (std::int64_t i = 0; i < whole; ++i) {
      for (std::int64_t r = 0; r < count; ++r) {
        unpack_word(word((first + r) * next + i * step), codes + r * l.cols + i * (32 / l.bits));
      }
    }
    std::uint8_t last[16];
    for (std::int64_t r = 0; r < count && rest > 0; ++r) {
      unpack_word(word((first + r) * next + whole * step), last);
      std::copy_n(last, rest, codes + (r + 1) * l.cols - rest);
    }
  }

  /// The codes of a word, if it holds a whole number of them.
  void unpack_word(std::uint32_t word, std::uint8_t* codes) const {
    const auto put = [](std::uint64_t eight, std::uint8_t* to) { std::memcpy(to, &eight, 8); };
    if (layer_.bits == 4) {
      put(quant::spread_codes<4>(word), codes);
    } else if (layer_.bits == 2) {
      put(quant::spread_codes<2>(word & 0xffffu), codes);
      put(quant::spread_codes<2>(word >> 16), codes + 8);
    } else {
      std::memcpy(codes, &word, 4);
    }
  }

  /// Zero points // (rows, groups).
  Result<std::vector<std::uint8_t>> read_zeros(const Checkpoint& checkpoint) const {
    const AffineLayer& l = layer_;
    const auto center = static_cast<std::uint8_t>(1 << (l.bits - 1));
    std::vector<std::uint8_t> zeros(static_cast<std::size_t>(l.rows * l.groups), center);
    if (l.zeros == AffineLayer::Zeros::center) return zeros;
    std::vector<std::uint32_t> words = LLMINFER_TRY(read_words(checkpoint, l.zero_points));
    const bool minus = l.zeros == AffineLayer::Zeros::stored_minus;
    if (minus && 32 % l.bits == 0) {
      // The writer subtracts one from each number of a word with borrows, so adding has to carry.
      std::uint32_t ones = 0;
      for (int i = 0; i < 32; i += l.bits) ones |= 1u << i;
      for (std::uint32_t& word : words) word += ones;
    }
    if (l.zeros == AffineLayer::Zeros::stored_rows) {
      const auto width = static_cast<std::uint64_t>(l.zero_points.cols);
      for (std::int64_t n = 0; n < l.rows; ++n) {
        const auto stream = [&](std::uint64_t i) { return words[static_cast<std::uint64_t>(n) * width + i]; };
        for (std::int64_t g = 0; g < l.groups; ++g) {
          zeros[static_cast<std::size_t>(n * l.groups + g)] =
              static_cast<std::uint8_t>(bits_at(static_cast<std::uint64_t>(g), l.bits, stream));
        }
      }
      return zeros;
    }
    const auto add = static_cast<std::uint32_t>(minus && 32 % l.bits != 0);
    const std::uint32_t mask = (1u << l.bits) - 1u;
    const auto width = static_cast<std::int64_t>(words.size()) / l.groups;  // words of a group
    for (std::int64_t g = 0; g < l.groups; ++g) {
      const auto stream = [&](std::uint64_t i) {
        const auto w = static_cast<std::int64_t>(i);
        return words[static_cast<std::size_t>(l.order == AffineLayer::Order::along ? w * l.groups + g : g * width + w)];
      };
      for (std::int64_t n = 0; n < l.rows; ++n) {
        const std::uint32_t stored = l.order == AffineLayer::Order::interleaved
                                         ? stream(static_cast<std::uint64_t>(n / 8)) >> (4 * kNibbleOf[n % 8])
                                         : bits_at(static_cast<std::uint64_t>(n), l.bits, stream);
        const auto zero = static_cast<std::uint8_t>((stored + add) & mask);
        if (l.symmetric && zero != center) {
          return fail(ErrorCode::corrupt, "tensor ", l.zero_points.name, ": the zero point of row ", n, ", group ", g,
                      " is ", static_cast<int>(zero), ", but the settings say symmetric, which is ",
                      static_cast<int>(center));
        }
        zeros[static_cast<std::size_t>(n * l.groups + g)] = zero;
      }
    }
    return zeros;
  }

  const AffineLayer layer_;
  const std::vector<std::int32_t> order_;  ///< the column of the file at each sorted place
  const bool sorted_;                      ///< order_ is 0, 1, 2, …
};

/// Symmetric layers with half-precision scales are what Q4_0 and Q8_0 are. Codes of 5, 6 and 7 bits are kept in 8.
WeightType type_of(int bits, bool symmetric, bool half_scales) {
  if (bits == 2) return WeightType::w2;
  if (bits == 3) return WeightType::w3;
  if (bits == 4) return !symmetric ? WeightType::w4 : half_scales ? WeightType::q4_0 : WeightType::w4_sym;
  return !symmetric || bits < 8 ? WeightType::w8 : half_scales ? WeightType::q8_0 : WeightType::w8_sym;
}

/// Whether halves hold the scales as they are: of BF16, all that weights usually have.
Result<bool> are_halves(const Checkpoint& checkpoint, const TensorInfo& scales) {
  const std::vector<float> values = LLMINFER_TRY(read_floats(checkpoint, scales));
  return std::all_of(values.begin(), values.end(),
                     [](float scale) { return core::half_to_float(core::float_to_half(scale)) == scale; });
}

}  // namespace

Result<std::vector<std::int32_t>> read_group_index(const Checkpoint& checkpoint, const TensorInfo& tensor,
                                                   std::int64_t groups, bool may_be_unset) {
  const std::vector<std::int64_t> stored = LLMINFER_TRY(read_integers(checkpoint, tensor));
  std::vector<std::int32_t> index;
  if (may_be_unset && std::all_of(stored.begin(), stored.end(), [](std::int64_t group) { return group == -1; }))
    return index;
  for (const std::int64_t group : stored) {
    if (group < 0 || group >= groups) {
      return fail(ErrorCode::corrupt, "tensor ", tensor.name, ": column ", index.size(), " is in group ", group,
                  ", expected 0 … ", groups - 1);
    }
    index.push_back(static_cast<std::int32_t>(group));
  }
  return index;
}

Result<void> add_affine(const std::string& prefix, AffineLayer layer, const InputQuantization& input, Layers& layers) {
  if (layer.cols > INT32_MAX)
    return fail(ErrorCode::limit_exceeded, "tensor ", layer.codes.name, ": ", layer.cols, " columns");
  std::vector<std::int32_t> order(static_cast<std::size_t>(layer.cols));
  std::iota(order.begin(), order.end(), 0);
  const auto group = [&](std::int32_t column) {
    return layer.group_of.empty() ? column / layer.group_size
                                  : std::int64_t{layer.group_of[static_cast<std::size_t>(column)]};
  };
  std::stable_sort(order.begin(), order.end(), [&](auto a, auto b) { return group(a) < group(b); });
  const bool sorted = std::is_sorted(order.begin(), order.end());
  // Whole blocks of one group each? And are all groups but the last equally long?
  bool whole = layer.cols % kBlock == 0, even = true;
  for (std::int64_t k = 0; k < layer.cols; ++k) {
    const std::int64_t g = group(order[static_cast<std::size_t>(k)]);
    if (g != group(order[static_cast<std::size_t>(k - k % kBlock)])) whole = false;
    if (g != k / layer.group_size) even = false;
  }
  const bool symmetric = layer.symmetric || layer.zeros == AffineLayer::Zeros::center;
  WeightDetails details;
  details.input = input;
  // Of 8 bits a float is a small part, and layers with 8-bit inputs need it (W8A8).
  const bool half_scales =
      layer.scales.element == ElementType::f16 ||
      (symmetric && whole && layer.bits == 4 && LLMINFER_TRY(are_halves(layers.checkpoint(), layer.scales)));
  WeightType type = type_of(layer.bits, symmetric, half_scales);
  const std::int64_t rows = layer.rows, cols = layer.cols;
  if (!whole) {
    type = WeightType::f32;
    std::iota(order.begin(), order.end(), 0);
  } else {
    details.scale_columns = even ? std::min(layer.group_size, cols) : kBlock;
    if (!sorted) details.permutation = std::make_shared<const std::vector<std::int32_t>>(order);
  }
  const TensorInfo codes = layer.codes;
  layers.add(prefix, type, rows, cols, codes,
             std::make_shared<AffinePacking>(std::move(layer), std::move(order), sorted || !whole), std::move(details));
  return {};
}

}  // namespace llminfer::load
