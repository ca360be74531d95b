#include "engine/model_layout.hpp"

#include <algorithm>
#include <array>
#include <limits>
#include <numeric>
#include <set>
#include <string_view>
#include <utility>

#include "arch/arch.hpp"
#include "core/error.hpp"
#include "engine/output_matrix.hpp"
#include "engine/placement.hpp"
#include "engine/shard_group.hpp"
#include "engine/shards.hpp"
#include "engine/staged_plan.hpp"

namespace llminfer::inline v0::engine {
namespace {

using core::fail;

/// So many sequences of so many tokens fit the cache unless the options say otherwise.
constexpr std::int32_t kDefaultSequences = 4;
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
  if (options.device_cache_tokens < 0 || options.device_cache_tokens > (std::int64_t{1} << 36)) {
    return out_of_range("device_cache_tokens", options.device_cache_tokens, "0 to 2^36");
  }
  if (options.max_batch_tokens < 1 || options.max_batch_tokens > 65536) {
    return out_of_range("max_batch_tokens", options.max_batch_tokens, "1 to 65536");
  }
  if (options.max_sequences < 1 || options.max_sequences > 65536) {
    return out_of_range("max_sequences", options.max_sequences, "1 to 65536");
  }
  if (options.activation_bits != 0 && options.activation_bits != 8 && options.activation_bits != 16) {
    return out_of_range("activation_bits", options.activation_bits, "0, 8 or 16");
  }
  if (options.cache_type > CacheType::fp8) {
    return out_of_range("cache_type", static_cast<std::int64_t>(options.cache_type), "a CacheType, 0 to 5");
  }
  if (options.output_bits != 8 && options.output_bits != 16) {
    return out_of_range("output_bits", options.output_bits, "8 or 16");
  }
  const int ranks = ranks_of(options);
  if (options.tensor_parallel < 1 || ranks % options.tensor_parallel != 0) {
    return fail(ErrorCode::invalid_argument, "EngineOptions::tensor_parallel is ", options.tensor_parallel,
                ", expected a divisor of the number of ranks, ", ranks);
  }
  if (options.device_sums > DeviceSums::required) {
    return out_of_range("device_sums", static_cast<std::int64_t>(options.device_sums), "automatic, never or required");
  }
  if (options.max_queue < 1) return out_of_range("max_queue", options.max_queue, "1 or more");
  return {};
}

Result<std::shared_ptr<Backend>> checked(const std::shared_ptr<Backend>& backend, const char* option) {
  if (backend->interface_version() == kBackendInterfaceVersion) return backend;
  return fail(ErrorCode::unsupported_version, "EngineOptions::", option, ": interface version ",
              backend->interface_version(), ", expected ", kBackendInterfaceVersion);
}

Result<std::shared_ptr<Backend>> choose_backend(const EngineOptions& options, const Program& program) {
  if (options.custom_backend) return checked(options.custom_backend, "custom_backend");
  if (options.backend != "cpu") {
    return fail(ErrorCode::not_found, "EngineOptions::backend: \"", options.backend, "\" is not one of: cpu");
  }
  BackendOptions backend;
  backend.threads = options.threads;
  backend.exact = options.exact;
  backend.activation_bits = activation_bits(options, program);
  backend.cpu_level = options.cpu_level;
  backend.executor = options.executor;
  auto made = make_cpu_backend(backend);
  constexpr std::string_view kTheirs = "BackendOptions::";  // the host has set the engine's
  if (made || !made.error().message.starts_with(kTheirs)) return made;
  Error error = std::move(made).error();
  error.message.replace(0, kTheirs.size(), "EngineOptions::");
  return error;
}

/// One per share of a split; those without a backend of their own have the CPU's in common. With ranks, this one's for
/// each of them.
Result<std::vector<std::shared_ptr<Backend>>> choose_backends(const EngineOptions& options, const Program& program) {
  std::vector<std::shared_ptr<Backend>> backends;
  if (ranks_of(options) > 1) {
    const auto stage = static_cast<std::size_t>(options.communicator->rank() / options.tensor_parallel);
    const bool own = stage < options.split.size() && options.split[stage].backend;
    const auto backend =
        LLMINFER_TRY(own ? checked(options.split[stage].backend, "split") : choose_backend(options, program));
    backends.assign(static_cast<std::size_t>(ranks_of(options)), backend);
    return backends;
  }
  if (options.split.empty()) backends.push_back(LLMINFER_TRY(choose_backend(options, program)));
  if (!options.split.empty() && options.custom_backend) {
    return fail(ErrorCode::invalid_argument, "EngineOptions: custom_backend and split exclude each other");
  }
  std::shared_ptr<Backend> cpu;
  for (const LayerShare& share : options.split) {
    if (!share.backend && !cpu) cpu = LLMINFER_TRY(choose_backend(options, program));
    backends.push_back(share.backend ? LLMINFER_TRY(checked(share.backend, "split")) : cpu);
  }
  return backends;
}

std::int64_t prepared_bytes(const StageLayout& layout, std::size_t weight) {
  const load::TensorInfo& tensor = *layout.tensors[weight];
  return layout.backend->prepared_bytes(tensor.type, tensor.rows, tensor.cols, tensor.details);
}

/// Bytes of a stage. Weights that `prepared` has for the backend count as none, and the others join it.
using Prepared = std::set<std::pair<const Backend*, const load::TensorInfo*>>;
MemoryShare measure(const StageLayout& layout, const EngineOptions& options, const CacheSize& size,
                    Prepared* prepared) {
  MemoryShare memory;
  for (std::size_t i = 0; i < layout.tensors.size(); ++i) {
    const load::TensorInfo* tensor = layout.tensors[i];
    if (prepared && !prepared->insert({layout.backend.get(), tensor}).second) continue;
    std::int64_t& elsewhere = layout.stored.has(i) ? memory.disk_weights : memory.streamed;
    (layout.streams(i) ? elsewhere : memory.weights) += prepared_bytes(layout, i);
  }
  if (layout.stored.bytes > 0) memory.streamed += layout.backend->stream_buffer_bytes(layout.stored.largest_layer);
  for (const CacheGroup& group : layout.stage.program.cache_groups) {
    const std::int64_t page_bytes = layout.backend->page_bytes(group, options.cache_type);
    const std::int64_t all = size.pages_of(group) * page_bytes;
    const bool some = swaps(layout, size, group), filed = files_pages(layout, options, size, group);
    memory.cache += (some ? size.resident * page_bytes : filed ? 0 : all) +
                    size.open_pages_of(group) * layout.backend->open_page_bytes(group, options.cache_type);
    if (some || filed) (filed ? memory.disk_cache : memory.host_cache) += all;
  }
  std::vector<WeightView> views;
  for (const load::TensorInfo* tensor : layout.tensors) {
    views.push_back({tensor->name, tensor->type, tensor->rows, tensor->cols, {}, nullptr, tensor->details});
  }
  memory.activations =
      layout.backend->plan_bytes(layout.stage.program, views, {options.max_batch_tokens, {}, layout.streamed});
  return memory;
}

/// Streams what LayerShare::memory of the share has no room for, if it says so; what host memory has none for either,
/// from a file. `held`: what it holds already.
Result<void> stream_layers(StageLayout& layout, const EngineOptions& options, const CacheSize& size, std::size_t share,
                           std::int64_t held) {
  if (share >= options.split.size() || !options.split[share].stream) return {};
  const auto bytes = [&](const Streamed& streamed) {
    layout.streamed = streamed;
    return measure(layout, options, size, nullptr).total();
  };
  const std::string option = "EngineOptions::split[" + std::to_string(share) + "]";
  const std::int64_t limit = options.split[share].memory - held;
  if (!layout.backend->streams() && bytes({}) > limit) {
    return fail(ErrorCode::unsupported, option, ": ", layout.backend->description(), " does not stream weights");
  }
  auto streamed = choose_streamed(layout.stage.program, limit, bytes);
  if (!streamed) return core::at(option, std::move(streamed).error());
  layout.streamed = std::move(*streamed);
  if (options.stream_folder.empty()) return {};
  std::vector<std::int64_t> sizes;
  for (std::size_t i = 0; i < layout.tensors.size(); ++i) sizes.push_back(prepared_bytes(layout, i));
  layout.stored = choose_stored(layout.streamed, sizes, options.split[share].host_memory);
  return {};
}

/// Where the layers of each stage of ranks begin: as the split says, or so that all have as many.
Result<std::vector<std::int32_t>> place_ranks(const EngineOptions& options, std::int32_t layers) {
  std::vector<LayerShare> shares = options.split;
  const int shards = options.tensor_parallel, stages = ranks_of(options) / shards;
  if (shares.empty()) {
    for (int s = 0; s < stages; ++s) shares.push_back({nullptr, layers * (s + 1) / stages - layers * s / stages});
  }
  if (shares.size() != static_cast<std::size_t>(stages)) {
    return fail(ErrorCode::invalid_argument, "EngineOptions::split has ", shares.size(), " shares, the communicator ",
                ranks_of(options), " ranks", shards > 1 ? ", which tensor_parallel makes " : "",
                shards > 1 ? std::to_string(stages) + " of" : "");
  }
  for (const LayerShare& share : shares) {
    if (share.memory == 0 || share.stream) continue;
    return fail(ErrorCode::invalid_argument,
                "EngineOptions::split: with a communicator, memory is not a limit unless the share streams");
  }
  const auto unlimited = [](std::size_t, std::int32_t, std::int32_t) -> Result<std::int64_t> {
    return std::int64_t{0};
  };
  auto places = LLMINFER_TRY(place_layers(shares, layers, unlimited));
  // Shards have the embedding apart from their layers.
  const bool idle = std::adjacent_find(places.begin(), places.end()) != places.end() || (shards > 1 && places[1] < 2);
  if (!idle) return places;
  return fail(ErrorCode::invalid_argument, ranks_of(options), " ranks for ", layers,
              " layers: one of them has nothing to do");
}

StageLayout stage_of(const load::Checkpoint& checkpoint, const Layout& layout, std::shared_ptr<Backend> backend,
                     Stage stage) {
  StageLayout made{std::move(backend), std::move(stage), {}};
  for (const WeightSpec& weight : made.stage.program.weights) {
    const bool rounded = layout.rounded && layout.rounded->name == weight.name;
    made.tensors.push_back(rounded ? layout.rounded.get() : checkpoint.find(weight.name));
  }
  return made;
}

std::string_view name_of(CacheType type) {
  constexpr std::array<std::string_view, 6> kNames = {"f16", "f32", "bf16", "int8", "int4", "fp8"};
  const auto i = static_cast<std::size_t>(type);
  return i < kNames.size() ? kNames[i] : "unknown";
}

/// That one sequence has room on the device. Errors: invalid_argument.
Result<void> check_resident(const StageLayout& stage, const EngineOptions& options, const CacheSize& size) {
  for (const CacheGroup& group : stage.stage.program.cache_groups) {
    if (!swaps(stage, size, group)) continue;
    const std::int64_t pages = size.pages_of_sequence(group);
    const std::int64_t least = group.layers < 2 ? pages : (2 * pages + group.layers - 1) / group.layers;
    if (size.resident >= least) continue;
    return fail(ErrorCode::invalid_argument, "EngineOptions::device_cache_tokens is ", options.device_cache_tokens,
                ", expected 0 or at least ", least * kPageTokens, ": ", std::min(group.layers, 2), " of ", group.layers,
                " layers have to fit of a context of ", size.context, " tokens");
  }
  return {};
}

/// Adds what the stage takes to a share. Errors: unsupported.
Result<void> add_stage(const StageLayout& stage, const EngineOptions& options, const CacheSize& size,
                       Prepared* prepared, MemoryShare& share) {
  std::vector<WeightType> types;
  for (const load::TensorInfo* tensor : stage.tensors) types.push_back(tensor->type);
  LLMINFER_TRY(stage.backend->supports(stage.stage.program, types));
  for (const CacheGroup& group : stage.stage.program.cache_groups) {
    if (stage.backend->page_bytes(group, options.cache_type) > 0) continue;
    return fail(ErrorCode::unsupported, "EngineOptions::cache_type is ", name_of(options.cache_type),
                ", which the backend ", stage.backend->name(), " does not have");
  }
  for (const CacheGroup& group : stage.stage.program.cache_groups) {
    if (!files_pages(stage, options, size, group) || stage.backend->takes_cache_memory()) continue;
    return fail(ErrorCode::unsupported, "EngineOptions::cache_folder: the backend ", stage.backend->name(),
                " has memory of its own for pages");
  }
  if (stage.stored.bytes > 0 && stage.backend->stream_buffer_bytes(stage.stored.largest_layer) == 0) {
    return fail(ErrorCode::unsupported, "EngineOptions::stream_folder: the backend ", stage.backend->name(),
                " streams weights from memory alone");
  }
  const MemoryShare bytes = measure(stage, options, size, prepared);
  share.weights += bytes.weights, share.cache += bytes.cache, share.activations += bytes.activations;
  share.streamed += bytes.streamed, share.disk_weights += bytes.disk_weights;
  share.host_cache += bytes.host_cache, share.disk_cache += bytes.disk_cache;
  return {};
}

/// Cuts the program as EngineOptions::split says, and tells what each backend gets.
Result<void> lay_out_stages(const load::Checkpoint& checkpoint, const EngineOptions& options,
                            std::span<const std::shared_ptr<Backend>> backends, Layout& layout) {
  const auto keep = [&](StageLayout stage, MemoryShare share, Prepared* prepared) -> Result<void> {
    LLMINFER_TRY(check_resident(stage, options, layout.cache));
    LLMINFER_TRY(add_stage(stage, options, layout.cache, prepared, share));
    layout.memory.shares.push_back(std::move(share));
    layout.stages.push_back(std::move(stage));
    return {};
  };

  Prepared seen;
  if (options.split.empty()) {
    Stage whole{layout.program, {}};
    whole.groups.resize(layout.program.cache_groups.size());
    std::iota(whole.groups.begin(), whole.groups.end(), std::size_t{0});
    const auto layers = static_cast<std::int32_t>(checkpoint.config.layers);
    return keep(stage_of(checkpoint, layout, backends[0], std::move(whole)), {backends[0]->description(), 0, layers},
                &seen);
  }
  const Borders borders = LLMINFER_TRY(find_borders(layout.program));
  const auto range_bytes = [&](std::size_t share, std::int32_t first, std::int32_t last) -> Result<std::int64_t> {
    if (first == last) return std::int64_t{0};
    const Stage stage = LLMINFER_TRY(cut_stage(layout.program, borders, first, last));
    return measure(stage_of(checkpoint, layout, backends[share], stage), options, layout.cache, nullptr).total();
  };
  const std::vector<std::int32_t> places = LLMINFER_TRY(place_layers(options.split, borders.layers, range_bytes));
  for (std::size_t i = 0; i < backends.size(); ++i) {
    const std::int32_t first = borders.layers_before(places[i]), last = borders.layers_before(places[i + 1]);
    MemoryShare share{backends[i]->description(), first, last - first};
    if (places[i] == places[i + 1]) {
      layout.memory.shares.push_back(std::move(share));
      continue;
    }
    Stage stage = LLMINFER_TRY(cut_stage(layout.program, borders, places[i], places[i + 1]));
    StageLayout of_share = stage_of(checkpoint, layout, backends[i], std::move(stage));
    LLMINFER_TRY(stream_layers(of_share, options, layout.cache, i, 0));
    LLMINFER_TRY(keep(std::move(of_share), std::move(share), &seen));
  }
  return {};
}

/// One shard of a stage in its place.
Result<void> cut_shard(StageLayout& layout, int shard, int shards) {
  Shard cut = LLMINFER_TRY(make_shard(layout.stage.program, layout.tensors, shard, shards));
  layout.stage.program = std::move(cut.program);
  layout.parts = std::make_shared<const std::vector<load::TensorInfo>>(std::move(cut.tensors));
  layout.tensors.clear();
  for (const load::TensorInfo& tensor : *layout.parts) layout.tensors.push_back(&tensor);
  return {};
}

/// The same for ranks. Others' stages are measured only; of this one's, the last is its part of the layers.
Result<void> lay_out_ranks(const load::Checkpoint& checkpoint, const EngineOptions& options,
                           std::span<const std::shared_ptr<Backend>> backends, Layout& layout) {
  const Borders borders = LLMINFER_TRY(find_borders(layout.program));
  layout.places = LLMINFER_TRY(place_ranks(options, borders.layers));
  const int shards = options.tensor_parallel;
  for (int rank = 0; rank < ranks_of(options); ++rank) {
    const auto r = static_cast<std::size_t>(rank), i = r / static_cast<std::size_t>(shards);
    const std::int32_t first = borders.layers_before(layout.places[i]);
    const std::int32_t last = borders.layers_before(layout.places[i + 1]);
    MemoryShare share{backends[r]->description(), first, last - first, rank % shards, shards};
    if (shards > 1) share.activations += ShardGroup::bytes(layout.program.hidden_size * options.max_batch_tokens);
    share.activations += StagedPlan::carried_bytes(layout.program.hidden_size, options.max_batch_tokens);
    const auto add = [&](std::int32_t from, std::int32_t to, bool whole) -> Result<void> {
      Stage cut = LLMINFER_TRY(cut_stage(layout.program, borders, from, to));
      StageLayout stage = stage_of(checkpoint, layout, backends[r], std::move(cut));
      if (!whole) LLMINFER_TRY(cut_shard(stage, rank % shards, shards));
      const bool own = rank == options.communicator->rank();
      if (to > 1) {
        auto streamed = stream_layers(stage, options, layout.cache, i, share.total());
        if (!streamed && own) return streamed;  // others' backends are not known here
      }
      if (own) LLMINFER_TRY(check_resident(stage, options, layout.cache));
      LLMINFER_TRY(add_stage(stage, options, layout.cache, nullptr, share));
      if (own) layout.stages.push_back(std::move(stage));
      return {};
    };
    if (shards > 1 && rank == 0) LLMINFER_TRY(add(0, 1, true));
    LLMINFER_TRY(add(shards > 1 ? std::max(layout.places[i], 1) : layout.places[i], layout.places[i + 1], shards == 1));
    layout.memory.shares.push_back(std::move(share));
  }
  return {};
}

}  // namespace

