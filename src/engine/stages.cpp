#include "engine/stages.hpp"

#include <algorithm>
#include <utility>

#include "backends/common/check.hpp"
#include "core/error.hpp"

namespace llminfer::inline v0::engine {
namespace {

using core::fail;

template <class Id>
std::size_t index(Id id) {
  return static_cast<std::size_t>(id);
}

/// Calls value(id), weight(id), table(index) and attention(op) for what the operation refers to.
template <class OnValue, class OnWeight, class OnTable, class OnAttention>
struct References {
  OnValue value;
  OnWeight weight;
  OnTable table;
  OnAttention attention;

  void operator()(op::Embed& o) { weight(o.table), value(o.out); }
  void operator()(op::Linear& o) { value(o.in), weight(o.weight), weight(o.bias), value(o.out); }
  void operator()(op::RmsNorm& o) { value(o.in), weight(o.weight), value(o.out); }
  void operator()(op::Rope& o) { value(o.in), table(o.table), value(o.out); }
  void operator()(op::Attention& o) { value(o.q), value(o.k), value(o.v), attention(o), weight(o.sinks), value(o.out); }
  void operator()(op::Glu& o) { value(o.gate), value(o.up), value(o.out); }
  void operator()(op::Add& o) { value(o.a), value(o.b), value(o.out); }
  void operator()(op::Reduce& o) { value(o.in), value(o.out); }
  void operator()(op::Moe& o) {
    value(o.in), value(o.router);
    for (auto* weights : {&o.gate, &o.up, &o.down, &o.gate_bias, &o.up_bias, &o.down_bias}) {
      for (WeightId& id : *weights) weight(id);
    }
    if (o.shared != ValueId::none) value(o.shared), value(o.shared_gate);
    value(o.out);
  }
};
template <class... F>
References(F...) -> References<F...>;

/// The numbers that things of the whole program have in a stage, given when they are first seen.
class Numbers {
 public:
  explicit Numbers(std::size_t count) : numbers_(count, -1) {}
  std::int32_t operator()(std::size_t whole) {
    if (numbers_[whole] < 0) {
      numbers_[whole] = static_cast<std::int32_t>(used_.size());
      used_.push_back(whole);
    }
    return numbers_[whole];
  }
  const std::vector<std::size_t>& used() const { return used_; }

