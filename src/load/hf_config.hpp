// config.json and its neighbours: text to hyperparameters. Knows no files.
#pragma once

#include <string>
#include <string_view>

#include <llminfer/result.hpp>

#include "core/json.hpp"
#include "load/checkpoint.hpp"

namespace llminfer::load {

/// What config.json says.
struct HfConfig {
  ModelConfig model;
  std::vector<std::int32_t> eos_tokens;
  std::optional<std::int64_t> bos, eos, pad;
  core::Json quantization;  ///< the object quantization_config (or compression_config); null if there is none
};

/// Understands the spellings of transformers 4 (rope_theta, rope_scaling) and 5 (rope_parameters). `name` is for
/// messages.
Result<HfConfig> parse_hf_config(std::string_view text, std::string_view name);

/// generation_config.json; `vocab_size` bounds its token ids.
Result<GenerationDefaults> parse_generation_config(std::string_view text, std::string_view name,
                                                   std::int64_t vocab_size);

/// The chat template inside tokenizer_config.json: a string, or the "default" one of a list of {name, template}. Empty
/// if there is none.
Result<std::string> parse_chat_template(std::string_view tokenizer_config, std::string_view name);

}  // namespace llminfer::load
