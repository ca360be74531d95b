// How the linear steps and the experts of a plan read their inputs: known from the weights, before any is prepared.
#pragma once

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "backends/common/steps.hpp"
#include "backends/cpu/linear.hpp"

namespace llminfer::cpu {

/// What a weight multiplies. `order` lives as long as the weight.
struct WeightInput {
  InputForm form = InputForm::floats;
  const std::vector<std::int32_t>* order = nullptr;  ///< in which columns are taken; null: their own
  InputQuantization rounding{};                      ///< that the checkpoint declares
  bool wide = false;                                 ///< Matrix::wide_codes; of no matter before weights are prepared
};

/// One way in which rows of an input are quantized.
struct RowForm {
  InputForm form = InputForm::groups;
  const std::vector<std::int32_t>* order = nullptr;
};

/// How a linear step reads its input in any pass.
struct StepInput {
  InputQuantization rounding;  ///< that the checkpoint declares, of all weights
  bool floats = false;         ///< some weights read float rows
  std::vector<RowForm> forms;  ///< that the others read
  /// Per part the index of its weight's form, and of its up_weight's; -1: floats.
  std::vector<std::pair<int, int>> of_part;
  bool rounds = false;  ///< to floats, for weights that multiply such or what is quantized of them
  bool wide = false;    ///< of a weight with wide codes
  ActivationCodes codes = kCodes16;
};

/// How the experts of a mixture read its input in any pass.
struct ExpertInputs {
  bool up_differs = false;    ///< some expert's up reads other rows than its gate
  bool gates_differ = false;  ///< some expert's gate reads other rows than another's
  bool ups_differ = false;
};

struct PlanInputs {
  /// `weights`: one per weight of the program. Separates steps by roundings first.
  static PlanInputs make(backend::Steps& steps, std::span<const WeightInput> weights, ActivationCodes codes);

  std::vector<StepInput> of_step;        ///< per step; empty for all but linear ones
  std::vector<ExpertInputs> of_experts;  ///< per step, of mixtures
  bool rounds = false, orders = false;
  std::int64_t more_forms = 0;  ///< quantized forms of an input beside the first
};

/// Rows of inputs beside those of PlanLayout, where weights need them: [max_rows + threads] of each.
struct InputRowsLayout {
  InputRowsLayout() = default;
  InputRowsLayout(const PlanInputs& inputs, std::int64_t widest_input, std::int64_t quantized_stride,
                  std::int32_t max_rows, int threads);

  std::int64_t rounded_stride = 0;  ///< floats of a rounded row, the first rows there are; 0: there are none
  std::int64_t ordered = 0;         ///< where a row in another order for each thread begins
  std::int64_t ordered_stride = 0;  ///< its floats; 0: there are none
  std::int64_t forms = 0;           ///< where more forms begin: [more_forms][rows] of quantized_stride groups
  std::int64_t bytes = 0;
};

}  // namespace llminfer::cpu
