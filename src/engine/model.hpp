// Model: a checkpoint made ready to run: tokenizer, Program, prepared weights, plan, caches.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include <llminfer/backend.hpp>
#include <llminfer/engine.hpp>

#include "engine/ranks.hpp"
#include "engine/weight_loader.hpp"
#include "load/checkpoint.hpp"

namespace llminfer::inline v0::engine {

struct Model {
  ModelInfo info;
  Tokenizer tokenizer{nullptr};
  std::string chat_template;
  std::string bos_text, eos_text;  ///< written forms, for chat templates
  SamplingOptions recommended;
  std::vector<std::shared_ptr<Backend>> backends;  ///< one, or those that share the layers
  Program program;
  std::unique_ptr<Plan> plan;
  std::vector<std::unique_ptr<CacheStorage>> caches;  ///< one per cache group
  std::vector<std::int32_t> pages;                    ///< per cache group
  std::vector<PendingWeight> pending;
  std::int64_t weight_bytes = 0;
  double load_seconds = 0;
};

/// Tells the host, if it listens. Errors: callback_failed.
Result<void> log(const EngineOptions& options, LogLevel level, const std::string& message);

/// Reads, prepares and compiles. `leader`: of the ranks of EngineOptions::communicator, null if there are no others.
Result<std::unique_ptr<Model>> load_model(const load::Checkpoint& checkpoint, const EngineOptions& options,
                                          std::shared_ptr<Leader> leader);

/// The same on another rank, of its layers alone.
Result<RankStage> load_rank(const load::Checkpoint& checkpoint, const EngineOptions& options, const Setup& setup);

/// What load_model would take.
Result<MemoryPlan> plan_model(const load::Checkpoint& checkpoint, const EngineOptions& options);

}  // namespace llminfer::inline v0::engine
