#include "engine/output_matrix.hpp"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <utility>
#include <vector>

#include "core/error.hpp"
#include "core/parallel.hpp"
#include "quant/format.hpp"
#include "quantize/blocks.hpp"

namespace llminfer::inline v0::engine {
namespace {

using core::fail;
using load::Checkpoint;
using load::TensorInfo;

constexpr std::int64_t kRows = 64;  ///< that a thread takes at a time
constexpr float kMost = 65504.0f;   ///< that encode_row() takes

/// Q8_0 of a tensor of floats.
class Rounded final : public load::Packing {
 public:
  explicit Rounded(TensorInfo original) : original_(std::move(original)) {}

  Result<WeightView> read(const Checkpoint& checkpoint, const TensorInfo& tensor, core::Team* team) const override {
    const WeightView floats = LLMINFER_TRY(checkpoint.read(original_, team));
    const quant::Format& to = quant::format(tensor.type);
    const std::int64_t row_bytes = tensor.cols / to.block_values * to.block_bytes;
    const auto size = static_cast<std::size_t>(tensor.rows * row_bytes);
    const std::shared_ptr<std::uint8_t[]> blocks(new std::uint8_t[size]);
    const std::int64_t chunks = (tensor.rows + kRows - 1) / kRows;
    const int threads = team ? team->threads() : 1;
    std::vector<std::vector<float>> scratch(static_cast<std::size_t>(threads));
    for (auto& row : scratch) row.resize(static_cast<std::size_t>(tensor.cols));
    std::atomic<bool> fits{true};
    const auto convert = [&](std::int64_t chunk, std::vector<float>& row) {
      for (std::int64_t r = chunk * kRows; r < std::min((chunk + 1) * kRows, tensor.rows); ++r) {
        if (!unpack_rows(floats, r, 1, row)) return fits.store(false);
        for (const float x : row) {
          if (!(std::fabs(x) <= kMost)) return fits.store(false);
        }
        quantize::encode_row(tensor.type, row.data(), tensor.cols, nullptr, blocks.get() + r * row_bytes);
      }
    };
    if (team) {
      const int phases[] = {static_cast<int>(chunks)};
      LLMINFER_TRY(team->run(
          phases, [&](int, int chunk, int thread) { convert(chunk, scratch[static_cast<std::size_t>(thread)]); }));
    } else {
      for (std::int64_t chunk = 0; chunk < chunks; ++chunk) convert(chunk, scratch.front());
    }
    if (!fits) {
      return fail(ErrorCode::corrupt, "tensor ", tensor.name,
                  ": a value is not finite or beyond the range of 8 bits with a half as scale; expected "
                  "EngineOptions::output_bits 16 for it");
    }
    WeightView view;
    view.name = tensor.name;
    view.type = tensor.type;
    view.rows = tensor.rows;
    view.cols = tensor.cols;
    view.data = std::as_bytes(std::span(blocks.get(), size));
    view.keep = blocks;
    return view;
  }

 private:
  const TensorInfo original_;
};

}  // namespace

std::unique_ptr<const TensorInfo> round_output_matrix(const Program& program, const Checkpoint& checkpoint) {
  for (const Op& op : program.ops) {
    const auto* linear = std::get_if<op::Linear>(&op);
    if (!linear || linear->out != program.logits) continue;
    const TensorInfo* tensor = checkpoint.find(program.weights[static_cast<std::size_t>(linear->weight)].name);
    if (!tensor || tensor->packing || tensor->type > WeightType::bf16 ||
        tensor->cols % quant::format(WeightType::q8_0).block_values != 0) {
      return nullptr;
    }
    auto rounded = std::make_unique<TensorInfo>(*tensor);
    rounded->packing = std::make_shared<Rounded>(*tensor);
    rounded->type = WeightType::q8_0;
    return rounded;
  }
  return nullptr;
}

}  // namespace llminfer::inline v0::engine
