// What the loaders of packed weights share: finding a layer's tensors, reading them as numbers, and writing blocks.
#pragma once

#include <bit>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_set>
#include <vector>

#include <llminfer/result.hpp>

#include "core/json.hpp"
#include "core/parallel.hpp"
#include "load/checkpoint.hpp"

namespace llminfer::load {

std::string_view name_of(ElementType element) noexcept;
std::uint64_t bytes_of(ElementType element) noexcept;

/// The tensors of a checkpoint while its packed layers are collected.
class Layers {
 public:
  explicit Layers(Checkpoint& checkpoint) : checkpoint_(checkpoint) {}

  const Checkpoint& checkpoint() const noexcept { return checkpoint_; }
  /// Prefixes ("model.layers.0.mlp.down_proj") of the tensors with this suffix (".qweight"), in the file's order.
  std::vector<std::string> with(std::string_view suffix) const;
  const TensorInfo* find(const std::string& name) const;
  /// A tensor that the layer must have, of one of these types and with this shape (-1: any). Errors: missing_tensor,
  /// unsupported_type, shape_mismatch.
  Result<TensorInfo> need(const std::string& name, std::initializer_list<ElementType> elements,
                          const std::vector<std::int64_t>& shape) const;
  /// Marks tensors as parts of a packed weight; they are no weights by themselves.
  void take(const std::string& name) { taken_.insert(name); }
  /// Marks the scales and zero points of a KV cache, or of attention, that some checkpoints carry, one or as many as
  /// there are heads: the cache's types have scales of their own. Early tools call them scales of a layer's output.
  void drop_cache_scales();
  /// Adds the weight `prefix`.weight [rows, cols], of which `largest` is the largest part.
  void add(const std::string& prefix, WeightType type, std::int64_t rows, std::int64_t cols, const TensorInfo& largest,
           std::shared_ptr<const Packing> packing, WeightDetails details);
  /// The same with a whole name, for a matrix or a vector.
  void add_tensor(std::string name, WeightType type, std::vector<std::int64_t> shape, const TensorInfo& largest,
                  std::shared_ptr<const Packing> packing, WeightDetails details);
  /// The inputs of a weight that has been added are multiplied by `factors` [cols] first: so are its columns, which
  /// makes floats of it. A rounding of inputs that the checkpoint declares follows the factors, so it is left out.
  void multiply_columns(const std::string& prefix, std::vector<float> factors);
  /// Ends the collection: parts leave the checkpoint, weights enter it. Errors: corrupt (a name that occurs twice).
  Result<void> finish();

 private:
  Checkpoint& checkpoint_;
  std::unordered_set<std::string> taken_;
  std::vector<TensorInfo> added_;
};

/// All elements of a tensor of floats (F32, F16, BF16, F8_E4M3, F8_E8M0 as 2^(u - 127)). Errors: corrupt (a value that
/// is not finite), those of the source.
Result<std::vector<float>> read_floats(const Checkpoint& checkpoint, const TensorInfo& tensor);
/// Errors: corrupt, naming the tensor, if a scale, or its product with one of `factors`, is so large that a weight
/// might not be finite, or is no number.
Result<void> check_scales(const std::vector<float>& scales, const std::string& tensor,
                          const std::vector<float>& factors = {});
/// All elements of a tensor of integers (I8, U8, I32, I64).
Result<std::vector<std::int64_t>> read_integers(const Checkpoint& checkpoint, const TensorInfo& tensor);
/// The words of an I32 tensor.
Result<std::vector<std::uint32_t>> read_words(const Checkpoint& checkpoint, const TensorInfo& tensor);
Result<core::Bytes> read_bytes(const Checkpoint& checkpoint, const TensorInfo& tensor);

/// [a, b] transposed to [b, a].
template <class T>
std::vector<T> transposed(const std::vector<T>& matrix, std::int64_t a, std::int64_t b) {
  std::vector<T> out(matrix.size());
  for (std::int64_t i = 0; i < a; ++i) {
    for (std::int64_t j = 0; j < b; ++j) {
      out[static_cast<std::size_t>(j * a + i)] = matrix[static_cast<std::size_t>(i * b + j)];
    }
  }
  return out;
}

/// Value `index` of a little-endian stream of `bits`-bit numbers in 32-bit words; `word(i)` gives the i-th.
template <class Word>
std::uint32_t bits_at(std::uint64_t index, int bits, const Word& word) {
  const std::uint64_t at = index * static_cast<std::uint64_t>(bits);
  const int shift = static_cast<int>(at % 32);
  std::uint32_t value = word(at / 32) >> shift;
  if (shift + bits > 32) value |= word(at / 32 + 1) << (32 - shift);
  return value & ((bits == 32 ? 0u : 1u << bits) - 1u);
}

/// Calls body(first, last, thread) for ranges of rows that cover [0, rows), on all threads of the team if there is one.
/// Ranges begin at multiples of kRowStep, so many that what lies across rows is read by lines, not words. The body must
/// not throw. Errors: those of Team::run.
inline constexpr std::int64_t kRowStep = 64;
Result<void> for_rows(core::Team* team, std::int64_t rows,
                      core::FunctionRef<void(std::int64_t first, std::int64_t last, std::size_t thread)> body);
/// Of for_rows.
inline std::size_t threads_of(const core::Team* team) noexcept {
  return team ? static_cast<std::size_t>(team->threads()) : 1;
}

/// Storage for the blocks of a weight.
class BlockBuffer {
 public:
  BlockBuffer(WeightType type, std::int64_t rows, std::int64_t cols);
  std::uint8_t* row(std::int64_t n) noexcept { return bytes_.get() + n * row_bytes_; }
  WeightView view(const TensorInfo& tensor) const;