Result<Layout> lay_out(const load::Checkpoint& checkpoint, const EngineOptions& options) {
  LLMINFER_TRY(check_options(options));
  Layout layout;
  layout.program = LLMINFER_TRY(arch::build_program(checkpoint));
  const auto backends = LLMINFER_TRY(choose_backends(options, layout.program));
  if (options.output_bits == 8) layout.rounded = round_output_matrix(layout.program, checkpoint);

  const std::int64_t trained =
      std::min<std::int64_t>(checkpoint.config.context_length, std::numeric_limits<std::int32_t>::max());
  const std::int64_t context = options.context_length ? options.context_length : trained;
  if (context > trained) {
    return fail(ErrorCode::invalid_argument, "EngineOptions::context_length is ", context, ", expected 0 to ", trained,
                ", the model's own context length");
  }
  layout.context_length = static_cast<std::int32_t>(context);
  // Sequences share no page that is not full.
  const std::int64_t pages_each = (std::min(context, kDefaultSequenceTokens) + kPageTokens - 1) / kPageTokens;
  const std::int64_t cache_tokens =
      options.cache_tokens ? options.cache_tokens : std::max(context, kDefaultSequences * pages_each * kPageTokens);
  if (cache_tokens < context) {
    return fail(ErrorCode::invalid_argument, "EngineOptions::cache_tokens is ", cache_tokens,
                ", expected at least the context length, ", context);
  }
  layout.cache.pages = static_cast<std::int32_t>((cache_tokens + kPageTokens - 1) / kPageTokens);
  layout.cache.windows = options.max_sequences;
  layout.cache.sequences =
      options.cache_tokens ? options.max_sequences : std::min(options.max_sequences, kDefaultSequences);
  layout.cache.batch_tokens = options.max_batch_tokens;
  layout.cache.resident = static_cast<std::int32_t>((options.device_cache_tokens + kPageTokens - 1) / kPageTokens);
  layout.cache.context = layout.context_length;

  LLMINFER_TRY((ranks_of(options) > 1 ? lay_out_ranks : lay_out_stages)(checkpoint, options, backends, layout));
  MemoryPlan& memory = layout.memory;
  for (const MemoryShare& share : memory.shares) {
    memory.weights += share.weights;
    memory.cache += share.cache;
    memory.activations += share.activations;
    memory.streamed += share.streamed;
    memory.disk_weights += share.disk_weights;
    memory.host_cache += share.host_cache;
    memory.disk_cache += share.disk_cache;
  }
  if (layout.stages.size() > 1 && layout.places.empty()) {
    memory.activations += StagedPlan::carried_bytes(layout.program.hidden_size, options.max_batch_tokens);
  }
  for (const auto& source : checkpoint.sources) memory.file += static_cast<std::int64_t>(source->size());
  memory.parameters = layout.program.parameter_count();
  return layout;
}

}  // namespace llminfer::inline v0::engine
