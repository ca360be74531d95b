// GGUF files to be written: which type each tensor gets, and the header. Knows no weights.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <llminfer/result.hpp>

#include "load/checkpoint.hpp"
#include "load/gguf_file.hpp"
#include "quantize/source.hpp"

namespace llminfer::quantize {

/// A kind of file as llama-quantize names it: "Q4_K_M", ….
struct GgufKind {
  std::string_view name;
  WeightType type;          ///< of most matrices
  std::uint32_t file_type;  ///< general.file_type
};
/// Nothing if there is none of that name, in letters of any case.
const GgufKind* find_gguf_kind(std::string_view name) noexcept;

/// The type that llama-quantize gives this tensor of a model (llama-quant.cpp's rules): a mixture that spends more bits
/// where errors cost more, types with smaller blocks where rows do not fill the kind's, F32 for vectors and routers.
/// Experts are a stack, such as "blk.0.ffn_up_exps.weight".
WeightType gguf_type(const GgufKind& kind, const load::TensorInfo& tensor, const load::ModelConfig& config,
                     bool importance);

struct GgufTensor {
  std::string name;
  WeightType type = WeightType::f32;
  std::vector<std::int64_t> shape;  ///< outermost first
  std::uint64_t bytes = 0;
  std::uint64_t offset = 0;  ///< in the file; set by gguf_header
};

struct GgufPair {
  std::string key;
  load::GgufValue value;
};

/// All metadata of the output, but for general.file_type: the input's own, or what its config.json and tokenizer.json
/// say. Errors: unsupported (a tokenizer that GGUF has no name for).
Result<std::vector<GgufPair>> gguf_metadata(const Source& source);

/// rope_freqs.weight, the divisors that stand for Llama 3's rule in GGUF files; empty where none is needed or the input
/// has them itself.
Result<std::vector<float>> gguf_rope_factors(const Source& source);

/// The bytes up to the first tensor's, and the size of the file.
std::string gguf_header(const std::vector<GgufPair>& metadata, std::vector<GgufTensor>& tensors, std::uint64_t& size);

}  // namespace llminfer::quantize
