#include "engine/model.hpp"

#include <algorithm>
#include <chrono>
#include <limits>
#include <numeric>
#include <optional>
#include <utility>

#include "arch/arch.hpp"
#include "core/cpu_count.hpp"
#include "core/error.hpp"
#include "core/parallel.hpp"
#include "engine/weight_cache.hpp"
#include "tok/tokenizer_model.hpp"

namespace llminfer::inline v0::engine {
namespace {

using core::fail;

/// Sequences of this many tokens, four at a time, fit the cache unless the options say otherwise.
constexpr std::int64_t kDefaultSequenceTokens = 2048;

Error out_of_range(const char* option, std::int64_t value, const char* range) {
  return fail(ErrorCode::invalid_argument, "EngineOptions::", option, " is ", value, ", expected ", range);
}

Result<void> check_options(const EngineOptions& options) {
  if (options.threads < 0 || options.threads > 1024) return out_of_range("threads", options.threads, "0 to 1024");
  if (options.context_length < 0) return out_of_range("context_length", options.context_length, "0 or more");
  if (options.cache_tokens < 0 || options.cache_tokens > (std::int64_t{1} << 36)) {
    return out_of_range("cache_tokens", options.cache_tokens, "0 to 2^36");
  }
  if (options.max_batch_tokens < 1 || options.max_batch_tokens > 65536) {
    return out_of_range("max_batch_tokens", options.max_batch_tokens, "1 to 65536");
  }
  if (options.max_sequences < 1 || options.max_sequences > 65536) {
    return out_of_range("max_sequences", options.max_sequences, "1 to 65536");
  }
  if (options.max_queue < 1) return out_of_range("max_queue", options.max_queue, "1 or more");
  return {};
}

Result<std::shared_ptr<Backend>> choose_backend(const EngineOptions& options) {
  if (options.custom_backend) {
    if (options.custom_backend->interface_version() != kBackendInterfaceVersion) {
      return fail(ErrorCode::unsupported_version, "EngineOptions::custom_backend: interface version ",
                  options.custom_backend->interface_version(), ", expected ", kBackendInterfaceVersion);
    }
    return options.custom_backend;
  }
  if (options.backend != "cpu") {
    return fail(ErrorCode::not_found, "EngineOptions::backend: \"", options.backend, "\" is not one of: cpu");
  }
  BackendOptions backend;
  backend.threads = options.threads;
  backend.exact = options.exact;
  backend.activation_bits = options.activation_bits;
  backend.cpu_level = options.cpu_level;
  backend.executor = options.executor;
  return make_cpu_backend(backend);
}

/// What is known before any weight is read.
struct Layout {
  std::shared_ptr<Backend> backend;
  Program program;
  std::vector<const load::TensorInfo*> tensors;  ///< one per weight of the program
  std::int32_t context_length = 0;
  std::int32_t pages = 0;
  MemoryPlan memory;
};

Result<Layout> lay_out(const load::Checkpoint& checkpoint, const EngineOptions& options) {
  LLMINFER_TRY(check_options(options));
  Layout layout;
  layout.backend = LLMINFER_TRY(choose_backend(options));
  layout.program = LLMINFER_TRY(arch::build_program(checkpoint));
  std::vector<WeightType> types;
  for (const WeightSpec& weight : layout.program.weights) {
    layout.tensors.push_back(checkpoint.find(weight.name));
    types.push_back(layout.tensors.back()->type);
  }
  LLMINFER_TRY(layout.backend->supports(layout.program, types));

  const std::int64_t trained =
      std::min<std::int64_t>(checkpoint.config.context_length, std::numeric_limits<std::int32_t>::max());
  const std::int64_t context = options.context_length ? options.context_length : trained;
  if (context > trained) {
    return fail(ErrorCode::invalid_argument, "EngineOptions::context_length is ", context, ", expected 0 to ", trained,
                ", the model's own context length");
  }
  layout.context_length = static_cast<std::int32_t>(context);
  const std::int64_t cache_tokens =
      options.cache_tokens ? options.cache_tokens : std::max(context, 4 * std::min(context, kDefaultSequenceTokens));
  if (cache_tokens < context) {
    return fail(ErrorCode::invalid_argument, "EngineOptions::cache_tokens is ", cache_tokens,
                ", expected at least the context length, ", context);
  }
  layout.pages = static_cast<std::int32_t>((cache_tokens + kPageTokens - 1) / kPageTokens);

  MemoryPlan& memory = layout.memory;
  for (std::size_t i = 0; i < layout.tensors.size(); ++i) {
    const load::TensorInfo& tensor = *layout.tensors[i];
    memory.weights += layout.backend->prepared_bytes(types[i], tensor.rows, tensor.cols, tensor.details);
  }
  for (const CacheGroup& group : layout.program.cache_groups) {
    memory.cache += layout.pages * layout.backend->page_bytes(group, options.cache_type);
  }
  memory.activations = layout.backend->plan_bytes(layout.program, {options.max_batch_tokens});
  for (const auto& source : checkpoint.sources) memory.file += static_cast<std::int64_t>(source->size());
  memory.parameters = layout.program.parameter_count();
  return layout;
}

SamplingOptions recommended_sampling(const load::GenerationDefaults& defaults) {
  SamplingOptions sampling;
  if (defaults.do_sample == false) return sampling;
  sampling.temperature = defaults.temperature.value_or(defaults.do_sample == true ? 1.0f : 0.0f);
  sampling.top_p = defaults.top_p.value_or(sampling.top_p);
  sampling.top_k = defaults.top_k.value_or(sampling.top_k);
  sampling.min_p = defaults.min_p.value_or(sampling.min_p);
  sampling.repetition_penalty = defaults.repetition_penalty.value_or(sampling.repetition_penalty);
  return sampling;
}

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

Result<std::unique_ptr<PreparedWeight>> prepare_weight(const load::Checkpoint& checkpoint,
                                                       const load::TensorInfo& tensor, core::Team* team,
                                                       Backend& backend) {
  const WeightView view = LLMINFER_TRY(checkpoint.read(tensor, team));
  auto prepared = backend.prepare(view);
  if (!prepared) return core::at(tensor.name, std::move(prepared).error());
  return prepared;
}

/// The weight of tensor `index` from the cache; null if that has none.
Result<std::unique_ptr<PreparedWeight>> restore_weight(const WeightCache& cache, std::size_t index,
                                                       const load::TensorInfo& tensor, Backend& backend) {
  core::Bytes stored = LLMINFER_TRY(cache.read(index));
  if (stored.data.empty()) return std::unique_ptr<PreparedWeight>();
  const WeightView view{tensor.name, tensor.type, tensor.rows, tensor.cols, {}, nullptr};
  return backend.restore(view, stored.data, std::move(stored.keep));
}

Result<std::vector<std::shared_ptr<const PreparedWeight>>> prepare_weights(const load::Checkpoint& checkpoint,
                                                                           const Layout& layout,
                                                                           const EngineOptions& options, Model& model) {
  std::optional<WeightCache> cache;
  const std::string form = layout.backend->stored_form();
  if (!options.weight_cache.empty() && options.mmap && !form.empty()) {
    cache = LLMINFER_TRY(WeightCache::open(options.weight_cache, checkpoint, layout.tensors, form));
  }
  const auto total = static_cast<float>(std::max<std::int64_t>(layout.memory.parameters, 1));
  float done = 0;
  std::vector<std::shared_ptr<const PreparedWeight>> weights(layout.tensors.size());
  // Packed weights are converted before the backend gets them.
  std::unique_ptr<core::Team> team;
  const auto packed = [](const load::TensorInfo* tensor) { return tensor->packing != nullptr; };
  if (std::any_of(layout.tensors.begin(), layout.tensors.end(), packed)) {
    const int threads = options.threads > 0 ? options.threads : core::usable_cpus();
    team = LLMINFER_TRY(core::Team::make(threads, options.executor));
  }
  for (const std::size_t i : preparation_order(layout.tensors)) {
    const load::TensorInfo& tensor = *layout.tensors[i];
    if (cache && cache->found()) {
      auto restored = restore_weight(*cache, i, tensor, *layout.backend);
      if (restored) weights[i] = std::move(*restored);
      if (!restored) LLMINFER_TRY(log(options, LogLevel::warning, restored.error().message));
    }
    if (!weights[i]) {
      weights[i] = LLMINFER_TRY(prepare_weight(checkpoint, tensor, team.get(), *layout.backend));
      checkpoint.release(tensor);
    }
    model.weight_bytes += weights[i]->bytes();
    done += static_cast<float>(tensor.rows * tensor.cols);
    if (!LLMINFER_TRY(report_progress(options, std::min(done / total, 1.0f)))) {
      return fail(ErrorCode::cancelled, checkpoint.path, ": the load was abandoned by on_progress");
    }
  }
  if (cache && !cache->found()) {
    if (const auto saved = cache->save(weights); !saved)
      LLMINFER_TRY(log(options, LogLevel::warning, saved.error().message));
  }
  return weights;
}

}  // namespace

Result<void> log(const EngineOptions& options, LogLevel level, const std::string& message) {
  if (!options.on_log) return {};
  try {
    options.on_log(level, message);
  } catch (...) {
    return fail(ErrorCode::callback_failed, "EngineOptions::on_log threw");
  }
  return {};
}

Result<std::unique_ptr<Model>> load_model(const load::Checkpoint& checkpoint, const EngineOptions& options) {
  const auto start = std::chrono::steady_clock::now();
  Layout layout = LLMINFER_TRY(lay_out(checkpoint, options));
  auto model = std::make_unique<Model>();
  model->tokenizer = Tokenizer(
      LLMINFER_TRY(tok::make_tokenizer(checkpoint.vocabulary, layout.program.vocab_size, checkpoint.generation)));

  auto weights = LLMINFER_TRY(prepare_weights(checkpoint, layout, options, *model));
  model->plan = LLMINFER_TRY(layout.backend->compile(layout.program, std::move(weights), {options.max_batch_tokens}));
  for (const CacheGroup& group : layout.program.cache_groups) {
    model->caches.push_back(LLMINFER_TRY(layout.backend->make_cache(group, options.cache_type, layout.pages)));
  }

  model->chat_template = checkpoint.chat_template;
  if (const auto bos = model->tokenizer.bos()) model->bos_text = model->tokenizer.token_bytes(*bos);
  if (const auto eos = model->tokenizer.eos()) model->eos_text = model->tokenizer.token_bytes(*eos);
  model->recommended = recommended_sampling(checkpoint.generation);
  ModelInfo& info = model->info;
  info.name = checkpoint.config.name;
  info.architecture = checkpoint.config.architecture;
  info.backend = layout.backend->description();
  info.parameters = layout.memory.parameters;
  info.vocab_size = static_cast<std::int32_t>(layout.program.vocab_size);
  info.hidden_size = static_cast<std::int32_t>(layout.program.hidden_size);
  info.layers = static_cast<std::int32_t>(checkpoint.config.layers);
  info.context_length = layout.context_length;
  info.has_chat_template = !checkpoint.chat_template.empty();
  model->pages = layout.pages;
  model->backend = std::move(layout.backend);
  model->program = std::move(layout.program);
  model->load_seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return model;
}

Result<MemoryPlan> plan_model(const load::Checkpoint& checkpoint, const EngineOptions& options) {
  return LLMINFER_TRY(lay_out(checkpoint, options)).memory;
}

}  // namespace llminfer::inline v0::engine
