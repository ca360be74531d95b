// Hugging Face directories to be written: the tensors of each layer's packing, the header of model.safetensors, and the
// texts beside it. Knows no weights.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include <llminfer/quantize.hpp>
#include <llminfer/result.hpp>

#include "core/json.hpp"
#include "quantize/hf_tokenizer.hpp"
#include "quantize/layout.hpp"
#include "quantize/source.hpp"

namespace llminfer::quantize {

struct HfTensor {
  std::string name;
  std::string_view element;  ///< "F16", "I32", …
  std::vector<std::int64_t> shape;
  std::uint64_t bytes = 0;
  std::uint64_t offset = 0;  ///< in the file; set by safetensors_header
};

/// The bytes up to the first tensor's, and the size of the file. Wide elements come first, so that all are aligned.
std::string safetensors_header(std::vector<HfTensor>& tensors, std::uint64_t& size);

/// The object quantization_config; null for QuantizeFormat::dense. `routers`: see Layout.
core::Json quantization_config(const QuantizeOptions& options, const std::vector<std::string>& routers);

/// config.json, the tokenizer's files and those beside them: the input's own, or what a GGUF file's metadata say.
/// Errors: unsupported (hyperparameters or a vocabulary that the files cannot say), those of reading.
Result<std::vector<TextFile>> make_hf_texts(const Source& source, const std::string& input,
                                            const QuantizeOptions& options, const Layout& layout);
/// Writes them to a directory, and removes those of another model that was there.
Result<void> write_hf_texts(const std::vector<TextFile>& texts, const std::string& directory);

}  // namespace llminfer::quantize
