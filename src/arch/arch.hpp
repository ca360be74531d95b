// From a checkpoint's hyperparameters to the Program that runs it. Adding an architecture: one file with a function,
// one row in the table of arch.cpp.
#pragma once

#include <string_view>
#include <vector>

#include <llminfer/program.hpp>
#include <llminfer/result.hpp>

#include "load/checkpoint.hpp"

namespace llminfer::arch {

/// Describes the checkpoint's architecture (config.architecture) as a Program and checks that the checkpoint's tensors
/// are those of the Program: each weight there with its exact shape, and nothing that would silently go unused. Reads
/// no data. Errors: unsupported_architecture, corrupt (an impossible hyperparameter), unsupported, missing_tensor,
/// shape_mismatch, unexpected_tensor.
Result<Program> build_program(const load::Checkpoint& checkpoint);

/// The names that config.architecture may have.
std::vector<std::string_view> architectures();

// The descriptions. Each may rely on check_config having passed.
Result<Program> build_llama(const load::Checkpoint& checkpoint);
Result<Program> build_qwen2(const load::Checkpoint& checkpoint);
Result<Program> build_qwen2moe(const load::Checkpoint& checkpoint);
Result<Program> build_qwen3(const load::Checkpoint& checkpoint);
Result<Program> build_qwen3moe(const load::Checkpoint& checkpoint);
Result<Program> build_olmoe(const load::Checkpoint& checkpoint);
Result<Program> build_gpt_oss(const load::Checkpoint& checkpoint);

}  // namespace llminfer::arch
