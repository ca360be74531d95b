#include "quantize/executor.hpp"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <new>
#include <string_view>
#include <utility>

#include "backends/common/experts.hpp"
#include "core/error.hpp"
#include "quantize/gemm.hpp"
#include "quantize/source.hpp"
#include "quantize/writer.hpp"

namespace llminfer::quantize {
namespace {

std::size_t index(ValueId id) { return static_cast<std::size_t>(id); }
std::size_t index(WeightId id) { return static_cast<std::size_t>(id); }

ValueId output_of(const Op& op) {
  return std::visit([](const auto& o) { return o.out; }, op);
}

/// The N of "blk.N.…", or nothing.
std::string_view layer_of(std::string_view name) {
  if (!name.starts_with("blk.")) return {};
  return name.substr(4, name.find('.', 4) - 4);
}

/// A gated unit.
float gated(Activation activation, float x, float up) {
  switch (activation) {
    case Activation::silu:
      return x / (1 + std::exp(-x)) * up;
    case Activation::gelu:
      return 0.5f * x * (1 + std::erf(x * 0.70710678f)) * up;
    case Activation::gelu_tanh:
      return 0.5f * x * (1 + std::tanh(0.79788456f * (x + 0.044715f * x * x * x))) * up;
    case Activation::clamped_swiglu: {
      const float gate = std::min(x, 7.0f);
      return gate / (1 + std::exp(-1.702f * gate)) * (std::clamp(up, -7.0f, 7.0f) + 1);
    }
  }
  return 0;
}

const std::vector<float>& weight(const FloatWeights& weights, WeightId id) {
  return weights.at(static_cast<std::int32_t>(id));
}

}  // namespace

LayerRanges split_layers(const Program& program) {
  LayerRanges ranges;
  std::string_view layer;
  for (std::size_t i = 0; i < program.ops.size(); ++i) {
    const std::string_view here = layer_of(program.values[index(output_of(program.ops[i]))].name);
    if (here.empty()) {
      if (!ranges.layers.empty()) {
        ranges.after = {i, program.ops.size()};
        break;
      }
      ranges.before.end = i + 1;
      continue;
    }
    if (here != layer) ranges.layers.push_back({i, i});
    layer = here;
    ranges.layers.back().end = i + 1;
  }
  return ranges;
}

Expert expert_of(const op::Moe& moe, std::size_t index) {
  const auto bias = [&](const std::vector<WeightId>& list) { return list.empty() ? WeightId::none : list[index]; };
  return {{moe.in, moe.gate[index], bias(moe.gate_bias), ValueId::none},
          {moe.in, moe.up[index], bias(moe.up_bias), ValueId::none},
          {ValueId::none, moe.down[index], bias(moe.down_bias), ValueId::none},
          moe.activation};
}

LayerRun::LayerRun(const Program& program, const load::Checkpoint& checkpoint,
                   std::vector<std::vector<Token>> sequences, core::Team& team)
    : program_(program),
      checkpoint_(checkpoint),
      sequences_(std::move(sequences)),
      team_(team),
      length_(static_cast<std::int64_t>(sequences_.front().size())),
      tokens_(length_ * static_cast<std::int64_t>(sequences_.size())),
      values_(program.values.size()),
      last_use_(program.values.size()) {
  for (std::size_t i = 0; i < program.ops.size(); ++i) {
    for_inputs(program.ops[i], [&](ValueId id) { last_use_[index(id)] = i; });
  }
}

Result<std::vector<float>> LayerRun::load_weight(WeightId id) const {
  const load::TensorInfo& tensor = *checkpoint_.find(program_.weights[index(id)].name);
  auto values = LLMINFER_TRY(read_floats(checkpoint_, tensor));
  checkpoint_.release(tensor);
  return values;
}

Result<FloatWeights> LayerRun::load_weights(const OpRange& range) const {
  FloatWeights weights;
  const auto load = [&](WeightId id) -> Result<void> {
    if (id == WeightId::none || weights.contains(static_cast<std::int32_t>(id))) return {};
    weights.emplace(static_cast<std::int32_t>(id), LLMINFER_TRY(load_weight(id)));
    return {};
  };
  for (std::size_t i = range.begin; i < range.end; ++i) {
    if (const auto* linear = std::get_if<op::Linear>(&program_.ops[i])) {
      LLMINFER_TRY(load(linear->weight));
      LLMINFER_TRY(load(linear->bias));
    }
    if (const auto* norm = std::get_if<op::RmsNorm>(&program_.ops[i])) LLMINFER_TRY(load(norm->weight));
    if (const auto* attention = std::get_if<op::Attention>(&program_.ops[i])) LLMINFER_TRY(load(attention->sinks));
  }
  return weights;
}

Result<void> LayerRun::run(const OpRange& range, FloatWeights& weights, const Hooks& hooks) {
  hooks_ = &hooks;
  std::vector<bool> seen(program_.values.size(), false);  // as the input of a group
  for (std::size_t i = range.begin; i < range.end; ++i) {
    const auto* linear = std::get_if<op::Linear>(&program_.ops[i]);
    if (linear && hooks.on_group && !seen[index(linear->in)]) {
      LinearGroup group{linear->in, width(linear->in), {}, nullptr, nullptr};
      for (std::size_t j = i; j < range.end; ++j) {
        const auto* other = std::get_if<op::Linear>(&program_.ops[j]);
        if (other && other->in == linear->in) group.linears.push_back(other);
        const auto* moe = std::get_if<op::Moe>(&program_.ops[j]);
        if (moe && moe->in == linear->in) group.moe = moe;
      }
      seen[index(linear->in)] = true;
      LLMINFER_TRY(hooks.on_group(group, value(linear->in), weights));
    }
    current_ = i;
    LLMINFER_TRY(std::visit([&](const auto& o) { return apply(o, weights); }, program_.ops[i]));
    for_inputs(program_.ops[i], [&](ValueId id) {
      if (last_use_[index(id)] == i) std::vector<float>().swap(value(id));  // = {} would keep the memory
    });
  }
  return {};
}

const float* LayerRun::make_over(ValueId id, ValueId input) {
  if (last_use_[index(input)] == current_) {
    value(id) = std::move(value(input));
  } else {
    make(id);
  }
  return value(input).empty() ? value(id).data() : value(input).data();
}

Result<void> LayerRun::apply(const op::Embed& o, const FloatWeights&) {
  const load::TensorInfo& tensor = *checkpoint_.find(program_.weights[index(o.table)].name);
  const WeightView table = LLMINFER_TRY(checkpoint_.read(tensor));
  make(o.out);
  std::int64_t t = 0;
  for (const auto& sequence : sequences_) {
    for (const Token token : sequence) {
      const auto out = std::span(row(o.out, t++), static_cast<std::size_t>(width(o.out)));
      LLMINFER_TRY(unpack_rows(table, token, 1, out));
    }
  }
  checkpoint_.release(tensor);
  return {};
}

Result<std::vector<float>> LayerRun::product(std::span<const float> x, const op::Linear& linear,
                                             const FloatWeights& weights) {
  const WeightSpec& spec = program_.weights[index(linear.weight)];
  const std::int64_t in = spec.cols, out = spec.rows, tokens = static_cast<std::int64_t>(x.size()) / in;
  std::vector<float> y(static_cast<std::size_t>(tokens * out));
  if (tokens == 0) return y;
  const MatrixView w = matrix(weight(weights, linear.weight).data(), out, in);
  LLMINFER_TRY(multiply(team_, matrix(x.data(), tokens, in), w.transposed(), y.data(), out));
  if (linear.bias == WeightId::none) return y;
  const std::vector<float>& bias = weight(weights, linear.bias);
  LLMINFER_TRY(for_rows(team_, tokens, [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t t = first; t < last; ++t) {
      for (std::int64_t n = 0; n < out; ++n)
        y[static_cast<std::size_t>(t * out + n)] += bias[static_cast<std::size_t>(n)];
    }
  }));
  return y;
}

