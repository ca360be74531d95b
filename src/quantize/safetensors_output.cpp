// The header of model.safetensors, and the settings that say how its tensors are packed.
#include <algorithm>

#include "quantize/hf_output.hpp"
#include "quantize/json_fields.hpp"

namespace llminfer::quantize {
namespace {

using core::Json;

int width_of(std::string_view element) {
  if (element == "I64") return 8;
  if (element == "F32" || element == "I32") return 4;
  return element == "I8" ? 1 : 2;
}

Json names(const std::vector<std::string>& list) {
  Json::Array array;
  for (const std::string& name : list) array.emplace_back(name);
  return Json(std::move(array));
}

Json compressed_tensors(const QuantizeOptions& o, const std::vector<std::string>& routers) {
  const bool whole_rows = o.int8_inputs || o.group_size == -1;
  const char* format = o.int8_inputs ? "int-quantized" : "pack-quantized";
  Fields weights, inputs, group;
  weights.add("num_bits", o.bits).add("type", "int").add("symmetric", o.symmetric);
  weights.add("strategy", whole_rows ? "channel" : "group");
  whole_rows ? weights.add_null("group_size") : weights.add("group_size", o.group_size);
  weights.add("dynamic", false).add_null("actorder").add_null("block_structure").add("observer", "minmax");
  inputs.add("num_bits", 8).add("type", "int").add("symmetric", true).add("strategy", "token").add("dynamic", true);
  group.add("targets", list_of("Linear")).add("weights", weights.json());
  o.int8_inputs ? group.add("input_activations", inputs.json()) : group.add_null("input_activations");
  group.add_null("output_activations").add("format", format);
  Fields all;
  all.add("quant_method", "compressed-tensors").add("format", format).add("quantization_status", "compressed");
  std::vector<std::string> ignore = routers;
  if (!o.output_matrix) ignore.emplace_back("lm_head");
  all.add("ignore", names(ignore)).add_null("kv_cache_scheme");
  all.add("config_groups", Fields().add("group_0", group.json()).json());
  return all.json();
}

}  // namespace

std::string safetensors_header(std::vector<HfTensor>& tensors, std::uint64_t& size) {
  std::vector<HfTensor*> order;
  for (HfTensor& tensor : tensors) order.push_back(&tensor);
  std::stable_sort(order.begin(), order.end(),
                   [](const auto* a, const auto* b) { return width_of(a->element) > width_of(b->element); });
  Json::Object header;
  header.emplace_back("__metadata__", Fields().add("format", "pt").json());
  std::uint64_t end = 0;
  for (HfTensor* tensor : order) {
    Json::Array shape, place;
    for (const std::int64_t side : tensor->shape) shape.emplace_back(side);
    place.emplace_back(end);
    tensor->offset = end;
    end += tensor->bytes;
    place.emplace_back(end);
    Fields fields;
    fields.add("dtype", std::string(tensor->element))
        .add("shape", std::move(shape))
        .add("data_offsets", std::move(place));
    header.emplace_back(tensor->name, fields.json());
  }
  std::string text = Json(std::move(header)).dump();
  text.append((8 - text.size() % 8) % 8, ' ');
  const std::uint64_t length = text.size();
  text.insert(0, reinterpret_cast<const char*>(&length), sizeof length);  // little-endian
  for (HfTensor& tensor : tensors) tensor.offset += text.size();
  size = text.size() + end;
  return text;
}

core::Json quantization_config(const QuantizeOptions& o, const std::vector<std::string>& routers) {
  if (o.format == QuantizeFormat::gguf || o.format == QuantizeFormat::dense) return {};
  if (o.format == QuantizeFormat::compressed_tensors) return compressed_tensors(o, routers);
  Fields all;
  if (o.format == QuantizeFormat::awq) {
    all.add("quant_method", "awq").add("bits", o.bits).add("group_size", o.group_size).add("zero_point", true);
    all.add("version", "gemm");
    routers.empty() ? all.add_null("modules_to_not_convert") : all.add("modules_to_not_convert", names(routers));
    if (o.output_matrix) all.add("lm_head", true);
  } else {
    all.add("quant_method", "gptq").add("bits", o.bits).add("group_size", o.group_size).add("sym", o.symmetric);
    all.add("desc_act", o.method == QuantizeMethod::gptq && o.activation_order).add("damp_percent", o.damping);
    all.add("true_sequential", true).add("lm_head", o.output_matrix);
    all.add("checkpoint_format", o.symmetric ? "gptq" : "gptq_v2").add("pack_dtype", "int32");
  }
  all.add("meta", Fields().add("quantizer", list_of(std::string("llminfer:") + version())).json());
  return all.json();
}

}  // namespace llminfer::quantize
