#include "quantize/check.hpp"

#include <string>

#include "core/error.hpp"
#include "quantize/gguf_output.hpp"

namespace llminfer::quantize {
namespace {

template <class T>
Error refused(const char* option, const T& value, std::string_view expected) {
  return core::fail(ErrorCode::invalid_argument, "QuantizeOptions::", option, " is ", value, ", expected ", expected);
}

template <class Enum>
Result<void> check_enum(const char* option, Enum value, Enum last) {
  if (value <= last) return {};
  return refused(option, static_cast<int>(value), "0 to " + std::to_string(static_cast<int>(last)));
}

Result<void> check_type(const QuantizeOptions& o) {
  const GgufKind* kind = find_gguf_kind(o.type);
  if (o.format == QuantizeFormat::gguf) {
    if (kind) return {};
    return refused("type", "\"" + o.type + "\"", "a GGUF type such as Q8_0, Q4_0 or Q4_K_M");
  }
  if (o.type.empty() || (kind && kind->type <= WeightType::bf16)) return {};
  return refused("type", "\"" + o.type + "\"", "F32, F16, BF16 or nothing for a directory");
}

Result<void> check_numbers(const QuantizeOptions& o) {
  const bool llm_compressor = o.format == QuantizeFormat::compressed_tensors;
  const bool few = o.format == QuantizeFormat::gptq && (o.bits == 2 || o.bits == 3);
  if (o.bits != 4 && !few && (o.bits != 8 || o.format == QuantizeFormat::awq)) {
    return refused("bits", o.bits, o.format == QuantizeFormat::awq ? "4" : llm_compressor ? "4 or 8" : "2, 3, 4 or 8");
  }
  if (o.group_size != -1 && (o.group_size < 1 || o.group_size > 1 << 20)) {
    return refused("group_size", o.group_size, "-1 or 1 to 2^20");
  }
  if (o.output_matrix && (o.format == QuantizeFormat::gguf || o.format == QuantizeFormat::dense)) {
    return refused("output_matrix", "true", "false for this format");
  }
  if (o.int8_inputs && (!llm_compressor || o.bits != 8 || !o.symmetric)) {
    return refused("int8_inputs", "true", "false, but for symmetric 8-bit weights of compressed_tensors");
  }
  return {};
}

Result<void> check_method(const QuantizeOptions& o) {
  const bool integers = o.format != QuantizeFormat::gguf && o.format != QuantizeFormat::dense;
  if (o.method != QuantizeMethod::round_to_nearest && !integers) {
    return refused("method", static_cast<int>(o.method), "round_to_nearest for this format");
  }
  if (o.method == QuantizeMethod::smoothquant && !o.int8_inputs) {
    return refused("method", "smoothquant", "another one where int8_inputs is false");
  }
  const bool ordered = o.method == QuantizeMethod::gptq && o.activation_order;
  if (ordered && o.format != QuantizeFormat::gptq) {
    return refused("activation_order", "true", "false for formats without an index of groups");
  }
  if (!(o.damping > 0 && o.damping <= 1)) return refused("damping", o.damping, "above 0 to 1");
  if (!(o.smoothing >= 0 && o.smoothing <= 1)) return refused("smoothing", o.smoothing, "0 to 1");
  return {};
}

Result<void> check_pruning(const QuantizeOptions& o) {
  if (o.prune == PruneMethod::none) return {};
  if (!(o.sparsity >= 0 && o.sparsity < 1)) return refused("sparsity", o.sparsity, "0 to below 1");
  if (o.method != QuantizeMethod::round_to_nearest) {
    return refused("method", static_cast<int>(o.method),
                   "round_to_nearest with pruning, whose zeros others would undo");
  }
  const bool off = o.prune_n == 0 && o.prune_m == 0;
  if (!off && (o.prune_n < 1 || o.prune_m <= o.prune_n || o.prune_m > 64)) {
    return refused("prune_n", o.prune_n, "0, or at least 1 and less than prune_m, which is at most 64");
  }
  return {};
}

}  // namespace

bool needs_calibration(const QuantizeOptions& o) noexcept {
  return o.method != QuantizeMethod::round_to_nearest || o.prune == PruneMethod::wanda ||
         (o.format == QuantizeFormat::gguf && !o.calibration.empty());
}

Result<void> check_options(const QuantizeOptions& o) {
  LLMINFER_TRY(check_enum("format", o.format, QuantizeFormat::compressed_tensors));
  LLMINFER_TRY(check_enum("method", o.method, QuantizeMethod::smoothquant));
  LLMINFER_TRY(check_enum("prune", o.prune, PruneMethod::wanda));
  LLMINFER_TRY(check_type(o));
  LLMINFER_TRY(check_numbers(o));
  LLMINFER_TRY(check_method(o));
  LLMINFER_TRY(check_pruning(o));
  if (needs_calibration(o) && o.calibration.empty())
    return refused("calibration", "empty", "text, which the method needs");
  if (o.calibration_sequences < 1 || o.calibration_sequences > 1 << 16) {
    return refused("calibration_sequences", o.calibration_sequences, "1 to 65536");
  }
  if (o.calibration_length < 8 || o.calibration_length > 1 << 20) {
    return refused("calibration_length", o.calibration_length, "8 to 2^20");
  }
  if (o.threads < 0 || o.threads > 1024) return refused("threads", o.threads, "0 to 1024");
  return {};
}

}  // namespace llminfer::quantize
