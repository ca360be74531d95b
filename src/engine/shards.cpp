#include "engine/shards.hpp"

#include <algorithm>
#include <numeric>
#include <utility>

#include "backends/common/check.hpp"
#include "core/error.hpp"

namespace llminfer::inline v0::engine {
namespace {

using core::fail;
using load::common_unit;

template <class Id>
std::size_t index(Id id) {
  return static_cast<std::size_t>(id);
}

/// How a shard has a value: all of it, as all shards have it, or a part of its elements.
struct Part {
  bool cut = false;
  ShardRange range{};  ///< of a cut value's elements
};

class Cutter {
 public:
  Cutter(const Program& program, std::span<const load::TensorInfo* const> tensors, int shard, int shards)
      : whole_(program),
        tensors_(tensors),
        shard_(shard),
        shards_(shards),
        parts_(program.values.size()),
        writer_(program.values.size()),
        readers_(program.values.size()),
        values_(program.values.size()) {
    for (const Op& op : program.ops) {
      backend::for_each_input(op, [&](ValueId id) { readers_[index(id)].push_back(&op); });
      writer_[index(backend::output_of(op))] = &op;
    }
  }

  Result<Shard> run() {
    out_.architecture = whole_.architecture;
    out_.hidden_size = whole_.hidden_size;
    out_.vocab_size = whole_.vocab_size;
    out_.rope_tables = whole_.rope_tables;
    LLMINFER_TRY(cut_groups());
    for (const Op& op : whole_.ops) {
      if (const auto* glu = std::get_if<op::Glu>(&op)) LLMINFER_TRY(cut_unit(*glu));
    }
    if (whole_.logits != ValueId::none) {
      const ShardRange tokens = shard_range(whole_.vocab_size, shard_, shards_);
      LLMINFER_TRY(cut(whole_.logits, tokens));
      out_.vocab_size = tokens.count;
    }
    for (const Op& op : whole_.ops) LLMINFER_TRY(std::visit([&](const auto& o) { return apply(o); }, op));
    if (whole_.hidden != ValueId::none) out_.hidden = LLMINFER_TRY(uncut(whole_.hidden));
    if (whole_.logits != ValueId::none) out_.logits = values_[index(whole_.logits)];
    return Shard{std::move(out_), std::move(out_tensors_)};
  }

 private:
  const std::string& name(ValueId id) const { return whole_.values[index(id)].name; }
  Error uncuttable(ValueId id, const char* why) const {
    return fail(ErrorCode::unsupported, "EngineOptions::tensor_parallel: value ", name(id), why);
  }

  /// Elements of `value` that the weights that read it must keep together.
  std::int64_t column_unit(ValueId value) const {
    std::int64_t unit = 1;
    for (const Op* op : readers_[index(value)]) {
      if (const auto* linear = std::get_if<op::Linear>(op)) {
        unit =
            common_unit(unit, load::column_unit(*tensors_[index(linear->weight)]), whole_.values[index(value)].width);
      }
    }
    return unit;
  }

  /// The part of `count` things, of which `unit` stay together, that this shard gets.
  Result<ShardRange> range_of(std::int64_t count, std::int64_t unit, ValueId value, const char* things) const {
    const std::int64_t units = (count + unit - 1) / unit;
    if (units < shards_) {
      return fail(ErrorCode::unsupported, "EngineOptions::tensor_parallel is ", shards_, ": value ", name(value),
                  " has ", count, " ", things, ", given out by ", unit,
                  " so that no block or group of the weight that reads them is cut: too few");
    }
    const ShardRange some = shard_range(units, shard_, shards_);
    const std::int64_t first = some.first * unit;
    return ShardRange{first, std::min(count, first + some.count * unit) - first};
  }

  /// Whole KV heads with all their query heads, the same ones in all layers of a cache group.
  Result<void> cut_groups() {
    for (std::size_t g = 0; g < whole_.cache_groups.size(); ++g) {
      const CacheGroup& group = whole_.cache_groups[g];
      std::int64_t unit = 1;
      const op::Attention* some = nullptr;
      for_attentions(g, [&](const op::Attention& o) {
        const std::int64_t width = std::int64_t{o.heads} / group.kv_heads * group.head_dim;
        const std::int64_t columns = column_unit(o.out);
        unit = common_unit(unit, columns / std::gcd(columns, width), group.kv_heads);
        if (!some) some = &o;
      });
      CacheGroup& mine = out_.cache_groups.emplace_back(group);
      if (!some) continue;
      const ShardRange heads = LLMINFER_TRY(range_of(group.kv_heads, unit, some->out, "KV heads"));
      Result<void> outcome;
      for_attentions(g, [&](const op::Attention& o) {
        const std::int64_t queries = std::int64_t{o.heads} / group.kv_heads * group.head_dim;
        const auto cut_heads = [&](ValueId id, std::int64_t width) {
          if (outcome) outcome = cut(id, {heads.first * width, heads.count * width});
        };
        cut_heads(o.k, group.head_dim);
        cut_heads(o.v, group.head_dim);
        cut_heads(o.q, queries);
        parts_[index(o.out)] = {true, {heads.first * queries, heads.count * queries}};
      });
      LLMINFER_TRY(std::move(outcome));
      mine.kv_heads = static_cast<std::int32_t>(heads.count);
    }
    return {};
  }
  template <class F>
  void for_attentions(std::size_t group, const F& f) const {
    for (const Op& op : whole_.ops) {
      const auto* attention = std::get_if<op::Attention>(&op);
      if (attention && static_cast<std::size_t>(attention->group) == group) f(*attention);
    }
  }

