// Quantized Hugging Face checkpoints: quantization_config and the tensors of each layer to one packed weight per layer.
// Knows no files and no models: a layer is whatever has tensors with the names of a packing.
#pragma once

#include <llminfer/result.hpp>

#include "core/json.hpp"
#include "load/checkpoint.hpp"

namespace llminfer::load {

/// Replaces the tensors of every packed layer ("X.qweight", "X.scales", …) by one tensor "X.weight" with a Packing.
/// Layers without them stay as they are. `settings` is the object quantization_config. Reads small tensors (the order
/// of columns, descriptions in JSON) but no weights. Errors, all naming the tensor or setting:
///   unsupported (a quant_method, a version or a scheme that is not known), corrupt (settings or contents that
///   contradict each other or the rules of the packing), missing_tensor, unsupported_type, shape_mismatch.
Result<void> apply_quantization(const core::Json& settings, Checkpoint& checkpoint);

}  // namespace llminfer::load
