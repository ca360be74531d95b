// Linear layers of the CPU backend: packing weights into panels and the table of kernels of each instruction set level.
// Knows nothing of plans, threads or programs.
//
// Use: pack_weight once; per batch, quantize_row for each row if form() says so, and then linear over any split of
// panels and rows; both from the level's table. In exact mode: ExactWeight and linear_exact.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>

#include <llminfer/backend.hpp>
#include <llminfer/weight.hpp>

#include "backends/cpu/panel.hpp"
#include "backends/cpu/pending_panels.hpp"

namespace llminfer::cpu {

class WeightArena;

/// What a matrix multiplies.
enum class InputForm : std::uint8_t {
  floats,   ///< ActivationView::f32
  groups,   ///< ActivationView::groups, as quantize_row makes them
  bytes,    ///< the same, as quantize_bytes makes them
  bfloats,  ///< the same, as quantize_bfloats makes them
};

/// The codes of inputs, of which the host wants `wanted`: what the checkpoint has rounded is not rounded again, and
/// outliers do not coarsen their neighbours.
constexpr ActivationCodes codes_for(const InputQuantization& input, ActivationCodes wanted) noexcept {
  return input.kind == InputQuantization::Kind::none && !input.outliers ? wanted : kCodes16;
}

/// What panels of a kind multiply, if the checkpoint declares `input` and the host wants such codes. BF16 numbers have
/// 8 bits, and E4M3 ones are such numbers.
constexpr InputForm form_of(PanelKind kind, const InputQuantization& input, ActivationCodes wanted) noexcept {
  if (kind == PanelKind::w8a8) return InputForm::bytes;
  if (panel_shape(kind).bits != 0) return InputForm::groups;
  const bool e4m3 = input.kind == InputQuantization::Kind::fp8 && input.group % kBlockValues == 0;
  if (kind == PanelKind::fp8 && e4m3) return InputForm::bfloats;
  const bool either = kind == PanelKind::bf16 || kind == PanelKind::fp8;
  return either && codes_for(input, wanted).shift > 0 ? InputForm::bfloats : InputForm::floats;
}

/// A weight [rows = N, cols = K] in panels of 16 output rows; owns its memory. Immutable once packed.
class PackedWeight final : public PreparedWeight {
 public:
  /// Panels of zeros, to be filled by pack_panels; in memory of `arena` if it is given. Errors: unsupported (no kernel
  /// reads the type), invalid_argument (sizes that do not fit the type), out_of_memory. `sparse`: the weight is
  /// two_of_four().
  static Result<std::unique_ptr<PackedWeight>> allocate(WeightType type, std::int64_t rows, std::int64_t cols,
                                                        const WeightDetails& details = {}, WeightArena* arena = nullptr,
                                                        bool sparse = false);
  /// The weight whose panels these are, as stored() of another gave them. Errors: as allocate; corrupt (bytes that are
  /// not as many, or not on a cache line).
  static Result<std::unique_ptr<PackedWeight>> adopt(const WeightView& weight, std::span<const std::byte> panels,
                                                     std::shared_ptr<const void> keep);

  /// The weight that is given, whose panels are packed when they are needed: pending(). Its data is readable as long as
  /// weight.keep lives; `release` is called as its parts are packed. Errors: as allocate.
  static Result<std::unique_ptr<PackedWeight>> pack_later(const WeightView& weight, WeightArena* arena, bool sparse,
                                                          ReleaseBytes release);

  std::int64_t rows() const noexcept { return view_.rows; }
  std::int64_t cols() const noexcept { return view_.cols; }
  std::int32_t panels() const noexcept { return static_cast<std::int32_t>((rows() + kPanelRows - 1) / kPanelRows); }
  PanelKind kind() const noexcept { return view_.kind; }
  /// Which activations linear reads, where the host wants such codes.
  InputForm form(ActivationCodes wanted = kCodes16) const noexcept { return form_of(view_.kind, input(), wanted); }
  /// Once complete().
  const PackedWeightView& view() const noexcept { return view_; }
  bool complete() const noexcept override { return !pending_ || pending_->complete(); }
  /// Lets go of what it was packed from. complete(), and nobody uses the weight.
  void finish() const noexcept { pending_.reset(); }
  /// The panels, where they are not all packed yet.
  PendingPanels* pending() const noexcept { return complete() ? nullptr : pending_.get(); }
  std::int64_t bytes() const noexcept override { return bytes_; }
  std::span<const std::byte> stored() const noexcept override {
    if (!complete()) return {};
    return {reinterpret_cast<const std::byte*>(view_.data), static_cast<std::size_t>(bytes_)};
  }
  const InputQuantization& input() const noexcept { return details_.input; }
  /// The order of the panels' columns, of which activations are given in the same order; null: their own.
  const std::vector<std::int32_t>* order() const noexcept { return details_.permutation.get(); }
  /// out // (cols) = row `row` as float, in the weight's own order. `room` is used unless complete().
  void read_row(std::int64_t row, float* out, const PanelRoom& room = {}) const noexcept;