  Result<void> cut_unit(const op::Glu& o) {
    const ShardRange range =
        LLMINFER_TRY(range_of(whole_.values[index(o.out)].width, column_unit(o.out), o.out, "features"));
    LLMINFER_TRY(cut(o.gate, range));
    LLMINFER_TRY(cut(o.up, range));
    parts_[index(o.out)] = {true, range};
    return {};
  }

  /// That each shard makes its part of the value alone: back to the linear layer that makes it.
  Result<void> cut(ValueId value, ShardRange range) {
    while (true) {
      parts_[index(value)] = {true, range};
      const Op& writer = *writer_[index(value)];
      if (std::holds_alternative<op::Linear>(writer)) return {};
      if (const auto* rope = std::get_if<op::Rope>(&writer)) {
        value = rope->in;
      } else if (const auto* norm = std::get_if<op::RmsNorm>(&writer)) {
        const std::int64_t size = whole_.weights[index(norm->weight)].cols;
        if (range.first % size != 0 || range.count % size != 0) {
          return uncuttable(value, " is normed as a whole, so it cannot be cut");
        }
        value = norm->in;
      } else {
        return uncuttable(value, " is not made by a linear layer, so it cannot be cut");
      }
    }
  }

  ValueId add_value(std::string name, std::int64_t width) {
    out_.values.push_back({std::move(name), width});
    return static_cast<ValueId>(out_.values.size() - 1);
  }
  /// The shard's own value for `id`, written by the operation that is added next.
  ValueId made(ValueId id) {
    const Part& part = parts_[index(id)];
    const std::int64_t width = part.cut ? part.range.count : whole_.values[index(id)].width;
    return values_[index(id)] = add_value(name(id), width);
  }
  bool is_cut(ValueId id) const { return parts_[index(id)].cut; }
  Result<ValueId> like(ValueId id, bool cut) const {
    if (is_cut(id) == cut) return values_[index(id)];
    return uncuttable(id, ": the operation that reads it cannot be cut between ranks");
  }
  Result<ValueId> uncut(ValueId id) const { return like(id, false); }

  Result<WeightId> weight(WeightId id, const load::TensorSlice& slice) {
    if (id == WeightId::none) return id;
    auto tensor = load::slice_of(*tensors_[index(id)], slice);
    if (!tensor) return core::at("EngineOptions::tensor_parallel", std::move(tensor).error());
    out_.weights.push_back({tensor->name, tensor->rows, tensor->cols});
    out_tensors_.push_back(std::move(*tensor));
    return static_cast<WeightId>(out_.weights.size() - 1);
  }
  Result<WeightId> all_of(WeightId id) {
    if (id == WeightId::none) return id;
    const WeightSpec& spec = whole_.weights[index(id)];
    return weight(id, {0, spec.rows, 0, spec.cols});
  }
  Result<WeightId> rows_of(WeightId id, ShardRange rows) {
    return weight(id, {rows.first, rows.count, 0, whole_.weights[index(id)].cols});
  }
  Result<WeightId> columns_of(WeightId id, ShardRange columns) {
    if (id == WeightId::none) return id;
    return weight(id, {0, whole_.weights[index(id)].rows, columns.first, columns.count});
  }

  /// Gives `out` the sum over all shards of what `add`, given the id of the summand, computes.
  template <class F>
  void sum(ValueId out, const F& add) {
    const ValueId summand = add_value(name(out) + ".part", whole_.values[index(out)].width);
    add(summand);
    out_.ops.emplace_back(op::Reduce{summand, made(out)});
  }

  Result<void> apply(const op::Embed& o) {
    if (o.table != WeightId::none) return uncuttable(o.out, " is made from an embedding table");
    out_.ops.emplace_back(op::Embed{o.table, made(o.out)});
    return {};
  }

  Result<void> apply(const op::Linear& o) {
    op::Linear mine = o;
    const Part out = parts_[index(o.out)];
    if (is_cut(o.in)) {
      if (out.cut) return uncuttable(o.out, " is made from a cut value, so it cannot be cut itself");
      mine.in = values_[index(o.in)];
      mine.weight = LLMINFER_TRY(columns_of(o.weight, parts_[index(o.in)].range));
      mine.bias = shard_ == 0 ? LLMINFER_TRY(all_of(o.bias)) : WeightId::none;
      sum(o.out, [&](ValueId summand) {
        mine.out = summand;
        out_.ops.emplace_back(mine);
      });
      return {};
    }
    mine.in = LLMINFER_TRY(uncut(o.in));
    if (out.cut) {
      mine.weight = LLMINFER_TRY(rows_of(o.weight, out.range));
      mine.bias = LLMINFER_TRY(columns_of(o.bias, out.range));
    } else {
      mine.weight = LLMINFER_TRY(all_of(o.weight));
      mine.bias = LLMINFER_TRY(all_of(o.bias));
    }
    mine.out = made(o.out);
    out_.ops.emplace_back(mine);
    return {};
  }

