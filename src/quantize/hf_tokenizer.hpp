// The vocabulary of a GGUF file as tokenizer.json and tokenizer_config.json.
#pragma once

#include <string>
#include <vector>

#include <llminfer/result.hpp>

#include "load/checkpoint.hpp"

namespace llminfer::quantize {

/// A file of a directory.
struct TextFile {
  std::string name, text;
};

/// Both files, and chat_template.jinja if there is a template. Errors: unsupported (a kind of vocabulary that llminfer
/// does not know).
Result<std::vector<TextFile>> make_hf_tokenizer(const load::Checkpoint& checkpoint);

}  // namespace llminfer::quantize