  /// Fills panels [begin, end) from the weight that it was allocated for. Disjoint ranges may be packed concurrently.
  void pack_panels(const WeightView& weight, std::int32_t begin, std::int32_t end);

 private:
  PackedWeight() = default;
  /// All but the data.
  static Result<std::unique_ptr<PackedWeight>> describe(WeightType type, std::int64_t rows, std::int64_t cols,
                                                        const WeightDetails& details, bool sparse);
  PackedWeightView view_{};
  std::uint8_t* panels_ = nullptr;  ///< for pack_panels
  std::shared_ptr<const void> keep_;
  std::int64_t bytes_ = 0;
  WeightDetails details_;
  mutable std::unique_ptr<PendingPanels> pending_;  ///< null: all are packed
};

/// allocate and pack_panels in one. Errors: as allocate; invalid_argument if the data's size does not fit.
Result<std::unique_ptr<PackedWeight>> pack_weight(const WeightView& weight);

/// Whether in each four neighbours of a row at least two are zero, and the weight is of 16-bit floats or of symmetric
/// codes of 8 bits, W8A8 excepted. Looks no further than the first that are not.
bool two_of_four(const WeightView& weight) noexcept;

/// Bytes that such a packed weight takes, if it is not sparse; 0 for a type that cannot be packed.
std::int64_t packed_bytes(WeightType type, std::int64_t rows, std::int64_t cols,
                          const WeightDetails& details = {}) noexcept;

/// The form of such a packed weight; floats for a type that cannot be packed.
InputForm packed_form(WeightType type, std::int64_t cols, const WeightDetails& details,
                      ActivationCodes wanted) noexcept;

/// The kind of panels that a type is packed into, if any; w8_sym is w8a8 instead where that fits the details.
std::optional<PanelKind> panel_kind(WeightType type) noexcept;

InputRounding rounding_of(const InputQuantization& input) noexcept;

/// out // (cols) = row `row` of the weight as float, columns as they lie: embedding lookup straight from the panels.
void read_row(const PackedWeightView& w, std::int64_t row, float* out) noexcept;

/// Groups to reserve for a quantized row of k values: one more than it has, so that the rows of a tile do not all start
/// at the same place of a page and fight for the same cache sets.
constexpr std::int64_t quantized_row_groups(std::int64_t k) { return (k + kGroupValues - 1) / kGroupValues + 1; }
constexpr std::size_t quantized_row_bytes(std::int64_t k) {
  return static_cast<std::size_t>(quantized_row_groups(k)) * sizeof(QuantizedGroup);
}

/// Scratch for LinearKernels::linear on weights of at most `cols` input values, per thread.
std::size_t linear_scratch_bytes(std::int64_t cols) noexcept;

/// A weight as it lies in the checkpoint, for exact mode: rows are unpacked when they are multiplied.
class ExactWeight final : public PreparedWeight {
 public:
  /// Errors: invalid_argument if the data's size does not fit.
  static Result<std::unique_ptr<ExactWeight>> make(const WeightView& weight);
  std::int64_t rows() const noexcept { return view_.rows; }
  std::int64_t cols() const noexcept { return view_.cols; }
  std::int64_t bytes() const noexcept override { return 0; }
  const InputQuantization& input() const noexcept { return view_.details.input; }
  /// out // (cols) = row `row`, exactly.
  void read_row(std::int64_t row, float* out) const noexcept;

 private:
  explicit ExactWeight(const WeightView& view) : view_(view) {}
  WeightView view_;
};

/// As LinearKernels::linear, in float arithmetic on exactly unpacked weights, for output features
/// [feature_begin, feature_end). `scratch` holds cols floats. A row's bits depend on nothing but that row.
void linear_exact(const LinearKernels& kernels, const ExactWeight& w, std::int64_t feature_begin,
                  std::int64_t feature_end, const float* x, std::int64_t stride, std::int32_t row_begin,
                  std::int32_t row_end, float* out, std::int64_t out_stride, float* scratch) noexcept;

// The tables, one per file of isa/. Only scalar may be called before the machine's level is known.
namespace isa_scalar {
const LinearKernels& linear_kernels();
}
namespace isa_avx2 {
const LinearKernels& linear_kernels();
}
namespace isa_avxvnni {
const LinearKernels& linear_kernels();
}
namespace isa_avx512 {
const LinearKernels& linear_kernels();
}
namespace isa_avx512vnni {
const LinearKernels& linear_kernels();
}
namespace isa_avx512bf16 {
const LinearKernels& linear_kernels();
}
namespace isa_amx {
const LinearKernels& linear_kernels();
}
namespace isa_neon {
const LinearKernels& linear_kernels();
}
namespace isa_neon_dotprod {
const LinearKernels& linear_kernels();
}
namespace isa_neon_i8mm {
const LinearKernels& linear_kernels();
}

}  // namespace llminfer::cpu
