#include "backends/common/check.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "core/error.hpp"

namespace llminfer::backend {
namespace {

using core::fail;

constexpr std::int64_t kMaxWidth = std::int64_t{1} << 28;
constexpr int kMaxExperts = 4096;

class ProgramCheck {
 public:
  explicit ProgramCheck(const Program& program) : p_(program), written_(program.values.size(), false) {}

  Result<void> run() {
    for (const ValueSpec& value : p_.values) {
      if (value.width < 1 || value.width > kMaxWidth) {
        return fail(ErrorCode::invalid_argument, "value ", value.name, " has width ", value.width);
      }
    }
    for (const WeightSpec& weight : p_.weights) {
      if (weight.rows < 1 || weight.cols < 1 || weight.rows > kMaxWidth || weight.cols > kMaxWidth) {
        return fail(ErrorCode::invalid_argument, "weight ", weight.name, " has shape [", weight.rows, ", ", weight.cols,
                    "]");
      }
    }
    for (const RopeTable& table : p_.rope_tables) {
      if (table.inverse_frequency.size() > static_cast<std::size_t>(kMaxWidth)) {
        return fail(ErrorCode::invalid_argument, "a rope table has ", table.inverse_frequency.size(), " pairs");
      }
    }
    for (const CacheGroup& group : p_.cache_groups) {
      if (group.layers < 1 || group.kv_heads < 1 || group.head_dim < 1 || group.head_dim > 4096 || group.window < 0) {
        return fail(ErrorCode::invalid_argument, "a cache group has ", group.layers, " layers, ", group.kv_heads,
                    " KV heads, head_dim ", group.head_dim, ", window ", group.window);
      }
    }
    for (const Op& op : p_.ops) {
      Result<void> inputs;
      for_each_input(op, [&](ValueId id) {
        if (inputs) inputs = readable(id);
      });
      LLMINFER_TRY(std::move(inputs));
      const ValueId out = output_of(op);
      if (!in_range(out)) return fail(ErrorCode::invalid_argument, "an operation writes no value of the program");
      if (written_[static_cast<std::size_t>(out)]) {
        return fail(ErrorCode::invalid_argument, "value ", name(out), " is written twice");
      }
      LLMINFER_TRY(std::visit([&](const auto& o) { return check(o); }, op));
      written_[static_cast<std::size_t>(out)] = true;
    }
    if (p_.hidden != ValueId::none) {
      LLMINFER_TRY(readable(p_.hidden));
      LLMINFER_TRY(expect(p_.hidden, p_.hidden_size));
    }
    if (p_.logits != ValueId::none) {
      LLMINFER_TRY(readable(p_.logits));
      LLMINFER_TRY(expect(p_.logits, p_.vocab_size));
    }
    return {};
  }

 private:
  bool in_range(ValueId id) const {
    return static_cast<std::int32_t>(id) >= 0 && static_cast<std::size_t>(id) < p_.values.size();
  }
  const std::string& name(ValueId id) const { return p_.values[static_cast<std::size_t>(id)].name; }
  std::int64_t width(ValueId id) const { return p_.values[static_cast<std::size_t>(id)].width; }
  Result<void> readable(ValueId id) const {
    if (!in_range(id)) return fail(ErrorCode::invalid_argument, "an operation reads no value of the program");
    if (!written_[static_cast<std::size_t>(id)]) {
      return fail(ErrorCode::invalid_argument, "value ", name(id), " is read before it is written");
    }
    return {};
  }
  Result<void> expect(ValueId id, std::int64_t expected) const {
    if (width(id) == expected) return {};
    return fail(ErrorCode::shape_mismatch, "value ", name(id), " has width ", width(id), "; expected ", expected);
  }
  Result<void> expect_weight(WeightId id, std::int64_t rows, std::int64_t cols) const {
    const auto i = static_cast<std::size_t>(id);
    if (static_cast<std::int32_t>(id) < 0 || i >= p_.weights.size()) {
      return fail(ErrorCode::invalid_argument, "an operation reads no weight of the program");
    }
    const WeightSpec& weight = p_.weights[i];
    if (cols == weight.cols && (rows == weight.rows || rows == 0)) return {};
    return fail(ErrorCode::shape_mismatch, "weight ", weight.name, " is [", weight.rows, ", ", weight.cols,
                "]; expected [", rows, ", ", cols, "]");
  }

