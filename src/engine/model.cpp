#include "engine/model.hpp"

#include <algorithm>
#include <chrono>
#include <future>
#include <limits>
#include <map>
#include <utility>

#include "core/checked.hpp"
#include "core/error.hpp"
#include "core/file.hpp"
#include "engine/model_layout.hpp"
#include "engine/rank_plan.hpp"
#include "engine/shards.hpp"
#include "engine/staged_plan.hpp"
#include "engine/used_backend.hpp"
#include "tok/tokenizer_model.hpp"

namespace llminfer::inline v0::engine {
namespace {

using core::fail;

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

/// The ranks that sum with this one what the program has to sum.
std::shared_ptr<ShardGroup> group_of(const Program& program, const EngineOptions& options) {
  std::int64_t widest = 0;
  for (const Op& op : program.ops) {
    const auto* reduce = std::get_if<op::Reduce>(&op);
    if (reduce) widest = std::max(widest, program.values[static_cast<std::size_t>(reduce->in)].width);
  }
  const int shards = options.tensor_parallel, first = options.communicator->rank() / shards * shards;
  return std::make_shared<ShardGroup>(options.communicator, first, shards, widest * options.max_batch_tokens);
}

Result<std::unique_ptr<CacheStorage>> make_cache(const StageLayout& layout, const EngineOptions& options,
                                                 const CacheSize& size, const CacheGroup& group, std::int32_t pages) {
  Backend& backend = *layout.backend;
  if (files_pages(layout, options, size, group)) {
    const auto bytes = core::checked_mul(static_cast<std::uint64_t>(backend.page_bytes(group, options.cache_type)),
                                         static_cast<std::uint64_t>(pages));
    auto memory = core::file_memory(options.cache_folder, bytes.value_or(std::numeric_limits<std::int64_t>::max()));
    if (!memory) return core::at("EngineOptions::cache_folder", std::move(memory).error());
    return backend.make_cache_in(std::move(*memory), group, options.cache_type, pages, size.resident);
  }
  return swaps(layout, size, group) ? backend.make_swapped_cache(group, options.cache_type, pages, size.resident)
                                    : backend.make_cache(group, options.cache_type, pages);
}

/// A stage with its weights, plan and caches.
Result<RankStage> load_stage(const StageLayout& layout, const EngineOptions& options, const CacheSize& size,
                             WeightLoader& loader) {
  const Program& program = layout.stage.program;
  RankStage stage;
  stage.backend = layout.backend;
  stage.groups = layout.stage.groups;
  stage.hidden_size = program.hidden_size;
  stage.vocab_size = program.vocab_size;
  stage.max_batch_rows = options.max_batch_tokens;
  const std::int64_t before = loader.bytes();
  auto weights = LLMINFER_TRY(loader.load(layout));
  stage.weight_bytes = loader.bytes() - before;
  PlanOptions plan{options.max_batch_tokens, {}, layout.streamed};
  if (ranks_of(options) > 1) {
    stage.group = group_of(program, options);
    plan.reduce = [group = stage.group](std::span<float> rows) { return group->sum(rows); };
  }
  stage.plan = LLMINFER_TRY(layout.backend->compile(program, std::move(weights), plan));
  for (const CacheGroup& group : program.cache_groups) {
    const std::int32_t pages = size.pages_of(group);
    stage.pages.push_back(pages);
    stage.caches.push_back(LLMINFER_TRY(make_cache(layout, options, size, group, pages)));
    stage.copies_block |= swaps(layout, size, group) && files_pages(layout, options, size, group);
  }
  return stage;
}

/// Puts the stages of one rank together.
void join_stages(std::vector<RankStage> stages, const Program& program, Model& model) {
  if (stages.size() == 1) {
    model.plan = std::move(stages.front().plan);
    model.caches = std::move(stages.front().caches);
    return;
  }
  std::vector<StagedPlan::Stage> plans;
  std::vector<std::vector<StagedCache::Part>> parts(program.cache_groups.size());
  const std::int32_t rows = stages.front().max_batch_rows;
  for (std::size_t s = 0; s < stages.size(); ++s) {
    RankStage& stage = stages[s];
    plans.push_back({std::move(stage.plan), stage.groups});
    for (std::size_t g = 0; g < stage.groups.size(); ++g) {
      parts[stage.groups[g]].push_back({s, std::move(stage.caches[g])});
    }
  }
  for (auto& of_group : parts) model.caches.push_back(std::make_unique<StagedCache>(std::move(of_group)));
  model.plan = std::make_unique<StagedPlan>(std::move(plans), program.hidden_size, rows);
}

/// Numbers that tell a model, and how it is computed, from most others.
std::vector<std::int64_t> model_numbers(const Layout& layout, const EngineOptions& options) {
  const Program& program = layout.program;
  return {static_cast<std::int64_t>(program.weights.size()),
          static_cast<std::int64_t>(program.ops.size()),
          program.parameter_count(),
          layout.memory.file,
          options.exact,
          activation_bits(options, program),
          options.output_bits};
}

/// Lets the ranks sum on their devices, as EngineOptions::device_sums says; what comes of it goes to their
/// descriptions.
Result<void> start_collectives(Leader& leader, const RankStage& own, const EngineOptions& options, Layout& layout) {
  if (options.tensor_parallel == 1 || options.device_sums == DeviceSums::never) return {};
  const auto outcomes = LLMINFER_TRY(leader.start_collectives(own));
  for (std::size_t rank = 0; rank < outcomes.size(); ++rank) {
    if (outcomes[rank]) {
      layout.memory.shares[rank].backend += ", sums by " + *outcomes[rank];
      continue;
    }
    const Error& error = outcomes[rank].error();
    if (options.device_sums == DeviceSums::required) {
      return core::at("EngineOptions::device_sums is required", core::copy_of(error));
    }
    const bool first = rank % static_cast<std::size_t>(options.tensor_parallel) == 0;  // all of a stage have the same
    if (!first || error.code == ErrorCode::unsupported) continue;
    LLMINFER_TRY(log(options, LogLevel::info, "sums in host memory: " + error.message));
  }
  return {};
}

/// Puts rank 0's stage and the others together, and learns what those hold.
Result<void> join_ranks(std::shared_ptr<Leader> leader, std::vector<RankStage> stages, const EngineOptions& options,
                        Layout& layout, Model& model) {
  const auto replies = LLMINFER_TRY(leader->ready());
  const std::size_t groups = layout.program.cache_groups.size();
  RankCache::Elsewhere all;
  std::vector<PassPages> limits(groups);
  bool limited = false;
  for (std::size_t rank = 1; rank < replies.size(); ++rank) {
    const Reply& reply = replies[rank];
    model.weight_bytes += reply.weight_bytes;
    all.bytes += reply.cache_bytes;
    all.seals = all.seals || reply.seals_pages;
    layout.memory.shares[rank].backend = reply.backend;
    for (const Reply::Limit& limit : reply.limits) {
      if (limit.group >= groups) return fail(ErrorCode::corrupt, "rank ", rank, " has a cache group ", limit.group);
      limits[limit.group] = least_of(limits[limit.group], limit.pages);
      limited = limited || limit.pages.most < PassPages().most;
    }
  }
  LLMINFER_TRY(start_collectives(*leader, stages.back(), options, layout));
  if (all.seals || limited) {
    std::vector<std::int32_t> pages;
    for (const CacheGroup& group : layout.program.cache_groups) pages.push_back(layout.cache.pages_of(group));
    leader->forgotten().reserve(pages);
  }
  RankStage embedding;
  if (stages.size() > 1) embedding = std::move(stages.front());
  auto plan =
      std::make_unique<RankPlan>(leader, std::move(embedding), std::move(stages.back()), layout.program.vocab_size);
  for (std::size_t g = 0; g < groups; ++g) {
    all.limit = limits[g];
    model.caches.push_back(std::make_unique<RankCache>(leader, g, plan->stage().cache(g), all));
    all.bytes = 0;  // counted once
  }
  model.plan = std::move(plan);
  return {};
}

/// "cpu, …", or for a split model "layers 0 to 9 on cpu, …; layers 10 to 29 on …".
std::string describe(const Layout& layout) {
  if (layout.memory.shares.size() == 1) return layout.memory.shares.front().backend;
  std::string text;
  for (const MemoryShare& share : layout.memory.shares) {
    if (share.total() == 0) continue;
    if (!text.empty()) text += "; ";
    if (share.layers == 0) text += share.first_layer == 0 ? "embedding" : "output";
    if (share.layers > 0) {
      text +=
          "layers " + std::to_string(share.first_layer) + " to " + std::to_string(share.first_layer + share.layers - 1);
    }
    if (share.shards > 1) {
      text += ", part " + std::to_string(share.shard + 1) + " of " + std::to_string(share.shards) + ",";
    }
    text += " on ";
    if (!layout.places.empty()) text += "rank " + std::to_string(&share - layout.memory.shares.data()) + ", ";
    text += share.backend;
  }
  return text;
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

namespace {

/// From now on no other engine can use the backends.
Result<void> use_backends(std::vector<StageLayout>& stages, const EngineOptions& options) {
  std::map<Backend*, std::shared_ptr<Backend>> used;
  for (StageLayout& stage : stages) {
    std::shared_ptr<Backend>& backend = used[stage.backend.get()];
    if (!backend) {
      const char* const option = options.split.empty() ? "custom_backend" : "split";
      backend = LLMINFER_TRY(UsedBackend::use(std::move(stage.backend), option));
    }
    stage.backend = backend;
  }
  return {};
}

}  // namespace

Result<std::unique_ptr<Model>> load_model(const load::Checkpoint& checkpoint, const EngineOptions& options,
                                          std::shared_ptr<Leader> leader) {
  const auto start = std::chrono::steady_clock::now();
  Layout layout = LLMINFER_TRY(lay_out(checkpoint, options));
  LLMINFER_TRY(use_backends(layout.stages, options));
  auto model = std::make_unique<Model>();
  // Takes one thread tens of milliseconds, in which others load and prepare weights. Deferred where there is no thread.
  auto tokenizer = std::async(std::launch::async | std::launch::deferred, [&, words = layout.program.vocab_size] {
    return core::guarded([&] { return tok::make_tokenizer(checkpoint.vocabulary, words, checkpoint.generation); });
  });

  if (leader) {
    LLMINFER_TRY(
        leader->begin({model_numbers(layout, options), layout.context_length, layout.cache.pages, layout.cache.windows,
                       layout.cache.resident, options.max_batch_tokens, options.cache_type, options.tensor_parallel,
                       layout.places}));
  }
  WeightLoader loader(checkpoint, options, layout.stages);
  std::vector<RankStage> stages;
  for (const StageLayout& stage : layout.stages) {
    stages.push_back(LLMINFER_TRY(load_stage(stage, options, layout.cache, loader)));
    model->backends.push_back(stage.backend);
  }
  model->weight_bytes = loader.bytes();
  model->pending = loader.take_pending();
  model->tokenizer = Tokenizer(LLMINFER_TRY(tokenizer.get()));
  if (leader) {
    LLMINFER_TRY(join_ranks(std::move(leader), std::move(stages), options, layout, *model));
  } else {
    join_stages(std::move(stages), layout.program, *model);
  }

  model->chat_template = checkpoint.chat_template;
  if (const auto bos = model->tokenizer.bos()) model->bos_text = model->tokenizer.token_bytes(*bos);
  if (const auto eos = model->tokenizer.eos()) model->eos_text = model->tokenizer.token_bytes(*eos);
  model->recommended = recommended_sampling(checkpoint.generation);
  ModelInfo& info = model->info;
  info.name = checkpoint.config.name;
  info.architecture = checkpoint.config.architecture;
  info.backend = describe(layout);
  info.parameters = layout.memory.parameters;
  info.vocab_size = static_cast<std::int32_t>(layout.program.vocab_size);
  info.hidden_size = static_cast<std::int32_t>(layout.program.hidden_size);
  info.layers = static_cast<std::int32_t>(checkpoint.config.layers);
  info.context_length = layout.context_length;
  info.has_chat_template = !checkpoint.chat_template.empty();
  for (const CacheGroup& group : layout.program.cache_groups) model->pages.push_back(layout.cache.pages_of(group));
  model->program = std::move(layout.program);
  model->load_seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return model;
}

Result<RankStage> load_rank(const load::Checkpoint& checkpoint, const EngineOptions& options, const Setup& setup) {
  EngineOptions as_leader = options;
  as_leader.context_length = setup.context_length;
  as_leader.cache_tokens = std::int64_t{setup.pages} * kPageTokens;
  as_leader.device_cache_tokens = std::int64_t{setup.resident} * kPageTokens;
  as_leader.max_sequences = setup.windows;
  as_leader.max_batch_tokens = setup.max_batch_rows;
  as_leader.cache_type = setup.cache_type;
  as_leader.tensor_parallel = setup.shards;
  Layout layout = LLMINFER_TRY(lay_out(checkpoint, as_leader));
  LLMINFER_TRY(use_backends(layout.stages, options));
  if (model_numbers(layout, as_leader) != setup.model || layout.places != setup.places) {
    return fail(ErrorCode::invalid_argument, "not the checkpoint, the split or the arithmetic of rank 0");
  }
  WeightLoader loader(checkpoint, as_leader, layout.stages);
  return load_stage(layout.stages.back(), as_leader, layout.cache, loader);
}

Result<MemoryPlan> plan_model(const load::Checkpoint& checkpoint, const EngineOptions& options) {
  return LLMINFER_TRY(lay_out(checkpoint, options)).memory;
}

}  // namespace llminfer::inline v0::engine
