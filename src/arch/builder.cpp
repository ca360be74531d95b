// Builder and Program: the shape rules of every operation. Knows no architecture.
#include <algorithm>
#include <cmath>

#include <llminfer/program.hpp>

#include "core/error.hpp"

namespace llminfer::inline v0 {
namespace {

using core::fail;

/// Runs one step of a description. Its error becomes the first mistake if there is none yet, and Id(-1) the result.
template <class Id, class Body>
Id attempt(Result<void>& first_mistake, Body&& body) noexcept {
  Result<Id> id = core::guarded([&]() -> Result<Id> { return body(); });
  if (id) return *id;
  if (first_mistake) first_mistake = std::move(id).error();
  return Id(-1);
}

template <class Id>
bool is_index(Id id, std::size_t count) noexcept {
  return static_cast<std::int32_t>(id) >= 0 && static_cast<std::size_t>(id) < count;
}

/// The width of a value that `user` reads.
Result<std::int64_t> width_of(const Program& program, ValueId id, const std::string& user) {
  if (!is_index(id, program.values.size())) {
    return fail(ErrorCode::invalid_argument, user, ": reads value ", static_cast<std::int32_t>(id), " of ",
                program.values.size());
  }
  return program.values[static_cast<std::size_t>(id)].width;
}

Result<const WeightSpec*> weight_of(const Program& program, WeightId id, const std::string& user) {
  if (!is_index(id, program.weights.size())) {
    return fail(ErrorCode::invalid_argument, user, ": reads weight ", static_cast<std::int32_t>(id), " of ",
                program.weights.size());
  }
  return &program.weights[static_cast<std::size_t>(id)];
}

Result<void> expect_vector(const Program& program, WeightId id, std::int64_t size, const std::string& user) {
  const WeightSpec* weight = LLMINFER_TRY(weight_of(program, id, user));
  if (weight->rows == 1 && weight->cols == size) return {};
  return fail(ErrorCode::shape_mismatch, user, ": ", weight->name, " is [", weight->rows, ", ", weight->cols,
              "], expected a vector of ", size);
}

Result<void> expect_matrix(const Program& program, WeightId id, std::int64_t rows, std::int64_t cols,
                           const std::string& user) {
  const WeightSpec* weight = LLMINFER_TRY(weight_of(program, id, user));
  if (weight->rows == rows && weight->cols == cols) return {};
  return fail(ErrorCode::shape_mismatch, user, ": ", weight->name, " is [", weight->rows, ", ", weight->cols,
              "], expected [", rows, ", ", cols, "]");
}

Result<void> expect_width(const std::string& user, const char* what, std::int64_t found, std::int64_t expected) {
  if (found == expected) return {};
  return fail(ErrorCode::shape_mismatch, user, ": ", what, " has width ", found, ", expected ", expected);
}

/// Appends an operation, the maker of which is given the id of its output.
template <class MakeOp>
ValueId append(Program& program, std::string name, std::int64_t width, MakeOp&& make_op) {
  const auto out = static_cast<ValueId>(program.values.size());
  program.values.push_back({std::move(name), width});
  program.ops.push_back(make_op(out));
  return out;
}

/// That the keys and values of each layer of each cache group are written by exactly one operation.
Result<void> check_cache_use(const Program& program) {
  std::vector<std::vector<int>> uses;
  for (const CacheGroup& group : program.cache_groups) uses.emplace_back(static_cast<std::size_t>(group.layers), 0);
  for (const Op& op : program.ops) {
    const auto* attention = std::get_if<op::Attention>(&op);
    if (attention) ++uses[static_cast<std::size_t>(attention->group)][static_cast<std::size_t>(attention->layer)];
  }
  for (std::size_t g = 0; g < uses.size(); ++g) {
    for (std::size_t layer = 0; layer < uses[g].size(); ++layer) {
      if (uses[g][layer] == 1) continue;
      return fail(ErrorCode::invalid_argument, program.architecture, ": layer ", layer, " of cache group ", g,
                  " is written by ", uses[g][layer], " operations, expected 1");
    }
  }
  return {};
}

/// That rows of embeddings may stand for tokens, and every token id has a row in the table.
Result<void> check_embeddings(const Program& program) {
  for (const Op& op : program.ops) {
    const auto* embed = std::get_if<op::Embed>(&op);
    if (!embed) continue;
    const WeightSpec& table = program.weights[static_cast<std::size_t>(embed->table)];
    if (table.rows == program.vocab_size && table.cols == program.hidden_size) continue;
    return fail(ErrorCode::shape_mismatch, program.architecture, ": ", table.name, " is [", table.rows, ", ",
                table.cols, "], expected [vocabulary, hidden size] = [", program.vocab_size, ", ", program.hidden_size,
                "]");
  }
  return {};
}

}  // namespace

std::int64_t Program::parameter_count() const noexcept {
  std::int64_t count = 0;
  for (const WeightSpec& weight : weights) count += weight.rows * weight.cols;
  return count;
}

Builder::Builder(std::string architecture) { program_.architecture = std::move(architecture); }

WeightId Builder::weight(std::string name, std::int64_t rows, std::int64_t cols) {
  return attempt<WeightId>(first_mistake_, [&]() -> Result<WeightId> {
    constexpr std::int64_t kMaxSide = std::int64_t{1} << 31;
    if (rows < 1 || cols < 1 || rows > kMaxSide || cols > kMaxSide) {
      return fail(ErrorCode::invalid_argument, name, ": the shape [", rows, ", ", cols, "] is not in 1 … 2^31");
    }
    const auto entry = weight_ids_.find(name);
    if (entry == weight_ids_.end()) {
      const auto id = static_cast<WeightId>(program_.weights.size());
      program_.weights.push_back({name, rows, cols});  // first: an id without its weight would outlive a bad_alloc
      weight_ids_.emplace(std::move(name), id);
      return id;
    }
    const WeightSpec& known = program_.weights[static_cast<std::size_t>(entry->second)];
    if (known.rows != rows || known.cols != cols) {
      return fail(ErrorCode::shape_mismatch, name, ": used as [", known.rows, ", ", known.cols, "] and as [", rows,
                  ", ", cols, "]");
    }
    return entry->second;
  });
}

std::int32_t Builder::cache_group(CacheGroup group) {
  return attempt<std::int32_t>(first_mistake_, [&]() -> Result<std::int32_t> {
    if (group.layers < 1 || group.kv_heads < 1 || group.head_dim < 1 || group.window < 0) {
      return fail(ErrorCode::invalid_argument, program_.architecture, ": a cache group of ", group.layers, " layers, ",
                  group.kv_heads, " KV heads of ", group.head_dim, ", window ", group.window);
    }
    program_.cache_groups.push_back(group);
    return static_cast<std::int32_t>(program_.cache_groups.size() - 1);
  });
}

std::int32_t Builder::rope_table(RopeTable table) {
  return attempt<std::int32_t>(first_mistake_, [&]() -> Result<std::int32_t> {
    const bool finite =
        std::isfinite(table.magnitude) && std::all_of(table.inverse_frequency.begin(), table.inverse_frequency.end(),
                                                      [](float frequency) { return std::isfinite(frequency); });
    if (table.inverse_frequency.empty() || !finite) {
      return fail(ErrorCode::invalid_argument, program_.architecture, ": a rotary table that is empty or not finite");
    }
    program_.rope_tables.push_back(std::move(table));
    return static_cast<std::int32_t>(program_.rope_tables.size() - 1);
  });
}

ValueId Builder::embed(WeightId table, std::string name) {
  return attempt<ValueId>(first_mistake_, [&]() -> Result<ValueId> {
    const WeightSpec* weight = LLMINFER_TRY(weight_of(program_, table, name));
    return append(program_, std::move(name), weight->cols, [&](ValueId out) { return op::Embed{table, out}; });
  });
}

ValueId Builder::linear(ValueId in, WeightId weight, std::string name, WeightId bias) {
  return attempt<ValueId>(first_mistake_, [&]() -> Result<ValueId> {
    const WeightSpec* matrix = LLMINFER_TRY(weight_of(program_, weight, name));
    LLMINFER_TRY(expect_width(name, "the input", LLMINFER_TRY(width_of(program_, in, name)), matrix->cols));
    if (bias != WeightId::none) LLMINFER_TRY(expect_vector(program_, bias, matrix->rows, name));
    return append(program_, std::move(name), matrix->rows, [&](ValueId out) {
      return op::Linear{in, weight, bias, out};
    });
  });
}

ValueId Builder::rms_norm(ValueId in, WeightId weight, float epsilon, std::string name) {
  return attempt<ValueId>(first_mistake_, [&]() -> Result<ValueId> {
    const std::int64_t width = LLMINFER_TRY(width_of(program_, in, name));
    const WeightSpec* factors = LLMINFER_TRY(weight_of(program_, weight, name));
    if (width % factors->cols != 0) LLMINFER_TRY(expect_vector(program_, weight, width, name));
    LLMINFER_TRY(expect_vector(program_, weight, factors->cols, name));
    if (!(epsilon >= 0 && epsilon <= 1)) {
      return fail(ErrorCode::invalid_argument, name, ": epsilon ", epsilon, " is not in 0 … 1");
    }
    return append(program_, std::move(name), width, [&](ValueId out) { return op::RmsNorm{in, weight, epsilon, out}; });
  });
}

ValueId Builder::rope(ValueId in, std::int32_t head_dim, std::int32_t table, std::string name) {
  return attempt<ValueId>(first_mistake_, [&]() -> Result<ValueId> {
    const std::int64_t width = LLMINFER_TRY(width_of(program_, in, name));
    if (!is_index(table, program_.rope_tables.size())) {
      return fail(ErrorCode::invalid_argument, name, ": rotary table ", table, " of ", program_.rope_tables.size());
    }
    if (head_dim < 1 || width % head_dim != 0) {
      return fail(ErrorCode::shape_mismatch, name, ": width ", width, " is not a multiple of the head size ", head_dim);
    }
    const std::size_t rotary_dim = 2 * program_.rope_tables[static_cast<std::size_t>(table)].inverse_frequency.size();
    if (rotary_dim > static_cast<std::size_t>(head_dim)) {
      return fail(ErrorCode::shape_mismatch, name, ": rotates ", rotary_dim, " of ", head_dim, " dimensions");
    }
    return append(program_, std::move(name), width, [&](ValueId out) { return op::Rope{in, head_dim, table, out}; });
  });
}

ValueId Builder::attention(ValueId q, ValueId k, ValueId v, std::int32_t group, std::int32_t layer, std::int32_t heads,
                           float scale, std::string name, WeightId sinks) {
  return attempt<ValueId>(first_mistake_, [&]() -> Result<ValueId> {
    if (!is_index(group, program_.cache_groups.size())) {
      return fail(ErrorCode::invalid_argument, name, ": cache group ", group, " of ", program_.cache_groups.size());
    }
    const CacheGroup& cache = program_.cache_groups[static_cast<std::size_t>(group)];
    if (layer < 0 || layer >= cache.layers) {
      return fail(ErrorCode::invalid_argument, name, ": layer ", layer, " of a cache group of ", cache.layers);
    }
    if (heads < 1 || heads % cache.kv_heads != 0) {
      return fail(ErrorCode::invalid_argument, name, ": ", heads, " heads are not a multiple of the ", cache.kv_heads,
                  " KV heads");
    }
    if (!std::isfinite(scale)) return fail(ErrorCode::invalid_argument, name, ": the scale is not finite");
    const std::int64_t q_width = std::int64_t{heads} * cache.head_dim;
    const std::int64_t kv_width = std::int64_t{cache.kv_heads} * cache.head_dim;
    LLMINFER_TRY(expect_width(name, "q", LLMINFER_TRY(width_of(program_, q, name)), q_width));
    LLMINFER_TRY(expect_width(name, "k", LLMINFER_TRY(width_of(program_, k, name)), kv_width));
    LLMINFER_TRY(expect_width(name, "v", LLMINFER_TRY(width_of(program_, v, name)), kv_width));
    if (sinks != WeightId::none) LLMINFER_TRY(expect_vector(program_, sinks, heads, name));
    return append(program_, std::move(name), q_width,
                  [&](ValueId out) { return op::Attention{q, k, v, group, layer, heads, scale, out, sinks}; });
  });
}

ValueId Builder::glu(ValueId gate, ValueId up, Activation activation, std::string name) {
  return attempt<ValueId>(first_mistake_, [&]() -> Result<ValueId> {
    const std::int64_t width = LLMINFER_TRY(width_of(program_, gate, name));
    LLMINFER_TRY(expect_width(name, "up", LLMINFER_TRY(width_of(program_, up, name)), width));
    return append(program_, std::move(name), width, [&](ValueId out) { return op::Glu{gate, up, activation, out}; });
  });
}

ValueId Builder::add(ValueId a, ValueId b, std::string name) {
  return attempt<ValueId>(first_mistake_, [&]() -> Result<ValueId> {
    const std::int64_t width = LLMINFER_TRY(width_of(program_, a, name));
    LLMINFER_TRY(expect_width(name, "the second summand", LLMINFER_TRY(width_of(program_, b, name)), width));
    return append(program_, std::move(name), width, [&](ValueId out) { return op::Add{a, b, out}; });
  });
}

ValueId Builder::moe(op::Moe op, std::string name) {
  return attempt<ValueId>(first_mistake_, [&]() -> Result<ValueId> {
    const std::int64_t width = LLMINFER_TRY(width_of(program_, op.in, name));
    const std::size_t experts = op.gate.size();
    if (experts == 0 || op.up.size() != experts || op.down.size() != experts) {
      return fail(ErrorCode::invalid_argument, name, ": ", experts, " gate, ", op.up.size(), " up and ", op.down.size(),
                  " down matrices; expected as many of each, at least 1");
    }
    LLMINFER_TRY(expect_width(name, "the router", LLMINFER_TRY(width_of(program_, op.router, name)),
                              static_cast<std::int64_t>(experts)));
    if (op.used < 1 || static_cast<std::size_t>(op.used) > experts) {
      return fail(ErrorCode::invalid_argument, name, ": ", op.used, " experts used, expected 1 to ", experts);
    }
    if (!std::isfinite(op.scale)) return fail(ErrorCode::invalid_argument, name, ": the scale is not finite");
    const std::int64_t ffn = LLMINFER_TRY(weight_of(program_, op.gate.front(), name))->rows;
    for (std::size_t e = 0; e < experts; ++e) {
      LLMINFER_TRY(expect_matrix(program_, op.gate[e], ffn, width, name));
      LLMINFER_TRY(expect_matrix(program_, op.up[e], ffn, width, name));
      LLMINFER_TRY(expect_matrix(program_, op.down[e], width, ffn, name));
    }
    const auto none_or_all = [&](const std::vector<WeightId>& biases) {
      return biases.empty() || biases.size() == experts;
    };
    if (!none_or_all(op.gate_bias) || op.up_bias.size() != op.gate_bias.size() || !none_or_all(op.down_bias)) {
      return fail(ErrorCode::invalid_argument, name, ": ", op.gate_bias.size(), " gate, ", op.up_bias.size(),
                  " up and ", op.down_bias.size(), " down biases; expected none, or ", experts, " of each");
    }
    for (const WeightId bias : op.gate_bias) LLMINFER_TRY(expect_vector(program_, bias, ffn, name));
    for (const WeightId bias : op.up_bias) LLMINFER_TRY(expect_vector(program_, bias, ffn, name));
    for (const WeightId bias : op.down_bias) LLMINFER_TRY(expect_vector(program_, bias, width, name));
    if ((op.shared == ValueId::none) != (op.shared_gate == ValueId::none)) {
      return fail(ErrorCode::invalid_argument, name, ": a shared expert needs its gate, and a gate its expert");
    }
    if (op.shared != ValueId::none) {
      LLMINFER_TRY(expect_width(name, "the shared expert", LLMINFER_TRY(width_of(program_, op.shared, name)), width));
      LLMINFER_TRY(
          expect_width(name, "the shared expert's gate", LLMINFER_TRY(width_of(program_, op.shared_gate, name)), 1));
    }
    return append(program_, std::move(name), width, [&](ValueId out) {
      op.out = out;
      return std::move(op);
    });
  });
}

std::int64_t Builder::width(ValueId id) const noexcept {
  return is_index(id, program_.values.size()) ? program_.values[static_cast<std::size_t>(id)].width : 0;
}

Result<Program> Builder::finish(ValueId hidden, ValueId logits) && {
  return core::guarded([&]() -> Result<Program> {
    LLMINFER_TRY(std::move(first_mistake_));
    program_.hidden_size = LLMINFER_TRY(width_of(program_, hidden, program_.architecture + ": the hidden state"));
    program_.vocab_size = LLMINFER_TRY(width_of(program_, logits, program_.architecture + ": the logits"));
    program_.hidden = hidden;
    program_.logits = logits;
    LLMINFER_TRY(check_cache_use(program_));
    LLMINFER_TRY(check_embeddings(program_));
    return std::move(program_);
  });
}

}  // namespace llminfer::inline v0