  Result<void> check(const op::Embed& o) {
    if (o.table == WeightId::none) return expect(o.out, p_.hidden_size);
    return expect_weight(o.table, 0, width(o.out));
  }
  Result<void> check(const op::Linear& o) {
    LLMINFER_TRY(expect_weight(o.weight, width(o.out), width(o.in)));
    if (o.bias == WeightId::none) return {};
    return expect_weight(o.bias, 1, width(o.out));
  }
  Result<void> check(const op::RmsNorm& o) {
    LLMINFER_TRY(expect_weight(o.weight, 1, norm_width(o)));
    return expect(o.out, width(o.in));
  }
  /// The columns of its weight if they divide the input, else those that are expected.
  std::int64_t norm_width(const op::RmsNorm& o) const {
    const auto i = static_cast<std::size_t>(o.weight);
    const bool heads =
        static_cast<std::int32_t>(o.weight) >= 0 && i < p_.weights.size() && width(o.in) % p_.weights[i].cols == 0;
    return heads ? p_.weights[i].cols : width(o.in);
  }
  Result<void> check(const op::Rope& o) {
    if (o.table < 0 || static_cast<std::size_t>(o.table) >= p_.rope_tables.size()) {
      return fail(ErrorCode::invalid_argument, "value ", name(o.out), ": no rope table ", o.table);
    }
    const auto pairs =
        static_cast<std::int64_t>(p_.rope_tables[static_cast<std::size_t>(o.table)].inverse_frequency.size());
    if (o.head_dim < 1 || width(o.in) % o.head_dim != 0 || 2 * pairs > o.head_dim) {
      return fail(ErrorCode::shape_mismatch, "value ", name(o.out), ": width ", width(o.in), ", head_dim ", o.head_dim,
                  " and ", pairs, " rotated pairs do not fit together");
    }
    return expect(o.out, width(o.in));
  }
  Result<void> check(const op::Attention& o) {
    if (o.group < 0 || static_cast<std::size_t>(o.group) >= p_.cache_groups.size()) {
      return fail(ErrorCode::invalid_argument, "value ", name(o.out), ": no cache group ", o.group);
    }
    const CacheGroup& group = p_.cache_groups[static_cast<std::size_t>(o.group)];
    if (o.layer < 0 || o.layer >= group.layers || o.heads < 1 || o.heads % group.kv_heads != 0) {
      return fail(ErrorCode::invalid_argument, "value ", name(o.out), ": layer ", o.layer, " of ", group.layers, ", ",
                  o.heads, " heads for ", group.kv_heads, " KV heads");
    }
    LLMINFER_TRY(expect(o.q, std::int64_t{o.heads} * group.head_dim));
    LLMINFER_TRY(expect(o.k, std::int64_t{group.kv_heads} * group.head_dim));
    LLMINFER_TRY(expect(o.v, std::int64_t{group.kv_heads} * group.head_dim));
    if (o.sinks != WeightId::none) LLMINFER_TRY(expect_weight(o.sinks, 1, o.heads));
    return expect(o.out, width(o.q));
  }
  Result<void> check(const op::Glu& o) {
    if (o.activation > Activation::clamped_swiglu) {
      return fail(ErrorCode::unsupported, "value ", name(o.out), ": activation ", static_cast<int>(o.activation));
    }
    LLMINFER_TRY(expect(o.up, width(o.gate)));
    return expect(o.out, width(o.gate));
  }
  Result<void> check(const op::Add& o) {
    LLMINFER_TRY(expect(o.b, width(o.a)));
    return expect(o.out, width(o.a));
  }
  Result<void> check(const op::Reduce& o) { return expect(o.out, width(o.in)); }
  Result<void> check(const op::Moe& o) {
    const std::size_t experts = o.gate.size();
    if (experts == 0 || experts > static_cast<std::size_t>(kMaxExperts) || o.up.size() != experts ||
        o.down.size() != experts || o.used < 1 || static_cast<std::size_t>(o.used) > experts) {
      return fail(ErrorCode::invalid_argument, "value ", name(o.out), ": ", o.used, " of ", experts, " experts with ",
                  o.up.size(), " and ", o.down.size(), " other matrices; expected 1 to ", kMaxExperts);
    }
    if (o.activation > Activation::clamped_swiglu || o.scoring > Scoring::sigmoid) {
      return fail(ErrorCode::unsupported, "value ", name(o.out), ": activation ", static_cast<int>(o.activation),
                  ", scoring ", static_cast<int>(o.scoring));
    }
    if ((o.shared == ValueId::none) != (o.shared_gate == ValueId::none)) {
      return fail(ErrorCode::invalid_argument, "value ", name(o.out),
                  ": a shared expert without a gate, or a gate alone");
    }
    LLMINFER_TRY(expect(o.router, static_cast<std::int64_t>(experts)));
    LLMINFER_TRY(expect_weight(o.gate.front(), 0, width(o.in)));
    const std::int64_t ffn = p_.weights[static_cast<std::size_t>(o.gate.front())].rows;
    for (std::size_t e = 0; e < experts; ++e) {
      LLMINFER_TRY(expect_weight(o.gate[e], ffn, width(o.in)));
      LLMINFER_TRY(expect_weight(o.up[e], ffn, width(o.in)));
      LLMINFER_TRY(expect_weight(o.down[e], width(o.in), ffn));
    }
    const auto none_or_all = [&](const std::vector<WeightId>& biases) {
      return biases.empty() || biases.size() == experts;
    };
    if (!none_or_all(o.gate_bias) || o.up_bias.size() != o.gate_bias.size() || !none_or_all(o.down_bias)) {
      return fail(ErrorCode::invalid_argument, "value ", name(o.out), ": ", o.gate_bias.size(), ", ", o.up_bias.size(),
                  " and ", o.down_bias.size(), " biases of ", experts, " experts");
    }
    for (const WeightId bias : o.gate_bias) LLMINFER_TRY(expect_weight(bias, 1, ffn));
    for (const WeightId bias : o.up_bias) LLMINFER_TRY(expect_weight(bias, 1, ffn));
    for (const WeightId bias : o.down_bias) LLMINFER_TRY(expect_weight(bias, 1, width(o.in)));
    if (o.shared != ValueId::none) {
      LLMINFER_TRY(expect(o.shared, width(o.in)));
      LLMINFER_TRY(expect(o.shared_gate, 1));
    }
    return expect(o.out, width(o.in));
  }

