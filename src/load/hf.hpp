// Hugging Face model directories: config.json, safetensors, tokenizer.json and their neighbours.
#pragma once

#include <string>

#include <llminfer/result.hpp>

#include "load/checkpoint.hpp"

namespace llminfer::load {

/// Reads config.json, generation_config.json, the headers of model.safetensors or of the shards that
/// model.safetensors.index.json names (or of the files that GPTQ's tools name otherwise), and the texts of tokenizer
/// and chat template. Errors: not_found (config.json or weights), unsupported_architecture, unsupported (a quantization
/// or a rotary scaling that is not known), unsupported_type, bad_vocabulary, missing_tensor (named by the index, in no
/// shard), corrupt (also if two files may be meant), and those of files and JSON.
Result<Checkpoint> open_hf_directory(const std::string& path, bool use_mmap);

/// Makes tensors of single experts of those that hold all experts of a layer (expert_stacks.cpp). Errors:
/// shape_mismatch, corrupt (an expert's tensor occurs twice).
Result<void> split_expert_stacks(Checkpoint& checkpoint);

}  // namespace llminfer::load