Result<void> LayerRun::apply(const op::Linear& o, const FloatWeights& weights) {
  value(o.out) = LLMINFER_TRY(product(value(o.in), o, weights));
  return {};
}

Result<void> LayerRun::apply(const op::RmsNorm& o, const FloatWeights& weights) {
  make(o.out);
  const float* w = weight(weights, o.weight).data();
  const auto size = static_cast<std::int64_t>(weight(weights, o.weight).size());  // the row's, or a head's
  return for_rows(team_, tokens_, [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t at = first * width(o.in); at < last * width(o.in); at += size) {
      const float* x = row(o.in, 0) + at;
      double squares = 0;
      for (std::int64_t i = 0; i < size; ++i) squares += static_cast<double>(x[i]) * static_cast<double>(x[i]);
      const auto scale =
          static_cast<float>(1 / std::sqrt(squares / static_cast<double>(size) + static_cast<double>(o.epsilon)));
      float* to = row(o.out, 0) + at;
      for (std::int64_t i = 0; i < size; ++i) to[i] = x[i] * scale * w[i];
    }
  });
}

Result<void> LayerRun::apply(const op::Rope& o, const FloatWeights&) {
  const float* input = make_over(o.out, o.in);
  const RopeTable& table = program_.rope_tables[static_cast<std::size_t>(o.table)];
  const auto pairs = static_cast<std::int64_t>(table.inverse_frequency.size());
  std::vector<float> sine(static_cast<std::size_t>(length_ * pairs)), cosine(sine.size());
  for (std::int64_t p = 0; p < length_; ++p) {
    for (std::int64_t i = 0; i < pairs; ++i) {
      const double angle =
          static_cast<double>(p) * static_cast<double>(table.inverse_frequency[static_cast<std::size_t>(i)]);
      const auto at = static_cast<std::size_t>(p * pairs + i);
      sine[at] = static_cast<float>(std::sin(angle)) * table.magnitude;
      cosine[at] = static_cast<float>(std::cos(angle)) * table.magnitude;
    }
  }
  return for_rows(team_, tokens_, [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t t = first; t < last; ++t) {
      const float* from = input + t * width(o.in);
      float* to = row(o.out, t);
      if (from != to) std::copy(from, from + width(o.in), to);
      const float* s = sine.data() + t % length_ * pairs;
      const float* c = cosine.data() + t % length_ * pairs;
      for (std::int64_t head = 0; head < width(o.in); head += o.head_dim) {
        for (std::int64_t i = 0; i < pairs; ++i) {
          const std::int64_t a = head + (table.interleaved ? 2 * i : i);
          const std::int64_t b = head + (table.interleaved ? 2 * i + 1 : i + pairs);
          const float x = from[a], y = from[b];
          to[a] = x * c[i] - y * s[i];
          to[b] = y * c[i] + x * s[i];
        }
      }
    }
  });
}

