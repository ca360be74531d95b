// Mixtures whose experts share tensors in a Hugging Face directory, as their classes in transformers hold them:
//   X.gate_up_proj [experts, 2 * ffn, width], first the rows of gate, then those of up; X.down_proj [experts, width,
//   ffn]
// and in gpt-oss, whose matrices are transposed and whose gate and up take turns:
//   X.gate_up_proj [experts, width, 2 * ffn], X.down_proj [experts, ffn, width], with _bias [experts, 2 * ffn or width]
// They become one tensor for each matrix, X.E.gate_proj.weight (docs/adr/0019). Knows no packings.
#include <cstring>
#include <string_view>
#include <utility>

#include "core/error.hpp"
#include "load/hf.hpp"
#include "load/packing.hpp"

namespace llminfer::load {
namespace {

using core::fail;

/// A matrix whose elements lie apart.
struct Strides {
  std::uint64_t first = 0;             ///< bytes from the tensor's beginning
  std::uint64_t row = 0, element = 0;  ///< bytes between two
};

class StridedPacking final : public Packing {
 public:
  StridedPacking(TensorInfo stored, const Strides& strides) : stored_(std::move(stored)), strides_(strides) {}

  Result<WeightView> read(const Checkpoint& checkpoint, const TensorInfo& tensor, core::Team* team) const override {
    const core::Bytes bytes = LLMINFER_TRY(read_bytes(checkpoint, stored_));
    BlockBuffer blocks(tensor.type, tensor.rows, tensor.cols);
    const std::size_t size = bytes_of(stored_.element);
    LLMINFER_TRY(for_rows(team, tensor.rows, [&](std::int64_t first, std::int64_t last, std::size_t) {
      for (std::int64_t n = first; n < last; ++n) {
        const std::byte* from = bytes.data.data() + strides_.first + static_cast<std::uint64_t>(n) * strides_.row;
        std::uint8_t* out = blocks.row(n);
        for (std::int64_t k = 0; k < tensor.cols; ++k, from += strides_.element, out += size) {
          std::memcpy(out, from, size);
        }
      }
    }));
    return blocks.view(tensor);
  }

 private:
  const TensorInfo stored_;
  const Strides strides_;
};

class Splitter {
 public:
  explicit Splitter(Checkpoint& checkpoint)
      : config_(checkpoint.config), gpt_oss_(config_.architecture == "gpt-oss"), checkpoint_(checkpoint) {}

  Result<void> run() {
    for (TensorInfo& tensor : checkpoint_.tensors) {
      LLMINFER_TRY(split(tensor));
    }
    const auto twice = checkpoint_.replace_tensors(std::move(tensors_));
    if (!twice) return {};
    return fail(ErrorCode::corrupt, "tensor ", *twice, " is there by itself and in a stack of experts");
  }

 private:
  Result<void> split(TensorInfo& tensor) {
    constexpr std::string_view kGateUp = ".experts.gate_up_proj", kDown = ".experts.down_proj", kBias = "_bias";
    std::string_view name = tensor.name;
    const bool bias = gpt_oss_ && name.ends_with(kBias);
    if (bias) name.remove_suffix(kBias.size());
    const bool gate_up = name.ends_with(kGateUp);
    if ((!gate_up && !name.ends_with(kDown)) || tensor.packing) {
      tensors_.push_back(std::move(tensor));
      return {};
    }
    if (++stacks_ > 4 * config_.layers) {
      return fail(ErrorCode::corrupt, "tensor ", tensor.name, " is one stack of experts too many for ", config_.layers,
                  " layers");
    }
    const std::int64_t width = config_.hidden_size, ffn = config_.expert_ffn_size;
    const std::int64_t rows = gate_up ? 2 * ffn : width, cols = gate_up ? width : ffn;
    std::vector<std::int64_t> shape = {config_.experts, rows};
    if (!bias) shape.insert(gpt_oss_ ? shape.begin() + 1 : shape.end(), cols);
    if (tensor.shape != shape) {
      return fail(ErrorCode::shape_mismatch, "tensor ", tensor.name, " is ", shape_text(tensor.shape), ", expected ",
                  shape_text(shape), " for ", config_.experts, " experts of width ", width, " and inner width ", ffn);
    }
    const std::string prefix(name.substr(0, name.rfind('.') + 1));
    for (std::int64_t e = 0; e < config_.experts; ++e) {
      const std::string expert = prefix + std::to_string(e);
      const std::string suffix = bias ? ".bias" : ".weight";
      if (gate_up) {
        add(tensor, e, expert + ".gate_proj" + suffix, ffn, bias ? 0 : cols, 0, 2);
        add(tensor, e, expert + ".up_proj" + suffix, ffn, bias ? 0 : cols, 1, 2);
      } else {
        add(tensor, e, expert + ".down_proj" + suffix, rows, bias ? 0 : cols, 0, 1);
      }
    }
    return {};
  }

  /// Part `part` of the `parts` that an expert's rows fall into: a matrix [rows, cols], or a vector [rows] where there
  /// are no columns.
  void add(const TensorInfo& stack, std::int64_t expert, std::string name, std::int64_t rows, std::int64_t cols,
           std::int64_t part, std::int64_t parts) {
    const TensorInfo slice = piece_of(stack, expert, config_.experts);
    TensorInfo made = slice;
    made.name = std::move(name);
    made.shape = cols > 0 ? std::vector{rows, cols} : std::vector{rows};
    made.rows = cols > 0 ? rows : 1;
    made.cols = cols > 0 ? cols : rows;
    const std::uint64_t size = bytes_of(stack.element);
    const std::uint64_t first = static_cast<std::uint64_t>(part) * size, step = static_cast<std::uint64_t>(parts) * size;
    if (!gpt_oss_ || (cols == 0 && parts == 1)) {
      made = piece_of(std::move(made), part, parts);
    } else if (cols == 0) {
      made.packing = std::make_shared<StridedPacking>(slice, Strides{first, 0, step});
    } else {
      const Strides strides{first, step, static_cast<std::uint64_t>(rows) * step};
      made.packing = std::make_shared<StridedPacking>(slice, strides);
    }
    tensors_.push_back(std::move(made));
  }

  const ModelConfig& config_;
  const bool gpt_oss_;
  Checkpoint& checkpoint_;
  std::vector<TensorInfo> tensors_;
  std::int64_t stacks_ = 0;
};

}  // namespace

Result<void> split_expert_stacks(Checkpoint& checkpoint) {
  if (checkpoint.config.experts == 0) return {};
  return Splitter(checkpoint).run();
}

}  // namespace llminfer::load
