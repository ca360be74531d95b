// Layout: what is known of a model before any weight is read: its Program, where its layers go, what that takes. Made
// of a checkpoint's headers and the options. Loads nothing.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include <llminfer/communicator.hpp>
#include <llminfer/options.hpp>
#include <llminfer/program.hpp>
#include <llminfer/result.hpp>

#include "engine/cache_size.hpp"
#include "engine/weight_loader.hpp"
#include "load/checkpoint.hpp"

namespace llminfer::inline v0::engine {

/// How many ranks share the model.
inline int ranks_of(const EngineOptions& options) { return options.communicator ? options.communicator->size() : 1; }

/// EngineOptions::activation_bits, or what its 0 means for the model.
inline int activation_bits(const EngineOptions& options, const Program& program) {
  return options.activation_bits ? options.activation_bits : default_activation_bits(program.parameter_count());
}

struct Layout {
  Program program;
  std::unique_ptr<const load::TensorInfo> rounded;  ///< stands for the tensor of its name, if not null
  std::vector<StageLayout> stages;   ///< one, or those of a split that get something; with ranks those of this rank
  std::vector<std::int32_t> places;  ///< with ranks, see Setup
  std::int32_t context_length = 0;
  CacheSize cache;
  MemoryPlan memory;
};

/// Whether the stage's backend gets a part of the group's pages only, and host memory the others.
inline bool swaps(const StageLayout& stage, const CacheSize& size, const CacheGroup& group) {
  return stage.backend->swaps() && size.swaps(group);
}

/// Whether pages of the group lie in a file (EngineOptions::cache_folder): those that would take host memory.
inline bool files_pages(const StageLayout& stage, const EngineOptions& options, const CacheSize& size,
                        const CacheGroup& group) {
  return !options.cache_folder.empty() && (swaps(stage, size, group) || !stage.backend->swaps());
}

/// Errors: those of the options, which are checked here, and of a plan.
Result<Layout> lay_out(const load::Checkpoint& checkpoint, const EngineOptions& options);

}  // namespace llminfer::inline v0::engine
