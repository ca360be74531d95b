#include "engine/weight_loader.hpp"

#include <algorithm>
#include <numeric>
#include <utility>

#include "core/cpu_count.hpp"
#include "core/error.hpp"
#include "core/file.hpp"
#include "engine/model.hpp"

namespace llminfer::inline v0::engine {
namespace {

using core::fail;

/// Both forms of a tensor take memory while it is prepared. So those of more than a hundredth of the whole come first,
/// the largest first of all: by the time that the memory fills up, only small ones are left. The others stay in order.
std::vector<std::size_t> preparation_order(const std::vector<const load::TensorInfo*>& tensors) {
  std::uint64_t all = 0;
  for (const load::TensorInfo* tensor : tensors) all += tensor->bytes;
  const auto large = [&](std::size_t i) { return tensors[i]->bytes > all / 100 ? tensors[i]->bytes : 0; };
  std::vector<std::size_t> order(tensors.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return large(a) > large(b); });
  return order;
}

/// Whether to go on.
Result<bool> report_progress(const EngineOptions& options, float fraction) {
  if (!options.on_progress) return true;
  try {
    return options.on_progress(fraction);
  } catch (...) {
    return fail(ErrorCode::callback_failed, "EngineOptions::on_progress threw");
  }
}

/// The weight of tensor `index` from the cache; null if that has none.
Result<std::unique_ptr<PreparedWeight>> restore_weight(const WeightCache& cache, std::size_t index,
                                                       const load::TensorInfo& tensor, Backend& backend) {
  core::Bytes stored = LLMINFER_TRY(cache.read(index));
  if (stored.data.empty()) return std::unique_ptr<PreparedWeight>();
  const WeightView view{tensor.name, tensor.type, tensor.rows, tensor.cols, {}, nullptr};
  return backend.restore(view, stored.data, std::move(stored.keep));
}

}  // namespace

WeightLoader::WeightLoader(const load::Checkpoint& checkpoint, const EngineOptions& options,
                           std::span<const StageLayout> stages)
    : checkpoint_(checkpoint), options_(options) {
  for (const StageLayout& stage : stages) {
    for (const load::TensorInfo* tensor : stage.tensors) elements_ += static_cast<float>(tensor->rows * tensor->cols);
  }
}

Result<WeightLoader::Weights> WeightLoader::load(const StageLayout& stage) {
  std::optional<WeightCache> cache;
  const std::string form = stage.backend->stored_form();
  if (!options_.weight_cache.empty() && options_.mmap && !form.empty()) {
    cache = LLMINFER_TRY(WeightCache::open(options_.weight_cache, checkpoint_, stage.tensors, form));
  }
  // Packed weights are converted before the backend gets them.
  const auto packed = [](const load::TensorInfo* tensor) { return tensor->packing != nullptr; };
  if (!team_ && std::any_of(stage.tensors.begin(), stage.tensors.end(), packed)) {
    const int threads = options_.threads > 0 ? options_.threads : core::usable_cpus();
    team_ = LLMINFER_TRY(core::Team::make(threads, options_.executor));
  }
  std::shared_ptr<core::StorageFile> file;  // kept by its weights
  if (stage.stored.bytes > 0) {
    auto made = core::make_storage_file(options_.stream_folder, static_cast<std::uint64_t>(stage.stored.bytes));
    if (!made) return core::at("EngineOptions::stream_folder", std::move(made).error());
    file = std::move(*made);
  }
  Weights weights(stage.tensors.size());
  for (const std::size_t i : preparation_order(stage.tensors)) {
    const load::TensorInfo& tensor = *stage.tensors[i];
    weights[i] = LLMINFER_TRY(load(stage, i, cache, file));
    elements_done_ += static_cast<float>(tensor.rows * tensor.cols);
    if (!LLMINFER_TRY(report_progress(options_, std::min(elements_done_ / elements_, 1.0f)))) {
      return fail(ErrorCode::cancelled, checkpoint_.path, ": the load was abandoned by on_progress");
    }
  }
  if (file) LLMINFER_TRY(file->flush());
  if (cache && !cache->found()) {
    if (const auto saved = cache->save(weights); !saved)
      LLMINFER_TRY(log(options_, LogLevel::warning, saved.error().message));
  }
  return weights;
}

Result<std::shared_ptr<const PreparedWeight>> WeightLoader::load(const StageLayout& stage, std::size_t i,
                                                                 const std::optional<WeightCache>& cache,
                                                                 const std::shared_ptr<core::StorageFile>& file) {
  const load::TensorInfo& tensor = *stage.tensors[i];
  std::shared_ptr<const PreparedWeight>& weight = done_[{stage.backend.get(), &tensor}];
  if (weight) return weight;
  const bool streamed = stage.streams(i);  // by no other stage: a layer is of one
  if (cache && cache->found() && !streamed) {
    auto restored = restore_weight(*cache, i, tensor, *stage.backend);
    if (restored) weight = std::move(*restored);
    if (!restored) LLMINFER_TRY(log(options_, LogLevel::warning, restored.error().message));
  }
  if (!weight) {
    const WeightView view = LLMINFER_TRY(checkpoint_.read(tensor, team_.get()));
    const std::shared_ptr<const core::ByteSource>& source = checkpoint_.sources[tensor.source];
    const bool later =
        !streamed && options_.lazy_weights && !options_.communicator && !cache && !tensor.packing && source->resident();
    const auto release = [source, begin = tensor.offset](std::size_t offset, std::size_t count) {
      source->release(begin + offset, count);
    };
    auto prepared = later                 ? stage.backend->prepare_later(view, release)
                    : !streamed           ? stage.backend->prepare(view)
                    : stage.stored.has(i) ? stage.backend->prepare_streamed_in(file, stage.stored.offset[i], view)
                                          : stage.backend->prepare_streamed(view);
    if (!prepared) return core::at(tensor.name, std::move(prepared).error());
    weight = std::move(*prepared);
    if (!later) checkpoint_.release(tensor);
    if (!weight->complete()) pending_.push_back({stage.backend, weight});
  }
  bytes_ += weight->bytes();
  return weight;
}

}  // namespace llminfer::inline v0::engine