  const Program& p_;
  std::vector<bool> written_;
};

/// `whole` of the wanted rows are to be in an output of `out` floats.
Result<void> check_wanted(std::span<const std::int32_t> wanted, const char* wanted_name, std::size_t whole,
                          std::size_t out, const char* out_name, std::int64_t width, std::size_t rows) {
  std::int32_t before = -1;
  for (const std::int32_t row : wanted) {
    if (row <= before || row >= static_cast<std::int64_t>(rows)) {
      return fail(ErrorCode::invalid_argument, "Batch::", wanted_name, ": row ", row, " after ", before,
                  "; expected ascending rows below ", rows);
    }
    before = row;
  }
  if (out != whole * static_cast<std::size_t>(width)) {
    return fail(ErrorCode::invalid_argument, "Batch::", out_name, " has ", out, " floats; expected ", whole,
                " rows of ", width);
  }
  return {};
}

Result<void> check_wishes(const Batch& batch, const Program& program, std::int32_t most) {
  const auto wishes = batch.candidate_wishes;
  if (!wishes.empty() && wishes.size() != batch.logit_rows.size()) {
    return fail(ErrorCode::invalid_argument, "Batch::candidate_wishes has ", wishes.size(), " entries; expected ",
                batch.logit_rows.size());
  }
  for (const CandidateWish& wish : wishes) {
    if (wish.count < 0 || wish.count > most) {
      return fail(ErrorCode::invalid_argument, "Batch::candidate_wishes: ", wish.count,
                  " candidates; expected at most ", most);
    }
    if (wish.sum && wish.count == 0) {
      return fail(ErrorCode::invalid_argument, "Batch::candidate_wishes: a sum without candidates");
    }
    if (wish.temperature == 0) continue;
    if (wish.count == 0) {
      return fail(ErrorCode::invalid_argument, "Batch::candidate_wishes: a draw without candidates");
    }
    if (!(wish.temperature > 0 && std::isfinite(wish.temperature) && wish.place >= 0 && wish.place < 1)) {
      return fail(ErrorCode::invalid_argument, "Batch::candidate_wishes: a draw at ", wish.place, " and temperature ",
                  wish.temperature, "; expected [0, 1) and a finite number above 0");
    }
  }
  const WantedLogits wanted = wanted_logits(batch);
  if (wanted.candidates > 0 && (batch.candidate_tokens < 1 || batch.candidate_tokens > program.vocab_size)) {
    return fail(ErrorCode::invalid_argument, "Batch::candidate_tokens is ", batch.candidate_tokens, "; expected 1 to ",
                program.vocab_size);
  }
  if (batch.candidates.size() != wanted.candidates) {
    return fail(ErrorCode::invalid_argument, "Batch::candidates has ", batch.candidates.size(),
                " entries; the wishes are for ", wanted.candidates);
  }
  if ((wanted.sums || !batch.candidate_sums.empty()) && batch.candidate_sums.size() != batch.logit_rows.size()) {
    return fail(ErrorCode::invalid_argument, "Batch::candidate_sums has ", batch.candidate_sums.size(),
                " entries; expected ", batch.logit_rows.size());
  }
  if ((wanted.draws || !batch.draws.empty()) && batch.draws.size() != batch.logit_rows.size()) {
    return fail(ErrorCode::invalid_argument, "Batch::draws has ", batch.draws.size(), " entries; expected ",
                batch.logit_rows.size());
  }
  return {};
}

Result<void> check_run(const Batch& batch, const Run& run, std::size_t index, const Program& program,
                       const BatchLimits& limits) {
  const auto error = [&](const auto&... parts) {
    return fail(ErrorCode::invalid_argument, "Batch::runs[", index, "]: ", parts...);
  };
  if (run.first_position < 0 ||
      run.first_position > std::numeric_limits<std::int32_t>::max() - run.rows - kPageTokens) {
    return error("first_position ", run.first_position, " is out of range");
  }
  for (std::int32_t i = 0; i < run.rows; ++i) {
    const std::int32_t position = batch.positions[static_cast<std::size_t>(run.first_row + i)];
    if (position != run.first_position + i) {
      return error("row ", run.first_row + i, " has position ", position, "; expected ", run.first_position + i);
    }
  }
  if (run.block_tables.size() != program.cache_groups.size()) {
    return error(run.block_tables.size(), " block tables; expected one for each of ", program.cache_groups.size(),
                 " cache groups");
  }
  const std::int32_t tokens = run.first_position + run.rows;
  const std::int32_t page_count = (tokens + kPageTokens - 1) / kPageTokens;
  for (std::size_t g = 0; g < program.cache_groups.size(); ++g) {
    const std::span<const std::int32_t> table = run.block_tables[g];
    if (table.size() < static_cast<std::size_t>(page_count)) {
      return error("block table ", g, " has ", table.size(), " pages; ", tokens, " tokens need ", page_count);
    }
    const std::int32_t window = program.cache_groups[g].window;
    const std::int32_t first = window > 0 ? std::max(0, run.first_position - window + 1) : 0;
    for (std::int32_t i = first / kPageTokens; i < page_count; ++i) {
      const std::int32_t page = table[static_cast<std::size_t>(i)];
      if (page < 0 || page >= limits.pages[g]) {
        return error("block table ", g, " names page ", page, " at ", i, "; the cache has ", limits.pages[g]);
      }
    }
  }
  return {};
}

}  // namespace

Result<void> check_program(const Program& program) { return ProgramCheck(program).run(); }

Result<void> check_reduction(const Program& program, const PlanOptions& options) {
  const auto reduces = [](const Op& op) { return std::holds_alternative<op::Reduce>(op); };
  if (options.reduce || std::none_of(program.ops.begin(), program.ops.end(), reduces)) return {};
  return fail(ErrorCode::invalid_argument, "PlanOptions::reduce is empty; the program is one of several shards");
}

WantedLogits wanted_logits(const Batch& batch) noexcept {
  WantedLogits wanted;
  wanted.rows = batch.logit_rows.size();
  for (const CandidateWish& wish : batch.candidate_wishes) {
    if (wish.count == 0) continue;
    --wanted.rows;
    wanted.candidates += static_cast<std::size_t>(wish.count);
    wanted.sums = wanted.sums || wish.sum;
    wanted.draws = wanted.draws || wish.temperature != 0;
  }
  return wanted;
}

Result<void> check_batch(const Batch& batch, const Program& program, const BatchLimits& limits) {
  const std::size_t rows = batch.positions.size();
  if (rows == 0 || rows > static_cast<std::size_t>(limits.max_rows)) {
    return fail(ErrorCode::invalid_argument, "a batch of ", rows, " rows; expected 1 to ", limits.max_rows);
  }
  if (batch.tokens.size() != rows) {
    return fail(ErrorCode::invalid_argument, "Batch::tokens has ", batch.tokens.size(), " rows, positions ", rows);
  }
  if (!batch.embeddings.empty() && batch.embeddings.size() != rows * static_cast<std::size_t>(program.hidden_size)) {
    return fail(ErrorCode::invalid_argument, "Batch::embeddings has ", batch.embeddings.size(), " floats; expected ",
                rows, " rows of ", program.hidden_size);
  }
  for (std::size_t i = 0; i < rows; ++i) {
    const std::int32_t token = batch.tokens[i];
    if (token == -1 && !batch.embeddings.empty()) continue;
    if (token < 0 || token >= limits.vocab_rows) {
      return fail(ErrorCode::invalid_argument, "Batch::tokens: token ", token, " in row ", i, "; expected 0 to ",
                  limits.vocab_rows - 1);
    }
  }
  std::int64_t next = 0;
  for (std::size_t i = 0; i < batch.runs.size(); ++i) {
    const Run& run = batch.runs[i];
    if (run.rows < 1 || run.first_row != next || run.rows > static_cast<std::int64_t>(rows) - next) {
      return fail(ErrorCode::invalid_argument, "Batch::runs[", i, "] has rows ", run.first_row, " to ",
                  std::int64_t{run.first_row} + run.rows, "; runs follow one another and cover the ", rows, " rows");
    }
    next += run.rows;
    LLMINFER_TRY(check_run(batch, run, i, program, limits));
  }
  if (next != static_cast<std::int64_t>(rows)) {
    return fail(ErrorCode::invalid_argument, "Batch::runs cover ", next, " of ", rows, " rows");
  }
  if ((program.logits == ValueId::none && !batch.logit_rows.empty()) ||
      (program.hidden == ValueId::none && !batch.hidden_rows.empty())) {
    return fail(ErrorCode::invalid_argument, "the batch asks for an output that the program does not have");
  }
  LLMINFER_TRY(check_wishes(batch, program, limits.max_candidates));
  const std::size_t whole = wanted_logits(batch).rows;
  LLMINFER_TRY(
      check_wanted(batch.logit_rows, "logit_rows", whole, batch.logits.size(), "logits", program.vocab_size, rows));
  return check_wanted(batch.hidden_rows, "hidden_rows", batch.hidden_rows.size(), batch.hidden.size(), "hidden",
                      program.hidden_size, rows);
}

Result<void> check_cache(const CacheGroup& group, CacheType type, std::int32_t pages, std::int32_t max_head_dim) {
  if (group.layers < 1 || group.kv_heads < 1 || group.head_dim < 1 || group.window < 0 || group.layers > 1 << 16 ||
      group.kv_heads > 1 << 12 || group.head_dim > max_head_dim) {
    return fail(ErrorCode::invalid_argument, "cache group: ", group.layers, " layers, ", group.kv_heads,
                " KV heads, head_dim ", group.head_dim, ", window ", group.window, " are out of range");
  }
  if (type > CacheType::fp8) {
    return fail(ErrorCode::invalid_argument, "unknown cache type ", static_cast<int>(type));
  }
  if (pages < 1) return fail(ErrorCode::invalid_argument, "a cache needs at least 1 page, not ", pages);
  return {};
}

namespace {

Result<void> check_page(std::int32_t page, std::int32_t pages, const char* call) {
  if (page >= 0 && page < pages) return {};
  return fail(ErrorCode::invalid_argument, call, ": page ", page, " is not in [0, ", pages, ")");
}

}  // namespace

Result<void> check_copy(std::int32_t from, std::int32_t to, std::int32_t tokens, std::int32_t pages) {
  LLMINFER_TRY(check_page(from, pages, "copy_page"));
  LLMINFER_TRY(check_page(to, pages, "copy_page"));
  if (from == to) return fail(ErrorCode::invalid_argument, "copy_page: from and to are both page ", from);
  if (tokens < 0 || tokens > kPageTokens) {
    return fail(ErrorCode::invalid_argument, "copy_page: ", tokens, " tokens; a page has ", kPageTokens);
  }
  return {};
}

Result<void> check_transfer(std::int32_t page, std::int32_t pages, std::size_t bytes, std::int64_t expected,
                            const char* call) {
  LLMINFER_TRY(check_page(page, pages, call));
  if (bytes == static_cast<std::size_t>(expected)) return {};
  return fail(ErrorCode::invalid_argument, call, ": ", bytes, " bytes; expected ", expected);
}

}  // namespace llminfer::backend