Result<void> LayerRun::apply(const op::Attention& o, const FloatWeights& weights) {
  make(o.out);
  const std::vector<float>* const sinks = o.sinks == WeightId::none ? nullptr : &weight(weights, o.sinks);
  const auto count = static_cast<std::int64_t>(sequences_.size()) * o.heads;
  std::vector<std::vector<float>> scores(static_cast<std::size_t>(team_.threads()));
  for (auto& s : scores) s.resize(static_cast<std::size_t>(length_ * length_));
  std::atomic<bool> memory{true};
  const int phases[] = {static_cast<int>(count)};
  LLMINFER_TRY(team_.run(phases, [&](int, int chunk, int thread) {
    try {
      const std::int32_t head = chunk % o.heads;
      const float sink = sinks ? (*sinks)[static_cast<std::size_t>(head)] : -std::numeric_limits<float>::infinity();
      attend(o, chunk / o.heads, head, sink, scores[static_cast<std::size_t>(thread)]);
    } catch (const std::bad_alloc&) {
      memory = false;
    }
  }));
  if (!memory) throw std::bad_alloc();
  return {};
}

/// One head on one sequence.
void LayerRun::attend(const op::Attention& o, std::int64_t sequence, std::int32_t head, float sink,
                      std::vector<float>& scores) {
  const CacheGroup& group = program_.cache_groups[static_cast<std::size_t>(o.group)];
  const std::int64_t dim = group.head_dim, first = sequence * length_;
  const std::int64_t kv = std::int64_t{head} * group.kv_heads / o.heads * dim;
  const auto view = [&](ValueId id, std::int64_t offset) {
    return MatrixView{row(id, first) + offset, length_, dim, width(id), 1};
  };
  multiply_here(view(o.q, head * dim), view(o.k, kv).transposed(), scores.data(), length_, false, o.scale);
  for (std::int64_t t = 0; t < length_; ++t) {
    float* s = scores.data() + t * length_;
    const std::int64_t begin = group.window > 0 ? std::max<std::int64_t>(0, t + 1 - group.window) : 0;
    const float best = std::max(sink, *std::max_element(s + begin, s + t + 1));
    float total = std::exp(sink - best);
    for (std::int64_t i = begin; i <= t; ++i) total += s[i] = std::exp(s[i] - best);
    for (std::int64_t i = begin; i <= t; ++i) s[i] /= total;
    std::fill(s, s + begin, 0.0f);
    std::fill(s + t + 1, s + length_, 0.0f);
  }
  multiply_here(matrix(scores.data(), length_, length_), view(o.v, kv), row(o.out, first) + head * dim, width(o.out));
}

