// WeightLoader: reads and prepares the weights of a model's stages.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include <llminfer/options.hpp>

#include "core/parallel.hpp"
#include "engine/stages.hpp"
#include "engine/streaming.hpp"
#include "engine/weight_cache.hpp"
#include "load/checkpoint.hpp"

namespace llminfer::inline v0::engine {

/// What one backend computes.
struct StageLayout {
  std::shared_ptr<Backend> backend;
  Stage stage;
  std::vector<const load::TensorInfo*> tensors;  ///< one per weight of the stage
  Streamed streamed{};
  Stored stored{};
  /// Owns those that are parts of a checkpoint's tensors.
  std::shared_ptr<const std::vector<load::TensorInfo>> parts{};

  bool streams(std::size_t weight) const noexcept { return !streamed.empty() && streamed[weight] >= 0; }
};

/// A weight that Backend::prepare_later() made and that is not complete().
struct PendingWeight {
  std::shared_ptr<Backend> backend;
  std::shared_ptr<const PreparedWeight> weight;
};

class WeightLoader {
 public:
  /// All of them outlive the loader.
  WeightLoader(const load::Checkpoint& checkpoint, const EngineOptions& options, std::span<const StageLayout> stages);

  using Weights = std::vector<std::shared_ptr<const PreparedWeight>>;
  /// The weights of one of the stages, from files of EngineOptions::weight_cache where there are any.
  Result<Weights> load(const StageLayout& stage);
  /// Of all weights so far; one that several stages of a backend use counts once.
  std::int64_t bytes() const noexcept { return bytes_; }
  /// Those of all weights so far that are to be completed, in the order in which that takes the least memory.
  std::vector<PendingWeight> take_pending() noexcept { return std::exchange(pending_, {}); }

 private:
  Result<std::shared_ptr<const PreparedWeight>> load(const StageLayout& stage, std::size_t index,
                                                     const std::optional<WeightCache>& cache,
                                                     const std::shared_ptr<core::StorageFile>& file);

  const load::Checkpoint& checkpoint_;
  const EngineOptions& options_;
  std::unique_ptr<core::Team> team_;  ///< converts packed weights
  std::map<std::pair<const Backend*, const load::TensorInfo*>, std::shared_ptr<const PreparedWeight>> done_;
  std::vector<PendingWeight> pending_;
  std::int64_t bytes_ = 0;
  float elements_ = 0, elements_done_ = 0;
};

}  // namespace llminfer::inline v0::engine
