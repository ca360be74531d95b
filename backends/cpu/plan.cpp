#include "backends/cpu/plan.hpp"

#include <algorithm>
#include <limits>
#include <new>
#include <utility>

#include "backends/common/check.hpp"
#include "core/error.hpp"

namespace llminfer::cpu {
namespace {

using core::fail;

constexpr std::size_t kLine = 64;
std::int64_t on_line(std::int64_t bytes) { return (bytes + 63) / 64 * 64; }
std::int64_t float_bytes(std::int64_t floats) { return floats * static_cast<std::int64_t>(sizeof(float)); }

/// From this many rows on a linear layer with few output features is shared out over blocks of rows, too.
constexpr std::int32_t kRowBlock = 128;

}  // namespace

AlignedBytes::AlignedBytes(std::int64_t bytes)
    : data_(static_cast<std::byte*>(::operator new[](static_cast<std::size_t>(bytes), std::align_val_t{kLine}))) {}
void AlignedBytes::Delete::operator()(std::byte* p) const noexcept { ::operator delete[](p, std::align_val_t{kLine}); }

PlanLayout::PlanLayout(const Program& program, const Steps& steps, std::int32_t max_rows, int thread_count)
    : threads(thread_count) {
  const auto shared = [&](std::int64_t bytes) { return std::exchange(shared_bytes, shared_bytes + on_line(bytes)); };
  const auto mine = [&](std::int64_t bytes) { return std::exchange(own_bytes, own_bytes + on_line(bytes)); };
  const auto width = [&](ValueId id) { return program.values[static_cast<std::size_t>(id)].width; };

  std::int64_t widest_experts_input = 0, most_experts = 0, widest_sum = 0;
  std::int64_t widest_copied = 0;  // inputs of linear layers that are normed or gathered on the way
  for (const Step& step : steps.steps) {
    if (const auto* linear = std::get_if<LinearStep>(&step)) {
      widest_input = std::max(widest_input, width(linear->in));
      const bool direct = steps.logits_direct && &step == &steps.steps.back();
      if (linear->norm != WeightId::none || direct) widest_copied = std::max(widest_copied, width(linear->in));
    } else if (const auto* attention = std::get_if<AttentionStep>(&step)) {
      const CacheGroup& group = program.cache_groups[static_cast<std::size_t>(attention->op.group)];
      tile_rows = std::max({tile_rows, kTileRows, attention->op.heads / group.kv_heads});
      padded_dim = std::max(padded_dim, (group.head_dim + 15) / 16 * 16);
    } else if (const auto* moe = std::get_if<MoeStep>(&step)) {
      const std::int64_t ffn = program.weights[static_cast<std::size_t>(moe->op.gate.front())].rows;
      widest_input = std::max({widest_input, width(moe->op.in), ffn});
      widest_experts_input = std::max({widest_experts_input, width(moe->op.in), ffn});
      experts.rows = std::max(experts.rows, std::int64_t{max_rows} * moe->op.used);
      experts.hidden_stride = std::max(experts.hidden_stride, (ffn + 15) / 16 * 16 + 16);
      experts.output_stride = std::max(experts.output_stride, (width(moe->op.in) + 15) / 16 * 16 + 16);
      most_experts = std::max(most_experts, static_cast<std::int64_t>(moe->op.gate.size()));
    } else if (const auto* reduce = std::get_if<ReduceStep>(&step)) {
      widest_sum = std::max(widest_sum, width(reduce->op.in));
    }
  }
  for (const std::int64_t stride : steps.buffer_strides) buffers.push_back(shared(float_bytes(stride * max_rows)));
  for (const RopeTable& table : program.rope_tables) {
    angles.push_back(shared(float_bytes(2 * static_cast<std::int64_t>(table.inverse_frequency.size()) * max_rows)));
  }
  reduced = shared(float_bytes(widest_sum * max_rows));
  normed_stride = (widest_copied + 15) / 16 * 16 + 16;
  normed = shared(float_bytes(normed_stride * max_rows));
  quantized_stride = quantized_row_groups(widest_input);
  quantized = shared(static_cast<std::int64_t>(quantized_row_bytes(widest_input)) * max_rows);
  if (experts.rows > 0) {
    // Rows of floats lie where quantized ones would; an even number of groups keeps them on cache lines.
    experts.input_stride = std::max(quantized_row_groups(widest_experts_input),
                                    float_bytes(widest_experts_input) / std::int64_t{sizeof(QuantizedGroup)} + 1);
    experts.input_stride += experts.input_stride % 2;
    experts.inputs = shared(experts.rows * experts.input_stride * std::int64_t{sizeof(QuantizedGroup)});
    experts.hidden = shared(float_bytes(experts.rows * std::max(2 * experts.hidden_stride, experts.output_stride)));
    for (std::int64_t* part : {&experts.chosen, &experts.factors, &experts.places, &experts.experts}) {
      *part = shared(float_bytes(experts.rows));
    }
    experts.begins = shared(float_bytes(most_experts + 1));
  }

  own_normed = mine(float_bytes(normed_stride));
  own_quantized = mine(static_cast<std::int64_t>(quantized_row_bytes(widest_input)));
  linear = mine(std::max(static_cast<std::int64_t>(linear_scratch_bytes(widest_input)), float_bytes(widest_input)));
  head = mine(float_bytes(padded_dim));
  const std::int64_t rows = tile_rows;
  const std::int64_t query = padded_dim + query_words(padded_dim) / 2 + query_runs(padded_dim);
  const std::int64_t parts = 9, line = 16;  // each part begins on a line
  tile = mine(float_bytes(attend_scratch_floats(rows, padded_dim) + rows * (query + 2) +
                          3 * state_floats(rows, padded_dim) + parts * line));
  own_bytes += 256;  // threads' parts do not all start at the same place of a page
}

CpuPlan::CpuPlan(const Program& program, Steps steps, const PlanLayout& layout,
                 std::vector<std::shared_ptr<const PreparedWeight>> weights, const PlanOptions& options,
                 const Level& level, std::shared_ptr<core::Team> team)
    : program_(program),
      steps_(std::move(steps)),
      layout_(layout),
      max_rows_(options.max_batch_rows),
      reduce_(options.reduce),
      level_(level),
      team_(std::move(team)),
      weights_(std::move(weights)),
      memory_(layout.bytes()),
      threads_(static_cast<std::size_t>(layout.threads)) {
  for (std::size_t i = 0; i < threads_.size(); ++i) {
    threads_[i].memory = memory_.at<std::byte>(layout_.shared_bytes + static_cast<std::int64_t>(i) * layout_.own_bytes);
  }
  for (const Step& step : steps_.steps) {
    const auto* attention = std::get_if<AttentionStep>(&step);
    if (!attention) continue;
    const auto same = [&](const AttentionTasks& tasks) {
      return tasks.group == attention->op.group && tasks.heads == attention->op.heads;
    };
    if (std::none_of(pass_.attention.begin(), pass_.attention.end(), same)) {
      pass_.attention.emplace_back(attention->op.group, attention->op.heads);
    }
  }
}

Result<std::unique_ptr<CpuPlan>> CpuPlan::make(const Program& program,
                                               std::vector<std::shared_ptr<const PreparedWeight>> weights,
                                               const PlanOptions& options, const Level& level, bool exact,
                                               ActivationCodes codes, std::shared_ptr<core::Team> team) {
  if (options.max_batch_rows < 1 || options.max_batch_rows > 1 << 20) {
    return fail(ErrorCode::invalid_argument, "PlanOptions::max_batch_rows is ", options.max_batch_rows,
                "; expected 1 to ", 1 << 20);
  }
  Steps steps = LLMINFER_TRY(make_steps(program));
  LLMINFER_TRY(check_reduction(program, options));
  if (weights.size() != program.weights.size()) {
    return fail(ErrorCode::invalid_argument, weights.size(), " weights; the program has ", program.weights.size());
  }
  const PlanLayout layout(program, steps, options.max_batch_rows, team->threads());
  if (layout.experts.rows > std::numeric_limits<std::int32_t>::max()) {
    return fail(ErrorCode::invalid_argument, "PlanOptions::max_batch_rows is ", options.max_batch_rows,
                "; that many rows use ", layout.experts.rows, " experts, expected up to 2^31 - 1");
  }
  std::unique_ptr<CpuPlan> plan(
      new CpuPlan(program, std::move(steps), layout, std::move(weights), options, level, std::move(team)));
  LLMINFER_TRY(plan->bind_weights(exact));
  plan->bind_inputs(codes);
  return plan;
}

/// Finds out what each weight is used as, and checks that its prepared form fits.
Result<void> CpuPlan::bind_weights(bool exact) {
  std::vector<bool> multiplied(weights_.size(), false), vectors(weights_.size(), false);  // by use
  const auto mark = [](std::vector<bool>& marks, WeightId id) {
    if (id != WeightId::none) marks[static_cast<std::size_t>(id)] = true;
  };
  for (const Op& op : program_.ops) {
    if (const auto* embed = std::get_if<op::Embed>(&op)) {
      if (embed->table == WeightId::none) continue;
      mark(multiplied, embed->table);
      embed_rows_ = program_.weights[static_cast<std::size_t>(embed->table)].rows;
    } else if (const auto* linear = std::get_if<op::Linear>(&op)) {
      mark(multiplied, linear->weight);
      mark(vectors, linear->bias);
    } else if (const auto* norm = std::get_if<op::RmsNorm>(&op)) {
      mark(vectors, norm->weight);
    } else if (const auto* moe = std::get_if<op::Moe>(&op)) {
      for (const auto* weights : {&moe->gate, &moe->up, &moe->down}) {
        for (const WeightId id : *weights) mark(multiplied, id);
      }
      for (const auto* biases : {&moe->gate_bias, &moe->up_bias, &moe->down_bias}) {
        for (const WeightId id : *biases) mark(vectors, id);
      }
    } else if (const auto* attention = std::get_if<op::Attention>(&op)) {
      mark(vectors, attention->sinks);
    }
  }
  matrices_.resize(weights_.size());
  vectors_.resize(weights_.size(), nullptr);
  for (std::size_t i = 0; i < program_.weights.size(); ++i) {
    const WeightSpec& spec = program_.weights[i];
    if (const auto* vector = dynamic_cast<const VectorWeight*>(weights_[i].get())) {
      if (spec.rows != 1 || spec.cols != static_cast<std::int64_t>(vector->values().size())) {
        return fail(ErrorCode::shape_mismatch, "weight ", spec.name, " has ", vector->values().size(),
                    " elements; expected [", spec.rows, ", ", spec.cols, "]");
      }
      vectors_[i] = vector->values().data();
      if (!multiplied[i]) continue;
      // A matrix of one row was prepared as a vector.
      const auto values = std::as_bytes(std::span(vector->values()));
      const WeightView view{spec.name, WeightType::f32, 1, spec.cols, values, weights_[i]};
      if (exact) {
        weights_.push_back(LLMINFER_TRY(ExactWeight::make(view)));
        matrices_[i] = Matrix(static_cast<const ExactWeight&>(*weights_.back()));
      } else {
        weights_.push_back(LLMINFER_TRY(pack_weight(view)));
        matrices_[i] = Matrix(static_cast<const PackedWeight&>(*weights_.back()));
      }
    } else {
      if (const auto* packed = dynamic_cast<const PackedWeight*>(weights_[i].get())) {
        matrices_[i] = Matrix(*packed);
      } else if (const auto* exact_weight = dynamic_cast<const ExactWeight*>(weights_[i].get())) {
        matrices_[i] = Matrix(*exact_weight);
      } else {
        return fail(ErrorCode::invalid_argument, "weight ", spec.name, " was not prepared by the CPU backend");
      }
      if (matrices_[i].rows() != spec.rows || matrices_[i].cols() != spec.cols || vectors[i]) {
        return fail(ErrorCode::shape_mismatch, "weight ", spec.name, " is [", matrices_[i].rows(), ", ",
                    matrices_[i].cols(), "]; expected [", spec.rows, ", ", spec.cols, "]");
      }
    }
  }
  return {};
}

std::int64_t CpuPlan::bytes() const noexcept { return layout_.bytes() + input_layout_.bytes; }

Result<void> CpuPlan::submit(const Batch& batch, std::span<CacheStorage* const> caches) {
  return core::guarded([&]() -> Result<void> {
    if (outcome_) return fail(ErrorCode::invalid_state, "a batch is in flight; call wait() first");
    LLMINFER_TRY(begin(batch, caches));
    if (profiler_) profiler_->start(pass_.steps);
    auto body = [this](int phase, int first, int last, int thread) { run_chunks(phase, first, last, thread); };
    Result<void> ran = team_->run_ranges(pass_.chunks, body);
    if (ran && !pass_.reduced) ran = std::exchange(pass_.reduced, {});
    if (ran && pass_.stop) ran = fail(ErrorCode::cancelled, "the pass was interrupted");
    if (ran && profiler_) profiler_->report(batch, pass_.selected, pass_.caches, team_->threads());
    outcome_ = std::move(ran);
    return {};
  });
}

Result<void> CpuPlan::wait() {
  return core::guarded([&]() -> Result<void> {
    if (!outcome_) return fail(ErrorCode::invalid_state, "no batch is in flight; call submit() first");
    Result<void> outcome = *std::move(outcome_);
    outcome_.reset();
    return outcome;
  });
}

/// Checks the batch and lays out what all layers share.
Result<void> CpuPlan::begin(const Batch& batch, std::span<CacheStorage* const> caches) {
  if (caches.size() != program_.cache_groups.size()) {
    return fail(ErrorCode::invalid_argument, caches.size(), " caches; the program has ", program_.cache_groups.size(),
                " cache groups");
  }
  pass_.batch = &batch;
  pass_.caches.clear();
  std::vector<std::int32_t> pages;
  for (std::size_t g = 0; g < caches.size(); ++g) {
    auto* cache = dynamic_cast<CpuCache*>(caches[g]);
    const CacheGroup& group = program_.cache_groups[g];
    if (!cache || cache->group().layers != group.layers || cache->group().kv_heads != group.kv_heads ||
        cache->group().head_dim != group.head_dim) {
      return fail(ErrorCode::invalid_argument, "cache ", g,
                  " was not made for the program's cache group by this backend");
    }
    pass_.caches.push_back(cache);
    pages.push_back(cache->pages());
  }
  LLMINFER_TRY(check_batch(batch, program_, {max_rows_, embed_rows_, pages}));

  pass_.run_of_row.clear();
  for (std::size_t r = 0; r < batch.runs.size(); ++r) {
    pass_.run_of_row.insert(pass_.run_of_row.end(), static_cast<std::size_t>(batch.runs[r].rows),
                            static_cast<std::int32_t>(r));
  }
  pass_.selected.clear();
  std::set_union(batch.logit_rows.begin(), batch.logit_rows.end(), batch.hidden_rows.begin(), batch.hidden_rows.end(),
                 std::back_inserter(pass_.selected));
  pass_.logit_index.clear();
  for (const std::int32_t row : batch.logit_rows) {
    const auto it = std::lower_bound(pass_.selected.begin(), pass_.selected.end(), row);
    pass_.logit_index.push_back(static_cast<std::int32_t>(it - pass_.selected.begin()));
  }
  for (AttentionTasks& tasks : pass_.attention) {
    const auto g = static_cast<std::size_t>(tasks.group);
    tasks.build(batch, program_.cache_groups[g], pass_.caches[g]->head(0, 0).padded_dim, team_->threads(),
                pass_.caches[g]->seals_pages());
  }
  // Where each run is one token and no two write to the same page, the task that reads a run's last page can write it.
  pass_.write_in_attention = batch.runs.size() == batch.positions.size();
  for (std::size_t g = 0; g < program_.cache_groups.size() && pass_.write_in_attention; ++g) {
    std::vector<std::int32_t> written;
    for (const Run& run : batch.runs) {
      written.push_back(run.block_tables[g][static_cast<std::size_t>(run.first_position / kPageTokens)]);
    }
    std::sort(written.begin(), written.end());
    pass_.write_in_attention = std::adjacent_find(written.begin(), written.end()) == written.end();
  }
  LLMINFER_TRY(open_pages());
  make_panel_room();
  plan_phases();
  for (Thread& thread : threads_) thread.prepared = nullptr;
  pass_.stop = false;
  pass_.reduced = {};
  return {};
}

/// The first pass packs what it needs into the threads' own memory, which costs less than new pages, so that its tokens
/// come early; later ones keep what they pack.
void CpuPlan::make_panel_room() {
  if (!packs_) return;
  std::int64_t bytes = 0;
  for (const Matrix& weight : matrices_) bytes = std::max(bytes, weight.room_bytes());
  packs_ = bytes > 0;
  if (!passed_ || !packs_) panels_ = packs_ ? AlignedBytes(bytes * layout_.threads) : AlignedBytes();
  for (std::size_t i = 0; i < threads_.size(); ++i) {
    threads_[i].panels = {panels_.at<std::uint8_t>(static_cast<std::int64_t>(i) * bytes), passed_};
  }
  passed_ = true;
}

/// Adds a phase, unless it has nothing to do. Threads take `grain` items at a time; 0: few enough that all end
/// together, many enough that taking costs nothing.
void CpuPlan::add_phase(Phase phase, int grain) {
  if (phase.items == 0) return;
  const int threads = team_->threads();
  if (grain == 0) grain = std::max(1, phase.items / (8 * threads));
  const int chunks = threads == 1 ? 1 : (phase.items + grain - 1) / grain;
  pass_.phases.push_back(phase);
  pass_.chunks.push_back(std::min(chunks, core::Team::kMaxChunks));
}

/// The phases of the pass: the steps' over all rows up to the selection, and over the selected rows after it.
void CpuPlan::plan_phases() {
  using Kind = Phase::Kind;
  pass_.phases.clear();
  pass_.chunks.clear();
  auto rows = static_cast<std::int32_t>(pass_.batch->positions.size());
  bool selected = false;
  add_phase({Kind::angles, nullptr, selected, rows, program_.rope_tables.empty() ? 0 : rows});
  pass_.steps = 0;
  for (const Step& step : steps_.steps) {
    ++pass_.steps;
    Phase prepare{Kind::prepare, &step, selected, rows}, main{Kind::main, &step, selected, rows, rows};
    int grain = 0;
    if (const auto* linear = std::get_if<LinearStep>(&step)) {
      const LinearInput input = linear_input(step, rows);
      if (input.direct) prepare.rows = main.rows = static_cast<std::int32_t>(pass_.logit_index.size());
      // A single row is prepared by every thread for itself, which is quicker than a phase.
      if (input.prepares() && prepare.rows > 1) prepare.items = prepare.rows;
      std::int32_t units = 0;
      for (const LinearPart& part : linear->parts) units += matrix(part.weight).units();
      if (units < 8 * team_->threads()) main.blocks = std::max(1, main.rows / kRowBlock);
      main.items = main.rows > 0 ? main.blocks * units : 0;
    } else if (const auto* attention = std::get_if<AttentionStep>(&step)) {
      const CacheGroup& group = program_.cache_groups[static_cast<std::size_t>(attention->op.group)];
      const PageWrites& writes = pass_.writes[static_cast<std::size_t>(attention->op.group)];
      const auto units = writes.rows.empty() ? rows : static_cast<std::int32_t>(writes.begins.size()) - 1;
      if (!pass_.write_in_attention) prepare.items = units * group.kv_heads;
      main.items = static_cast<int>(tasks_of(*attention).tasks.size());
      grain = 1;
    } else if (std::holds_alternative<ReduceStep>(step)) {
      main.items = 1;
    } else if (std::holds_alternative<MoeStep>(step)) {
      add_expert_phases(step, selected, rows);
      continue;
    } else if (const auto* select = std::get_if<SelectStep>(&step)) {
      selected = true;
      if (pass_.selected.size() == static_cast<std::size_t>(rows)) continue;
      rows = static_cast<std::int32_t>(pass_.selected.size());
      if (rows == 0) return;
      main.items = static_cast<int>(select->values.size());
      grain = 1;
    }
    add_phase(prepare);
    add_phase(main, grain);
  }
  const bool copies = !pass_.batch->hidden_rows.empty() || (!steps_.logits_direct && !pass_.batch->logit_rows.empty());
  add_phase({Kind::outputs, nullptr, selected, rows, copies ? 1 : 0});
}

/// What a thread does when it has taken chunks. The phase does not end before that returns.
void CpuPlan::run_chunks(int phase_index, int first_chunk, int last_chunk, int thread_index) noexcept {
  const Phase& phase = pass_.phases[static_cast<std::size_t>(phase_index)];
  const int chunks = pass_.chunks[static_cast<std::size_t>(phase_index)];
  const std::function<bool()>& interrupted = pass_.batch->interrupted;
  if (first_chunk == 0 && interrupted && interrupted()) pass_.stop.store(true, std::memory_order_relaxed);
  if (pass_.stop.load(std::memory_order_relaxed)) return;
  const auto bound = [&](int c) { return static_cast<int>(std::int64_t{phase.items} * c / chunks); };
  const int first = bound(first_chunk), last = bound(last_chunk);
  switch (phase.kind) {
    case Phase::Kind::angles:
      return compute_angles(first, last);
    case Phase::Kind::outputs:
      return give_out();
    case Phase::Kind::prepare:
    case Phase::Kind::main:
      Thread& thread = threads_[static_cast<std::size_t>(thread_index)];
      std::visit([&](const auto& step) { run(step, phase, first, last, thread); }, *phase.step);
      if (profiler_) profiler_->finish_chunk(index_of(*phase.step));
  }
}

std::int64_t CpuPlan::width(ValueId id) const noexcept { return program_.values[static_cast<std::size_t>(id)].width; }

std::int64_t CpuPlan::stride(ValueId id) const noexcept {
  return steps_.buffer_strides[static_cast<std::size_t>(steps_.buffer_of[static_cast<std::size_t>(id)])];
}

float* CpuPlan::row(ValueId id, std::int32_t row) const noexcept {
  const auto buffer = static_cast<std::size_t>(steps_.buffer_of[static_cast<std::size_t>(id)]);
  return memory_.at<float>(layout_.buffers[buffer]) + row * steps_.buffer_strides[buffer];
}

const float* CpuPlan::cosines(std::int32_t table, std::int32_t batch_row) const noexcept {
  const auto t = static_cast<std::size_t>(table);
  const auto pairs = static_cast<std::int64_t>(program_.rope_tables[t].inverse_frequency.size());
  return memory_.at<float>(layout_.angles[t]) + 2 * pairs * batch_row;
}

const float* CpuPlan::sines(std::int32_t table, std::int32_t batch_row) const noexcept {
  return cosines(table, batch_row) + program_.rope_tables[static_cast<std::size_t>(table)].inverse_frequency.size();
}

}  // namespace llminfer::cpu
