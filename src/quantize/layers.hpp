// Quantizing layer by layer with calibration text: each layer sees the outputs of the layers before it as the output's
// numbers make them.
#pragma once

#include <string>
#include <unordered_map>

#include <llminfer/quantize.hpp>
#include <llminfer/result.hpp>

#include "core/parallel.hpp"
#include "quantize/executor.hpp"
#include "quantize/layout.hpp"
#include "quantize/writer.hpp"

namespace llminfer::quantize {

class LayerByLayer {
 public:
  /// All outlive this.
  LayerByLayer(const Source& source, const Layout& layout, const QuantizeOptions& options, Writer& writer,
               core::Team& team);

  /// Called after each layer with the weights that are written now, before the place is kept; an error ends the run.
  using OnLayer = core::FunctionRef<Result<void>(const std::vector<const Job*>& written)>;

  /// Writes all weights of the layers. `state` is a file that keeps the place for a later run; `resume`: go on from it.
  Result<void> run(const std::string& state, bool resume, OnLayer on_layer);

 private:
  Result<void> quantize_layer(LayerRun& run, const OpRange& range, FloatWeights& weights);
  Result<void> search_awq_scales(LayerRun& run, const OpRange& range, FloatWeights& weights);
  Result<void> quantize_group(LayerRun& run, const OpRange& range, const LinearGroup& group, std::span<float> input,
                              FloatWeights& weights);
  Result<void> quantize_linear(const op::Linear& linear, std::span<float> values, std::span<const float> moments,
                               std::span<const float> squares);
  /// `range` goes from the end of the layers to the operation that gives the logits.
  Result<void> quantize_output(LayerRun& run, const OpRange& range);
  /// The weights that are no quantized matrices.
  Result<void> write_others(const FloatWeights& weights);
  /// Gives an expert's weights the scales that were found for them.
  void scale_expert(const Expert& expert, FloatWeights& weights) const;
  /// Calls f(weight's values) for all matrices of a group that are quantized, those of experts among them.
  template <class F>
  Result<void> for_weights(const LayerRun& run, const LinearGroup& group, const FloatWeights& weights,
                           const F& f) const;

  const Job& job_of(WeightId id) const { return *jobs_.at(program_.weights[static_cast<std::size_t>(id)].name); }
  bool rotated(const op::Linear& linear) const;

  const load::Checkpoint& checkpoint_;
  const Program& program_;
  const QuantizeOptions& options_;
  Writer& writer_;
  core::Team& team_;
  std::unordered_map<std::string, const Job*> jobs_;
  std::vector<const Job*> written_;  ///< of the layer
  // Scales of the layer's experts, which are not in memory when these are found.
  std::unordered_map<std::int32_t, std::vector<float>> input_scales_;  ///< by the ValueId of the mixture's input
  std::unordered_map<std::int32_t, std::vector<float>> inner_scales_;  ///< by the WeightId of the expert's down
};

}  // namespace llminfer::quantize