Result<void> LayerRun::apply(const op::Glu& o, const FloatWeights&) {
  const float* gate = make_over(o.out, o.gate);
  const float* up = value(o.up).data();
  float* to = value(o.out).data();
  return for_rows(team_, tokens_, [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t i = first * width(o.out); i < last * width(o.out); ++i)
      to[i] = gated(o.activation, gate[i], up[i]);
  });
}

Result<void> LayerRun::apply(const op::Add& o, const FloatWeights&) {
  const float* b = value(o.b).data();
  const float* a = o.a == o.b ? b : make_over(o.out, o.a);
  if (o.a == o.b) make(o.out);
  float* to = value(o.out).data();
  return for_rows(team_, tokens_, [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t i = first * width(o.out); i < last * width(o.out); ++i) to[i] = a[i] + b[i];
  });
}

Result<void> LayerRun::apply(const op::Reduce& o, const FloatWeights&) {  // no checkpoint's program has one
  return core::fail(ErrorCode::unsupported, "value ", program_.values[index(o.out)].name, ": a sum over shards");
}

std::vector<LayerRun::Route> LayerRun::routes(const op::Moe& o) {
  std::vector<Route> routes(o.gate.size());
  std::vector<std::int32_t> chosen(static_cast<std::size_t>(o.used));
  std::vector<float> factors(chosen.size());
  for (std::int64_t t = 0; t < tokens_; ++t) {
    backend::choose_experts(o, row(o.router, t), chosen.data(), factors.data());
    for (std::size_t i = 0; i < chosen.size(); ++i) {
      Route& route = routes[static_cast<std::size_t>(chosen[i])];
      route.tokens.push_back(t);
      route.factors.push_back(factors[i]);
    }
  }
  return routes;
}

Result<void> LayerRun::apply(const op::Moe& o, const FloatWeights&) {
  make(o.out);
  std::fill(value(o.out).begin(), value(o.out).end(), 0.0f);
  const std::vector<Route> routes = this->routes(o);
  for (std::size_t e = 0; e < routes.size(); ++e) LLMINFER_TRY(run_expert(o, expert_of(o, e), routes[e]));
  if (o.shared == ValueId::none) return {};
  return for_rows(team_, tokens_, [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t t = first; t < last; ++t) {
      const float factor = 1 / (1 + std::exp(-*row(o.shared_gate, t)));
      for (std::int64_t i = 0; i < width(o.out); ++i) row(o.out, t)[i] += factor * row(o.shared, t)[i];
    }
  });
}