  Result<void> apply(const op::RmsNorm& o) {
    op::RmsNorm mine = o;
    mine.in = LLMINFER_TRY(like(o.in, is_cut(o.out)));
    mine.weight = LLMINFER_TRY(all_of(o.weight));
    mine.out = made(o.out);
    out_.ops.emplace_back(mine);
    return {};
  }

  Result<void> apply(const op::Rope& o) {
    op::Rope mine = o;
    mine.in = LLMINFER_TRY(like(o.in, is_cut(o.out)));
    mine.out = made(o.out);
    out_.ops.emplace_back(mine);
    return {};
  }

  Result<void> apply(const op::Attention& o) {
    op::Attention mine = o;
    mine.q = values_[index(o.q)];
    mine.k = values_[index(o.k)];
    mine.v = values_[index(o.v)];
    const CacheGroup& group = whole_.cache_groups[index(o.group)];
    mine.heads = o.heads / group.kv_heads * out_.cache_groups[index(o.group)].kv_heads;
    mine.sinks = LLMINFER_TRY(columns_of(o.sinks, {parts_[index(o.out)].range.first / group.head_dim, mine.heads}));
    mine.out = made(o.out);
    out_.ops.emplace_back(mine);
    return {};
  }

  Result<void> apply(const op::Glu& o) {
    op::Glu mine = o;
    mine.gate = values_[index(o.gate)];
    mine.up = values_[index(o.up)];
    mine.out = made(o.out);
    out_.ops.emplace_back(mine);
    return {};
  }

  Result<void> apply(const op::Add& o) {
    op::Add mine = o;
    mine.a = LLMINFER_TRY(uncut(o.a));
    mine.b = LLMINFER_TRY(uncut(o.b));
    mine.out = made(o.out);
    out_.ops.emplace_back(mine);
    return {};
  }

  Result<void> apply(const op::Reduce& o) { return uncuttable(o.out, " is summed over shards already"); }

  /// Each expert is cut like a gated unit. One that all tokens have is summed before: it comes with shard 0's part.
  Result<void> apply(const op::Moe& o) {
    op::Moe mine = o;
    mine.in = LLMINFER_TRY(uncut(o.in));
    mine.router = LLMINFER_TRY(uncut(o.router));
    if (shard_ > 0) {
      mine.shared = mine.shared_gate = ValueId::none;
    } else if (o.shared != ValueId::none) {
      mine.shared = LLMINFER_TRY(uncut(o.shared));
      mine.shared_gate = LLMINFER_TRY(uncut(o.shared_gate));
    }
    std::int64_t unit = 1;
    const std::int64_t features = whole_.weights[index(o.down.front())].cols;
    for (const WeightId id : o.down) unit = common_unit(unit, load::column_unit(*tensors_[index(id)]), features);
    const ShardRange range = LLMINFER_TRY(range_of(features, unit, o.out, "features"));
    for (std::size_t e = 0; e < o.gate.size(); ++e) {
      mine.gate[e] = LLMINFER_TRY(rows_of(o.gate[e], range));
      mine.up[e] = LLMINFER_TRY(rows_of(o.up[e], range));
      mine.down[e] = LLMINFER_TRY(columns_of(o.down[e], range));
      if (o.gate_bias.empty()) continue;
      mine.gate_bias[e] = LLMINFER_TRY(columns_of(o.gate_bias[e], range));
      mine.up_bias[e] = LLMINFER_TRY(columns_of(o.up_bias[e], range));
    }
    if (shard_ > 0) mine.down_bias.clear();
    for (WeightId& bias : mine.down_bias) bias = LLMINFER_TRY(all_of(bias));
    sum(o.out, [&](ValueId summand) {
      mine.out = summand;
      out_.ops.emplace_back(std::move(mine));
    });
    return {};
  }

  const Program& whole_;
  const std::span<const load::TensorInfo* const> tensors_;
  const int shard_, shards_;
  std::vector<Part> parts_;  // per value of the whole program, as are the next
  std::vector<const Op*> writer_;
  std::vector<std::vector<const Op*>> readers_;
  std::vector<ValueId> values_;  // the shard's own
  Program out_;
  std::vector<load::TensorInfo> out_tensors_;
};

}  // namespace

ShardRange shard_range(std::int64_t count, int index, int shards) noexcept {
  const std::int64_t first = count * index / shards;
  return {first, count * (index + 1) / shards - first};
}

Result<Shard> make_shard(const Program& program, std::span<const load::TensorInfo* const> tensors, int index,
                         int shards) {
  return Cutter(program, tensors, index, shards).run();
}

}  // namespace llminfer::inline v0::engine
