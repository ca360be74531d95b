#include "engine/output_matrix.hpp"

#include <atomic>
#include <cmath>
#include <utility>
#include <vector>

#include "core/error.hpp"
#include "core/parallel.hpp"
#include "load/packing.hpp"
#include "quant/format.hpp"
#include "quantize/blocks.hpp"

namespace llminfer::inline v0::engine {
namespace {

using core::fail;
using load::Checkpoint;
using load::TensorInfo;

constexpr float kMost = 65504.0f;  ///< that encode_row() takes

/// Q8_0 of a tensor of floats.
class Rounded final : public load::Packing {
 public:
  explicit Rounded(TensorInfo original) : original_(std::move(original)) {}

  Result<WeightView> read(const Checkpoint& checkpoint, const TensorInfo& tensor, core::Team* team) const override {
    const WeightView floats = LLMINFER_TRY(checkpoint.read(original_, team));
    load::BlockBuffer blocks(tensor.type, tensor.rows, tensor.cols);
    std::vector<std::vector<float>> scratch(load::threads_of(team));
    for (auto& row : scratch) row.resize(static_cast<std::size_t>(tensor.cols));
    std::atomic<bool> fits{true};
    LLMINFER_TRY(load::for_rows(team, tensor.rows, [&](std::int64_t first, std::int64_t last, std::size_t thread) {
      std::vector<float>& row = scratch[thread];
      for (std::int64_t r = first; r < last; ++r) {
        if (!unpack_rows(floats, r, 1, row)) return fits.store(false);
        for (const float x : row) {
          if (!(std::fabs(x) <= kMost)) return fits.store(false);
        }
        quantize::encode_row(tensor.type, row.data(), tensor.cols, nullptr, blocks.row(r));
      }
    }));
    if (!fits) {
      return fail(ErrorCode::corrupt, "tensor ", tensor.name,
                  ": a value is not finite or beyond the range of 8 bits with a half as scale; expected "
                  "EngineOptions::output_bits 16 for it");
    }
    return blocks.view(tensor);
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