/// Adds the expert's part of the mixture's output. Without tokens the caller still sees its weights, if it wants to.
Result<void> LayerRun::run_expert(const op::Moe& o, const Expert& expert, const Route& route) {
  if (route.tokens.empty() && !hooks_->on_group) return {};
  FloatWeights weights;
  for (const op::Linear* linear : {&expert.gate, &expert.up, &expert.down}) {
    for (const WeightId id : {linear->weight, linear->bias}) {
      if (id != WeightId::none) weights.emplace(static_cast<std::int32_t>(id), LLMINFER_TRY(load_weight(id)));
    }
  }
  if (hooks_->on_expert) LLMINFER_TRY(hooks_->on_expert(expert, weights));
  const std::int64_t in = width(o.in);
  std::vector<float> x(route.tokens.size() * static_cast<std::size_t>(in));
  for (std::size_t i = 0; i < route.tokens.size(); ++i) {
    std::copy_n(row(o.in, route.tokens[i]), in, x.data() + static_cast<std::int64_t>(i) * in);
  }
  if (hooks_->on_group) {
    const LinearGroup group{o.in, in, {&expert.gate, &expert.up}, nullptr, &expert};
    LLMINFER_TRY(hooks_->on_group(group, x, weights));
  }
  std::vector<float> inner = LLMINFER_TRY(product(x, expert.gate, weights));
  const std::vector<float> up = LLMINFER_TRY(product(x, expert.up, weights));
  const std::int64_t ffn = program_.weights[index(expert.down.weight)].cols;
  LLMINFER_TRY(
      for_rows(team_, static_cast<std::int64_t>(route.tokens.size()), [&](std::int64_t first, std::int64_t last) {
        for (auto i = static_cast<std::size_t>(first * ffn); i < static_cast<std::size_t>(last * ffn); ++i) {
          inner[i] = gated(o.activation, inner[i], up[i]);
        }
      }));
  if (hooks_->on_group) {
    LLMINFER_TRY(hooks_->on_group({ValueId::none, ffn, {&expert.down}, nullptr, &expert}, inner, weights));
  }
  const std::vector<float> y = LLMINFER_TRY(product(inner, expert.down, weights));
  const std::int64_t out = width(o.out);
  for (std::size_t i = 0; i < route.tokens.size(); ++i) {
    float* const to = row(o.out, route.tokens[i]);
    const float* const from = y.data() + static_cast<std::int64_t>(i) * out;
    for (std::int64_t k = 0; k < out; ++k) to[k] += route.factors[i] * from[k];
  }
  return hooks_->on_expert_end ? hooks_->on_expert_end(expert, weights) : Result<void>();
}

Result<std::vector<float>> gram(core::Team& team, std::span<const float> input, std::int64_t width) {
  constexpr std::int64_t kTokens = 4096;  // at once, since the product makes a copy
  std::vector<float> sums(static_cast<std::size_t>(width * width), 0.0f);
  const std::int64_t tokens = static_cast<std::int64_t>(input.size()) / width;
  for (std::int64_t t = 0; t < tokens; t += kTokens) {
    const MatrixView x = matrix(input.data() + t * width, std::min(kTokens, tokens - t), width);
    LLMINFER_TRY(multiply(team, x.transposed(), x, sums.data(), width, true, 1, true));
  }
  for (std::int64_t i = 0; i < width; ++i) {
    for (std::int64_t j = 0; j < i; ++j)
      sums[static_cast<std::size_t>(i * width + j)] = sums[static_cast<std::size_t>(j * width + i)];
  }
  return sums;
}

}  // namespace llminfer::quantize
