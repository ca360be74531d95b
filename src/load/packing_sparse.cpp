// compressed-tensors' sparse-bitmask and sparse-24-bitmask: the elements that are kept, and a bit for each element.
#include <algorithm>
#include <bit>
#include <cstring>
#include <utility>

#include "core/error.hpp"
#include "load/packing.hpp"

namespace llminfer::load {
namespace {

using core::fail;
using enum ElementType;

/// Where the values of each row begin, and where the last row's end. Errors: corrupt.
Result<std::vector<std::int64_t>> row_starts(const Checkpoint& checkpoint, const SparseMatrix& m,
                                             const std::uint8_t* mask) {
  const std::int64_t mask_bytes = (m.cols + 7) / 8;
  std::vector<std::int64_t> starts = {0};
  for (std::int64_t n = 0; n < m.rows; ++n) {
    std::int64_t kept = 0;
    for (std::int64_t i = 0; i < mask_bytes; ++i) kept += std::popcount(mask[n * mask_bytes + i]);
    if (m.half && kept != m.cols / 2) {
      return fail(ErrorCode::corrupt, "tensor ", m.mask.name, ": row ", n, " keeps ", kept, " of ", m.cols,
                  " columns, expected half of them");
    }
    if (m.cols % 8 != 0 && mask[(n + 1) * mask_bytes - 1] >> m.cols % 8 != 0) {
      return fail(ErrorCode::corrupt, "tensor ", m.mask.name, ": row ", n, " keeps columns beyond its ", m.cols);
    }
    starts.push_back(starts.back() + kept);
  }
  if (const std::int64_t stored = m.values.rows * m.values.cols; starts.back() != stored) {
    return fail(ErrorCode::corrupt, "tensor ", m.mask.name, " keeps ", starts.back(), " elements, but ", m.values.name,
                " has ", stored);
  }
  if (m.row_offsets.name.empty()) return starts;
  const auto offsets = LLMINFER_TRY(read_integers(checkpoint, m.row_offsets));
  for (std::size_t n = 0; n < offsets.size(); ++n) {
    if (offsets[n] == starts[n]) continue;
    return fail(ErrorCode::corrupt, "tensor ", m.row_offsets.name, ": row ", n, " begins at ", offsets[n], ", but ",
                m.mask.name, " keeps ", starts[n], " elements before it");
  }
  return starts;
}

/// A weight of floats.
class SparsePacking final : public Packing {
 public:
  explicit SparsePacking(SparseMatrix matrix) : matrix_(std::move(matrix)) {}

  Result<WeightView> read(const Checkpoint& checkpoint, const TensorInfo& tensor, core::Team* team) const override {
    BlockBuffer blocks(tensor.type, matrix_.rows, matrix_.cols);
    LLMINFER_TRY(expand(checkpoint, matrix_, team, blocks.row(0)));
    return blocks.view(tensor);
  }

 private:
  const SparseMatrix matrix_;
};

}  // namespace

Result<void> expand(const Checkpoint& checkpoint, const SparseMatrix& m, core::Team* team, std::uint8_t* out) {
  const core::Bytes values = LLMINFER_TRY(read_bytes(checkpoint, m.values));
  const core::Bytes masks = LLMINFER_TRY(read_bytes(checkpoint, m.mask));
  const auto* const mask = reinterpret_cast<const std::uint8_t*>(masks.data.data());
  const std::vector<std::int64_t> starts = LLMINFER_TRY(row_starts(checkpoint, m, mask));
  const auto size = static_cast<std::size_t>(bytes_of(m.values.element));
  return for_rows(team, m.rows, [&](std::int64_t first, std::int64_t last, std::size_t) {
    for (std::int64_t n = first; n < last; ++n) {
      const std::byte* from = values.data.data() + static_cast<std::size_t>(starts[static_cast<std::size_t>(n)]) * size;
      std::uint8_t* const row = out + static_cast<std::size_t>(n * m.cols) * size;
      std::memset(row, 0, static_cast<std::size_t>(m.cols) * size);
      for (std::int64_t k = 0; k < m.cols; ++k) {
        if (!(mask[n * ((m.cols + 7) / 8) + k / 8] >> k % 8 & 1)) continue;
        std::memcpy(row + static_cast<std::size_t>(k) * size, from, size);
        from += size;
      }
    }
  });
}

Result<std::map<std::string, SparseMatrix>> add_sparse(std::string_view format, Layers& layers) {
  const auto prefixes = layers.with(".compressed");
  if (prefixes.empty()) {
    return fail(ErrorCode::missing_tensor, "quantization_config says ", format,
                ", but no tensor is named *.compressed");
  }
  const bool half = format == "sparse-24-bitmask";
  std::map<std::string, SparseMatrix> quantized;
  for (const std::string& prefix : prefixes) {
    SparseMatrix m;
    m.half = half;
    const TensorInfo shape_tensor = LLMINFER_TRY(layers.need(
        prefix + ".shape", {i64, i32}, half ? std::vector<std::int64_t>{2, 1} : std::vector<std::int64_t>{-1}));
    auto shape = LLMINFER_TRY(read_integers(layers.checkpoint(), shape_tensor));
    const auto side = [&](std::int64_t s) { return s >= 1 && s <= INT32_MAX; };
    if (shape.size() > 2 || !std::all_of(shape.begin(), shape.end(), side) || (half && shape[1] % 4 != 0)) {
      return fail(ErrorCode::corrupt, "tensor ", shape_tensor.name, " says ", shape_text(shape),
                  half ? ", expected rows of a multiple of 4 columns" : ", expected a matrix or a vector");
    }
    m.rows = shape.size() < 2 ? 1 : shape[0];
    m.cols = shape.back();
    // A vector's mask and offset lack the first dimension.
    std::vector<std::int64_t> mask_shape = shape, row_shape = shape;
    mask_shape.back() = (m.cols + 7) / 8;
    row_shape.pop_back();
    m.values = LLMINFER_TRY(layers.need(prefix + ".compressed", {bf16, f16, f32, i8, f8_e4m3},
                                        half ? std::vector{m.rows, m.cols / 2} : std::vector<std::int64_t>{-1}));
    m.mask = LLMINFER_TRY(layers.need(prefix + ".bitmask", {u8}, mask_shape));
    if (layers.find(prefix + ".row_offsets")) {
      m.row_offsets = LLMINFER_TRY(layers.need(prefix + ".row_offsets", {i64, i32}, row_shape));
    }
    for (const char* part : {".shape", ".compressed", ".bitmask", ".row_offsets"}) layers.take(prefix + part);
    if (m.values.element == i8 || m.values.element == f8_e4m3) {
      quantized.emplace(prefix, std::move(m));
      continue;
    }
    // compressed-tensors 0.8 and before had all tensors so, under their whole names.
    const bool whole_name = prefix.ends_with(".weight") || prefix.ends_with(".bias");
    const TensorInfo values = m.values;
    layers.add_tensor(whole_name ? prefix : prefix + ".weight", values.type, std::move(shape), values,
                      std::make_shared<SparsePacking>(std::move(m)), {});
  }
  return quantized;
}

}  // namespace llminfer::load
