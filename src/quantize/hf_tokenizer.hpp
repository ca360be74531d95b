// The vocabulary of a GGUF file as tokenizer.json and tokenizer_config.json.
#pragma once

#include <string>

#include <llminfer/result.hpp>

#include "load/checkpoint.hpp"

namespace llminfer::quantize {

/// Writes both files, and chat_template.jinja if there is a template, to a directory. Errors: unsupported (a kind of
/// vocabulary that llminfer does not know), those of files.
Result<void> write_hf_tokenizer(const load::Checkpoint& checkpoint, const std::string& directory);

}  // namespace llminfer::quantize
