// The safetensors container (https://github.com/huggingface/safetensors): an 8-byte length, a JSON header, and the
// bytes of the tensors without gaps. Knows no models.
#pragma once

#include <cstdint>
#include <vector>

#include <llminfer/result.hpp>

#include "core/file.hpp"
#include "load/checkpoint.hpp"

namespace llminfer::load {

/// The tensors of a file, ascending by offset, which is from the start of the file; `source_index` goes into each.
/// Errors: truncated, limit_exceeded (a header beyond 100 MB), bad_magic, unsupported_type (not an ElementType),
/// corrupt (a size that is not shape times type; data with gaps, overlaps or leftovers) and the JSON errors.
Result<std::vector<TensorInfo>> read_safetensors_header(const core::ByteSource& source, std::uint32_t source_index);

}  // namespace llminfer::load