 private:
  std::shared_ptr<std::uint8_t[]> bytes_;
  std::int64_t rows_, cols_, row_bytes_;
};

/// Writes one block of 32 codes of type w2, w3, w4, w8, w4_sym or w8_sym, or of q4_0 or q8_0,
/// whose scale must be a half. `zero` is the zero point (unsigned, as the
/// codes); the symmetric types ignore it.
void write_integer_block(WeightType type, float scale, int zero, const std::uint8_t* codes, std::uint8_t* out) noexcept;
/// Writes 32 codes of 4 bits, the lowest bits first.
void write_nibbles(const std::uint8_t* codes, std::uint8_t* out) noexcept;
inline void write_float(float value, std::uint8_t* out) noexcept {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  for (int i = 0; i < 4; ++i) out[i] = static_cast<std::uint8_t>(bits >> (8 * i));
}

/// Typed members of an object of settings, which `place` names in errors (corrupt).
Result<std::int64_t> setting_int(const core::Json& settings, const char* key, std::int64_t fallback,
                                 std::string_view place);
Result<bool> setting_flag(const core::Json& settings, const char* key, bool fallback, std::string_view place);
Result<std::string> setting_text(const core::Json& settings, const char* key, const char* fallback,
                                 std::string_view place);

// The methods, one file each. All add what they find to `layers`.
Result<void> add_gptq(const core::Json& settings, Layers& layers);
Result<void> add_awq(const core::Json& settings, Layers& layers);
Result<void> add_auto_round(const core::Json& settings, Layers& layers);
Result<void> add_modelopt(const core::Json& settings, Layers& layers);
Result<void> add_mxfp4(const core::Json& settings, Layers& layers);
Result<void> add_compressed_tensors(const core::Json& settings, Layers& layers);
Result<void> add_fp8(const core::Json& settings, Layers& layers);
Result<void> add_fbgemm_fp8(const core::Json& settings, Layers& layers);
Result<void> add_bitsandbytes(const core::Json& settings, Layers& layers);
Result<void> add_hqq(const core::Json& settings, Layers& layers);

/// A matrix of which compressed-tensors stores some elements (sparse-bitmask, sparse-24-bitmask); the others are zero.
struct SparseMatrix {
  TensorInfo values;       ///< those that are kept, row by row
  TensorInfo mask;         ///< [rows, ceil(cols / 8)], a bit for each element, the lowest first
  TensorInfo row_offsets;  ///< [rows], where each row's values begin; no name: the file has none
  std::int64_t rows = 0, cols = 0;
  bool half = false;  ///< rows keep half of their columns
};
/// All elements, as many bytes each as in `values`, to `out`. Errors: corrupt (a mask, offsets and values that do not
/// belong together), those of the source.
Result<void> expand(const Checkpoint& checkpoint, const SparseMatrix& matrix, core::Team* team, std::uint8_t* out);

/// Adds the weights that compressed-tensors stores with masks, as `format` does. Gives those whose elements are
/// quantized, by prefix. Errors: missing_tensor (there is none), unsupported_type, shape_mismatch, corrupt.
Result<std::map<std::string, SparseMatrix>> add_sparse(std::string_view format, Layers& layers);

/// Adds a layer of compressed-tensors' marlin-24: integers of which two of four are kept, for tensor cores.
/// `group_size` 0: a scale per row. Errors: unsupported, missing_tensor, unsupported_type, shape_mismatch.
Result<void> add_marlin_24(const std::string& prefix, int bits, std::int64_t group_size, Layers& layers);

/// Codes of a layer in which groups of columns share scales and zero points: GPTQ, AWQ, pack-quantized.
struct AffineLayer {
  enum class Order : std::uint8_t {
    down,         ///< codes [K * bits / 32, N]: the words of a column are one stream (GPTQ)
    along,        ///< codes [N, K * bits / 32]: the words of a row are one stream (compressed-tensors)
    interleaved,  ///< codes [K, N / 8], the nibbles of a word in the order 0, 2, 4, 6, 1, 3, 5, 7 (AWQ)
    marlin        ///< codes [K / 16, 2 * N], in the order of Marlin's kernels; 4 bits, N a multiple of 64
  } order = Order::down;
  enum class Zeros : std::uint8_t {
    center,       ///< 2^(bits - 1) for all
    stored,       ///< packed along N; [groups, …] words for down and interleaved, […, groups] for along
    stored_rows,  ///< packed along the groups of a row: [N, …] words, with along (AWQ GEMV)
    stored_minus  ///< the same, less one (GPTQ v1)
  } zeros = Zeros::center;
  bool symmetric = false;  ///< all stored zero points are 2^(bits - 1), by the settings; verified
  int bits = 4;            ///< 2 … 8
  std::int64_t rows = 0, cols = 0, groups = 0, group_size = 0;
  TensorInfo codes, scales, zero_points;  ///< scales [groups, N], or [N, groups] for along, perhaps with more columns
  std::vector<std::int32_t> group_of;     ///< per column; empty: column / group_size
};
/// Adds the weight. Errors: corrupt, those of add.
Result<void> add_affine(const std::string& prefix, AffineLayer layer, const InputQuantization& input, Layers& layers);
/// The groups of columns that an I32 tensor [cols] tells. `may_be_unset`: none if it is -1 throughout, as where nothing
/// has set it. Errors: corrupt if one is not within [0, groups).
Result<std::vector<std::int32_t>> read_group_index(const Checkpoint& checkpoint, const TensorInfo& tensor,
                                                   std::int64_t groups, bool may_be_unset = false);

/// Signed bytes or E4M3 [rows, cols], or E2M3 [rows, cols * 3 / 4], four in three bytes, the lowest bits first. Each
/// rectangle of block_rows x block_cols has one scale.
struct ByteLayer {
  std::int64_t rows = 0, cols = 0;
  std::int64_t block_rows = 1, block_cols = 0;
  TensorInfo weight, scales;        ///< scales: one per rectangle, row-major
  std::optional<TensorInfo> zeros;  ///< of signed bytes: one per rectangle; value = (element - zero) * scale
  bool e2m3 = false;
  std::optional<SparseMatrix> sparse;  ///< instead of all elements; its values are `weight`
  bool divide = false;                 ///< value = element / scale
  float scale_divisor = 1.0f;          ///< value = element * (scale / divisor)
  std::vector<float> row_factors;      ///< that the rows' values are multiplied by; empty: none
};
/// E2M3 numbers are eighths, which makes signed bytes of them.
Result<void> add_bytes(const std::string& prefix, ByteLayer layer, const InputQuantization& input, Layers& layers);

/// 4-bit floats, two to a byte, row-major without gaps; each `per_scale` of them share a scale.
struct NibbleLayer {
  std::int64_t rows = 0, cols = 0, per_scale = 0;
  bool high_first = false;
  std::int64_t first_row = 0, row_step = 1;  ///< rows first_row + n * row_step of what is stored make up the layer
  TensorInfo weight;
  /// All scales. Those of MXFP4 are powers of two.
  std::function<Result<std::vector<float>>(const Checkpoint&)> read_scales;
  std::vector<float> row_factors;  ///< that the rows' values are multiplied by, but for mxfp4's; empty: none
  InputQuantization input{};
};
/// `type` is nf4, fp4, fp4_16 or mxfp4. Errors: unsupported (rows that are no whole blocks).
Result<void> add_nibbles(const std::string& prefix, WeightType type, NibbleLayer layer, Layers& layers);

// Floats of 4, 6 and 8 bits under scales of blocks of columns, as compressed-tensors names and packs them; add_bytes'
// and add_nibbles' errors, and those of Layers::need.
/// weight_packed [rows, cols / 2], weight_scale: NVFP4 if there is a weight_global_scale, which divides, else MXFP4.
Result<void> add_packed_fp4(const std::string& prefix, Layers& layers);
/// weight_packed [rows, cols * 3 / 4], four E2M3 in three bytes, weight_scale.
Result<void> add_mxfp6(const std::string& prefix, Layers& layers);
/// weight [rows, cols], weight_scale.
Result<void> add_mxfp8(const std::string& prefix, Layers& layers);

/// The quantization of inputs by one scale (and zero point) that the checkpoint stores. Errors: corrupt.
Result<InputQuantization> static_input(const Checkpoint& checkpoint, InputQuantization::Kind kind,
                                       const TensorInfo& scale, const TensorInfo* zero);

}  // namespace llminfer::load
