// Opening GGUF checkpoints: one file, a split set, or a source of the host.
#pragma once

#include <string>

#include "load/checkpoint.hpp"

namespace llminfer::load {

/// Opens a GGUF file; if it is the first part of a split set ("NAME-00001-of-0000N.gguf"), all parts.
/// Errors: as core::open_file, parse_gguf and apply_gguf_metadata; invalid_argument for a later part of a set.
Result<Checkpoint> open_gguf_file(const std::string& path, bool use_mmap);

}  // namespace llminfer::load
