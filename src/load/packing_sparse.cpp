// compressed-tensors' sparse-24-bitmask: of each four neighbours the two values that are kept, and a bit for each
// weight.
#include <bit>
#include <cstring>
#include <utility>

#include "core/error.hpp"
#include "load/packing.hpp"

namespace llminfer::load {
namespace {

using core::fail;
using enum ElementType;

struct SparseLayer {
  TensorInfo values;  ///< [rows, cols / 2], ascending columns
  TensorInfo mask;    ///< [rows, ceil(cols / 8)], the lowest bit first
  std::int64_t rows = 0, cols = 0;
};

class SparsePacking final : public Packing {
 public:
  explicit SparsePacking(SparseLayer layer) : layer_(std::move(layer)) {}

  Result<WeightView> read(const Checkpoint& checkpoint, const TensorInfo& tensor, core::Team* team) const override {
    const SparseLayer& l = layer_;
    const core::Bytes values = LLMINFER_TRY(read_bytes(checkpoint, l.values));
    const core::Bytes masks = LLMINFER_TRY(read_bytes(checkpoint, l.mask));
    const auto size = static_cast<std::size_t>(bytes_of(l.values.element));
    const std::int64_t mask_bytes = (l.cols + 7) / 8;
    const auto* const mask = reinterpret_cast<const std::uint8_t*>(masks.data.data());
    for (std::int64_t n = 0; n < l.rows; ++n) {
      std::int64_t kept = 0;
      for (std::int64_t i = 0; i < mask_bytes; ++i) kept += std::popcount(mask[n * mask_bytes + i]);
      if (kept == l.cols / 2 && (l.cols % 8 == 0 || mask[(n + 1) * mask_bytes - 1] >> l.cols % 8 == 0)) continue;
      return fail(ErrorCode::corrupt, "tensor ", l.mask.name, ": row ", n, " keeps ", kept, " of ", l.cols,
                  " columns, expected half of them");
    }
    BlockBuffer blocks(tensor.type, l.rows, l.cols);
    LLMINFER_TRY(for_rows(team, l.rows, [&](std::int64_t first, std::int64_t last, std::size_t) {
      for (std::int64_t n = first; n < last; ++n) {
        const std::byte* from = values.data.data() + static_cast<std::size_t>(n * (l.cols / 2)) * size;
        std::uint8_t* const out = blocks.row(n);
        std::memset(out, 0, static_cast<std::size_t>(l.cols) * size);
        for (std::int64_t k = 0; k < l.cols; ++k) {
          if (!(mask[n * mask_bytes + k / 8] >> k % 8 & 1)) continue;
          std::memcpy(out + static_cast<std::size_t>(k) * size, from, size);
          from += size;
        }
      }
    }));
    return blocks.view(tensor);
  }

 private:
  const SparseLayer layer_;
};

}  // namespace

Result<void> add_sparse_24(Layers& layers) {
  const auto prefixes = layers.with(".compressed");
  if (prefixes.empty()) {
    return fail(ErrorCode::missing_tensor,
                "quantization_config says sparse-24-bitmask, but no tensor is named *.compressed");
  }
  for (const std::string& prefix : prefixes) {
    SparseLayer layer;
    const TensorInfo shape_tensor = LLMINFER_TRY(layers.need(prefix + ".shape", {i64, i32}, {2, 1}));
    const auto shape = LLMINFER_TRY(read_integers(layers.checkpoint(), shape_tensor));
    layer.rows = shape[0];
    layer.cols = shape[1];
    if (layer.rows < 1 || layer.cols < 4 || layer.rows > INT32_MAX || layer.cols > INT32_MAX || layer.cols % 4 != 0) {
      return fail(ErrorCode::corrupt, "tensor ", shape_tensor.name, " says [", layer.rows, ", ", layer.cols,
                  "], expected rows of a multiple of 4 columns");
    }
    layer.values = LLMINFER_TRY(layers.need(prefix + ".compressed", {bf16, f16, f32}, {layer.rows, layer.cols / 2}));
    layer.mask = LLMINFER_TRY(layers.need(prefix + ".bitmask", {u8}, {layer.rows, (layer.cols + 7) / 8}));
    for (const char* part : {".shape", ".compressed", ".bitmask"}) layers.take(prefix + part);
    const TensorInfo values = layer.values;
    layers.add(prefix, values.type, layer.rows, layer.cols, values, std::make_shared<SparsePacking>(std::move(layer)),
               {});
  }
  return {};
}

}  // namespace llminfer::load
