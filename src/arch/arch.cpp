// The table of architectures, and the comparison of a Program with the tensors of its checkpoint.
#include "arch/arch.hpp"

#include <algorithm>
#include <string>
#include <unordered_set>

#include "arch/config_check.hpp"
#include "core/error.hpp"

namespace llminfer::arch {
namespace {

using core::fail;

struct Architecture {
  std::string_view name;
  Result<Program> (*build)(const load::Checkpoint&);
};

constexpr Architecture kArchitectures[] = {
    {"llama", build_llama},       {"qwen2", build_qwen2}, {"qwen2moe", build_qwen2moe}, {"qwen3", build_qwen3},
    {"qwen3moe", build_qwen3moe}, {"olmoe", build_olmoe}, {"gpt-oss", build_gpt_oss},
};

/// Tensors that checkpoints carry and no Program reads. A '*' in front stands for any beginning.
constexpr std::string_view kIgnored[] = {
    "rope_freqs.weight",       // the loader reads it into ModelConfig::rope_scaling.factors
    "*.rotary_emb.inv_freq",   // a cache that older transformers versions saved
    "*.attn_rot_embd.weight",  // the same in old GGUF files
};

bool ignored(std::string_view name) {
  return std::any_of(std::begin(kIgnored), std::end(kIgnored), [&](std::string_view pattern) {
    return pattern.front() == '*' ? name.ends_with(pattern.substr(1)) : name == pattern;
  });
}

Result<void> check_tensor(const WeightSpec& weight, const load::Checkpoint& checkpoint) {
  const auto found = checkpoint.by_name.find(weight.name);
  if (found == checkpoint.by_name.end()) {
    return fail(ErrorCode::missing_tensor, "no tensor ", weight.name, ", expected [", weight.rows, ", ", weight.cols,
                "]");
  }
  const load::TensorInfo& tensor = checkpoint.tensors[found->second];
  if (tensor.rows == weight.rows && tensor.cols == weight.cols && tensor.shape.size() <= 2) return {};
  return fail(ErrorCode::shape_mismatch, "tensor ", weight.name, " is ", load::shape_text(tensor.shape), ", expected [",
              weight.rows, ", ", weight.cols, "]");
}

Result<void> check_tensors(const Program& program, const load::Checkpoint& checkpoint) {
  std::unordered_set<std::string_view> used;
  for (const WeightSpec& weight : program.weights) {
    LLMINFER_TRY(check_tensor(weight, checkpoint));
    used.insert(weight.name);
  }
  for (const load::TensorInfo& tensor : checkpoint.tensors) {
    if (used.contains(tensor.name) || ignored(tensor.name)) continue;
    // Tied weights may be stored twice; the config says that the table is the one that counts.
    if (tensor.name == "lm_head.weight" && checkpoint.config.hf_names && checkpoint.config.tied_embeddings) continue;
    return fail(ErrorCode::unexpected_tensor, "tensor ", tensor.name, " is not part of the architecture ",
                program.architecture);
  }
  return {};
}

/// A Program names each expert's tensors, so a file that claims many experts must have as many tensors.
Result<void> check_expert_count(const load::Checkpoint& checkpoint) {
  const load::ModelConfig& config = checkpoint.config;
  const auto dense = std::count(config.expert_layers.begin(), config.expert_layers.end(), 0);
  const std::int64_t layers = config.layers - dense;
  if (config.experts * layers <= static_cast<std::int64_t>(checkpoint.tensors.size())) return {};
  return fail(ErrorCode::missing_tensor, checkpoint.tensors.size(), " tensors cannot be those of ", config.experts,
              " experts in each of ", layers, " layers");
}

Result<Program> build_and_check(const load::Checkpoint& checkpoint) {
  const std::string& name = checkpoint.config.architecture;
  const auto* row = std::find_if(std::begin(kArchitectures), std::end(kArchitectures),
                                 [&](const Architecture& candidate) { return candidate.name == name; });
  if (row == std::end(kArchitectures)) {
    std::string known;
    for (const std::string_view candidate : architectures())
      known += (known.empty() ? "" : ", ") + std::string(candidate);
    return fail(ErrorCode::unsupported_architecture, "the architecture \"", name, "\"; known are ", known);
  }
  LLMINFER_TRY(check_config(checkpoint.config));
  LLMINFER_TRY(check_expert_count(checkpoint));
  Program program = LLMINFER_TRY(row->build(checkpoint));
  LLMINFER_TRY(check_tensors(program, checkpoint));
  return program;
}

}  // namespace

std::vector<std::string_view> architectures() {
  std::vector<std::string_view> names;
  for (const Architecture& architecture : kArchitectures) names.push_back(architecture.name);
  return names;
}

Result<Program> build_program(const load::Checkpoint& checkpoint) {
  Result<Program> program = build_and_check(checkpoint);
  if (!program) return core::at(checkpoint.path, std::move(program).error());
  return program;
}

}  // namespace llminfer::arch