 private:
  std::vector<std::int32_t> numbers_;
  std::vector<std::size_t> used_;
};

/// Attentions of `group` among the first `ops` operations.
std::int32_t layers_of(const Program& program, std::int32_t group, std::size_t ops) {
  return static_cast<std::int32_t>(
      std::count_if(program.ops.begin(), program.ops.begin() + static_cast<long>(ops), [&](const Op& op) {
        const auto* attention = std::get_if<op::Attention>(&op);
        return attention && attention->group == group;
      }));
}

}  // namespace

std::int32_t Borders::layers_before(std::int32_t place) const noexcept { return std::clamp(place - 1, 0, layers); }

Result<Borders> find_borders(const Program& program) {
  constexpr std::size_t kNever = 0;
  std::vector<std::size_t> written(program.values.size(), kNever), read(program.values.size(), kNever);
  std::vector<std::size_t> attentions;
  for (std::size_t i = 0; i < program.ops.size(); ++i) {
    backend::for_each_input(program.ops[i], [&](ValueId id) { read[index(id)] = i; });
    written[index(backend::output_of(program.ops[i]))] = i;
    if (std::holds_alternative<op::Attention>(program.ops[i])) attentions.push_back(i);
  }
  for (const ValueId given : {program.hidden, program.logits}) {
    if (given != ValueId::none) read[index(given)] = program.ops.size();
  }
  /// The only value that is written before operation `at` and read by it or later ones.
  const auto carried_at = [&](std::size_t at) {
    auto only = ValueId::none;
    for (std::size_t v = 0; v < program.values.size(); ++v) {
      if (written[v] >= at || read[v] < at) continue;
      if (only != ValueId::none || program.values[v].width != program.hidden_size) return ValueId::none;
      only = static_cast<ValueId>(v);
    }
    return only;
  };

  Borders borders;
  borders.layers = static_cast<std::int32_t>(attentions.size());
  borders.ops.push_back(0);
  borders.carried.push_back(ValueId::none);
  for (std::size_t layer = 0; layer <= attentions.size(); ++layer) {
    // The last place before the next attention, so that a layer ends with all that follows its own.
    const std::size_t begin = layer == 0 ? 1 : attentions[layer - 1] + 1;
    std::size_t at = layer < attentions.size() ? attentions[layer] : written[index(program.hidden)];
    while (at >= begin && carried_at(at) == ValueId::none) --at;
    if (at < begin) {
      return fail(ErrorCode::unsupported, program.architecture, ": more than the hidden state goes from layer ",
                  static_cast<std::int64_t>(layer) - 1, " to the next, so the model cannot be split there");
    }
    borders.ops.push_back(at);
    borders.carried.push_back(carried_at(at));
  }
  borders.ops.push_back(program.ops.size());
  borders.carried.push_back(ValueId::none);
  return borders;
}

Result<Stage> cut_stage(const Program& program, const Borders& borders, std::int32_t first, std::int32_t last) {
  const std::size_t begin = borders.ops[index(first)], end = borders.ops[index(last)];
  const bool ends = last + 1 == borders.places();
  Numbers values(program.values.size()), weights(program.weights.size()), tables(program.rope_tables.size()),
      groups(program.cache_groups.size());
  Stage stage;
  Program& out = stage.program;
  out.architecture = program.architecture;
  out.vocab_size = program.vocab_size;
  out.hidden_size = program.hidden_size;
  if (begin > 0) {
    const auto in = static_cast<ValueId>(values(index(borders.carried[index(first)])));
    out.ops.push_back(op::Embed{WeightId::none, in});
  }
  Result<void> ordered;
  References renumber{
      [&](ValueId& id) { id = static_cast<ValueId>(values(index(id))); },
      [&](WeightId& id) {
        if (id != WeightId::none) id = static_cast<WeightId>(weights(index(id)));
      },
      [&](std::int32_t& table) { table = tables(index(table)); },
      [&](op::Attention& attention) {
        // A page's canonical form has the layers in order, so that a stage's are next to each other.
        const std::int32_t before = layers_of(program, attention.group, begin);
        const std::int32_t layer = attention.layer - before;
        if (layer < 0 || layer >= layers_of(program, attention.group, end) - before) {
          ordered = fail(ErrorCode::unsupported, program.architecture, ": the layers of cache group ", attention.group,
                         " are not numbered in the order in which they are computed, so the model cannot be split");
        }
        attention.layer = layer;
        attention.group = groups(index(attention.group));
      },
  };
  for (std::size_t i = begin; i < end; ++i) {
    std::visit(renumber, out.ops.emplace_back(program.ops[i]));
  }
  LLMINFER_TRY(std::move(ordered));
  const ValueId hidden = ends ? program.hidden : borders.carried[index(last)];
  out.hidden = static_cast<ValueId>(values(index(hidden)));
  if (ends) out.logits = static_cast<ValueId>(values(index(program.logits)));

  for (const std::size_t v : values.used()) out.values.push_back(program.values[v]);
  for (const std::size_t w : weights.used()) out.weights.push_back(program.weights[w]);
  for (const std::size_t t : tables.used()) out.rope_tables.push_back(program.rope_tables[t]);
  for (const std::size_t g : groups.used()) {
    CacheGroup& group = out.cache_groups.emplace_back(program.cache_groups[g]);
    const auto whole = static_cast<std::int32_t>(g);
    group.layers = layers_of(program, whole, end) - layers_of(program, whole, begin);
  }
  stage.groups = groups.used();
  return stage;
}

}  // namespace llminfer::inline v0::engine
