#include "load/quantization.hpp"

#include "core/error.hpp"
#include "load/packing.hpp"

namespace llminfer::load {
namespace {

struct Method {
  std::string_view name;
  Result<void> (*add)(const core::Json& settings, Layers& layers);
};

constexpr Method kMethods[] = {
    {"gptq", add_gptq},
    {"awq", add_awq},
    {"compressed-tensors", add_compressed_tensors},
    {"fp8", add_fp8},
    {"fbgemm_fp8", add_fbgemm_fp8},
    {"bitsandbytes", add_bitsandbytes},
    {"auto-round", add_auto_round},
    {"intel/auto-round", add_auto_round},  // as its first versions wrote it
    {"modelopt", add_modelopt},
    {"mxfp4", add_mxfp4},
    {"hqq", add_hqq},
};

/// quant_method, or what tells the tools that leave it out.
Result<std::string> method_of(const core::Json& settings) {
  std::string method = LLMINFER_TRY(setting_text(settings, "quant_method", "", "quantization_config"));
  if (method.empty() && settings.find("w_bit")) method = "awq";
  if (method.empty() && settings.find("quant_algo")) method = "modelopt";
  if (method.empty() && settings.find("bits") && settings.find("group_size")) method = "gptq";
  return method;
}

/// Tools that rotate weights (QuaRot, SpinQuant) have models rotate some inputs as well, which no tensor shows.
Result<void> refuse_rotations(const core::Json& settings) {
  for (const char* key : {"rotation", "rotation_config", "spinquant_config", "transform_config"}) {
    const core::Json* found = settings.find(key);
    if (!found || found->is_null()) continue;
    if ((found->is_object() || found->is_array()) && found->size() == 0) continue;
    return core::fail(ErrorCode::unsupported, "quantization_config: \"", key, "\": inputs that are rotated");
  }
  return {};
}

}  // namespace

Result<void> apply_quantization(const core::Json& settings, Checkpoint& checkpoint) {
  const std::string name = LLMINFER_TRY(method_of(settings));
  LLMINFER_TRY(refuse_rotations(settings));
  std::string known;
  for (const Method& method : kMethods) {
    known += (known.empty() ? "" : ", ") + std::string(method.name);
    if (method.name != name) continue;
    Layers layers(checkpoint);
    LLMINFER_TRY(method.add(settings, layers));
    layers.drop_cache_scales();
    return layers.finish();
  }
  return core::fail(ErrorCode::unsupported, "quantization_config: \"quant_method\" is \"", name, "\", expected ",
                    known);
}

}  // namespace llminfer::load
