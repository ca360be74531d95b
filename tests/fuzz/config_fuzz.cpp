// The JSON files of a Hugging Face directory. Where config.json parses, the Program of its hyperparameters is built
// too: the checkpoint has no tensors, so all that can come of it is an error. Quantization settings meet a small layer
// of each packing; bytes after a record separator (30) change the layers' tensors.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string_view>
#include <vector>

#include "arch/arch.hpp"
#include "load/hf_config.hpp"
#include "load/quantization.hpp"
#include "tests/fuzz/packed_layers.hpp"

namespace {

/// Of a weight that is read; one that is refused has no element that is not.
bool is_finite(const llminfer::load::Checkpoint& checkpoint, const llminfer::load::TensorInfo& tensor) {
  const auto view = checkpoint.read(tensor);
  if (!view || tensor.shape.size() != 2) return true;
  std::vector<float> values(static_cast<std::size_t>(view->rows * view->cols));
  if (!llminfer::unpack_rows(*view, 0, view->rows, values)) std::abort();
  return std::all_of(values.begin(), values.end(), [](float value) { return std::isfinite(value); });
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  const std::size_t end = input.find('\x1e');
  const std::string_view text = input.substr(0, end);
  const std::string_view changes = end == input.npos ? std::string_view() : input.substr(end + 1);
  (void)llminfer::load::parse_generation_config(text, "fuzz", 100).has_value();
  (void)llminfer::load::parse_chat_template(text, "fuzz").has_value();
  auto config = llminfer::load::parse_hf_config(text, "fuzz");
  if (!config) return 0;
  llminfer::load::Checkpoint checkpoint;
  checkpoint.config = std::move(config->model);
  // Whatever the settings say of small layers of each packing, they are refused or their weights are numbers.
  if (config->quantization.is_object()) {
    for (llminfer::fuzz::PackedLayer layer : llminfer::fuzz::packed_layers()) {
      layer.edit(changes);
      llminfer::load::Checkpoint packed = layer.checkpoint();
      if (!llminfer::load::apply_quantization(config->quantization, packed)) continue;
      for (const auto& tensor : packed.tensors) {
        if (tensor.packing && !is_finite(packed, tensor)) std::abort();
      }
    }
  }
  if (llminfer::arch::build_program(checkpoint)) std::abort();
  return 0;
}
