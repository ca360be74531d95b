// What each fused step launches.
#include <algorithm>
#include <utility>

#include "backends/gpu/plan.hpp"
#include "core/error.hpp"

namespace llminfer::gpu {

RoundingArgs rounding_of(const InputQuantization& input) {
  return {static_cast<int>(input.kind),
          input.dynamic,
          input.group,
          input.scale,
          input.dynamic ? 0.0f : static_cast<float>(input.zero),
          input.limit,
          input.powers};
}

RowsArgs GpuPlan::value(ValueId id) const noexcept {
  const auto buffer = static_cast<std::size_t>(steps_.buffer_of[static_cast<std::size_t>(id)]);
  return {memory_.at<float>(layout_.buffers[buffer]), steps_.buffer_strides[buffer]};
}

RopeArgs GpuPlan::rope(std::int32_t table) const noexcept {
  if (table < 0) return {nullptr, 0, 0};
  const RopeTable& rope = program_.rope_tables[static_cast<std::size_t>(table)];
  return {memory_.at<float>(layout_.angles[static_cast<std::size_t>(table)]),
          static_cast<int>(rope.inverse_frequency.size()), rope.interleaved};
}

TablesArgs GpuPlan::tables(std::int32_t group, std::int32_t layer) const noexcept {
  const auto g = static_cast<std::size_t>(group);
  const bool open = !pass_.open[g].page_of_row.empty();
  const auto& blocks = pass_.blocks[g];
  return {words(blocks.empty() ? pass_.pages : blocks[static_cast<std::size_t>(layer)]), words(pass_.begins[g]),
          words(pass_.positions), open ? reinterpret_cast<const std::uint64_t*>(words(pass_.open[g].rows)) : nullptr};
}

Result<void> GpuPlan::compute_angles(std::int64_t positions, std::int32_t rows) {
  for (std::size_t t = 0; t < program_.rope_tables.size(); ++t) {
    const RopeTable& table = program_.rope_tables[t];
    const auto pairs = static_cast<int>(table.inverse_frequency.size());
    if (pairs == 0) continue;
    const AnglesArgs args{words(positions), memory_.at<float>(layout_.frequencies[t]), pairs, rows,
                          table.magnitude,  memory_.at<float>(layout_.angles[t])};
    LLMINFER_TRY(device_->check(kernels().angles(stream(), args), "angles"));
  }
  return {};
}

Result<RowsArgs> GpuPlan::gather(const RowsArgs& in, std::int64_t width, std::int64_t indices, std::int32_t count) {
  const RowsArgs out{memory_.at<float>(layout_.gathered), width};
  const GatherArgs args{in, words(indices), count, static_cast<int>(width), out};
  LLMINFER_TRY(device_->check(kernels().gather(stream(), args), "gather"));
  return out;
}

Result<void> GpuPlan::run(const EmbedStep& step) {
  EmbedArgs args{};
  if (step.table != WeightId::none) args.table = matrix(step.table);
  args.tokens = words(pass_.tokens);
  if (pass_.has_embeddings) args.embeddings = embeddings_.at<float>();
  args.rows = pass_.current_rows;
  args.width = static_cast<int>(width(step.out));
  args.out = value(step.out);
  return device_->check(kernels().embed(stream(), args), "embed");
}

Result<void> GpuPlan::run(const NormStep& step) {
  PrepareArgs args{};
  args.in = value(step.in);
  args.norm = vector(step.weight);
  args.epsilon = step.epsilon;
  args.rows = pass_.current_rows;
  const std::int64_t size = program_.weights[static_cast<std::size_t>(step.weight)].cols;
  args.width = static_cast<int>(size);
  args.out = value(step.out);
  for (std::int64_t i = 0; i < width(step.in); i += size, args.in.data += size, args.out.data += size) {
    LLMINFER_TRY(device_->check(kernels().prepare(stream(), args), "norm"));
  }
  return {};
}

/// What the step's layers read: `in` normed, rounded, in the order of the weights' columns, and as halves. A single row
/// that is taken as it is needs nothing, since linear_few norms it.
Result<LinearArgs> GpuPlan::prepare(const RowsArgs& in, const LinearStep& step, std::int32_t rows) {
  const GpuWeight& first = weight(step.parts.front().weight);
  LinearArgs layer{};
  layer.rows = rows;
  layer.in = memory_.at<std::uint16_t>(layout_.halves);
  layer.in_scales = memory_.at<float>(layout_.scales);
  layer.width = static_cast<int>(width(step.in));
  layer.units = device_->info().units;
  if (as_e4m3(step, rows) || as_int8(step, rows)) return quantize(in, step, layer);
  const bool one = rows == 1 && few(rows);
  if (one && first.takes_inputs_as_they_are()) {
    layer.row = in.data;
    layer.in_scales = nullptr;
    layer.norm = vector(step.norm);
    layer.epsilon = step.epsilon;
    return layer;
  }
  PrepareArgs args{};
  args.in = in;
  args.norm = vector(step.norm);
  args.epsilon = step.epsilon;
  args.rounding = rounding_of(first.input());
  args.order = matrix(step.parts.front().weight).order;
  args.rows = rows;
  args.width = layer.width;
  args.padded = first.padded_cols();
  if (one || first.rounds()) args.out = {rounded_.at<float>(), layout_.padded_input};
  args.scales = memory_.at<float>(layout_.scales);
  if (one) {
    layer.row = args.out.data;
  } else {
    args.halves = memory_.at<std::uint16_t>(layout_.halves);
  }
  LLMINFER_TRY(device_->check(kernels().prepare(stream(), args), "prepare"));
  return layer;
}

bool GpuPlan::many(std::int32_t rows, bool exact) const noexcept {
  return rows > kManyRows && (exact || !options_.batch_invariant);
}
bool GpuPlan::by_warpgroups(std::int32_t rows, bool exact) const noexcept {
  return many(rows, exact) && device_->info().warpgroups && options_.warpgroups;
}

/// Whether that holds for all matrices of a step.
template <class Wanted>
bool GpuPlan::all_weights(const LinearStep& step, Wanted wanted) const noexcept {
  return std::all_of(step.parts.begin(), step.parts.end(), [&](const LinearPart& part) {
    return wanted(weight(part.weight)) && (part.tail != LinearPart::Tail::glu || wanted(weight(part.up_weight)));
  });
}

/// Whether the step's products are of E4M3 by E4M3: its input is rounded to such numbers, all of its weights have them,
/// and in each kScaleColumns columns of either the scales are the same.
bool GpuPlan::as_e4m3(const LinearStep& step, std::int32_t rows) const noexcept {
  const bool on_device = by_warpgroups(rows, false) || (many(rows, false) && device_->info().e4m3);
  const InputQuantization& input = weight(step.parts.front().weight).input();
  if (!on_device || (input.dynamic && input.group % kScaleColumns != 0 && input.group < width(step.in))) return false;
  return all_weights(step, [](const GpuWeight& w) { return w.e4m3_group() >= 0; });
}

/// Whether they are of int8 by int8, whose sums are exact, so that how many rows there are changes nothing.
bool GpuPlan::as_int8(const LinearStep& step, std::int32_t rows) const noexcept {
  return !few(rows) && all_weights(step, [](const GpuWeight& w) { return w.w8a8(); });
}

/// As prepare(), to bytes and their scales, for which there is room where halves would be.
Result<LinearArgs> GpuPlan::quantize(const RowsArgs& in, const LinearStep& step, LinearArgs layer) {
  const InputQuantization& input = weight(step.parts.front().weight).input();
  QuantizeArgs args{};
  args.in = in;
  args.norm = vector(step.norm);
  args.epsilon = step.epsilon;
  args.rounding = rounding_of(input);
  args.rows = layer.rows;
  args.width = layer.width;
  args.codes = memory_.at<std::uint8_t>(layout_.halves);
  const std::int64_t scales_at = layout_.halves + std::int64_t{args.rows} * args.width;
  args.scales = memory_.at<float>(scales_at);
  if (input.kind == InputQuantization::Kind::int8) {
    args.sums = memory_.at<std::int32_t>(scales_at + std::int64_t{args.rows} * std::int64_t{sizeof(float)});
    layer.in_sums = args.sums;
    layer.in_zero = static_cast<int>(args.rounding.zero);
  }
  layer.in = nullptr;
  layer.codes = args.codes;
  layer.in_scales = args.scales;
  layer.in_group = input.dynamic && input.group < args.width ? input.group : 0;
  LLMINFER_TRY(device_->check(kernels().quantize(stream(), args), "quantize"));
  return layer;
}

Result<void> GpuPlan::run(const LinearStep& step) {
  if (steps_.logits_direct && &step == std::get_if<LinearStep>(&steps_.steps.back())) return run_logits(step);
  const LinearArgs common = LLMINFER_TRY(prepare(value(step.in), step, pass_.current_rows));
  LayersArgs together{};
  const auto launch_together = [&]() -> Result<void> {
    if (together.count == 0) return {};
    return linear_few(std::exchange(together, {}));
  };
  for (const LinearPart& part : step.parts) {
    LinearArgs layer = layer_of(common, part.weight, part.bias, value(part.out));
    if (part.tail == LinearPart::Tail::add) layer.residual = value(part.residual);
    if (part.tail == LinearPart::Tail::glu) {
      const LinearArgs up = layer_of(common, part.up_weight, part.up_bias, value(part.up));
      layer.activation = static_cast<int>(part.activation);
      if (!few(layer.rows) || !weight(part.up_weight).decodes_as(weight(part.weight))) {
        LLMINFER_TRY(gated_unit(layer, up));
        continue;
      }
      layer.up = up.weight;
      layer.up_bias = up.bias;
    }
    if (!few(layer.rows)) {
      LLMINFER_TRY(linear(layer));
      continue;
    }
    const bool fits = together.count < kMostLayers && together.layers[0].weight.form == layer.weight.form;
    if (!fits) LLMINFER_TRY(launch_together());
    together.layers[together.count++] = layer;
  }
  return launch_together();
}

bool GpuPlan::few(std::int32_t rows) const noexcept { return rows <= kFewRows && !options_.batch_invariant; }

/// One of the layers that read the same rows.
LinearArgs GpuPlan::layer_of(const LinearArgs& common, WeightId id, WeightId bias, const RowsArgs& out) const noexcept {
  LinearArgs args = common;
  args.weight = matrix(id);
  args.weight_group = std::max(weight(id).e4m3_group(), 0);
  args.weight_sums = weight(id).sums_at(data(id));
  args.bias = vector(bias);
  args.out = out;
  return args;
}

/// A layer without a gated activation, by the kernel for so many rows.
Result<void> GpuPlan::linear(const LinearArgs& args) {
  if (few(args.rows)) return linear_few({{args}, 1});
  if (pass_.streams) device_->begin_in_turn();  // another kernel may have come after matrix()
  const bool exact = args.codes && args.weight.form == Form::codes8, warpgroups = by_warpgroups(args.rows, exact);
  if (args.codes && !exact) {
    const auto kernel = warpgroups ? kernels().linear_e4m3_warpgroups : kernels().linear_e4m3_stages;
    return device_->check(kernel(stream(), args), "linear_e4m3");
  }
  if (warpgroups) return device_->check(kernels().linear_warpgroups(stream(), args), "linear_warpgroups");
  if (!device_->info().copies) return device_->check(kernels().linear_many(stream(), args), "linear_many");
  // Few rows have few tiles, which blocks then share. Many have enough, and no sums to add.
  LinearArgs split = args;
  split.splits = many(args.rows, exact) ? 1 : column_splits(args.weight.rows, args.weight.cols);
  split.split_blocks = layout_.split_blocks;
  split.parts = memory_.at<float>(layout_.split_parts);
  split.counters = memory_.at<std::uint32_t>(layout_.split_counters);
  return device_->check(kernels().linear_stages(stream(), split), "linear_stages");
}

Result<void> GpuPlan::linear_few(const LayersArgs& args) {
  if (pass_.streams) device_->begin_in_turn();
  return device_->check(kernels().linear_few(stream(), args), "linear_few");
}

/// gate.out = activation of the gate's layer * the other one's, which up.out has room for.
Result<void> GpuPlan::gated_unit(const LinearArgs& gate, const LinearArgs& up) {
  LLMINFER_TRY(linear(gate));
  LLMINFER_TRY(linear(up));
  const GluArgs glu{gate.out, up.out, gate.out, gate.rows, up.weight.rows, gate.activation};
  return device_->check(kernels().glu(stream(), glu), "glu");
}

/// The last layer, for the rows whose logits are wanted alone, and straight to where they are wanted.
Result<void> GpuPlan::run_logits(const LinearStep& step) {
  for (std::int64_t first = 0; first < pass_.launched_logits; first += kLogitRows) {
    LLMINFER_TRY(compute_logits(step, first));
    const std::int64_t count = std::min<std::int64_t>(pass_.logit_rows - first, kLogitRows);
    if (!queue_) LLMINFER_TRY(give_logits(logits(), first, count));
  }
  return {};
}

Result<void> GpuPlan::compute_logits(const LinearStep& step, std::int64_t first) {
  const LinearPart& part = step.parts.front();
  const auto count = static_cast<std::int32_t>(std::min<std::int64_t>(pass_.launched_logits - first, kLogitRows));
  const RowsArgs in = LLMINFER_TRY(gather(value(step.in), width(step.in), pass_.logit_index + first, count));
  const LinearArgs common = LLMINFER_TRY(prepare(in, step, count));
  return linear(layer_of(common, part.weight, part.bias, logits()));
}

Result<void> GpuPlan::run(const RopeStep& step) {
  RotateArgs args{};
  args.in = value(step.in);
  args.out = value(step.out);
  args.rope = rope(step.table);
  args.rows = pass_.current_rows;
  args.heads = static_cast<int>(width(step.in) / step.head_dim);
  args.head_dim = step.head_dim;
  return device_->check(kernels().rotate(stream(), args), "rotate");
}

Result<void> GpuPlan::run(const AttentionStep& step) {
  const CacheGroup& group = program_.cache_groups[static_cast<std::size_t>(step.op.group)];
  const GpuCache& storage = *pass_.caches[static_cast<std::size_t>(step.op.group)];
  StoreArgs store{};
  store.cache = storage.layer(step.op.layer);
  store.tables = tables(step.op.group, step.op.layer);
  store.q = value(step.op.q);
  store.k = value(step.op.k);
  store.v = value(step.op.v);
  store.q_rope = rope(step.q_rope);
  store.k_rope = rope(step.k_rope);
  store.scale = step.op.scale;
  store.rows = pass_.rows;
  store.heads = step.op.heads;
  store.q_out = {memory_.at<float>(layout_.queries), layout_.query_width};
  LLMINFER_TRY(device_->check(kernels().store(stream(), store), "store"));
  if (const Pass::Open& open = pass_.open[static_cast<std::size_t>(step.op.group)]; open.seal_count > 0) {
    SealArgs seal{};
    seal.cache = store.cache;
    seal.tasks = reinterpret_cast<const SealTask*>(words(open.seals));
    if (storage.pager()) seal.tasks += std::int64_t{step.op.layer} * open.seal_count;
    seal.count = open.seal_count;
    LLMINFER_TRY(device_->check(kernels().seal(stream(), seal), "seal"));
  }

  AttendArgs attend{};
  attend.cache = store.cache;
  attend.tables = store.tables;
  attend.q = store.q_out;
  attend.heads = step.op.heads;
  attend.window = group.window;
  attend.sinks = vector(step.op.sinks);
  attend.parts = memory_.at<float>(layout_.parts);
  attend.out = value(step.op.out);
  // Tiles round to halves, which a cache of floats was not chosen for, and depend on how a prompt is cut.
  const bool tiles =
      !options_.batch_invariant && storage.type() != CacheType::f32 && store.cache.padded_dim <= kMaxTileDim;
  const auto group_index = static_cast<std::size_t>(step.op.group);
  if (!tiles) return attend_rows(attend, group_index, pass_.all_rows);
  for (const RowRange& range : pass_.single_rows) LLMINFER_TRY(attend_rows(attend, group_index, range));
  if (pass_.task_count == 0) return {};
  AttendTilesArgs args{};
  args.cache = attend.cache;
  args.tables = attend.tables;
  args.q = attend.q;
  args.tasks = reinterpret_cast<const TileTask*>(words(pass_.tasks));
  args.task_count = pass_.task_count;
  args.heads = attend.heads;
  args.window = attend.window;
  args.sinks = attend.sinks;
  args.out = attend.out;
  return device_->check(kernels().attend_tiles(stream(), args), "attend_tiles");
}

Result<void> GpuPlan::attend_rows(const AttendArgs& common, std::size_t group, const RowRange& range) {
  AttendArgs args = common;
  const std::int64_t part_floats = std::int64_t{args.heads} * (args.cache.head_dim + 2);
  const auto most_splits = static_cast<std::int32_t>(layout_.part_floats / part_floats);
  const Splits splits = splits_of(group, range);
  args.splits = splits.count;
  args.pages_per_split = splits.pages;
  while (args.splits > most_splits) {  // a context of millions of tokens
    args.pages_per_split *= 2;
    args.splits = (args.splits + 1) / 2;
  }
  const std::int32_t rows = args.splits == 1 ? range.count : most_splits / args.splits;
  for (std::int32_t row = 0; row < range.count; row += rows) {
    args.first_row = range.first + row;
    args.rows = std::min(rows, range.count - row);
    LLMINFER_TRY(device_->check(kernels().attend(stream(), args), "attend"));
  }
  return {};
}

Result<void> GpuPlan::run(const GluStep& step) {
  const GluArgs args{value(step.op.gate),
                     value(step.op.up),
                     value(step.op.out),
                     pass_.current_rows,
                     static_cast<int>(width(step.op.out)),
                     static_cast<int>(step.op.activation)};
  return device_->check(kernels().glu(stream(), args), "glu");
}

Result<void> GpuPlan::run(const AddStep& step) {
  const AddArgs args{value(step.op.a), value(step.op.b), value(step.op.out), pass_.current_rows,
                     static_cast<int>(width(step.op.out))};
  return device_->check(kernels().add(stream(), args), "add");
}

/// Without a collective the rows go to the host and back: ranks talk to each other there.
Result<void> GpuPlan::run(const ReduceStep& step) {
  if (pass_.sums_on_devices) return sum_on_devices(step.op);
  const std::int64_t n = width(step.op.in), floats = n * pass_.current_rows,
                     bytes = floats * std::int64_t{sizeof(float)};
  LLMINFER_TRY(grow(host_reduced_, bytes, true));
  const RowsArgs packed{memory_.at<float>(layout_.gathered), n};
  const auto width = static_cast<int>(n);
  const auto gather = [&](const RowsArgs& from, const RowsArgs& to) {
    const GatherArgs args{from, nullptr, pass_.current_rows, width, to};
    return device_->check(kernels().gather(stream(), args), "gather");
  };
  LLMINFER_TRY(gather(value(step.op.in), packed));
  LLMINFER_TRY(device_->copy(host_reduced_.at(), packed.data, bytes));
  LLMINFER_TRY(device_->wait());
  LLMINFER_TRY(reduce_({host_reduced_.at<float>(), static_cast<std::size_t>(floats)}));
  LLMINFER_TRY(device_->copy(packed.data, host_reduced_.at(), bytes));
  return gather(packed, value(step.op.out));
}

Result<void> GpuPlan::run(const SelectStep& step) {
  pass_.current_rows = pass_.selected_rows;
  if (!pass_.selects) return {};
  pass_.current_positions = pass_.selected_positions;
  for (const ValueId id : step.values) {
    const RowsArgs rows = value(id);
    const RowsArgs some = LLMINFER_TRY(gather(rows, width(id), pass_.selected, pass_.selected_rows));
    LLMINFER_TRY(device_->check(
        kernels().gather(stream(), {some, nullptr, pass_.selected_rows, static_cast<int>(width(id)), rows}), "gather"));
  }
  return rotates_selected_ ? compute_angles(pass_.selected_positions, pass_.selected_rows) : Result<void>();
}

}  // namespace llminfer::gpu
