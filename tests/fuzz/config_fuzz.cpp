// The JSON files of a Hugging Face directory. Where config.json parses, the Program of its hyperparameters is built
// too: the checkpoint has no tensors, so all that can come of it is an error.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "arch/arch.hpp"
#include "load/hf_config.hpp"
#include "load/quantization.hpp"
#include "tests/fuzz/packed_layers.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  (void)llminfer::load::parse_generation_config(text, "fuzz", 100).has_value();
  (void)llminfer::load::parse_chat_template(text, "fuzz").has_value();
  auto config = llminfer::load::parse_hf_config(text, "fuzz");
  if (!config) return 0;
  llminfer::load::Checkpoint checkpoint;
  checkpoint.config = std::move(config->model);
  // Whatever the settings say of small layers of each packing, they are read or refused.
  if (config->quantization.is_object()) {
    for (llminfer::load::Checkpoint packed : llminfer::fuzz::packed_layers()) {
      if (!llminfer::load::apply_quantization(config->quantization, packed)) continue;
      for (const auto& tensor : packed.tensors) (void)packed.read(tensor).has_value();
    }
  }
  if (llminfer::arch::build_program(checkpoint)) std::abort();
  return 0;
}
