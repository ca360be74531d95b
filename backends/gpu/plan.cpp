#include "backends/gpu/plan.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <utility>

#include "backends/common/check.hpp"
#include "core/error.hpp"

namespace llminfer::gpu {
namespace {

using core::fail;

std::int64_t on_line(std::int64_t bytes) { return (bytes + 255) / 256 * 256; }
std::int64_t float_bytes(std::int64_t floats) { return floats * static_cast<std::int64_t>(sizeof(float)); }

/// While a long pass may be interrupted, the host is at most so many layers ahead of the device.
constexpr int kLayersAhead = 2;
static_assert(kLayersAhead < Device::kMarks);

/// Room for what goes up, so that it seldom grows and takes the graphs with it.
constexpr std::int64_t kLeastUpload = 1 << 16;

}  // namespace

PlanLayout::PlanLayout(const Program& program, const Steps& steps, std::int32_t max_rows) {
  const auto place = [&](std::int64_t size) { return std::exchange(bytes, bytes + on_line(size)); };
  const auto width = [&](ValueId id) { return program.values[static_cast<std::size_t>(id)].width; };
  for (const std::int64_t stride : steps.buffer_strides) buffers.push_back(place(float_bytes(stride * max_rows)));
  for (const RopeTable& table : program.rope_tables) {
    const auto pairs = static_cast<std::int64_t>(table.inverse_frequency.size());
    angles.push_back(place(float_bytes(2 * pairs * max_rows)));
    frequencies.push_back(place(float_bytes(pairs)));
  }
  std::int64_t widest = 0;
  for (const ValueSpec& value : program.values) {
    if (!steps.logits_direct || &value != &program.values[static_cast<std::size_t>(program.logits)]) {
      widest = std::max(widest, value.width);
    }
  }
  for (const Step& step : steps.steps) {
    if (const auto* linear = std::get_if<LinearStep>(&step)) {
      padded_input = std::max(padded_input, padded_columns(width(linear->in)));
    } else if (const auto* attention = std::get_if<AttentionStep>(&step)) {
      const CacheGroup& group = program.cache_groups[static_cast<std::size_t>(attention->op.group)];
      query_width = std::max(query_width, width(attention->op.q));
      part_floats = std::max(part_floats, std::int64_t{attention->op.heads} * (group.head_dim + 2));
    } else if (const auto* moe = std::get_if<MoeStep>(&step)) {
      experts.places = std::max(experts.places, std::int64_t{max_rows} * moe->op.used);
      experts.width = std::max(experts.width, width(moe->op.in));
      const WeightSpec& gate = program.weights[static_cast<std::size_t>(moe->op.gate.front())];
      experts.ffn = std::max(experts.ffn, padded_columns(gate.rows));
      experts.padded = std::max({experts.padded, padded_columns(experts.width), experts.ffn});
    }
  }
  halves = place(2 * padded_input * max_rows);
  scales = place(float_bytes(max_rows));
  for (const WeightSpec& weight : program.weights) {
    const std::int64_t tiles = (weight.rows + kSplitFeatures - 1) / kSplitFeatures;
    if (tiles >= kSplitBlocks) continue;
    const int splits = column_splits(static_cast<int>(weight.rows), static_cast<int>(padded_columns(weight.cols)));
    if (splits > 1) split_blocks = std::max(split_blocks, static_cast<int>(tiles) * splits);
  }
  split_parts = place(float_bytes(std::int64_t{split_blocks} * kSplitRows * kSplitFeatures));
  split_counters = place(split_blocks * std::int64_t{sizeof(std::uint32_t)});
  barrier = place(sizeof(std::uint32_t));
  rounded_floats = std::max(padded_input * max_rows, experts.places * experts.padded);
  queries = place(float_bytes(query_width * max_rows));
  part_floats *= std::max(max_rows, 256);
  parts = place(float_bytes(part_floats));
  gathered = place(float_bytes(widest * max_rows));
  if (experts.places > 0) {
    experts.rows = place(float_bytes(experts.places * experts.width));
    experts.hidden = place(float_bytes(2 * experts.places * experts.ffn));
    experts.halves = place(2 * experts.places * experts.padded);
    experts.scales = place(float_bytes(experts.places));
    experts.words = place(float_bytes(kExpertWords * experts.places));
    experts.tiles = place(experts.places * std::int64_t{sizeof(ExpertTile)});
    experts.tables.resize(program.values.size());
    for (const Step& step : steps.steps) {
      const auto* moe = std::get_if<MoeStep>(&step);
      if (!moe) continue;
      const auto matrices = static_cast<std::int64_t>(RingLayout::kMostSlots * 3 * moe->op.gate.size());
      experts.tables[static_cast<std::size_t>(moe->op.out)] = place(matrices * std::int64_t{sizeof(ExpertMatrix)});
    }
  }
  logits = place(steps.logits_direct ? float_bytes(program.vocab_size * std::min(max_rows, kLogitRows)) : 0);
  if (program.logits != ValueId::none) {
    const std::int64_t slices = (program.vocab_size + kCandidateSlice - 1) / kCandidateSlice,
                       all_slices = slices * std::min(max_rows, kLogitRows);
    candidates.parts = place(all_slices * kMaxCandidates * std::int64_t{sizeof(std::uint64_t)});
    candidates.part_sums = place(3 * all_slices * std::int64_t{sizeof(double)});
    candidates.out = place(max_rows * kMaxCandidates * std::int64_t{sizeof(CandidateOut)});
    candidates.sums = place(max_rows * std::int64_t{sizeof(double)});
    candidates.draws = place(max_rows * std::int64_t{sizeof(DrawOut)});
  }
}

GpuPlan::GpuPlan(const Program& program, Steps steps, const PlanLayout& layout,
                 std::vector<std::shared_ptr<const PreparedWeight>> weights, const PlanOptions& options,
                 std::shared_ptr<Device> device, const GpuOptions& gpu_options)
    : program_(program),
      steps_(std::move(steps)),
      layout_(layout),
      max_rows_(options.max_batch_rows),
      reduce_(options.reduce),
      device_(std::move(device)),
      options_(gpu_options),
      launches_alone_(launches_alone(steps_)),
      owned_(std::move(weights)) {}

GpuPlan::~GpuPlan() {
  // The device may use what is released now, also if make() was given up.
  (void)core::guarded([&] { return outcome_ ? settle() : device_->wait(); });
}

Result<std::unique_ptr<GpuPlan>> GpuPlan::make(const Program& program,
                                               std::vector<std::shared_ptr<const PreparedWeight>> weights,
                                               const PlanOptions& options, std::shared_ptr<Device> device,
                                               const GpuOptions& gpu_options) {
  if (options.max_batch_rows < 1 || options.max_batch_rows > 1 << 20) {
    return fail(ErrorCode::invalid_argument, "PlanOptions::max_batch_rows is ", options.max_batch_rows,
                "; expected 1 to ", 1 << 20);
  }
  Steps steps = LLMINFER_TRY(make_steps(program));
  LLMINFER_TRY(check_reduction(program, options));
  if (weights.size() != program.weights.size()) {
    return fail(ErrorCode::invalid_argument, weights.size(), " weights; the program has ", program.weights.size());
  }
  const PlanLayout layout(program, steps, options.max_batch_rows);
  std::unique_ptr<GpuPlan> plan(
      new GpuPlan(program, std::move(steps), layout, std::move(weights), options, std::move(device), gpu_options));
  LLMINFER_TRY(plan->bind_weights(options));
  plan->memory_ = LLMINFER_TRY(Buffer::make(plan->device_, layout.bytes));
  if (layout.split_blocks > 0) {
    LLMINFER_TRY(plan->device_->clear(plan->memory_.at(layout.split_counters),
                                      layout.split_blocks * std::int64_t{sizeof(std::uint32_t)}));
  }
  LLMINFER_TRY(plan->device_->clear(plan->memory_.at(layout.barrier), sizeof(std::uint32_t)));
  for (std::size_t t = 0; t < program.rope_tables.size(); ++t) {
    const std::vector<float>& frequencies = program.rope_tables[t].inverse_frequency;
    const std::int64_t bytes = float_bytes(static_cast<std::int64_t>(frequencies.size()));
    if (bytes == 0) continue;
    const Buffer host = LLMINFER_TRY(Buffer::make(plan->device_, bytes, true));
    std::memcpy(host.at(), frequencies.data(), static_cast<std::size_t>(bytes));
    LLMINFER_TRY(plan->device_->copy(plan->memory_.at(layout.frequencies[t]), host.at(), bytes));
    LLMINFER_TRY(plan->device_->wait());
  }
  LLMINFER_TRY(plan->make_expert_tables());
  bool selected = false;
  for (const Step& step : plan->steps_.steps) {
    selected = selected || std::holds_alternative<SelectStep>(step);
    if (std::holds_alternative<RopeStep>(step)) plan->rotates_selected_ = plan->rotates_selected_ || selected;
  }
  if (gpu_options.on_profile) {
    plan->profiler_ =
        LLMINFER_TRY(Profiler::make(gpu_options.on_profile, plan->device_, plan->program_, plan->steps_, plan->owned_));
  }
  return plan;
}

/// Checks that the weights are this device's and fit.
Result<void> GpuPlan::bind_weights(const PlanOptions& options) {
  if (!options.streamed.empty() && options.streamed.size() != owned_.size()) {
    return fail(ErrorCode::invalid_argument, "PlanOptions::streamed has ", options.streamed.size(),
                " entries; the program has ", owned_.size(), " weights");
  }
  for (std::size_t i = 0; i < owned_.size(); ++i) {
    const WeightSpec& spec = program_.weights[i];
    const auto* weight = dynamic_cast<const GpuWeight*>(owned_[i].get());
    if (!weight || weight->device() != device_.get()) {
      return fail(ErrorCode::invalid_argument, "weight ", spec.name, " was not prepared by this GPU backend");
    }
    if (weight->rows() != spec.rows || weight->cols() != spec.cols) {
      return fail(ErrorCode::shape_mismatch, "weight ", spec.name, " is [", weight->rows(), ", ", weight->cols(),
                  "]; expected [", spec.rows, ", ", spec.cols, "]");
    }
    if (weight->streamed() != (!options.streamed.empty() && options.streamed[i] >= 0)) {
      return fail(ErrorCode::invalid_argument, "weight ", spec.name, weight->streamed() ? " is" : " is not",
                  " one that prepare_streamed made, but PlanOptions::streamed says otherwise");
    }
    weights_.push_back(weight);
  }
  separate_inputs(steps_, [&](WeightId a, WeightId b) { return weight(a).takes_inputs_like(weight(b)); });
  LLMINFER_TRY(make_ring(options));
  for (const Op& op : program_.ops) {
    const auto* embed = std::get_if<op::Embed>(&op);
    if (embed && embed->table != WeightId::none)
      embed_rows_ = program_.weights[static_cast<std::size_t>(embed->table)].rows;
  }
  const auto as_they_are = [](const GpuWeight* w) { return w->takes_inputs_as_they_are(); };
  if (!std::all_of(weights_.begin(), weights_.end(), as_they_are))
    rounded_ = LLMINFER_TRY(Buffer::make(device_, float_bytes(layout_.rounded_floats)));
  return {};
}

Result<void> GpuPlan::submit(const Batch& batch, std::span<CacheStorage* const> caches) {
  return core::guarded([&]() -> Result<void> {
    if (outcome_) return fail(ErrorCode::invalid_state, "a batch is in flight; call wait() first");
    auto begun = core::guarded([&]() -> Result<void> {
      LLMINFER_TRY(begin(batch, caches));
      return upload(batch);
    });
    if (!begun) abandon_pages({});
    LLMINFER_TRY(std::move(begun));
    Result<void> enqueued;
    {
      const Current current(*device_);
      enqueued = core::guarded([&] { return enqueue(batch); });
      if (enqueued && ring_ && !pass_.stop) enqueued = ring_->finish();
      if (enqueued && !pass_.stop) enqueued = finish_pages();
      if (enqueued && pass_.stop) enqueued = fail(ErrorCode::cancelled, "the pass was interrupted");
      if (!enqueued) (void)core::guarded([&] { return owe_sums(); });
    }
    // Nothing of a pass that ends early may still run when the caller goes on.
    if (!enqueued) abandon_pages(end_on_device(core::guarded([&] { return settle(); })));
    if (!enqueued && ring_) ring_->reset();
    outcome_ = std::move(enqueued);
    return {};
  });
}

Result<void> GpuPlan::wait() {
  return core::guarded([&]() -> Result<void> {
    if (!outcome_) return fail(ErrorCode::invalid_state, "no batch is in flight; call submit() first");
    Result<void> outcome = *std::move(outcome_);
    outcome_.reset();
    if (!outcome) return outcome;
    outcome = settle();
    if (outcome && ring_) outcome = ring_->fill();  // what the next pass needs is read while the host does other things
    if (!outcome) abandon_pages(end_on_device(outcome));
    if (!outcome && ring_) ring_->reset();
    LLMINFER_TRY(std::move(outcome));
    const float* from = host_out_.at<float>();
    std::copy_n(from, pass_.logits.size(), pass_.logits.data());
    std::copy_n(from + pass_.logits.size(), pass_.hidden.size(), pass_.hidden.data());
    give_candidates();
    pass_.done = true;
    return profiler_ ? profiler_->report() : Result<void>();
  });
}

/// Checks the batch and lays out what goes up.
Result<void> GpuPlan::begin(const Batch& batch, std::span<CacheStorage* const> caches) {
  pass_ = {};
  if (caches.size() != program_.cache_groups.size()) {
    return fail(ErrorCode::invalid_argument, caches.size(), " caches; the program has ", program_.cache_groups.size(),
                " cache groups");
  }
  std::vector<std::int32_t> pages;
  for (std::size_t g = 0; g < caches.size(); ++g) {
    auto* cache = dynamic_cast<GpuCache*>(caches[g]);
    const CacheGroup& group = program_.cache_groups[g];
    if (!cache || cache->device() != device_.get() || cache->group().layers != group.layers ||
        cache->group().kv_heads != group.kv_heads || cache->group().head_dim != group.head_dim) {
      return fail(ErrorCode::invalid_argument, "cache ", g,
                  " was not made for the program's cache group by this backend");
    }
    pass_.caches.push_back(cache);
    pages.push_back(cache->pages());
  }
  LLMINFER_TRY(check_batch(batch, program_, {max_rows_, embed_rows_, pages, max_candidates()}));
  pass_.open.resize(caches.size());
  for (std::size_t g = 0; g < caches.size(); ++g) {
    if (!pass_.caches[g]->seals_pages()) continue;
    pass_.open[g].page_of_row = LLMINFER_TRY(pass_.caches[g]->open_pages().begin_pass(batch.runs, g));
  }
  LLMINFER_TRY(begin_pages(batch));
  lay_out(batch);
  pass_.sums_on_devices = collective_ && !collective_->aborted();
  return {};
}

void GpuPlan::lay_out(const Batch& batch) {
  Pass& p = pass_;
  std::vector<std::int32_t>& words = p.words;
  const auto append = [&](std::span<const std::int32_t> some) {
    const auto at = static_cast<std::int64_t>(words.size());
    words.insert(words.end(), some.begin(), some.end());
    return at;
  };
  // The same, and numbers for the rows that a bucket adds.
  const auto append_rows = [&](std::span<const std::int32_t> some, std::int32_t rows, std::int32_t filler) {
    const auto at = append(some);
    words.resize(std::max(words.size(), static_cast<std::size_t>(at + rows)), filler);
    return at;
  };
  std::vector<std::int32_t> selected, selected_positions;
  std::set_union(batch.logit_rows.begin(), batch.logit_rows.end(), batch.hidden_rows.begin(), batch.hidden_rows.end(),
                 std::back_inserter(selected));
  for (const std::int32_t row : selected) selected_positions.push_back(batch.positions[static_cast<std::size_t>(row)]);
  p.rows = static_cast<std::int32_t>(batch.positions.size());
  p.has_embeddings = !batch.embeddings.empty();
  choose_bucket(batch, static_cast<std::int32_t>(selected.size()));
  p.current_rows = p.rows;

  // What lies before the block tables has the same place in all passes of a bucket.
  p.tokens = append_rows(batch.tokens, p.rows, p.has_embeddings ? -1 : 0);
  p.current_positions = p.positions = append_rows(batch.positions, p.rows, -1);
  p.selected = append_rows(selected, p.selected_rows, 0);
  p.selected_positions = append_rows(selected_positions, p.selected_rows, 0);
  const auto indexes_of = [&](std::span<const std::int32_t> wanted) {
    std::vector<std::int32_t> indexes;
    for (const std::int32_t row : wanted) {
      indexes.push_back(
          static_cast<std::int32_t>(std::lower_bound(selected.begin(), selected.end(), row) - selected.begin()));
    }
    return indexes;
  };
  p.logit_index = append_rows(indexes_of(batch.logit_rows), p.launched_logits, 0);
  p.logit_rows = static_cast<std::int64_t>(batch.logit_rows.size());
  p.hidden_rows = static_cast<std::int64_t>(batch.hidden_rows.size());
  p.logits = batch.logits;
  p.hidden = batch.hidden;

  // Where each row's block table begins, then the tables.
  for (std::size_t g = 0; g < p.caches.size(); ++g) {
    p.begins.push_back(static_cast<std::int64_t>(words.size()));
    words.resize(words.size() + static_cast<std::size_t>(p.rows));
  }
  lay_out_open_pages(batch);
  p.pages = static_cast<std::int64_t>(words.size());
  for (const Run& run : batch.runs) {
    const auto used = static_cast<std::size_t>((run.first_position + run.rows + kPageTokens - 1) / kPageTokens);
    for (std::size_t g = 0; g < p.caches.size(); ++g) {
      if (p.caches[g]->pager()) continue;
      const auto begin = static_cast<std::int32_t>(append(run.block_tables[g].first(used)) - p.pages);
      std::fill_n(words.begin() + p.begins[g] + run.first_row, run.rows, begin);
    }
  }

  lay_out_blocks(batch);
  p.hidden_index = append(indexes_of(batch.hidden_rows));
  lay_out_candidates(batch);

  // Attention: long runs in tiles, the rows of short ones by themselves. Neighbours are launched together. The rows of
  // a tile read the same open page.
  const bool in_pages = std::any_of(p.caches.begin(), p.caches.end(), [](const auto* c) { return c->seals_pages(); });
  p.tasks = static_cast<std::int64_t>(words.size());
  for (const Run& run : batch.runs) {
    const std::int32_t tokens = run.first_position + run.rows;
    p.all_rows = {0, p.rows, std::max(p.all_rows.longest, tokens)};
    if (p.bucket) continue;
    if (run.rows < kTileMinRows) {
      if (!p.single_rows.empty() && p.single_rows.back().first + p.single_rows.back().count == run.first_row) {
        p.single_rows.back().count += run.rows;
        p.single_rows.back().longest = std::max(p.single_rows.back().longest, tokens);
      } else {
        p.single_rows.push_back({run.first_row, run.rows, tokens});
      }
      continue;
    }
    for (std::int32_t row = 0; row < run.rows;) {
      static_assert(kTileRows == kPageTokens);
      const std::int32_t before = in_pages ? (run.first_position + row) % kPageTokens : 0;
      const std::int32_t rows = std::min(run.rows - row, std::int32_t{kTileRows} - before);
      words.push_back(run.first_row + row);
      words.push_back(rows);
      row += rows;
      ++p.task_count;
    }
  }
  if (p.bucket) p.single_rows = {p.all_rows};
}

/// Of caches that seal pages: where each row's open page lies, and which pages the pass fills.
void GpuPlan::lay_out_open_pages(const Batch& batch) {
  std::vector<std::int32_t>& words = pass_.words;
  const auto append_address = [&](const void* address) {
    const auto bits =
        std::bit_cast<std::array<std::int32_t, 2>>(std::uint64_t{reinterpret_cast<std::uintptr_t>(address)});
    words.insert(words.end(), bits.begin(), bits.end());
  };
  for (std::size_t g = 0; g < pass_.caches.size(); ++g) {
    Pass::Open& open = pass_.open[g];
    if (open.page_of_row.empty()) continue;
    const backend::OpenPages& pages = pass_.caches[g]->open_pages();
    words.resize((words.size() + 3) / 4 * 4);  // addresses, and tasks, on multiples of their size
    open.rows = static_cast<std::int64_t>(words.size());
    for (const std::int32_t page : open.page_of_row) append_address(pages.data<void>(page));
    for (auto row = static_cast<std::int32_t>(batch.positions.size()); row < pass_.rows; ++row) append_address(nullptr);
    words.resize((words.size() + 3) / 4 * 4);
    open.seals = static_cast<std::int64_t>(words.size());
    const CachePager* const pager = pass_.caches[g]->pager();
    const std::int32_t layers = pager ? pager->size().layers : 1;
    for (std::int32_t layer = 0; layer < layers; ++layer) {
      std::int32_t tasks = 0;
      for (std::size_t row = 0; row < open.page_of_row.size(); ++row) {
        if (batch.positions[row] % kPageTokens != kPageTokens - 1) continue;
        const std::int32_t page = open.page_of_row[row];
        append_address(pages.data<void>(page));
        words.insert(words.end(), {pager ? pager->block(layer, page) : page, 0});
        ++tasks;
      }
      open.seal_count = tasks == 0 || !pass_.bucket ? tasks : pass_.rows;  // in a bucket one for each row, or none
      words.resize(words.size() + 4 * static_cast<std::size_t>(open.seal_count - tasks));
    }
  }
}

Result<void> GpuPlan::grow(Buffer& buffer, std::int64_t bytes, bool host) {
  if (buffer.bytes() >= bytes) return {};
  LLMINFER_TRY(settle());
  if (!host) graphs_.clear();  // which have its address
  buffer = LLMINFER_TRY(Buffer::make(device_, bytes + bytes / 2, host));
  return {};
}

Result<void> GpuPlan::upload(const Batch& batch) {
  const auto send = [&](Buffer& to, Buffer& through, const void* from, std::size_t size) -> Result<void> {
    const auto bytes = static_cast<std::int64_t>(size);
    const std::int64_t room = std::max(bytes, kLeastUpload);
    LLMINFER_TRY(grow(to, room, false));
    LLMINFER_TRY(grow(through, room, true));
    std::memcpy(through.at(), from, size);
    return device_->copy(to.at(), through.at(), bytes);
  };
  LLMINFER_TRY(send(words_, host_words_, pass_.words.data(), pass_.words.size() * sizeof(std::int32_t)));
  if (pass_.has_embeddings) {
    LLMINFER_TRY(grow(embeddings_, float_bytes(pass_.rows * program_.hidden_size), false));
    LLMINFER_TRY(send(embeddings_, host_embeddings_, batch.embeddings.data(), batch.embeddings.size_bytes()));
  }
  const std::size_t candidate_bytes =
      pass_.candidates.size_bytes() + pass_.sums.size_bytes() + pass_.draws.size_bytes();
  return grow(host_out_, candidates_at() + static_cast<std::int64_t>(candidate_bytes), true);
}

Result<void> GpuPlan::enqueue(const Batch& batch) {
  if (ring_) LLMINFER_TRY(ring_->fill());
  const auto interrupted = [&] { return batch.interrupted && batch.interrupted(); };
  if (interrupted()) {
    pass_.stop = true;
    return {};
  }
  if (launch_graph()) {
    if (steps_.logits_direct && pass_.logit_rows > 0) LLMINFER_TRY(give_logits(logits(), 0, pass_.logit_rows));
    return fetch_outputs();
  }
  if (profiler_) {
    std::vector<std::int64_t> page_bytes;
    for (const GpuCache* cache : pass_.caches) page_bytes.push_back(cache_page_bytes(cache->group(), cache->type()));
    LLMINFER_TRY(profiler_->begin(batch, page_bytes));
  }
  LLMINFER_TRY(compute_angles(pass_.positions, pass_.rows));
  for (std::size_t i = 0; i < steps_.steps.size() && !pass_.stop; ++i) {
    const Step& step = steps_.steps[i];
    if (std::holds_alternative<AttentionStep>(step) && batch.interrupted) {
      // Not so far ahead that an interruption would come too late, as with sums on the devices it never is.
      if (batch.positions.size() >= std::size_t{kTileMinRows} && pass_.layers >= kLayersAhead &&
          !pass_.sums_on_devices) {
        LLMINFER_TRY(device_->wait_for((pass_.layers - kLayersAhead) % Device::kMarks));
      }
      if (interrupted()) {
        pass_.stop = true;
        return {};
      }
    }
    const StepGroup group = ring_ ? step_groups_[i] : StepGroup();
    pass_.streams = group.group >= 0;
    if (pass_.streams) LLMINFER_TRY(ring_->enter(group.group, batch.interrupted));
    const auto* attention = std::get_if<AttentionStep>(&step);
    CachePager* const pager =
        attention ? pass_.caches[static_cast<std::size_t>(attention->op.group)]->pager() : nullptr;
    if (pager) LLMINFER_TRY(pager->enter(attention->op.layer));
    LLMINFER_TRY(std::visit([&](const auto& s) { return run(s); }, step));
    if (pager) LLMINFER_TRY(pager->leave(attention->op.layer));
    if (group.last) LLMINFER_TRY(ring_->leave());
    if (profiler_) LLMINFER_TRY(profiler_->end_step());
    if (std::holds_alternative<AttentionStep>(step)) LLMINFER_TRY(device_->mark(pass_.layers++ % Device::kMarks));
    if (pass_.current_rows == 0) return {};  // nothing was asked for
  }
  return fetch_outputs();
}

/// What the batch asked for, to the host.
Result<void> GpuPlan::fetch_outputs() {
  if (!steps_.logits_direct && pass_.logit_rows > 0) {
    const RowsArgs rows = LLMINFER_TRY(gather(value(program_.logits), program_.vocab_size, pass_.logit_index,
                                              static_cast<std::int32_t>(pass_.logit_rows)));
    for (std::int64_t first = 0; first < pass_.logit_rows; first += kLogitRows) {
      LLMINFER_TRY(give_logits({rows.data + first * rows.stride, rows.stride}, first,
                               std::min<std::int64_t>(pass_.logit_rows - first, kLogitRows)));
    }
  }
  if (pass_.hidden_rows > 0) {
    const RowsArgs rows = LLMINFER_TRY(gather(value(program_.hidden), program_.hidden_size, pass_.hidden_index,
                                              static_cast<std::int32_t>(pass_.hidden_rows)));
    LLMINFER_TRY(device_->copy(host_out_.at(float_bytes(static_cast<std::int64_t>(pass_.logits.size()))), rows.data,
                               float_bytes(pass_.hidden_rows * program_.hidden_size)));
  }
  return fetch_candidates();
}

}  // namespace llminfer::gpu
