// Small random programs, an interpreter of programs in double precision to judge the backend by, and a driver that
// feeds sequences to a plan.
#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <variant>
#include <vector>

#include <llminfer/backend.hpp>
#include <llminfer/program.hpp>
#include <llminfer/weight.hpp>

#include "core/half.hpp"
#include "tests/arch/mixture.hpp"
#include "tests/cpu/random_weight.hpp"
#include "tests/cpu/same_bits.hpp"

namespace llminfer::test {

struct Shape {
  int layers = 2, heads = 6, kv_heads = 2, head_dim = 16, ffn = 96, vocab = 101;
  int hidden = 64;
  int window = 0;
  int rotary_dim = -1;  ///< -1: head_dim
  bool interleaved = false, bias = false, tied = false, sinks = false;
  Activation activation = Activation::silu;
  WeightType type = WeightType::f32;
};

inline ValueId id(std::size_t i) { return static_cast<ValueId>(i); }

/// A Llama-like program of the given shape.
inline Program make_program(const Shape& s) {
  Builder b("test");
  const auto matrix = [&](const std::string& name, int rows, int cols) { return b.weight(name, rows, cols); };
  const auto bias = [&](const std::string& name, int size) { return s.bias ? b.vector(name, size) : WeightId::none; };
  const std::int32_t group = b.cache_group({s.layers, s.kv_heads, s.head_dim, s.window});
  RopeTable table;
  const int rotary = s.rotary_dim < 0 ? s.head_dim : s.rotary_dim;
  for (int i = 0; i < rotary / 2; ++i) {
    table.inverse_frequency.push_back(static_cast<float>(std::pow(10000.0, -2.0 * i / rotary)));
  }
  table.interleaved = s.interleaved;
  table.magnitude = s.interleaved ? 1.25f : 1.0f;
  const std::int32_t rope = b.rope_table(table);
  const int q_width = s.heads * s.head_dim, kv_width = s.kv_heads * s.head_dim;
  const WeightId embedding = matrix("embed", s.vocab, s.hidden);
  ValueId x = b.embed(embedding, "x");
  for (int l = 0; l < s.layers; ++l) {
    const std::string p = "blk." + std::to_string(l) + ".";
    const ValueId n = b.rms_norm(x, b.vector(p + "norm", s.hidden), 1e-5f, p + "n");
    const ValueId q = b.linear(n, matrix(p + "wq", q_width, s.hidden), p + "q", bias(p + "bq", q_width));
    const ValueId k = b.linear(n, matrix(p + "wk", kv_width, s.hidden), p + "k", bias(p + "bk", kv_width));
    const ValueId v = b.linear(n, matrix(p + "wv", kv_width, s.hidden), p + "v", bias(p + "bv", kv_width));
    const ValueId qr = b.rope(q, s.head_dim, rope, p + "qr"), kr = b.rope(k, s.head_dim, rope, p + "kr");
    const float scale = static_cast<float>(1.0 / std::sqrt(s.head_dim));
    const WeightId sinks = s.sinks ? b.vector(p + "sinks", s.heads) : WeightId::none;
    const ValueId a = b.attention(qr, kr, v, group, l, s.heads, scale, p + "a", sinks);
    const ValueId o = b.linear(a, matrix(p + "wo", s.hidden, q_width), p + "o");
    x = b.add(x, o, p + "x1");
    const ValueId m = b.rms_norm(x, b.vector(p + "norm2", s.hidden), 1e-5f, p + "m");
    const ValueId gate = b.linear(m, matrix(p + "wg", s.ffn, s.hidden), p + "g");
    const ValueId up = b.linear(m, matrix(p + "wu", s.ffn, s.hidden), p + "u", bias(p + "bu", s.ffn));
    const ValueId h = b.glu(gate, up, s.activation, p + "h");
    const ValueId d = b.linear(h, matrix(p + "wd", s.hidden, s.ffn), p + "d", bias(p + "bd", s.hidden));
    x = b.add(d, x, p + "x2");
  }
  const ValueId hidden = b.rms_norm(x, b.vector("norm", s.hidden), 1e-5f, "hidden");
  const ValueId logits = b.linear(hidden, s.tied ? embedding : matrix("head", s.vocab, s.hidden), "logits");
  return std::move(b).finish(hidden, logits).value();
}

/// A program with weights: their bytes, and their exact values.
struct Model {
  Program program;
  std::vector<WeightType> types;
  std::vector<std::shared_ptr<std::vector<std::byte>>> data;
  std::vector<std::vector<float>> values;
  std::vector<WeightDetails> details;

  WeightView view(std::size_t i) const {
    const WeightSpec& spec = program.weights[i];
    return {spec.name, types[i], spec.rows, spec.cols, *data[i], data[i], details[i]};
  }
  /// Gives a weight these details, and the values that it has with them.
  void set_details(std::size_t i, WeightDetails of_weight) {
    details[i] = std::move(of_weight);
    unpack_rows(view(i), 0, program.weights[i].rows, values[i]).value();
  }
  /// Gives a weight another type, bytes and details.
  void set_weight(std::size_t i, RandomWeight w) {
    types[i] = w.type;
    data[i] = std::make_shared<std::vector<std::byte>>(std::move(w.bytes));
    set_details(i, std::move(w.details));
  }
  /// Has the weights whose name ends so take their input rounded.
  void round_inputs(const std::string& ending, const InputQuantization& how) {
    for (std::size_t i = 0; i < program.weights.size(); ++i) {
      if (program.weights[i].name.ends_with(ending)) details[i].input = how;
    }
  }
  /// Gives a weight its columns in an order of the seed's.
  void order_columns(std::size_t i, unsigned seed) {
    std::vector<std::int32_t> order(static_cast<std::size_t>(program.weights[i].cols));
    std::iota(order.begin(), order.end(), 0);
    std::shuffle(order.begin(), order.end(), std::mt19937(seed));
    WeightDetails of_weight = details[i];
    of_weight.permutation = std::make_shared<const std::vector<std::int32_t>>(std::move(order));
    set_details(i, std::move(of_weight));
  }
  /// Those of most matrices: some in the same order, some in one of their own, some in the usual one.
  void order_columns() {
    for (std::size_t i = 0; i < program.weights.size(); ++i) {
      if (program.weights[i].rows > 1 && i % 4 != 3) order_columns(i, i % 4 == 2 ? static_cast<unsigned>(i) : 7);
    }
  }
  /// Gives a vector other elements.
  void set_vector(const std::string& name, const std::vector<float>& elements) {
    std::size_t i = 0;
    while (program.weights[i].name != name) ++i;
    std::memcpy(data[i]->data(), elements.data(), elements.size() * sizeof(float));
    values[i] = elements;
  }
};

/// Random weights. Blocks of q8_0, q4_0, q4_1 and fp8 are random codes under scales that make elements of about 1 /
/// sqrt(cols).
inline Model make_model(Program program, WeightType type, std::uint32_t seed = 1) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  Model m;
  m.program = std::move(program);
  for (const WeightSpec& spec : m.program.weights) {
    const bool vector = spec.rows == 1;
    const WeightType t = vector ? WeightType::f32 : type;
    const WeightTypeInfo info = weight_type_info(t);
    const auto count = static_cast<std::size_t>(spec.rows * spec.cols);
    auto bytes = std::make_shared<std::vector<std::byte>>(count / info.block_values * info.block_bytes);
    const float size = 1.0f / std::sqrt(static_cast<float>(spec.cols));
    if (t == WeightType::f32) {
      for (std::size_t i = 0; i < count; ++i) {
        const float x = vector ? 1.0f + 0.1f * normal(random) : normal(random) * size;
        std::memcpy(bytes->data() + i * 4, &x, 4);
      }
    } else if (t == WeightType::bf16) {
      for (std::size_t i = 0; i < count; ++i) {
        const std::uint16_t x = core::float_to_bfloat(normal(random) * size);
        std::memcpy(bytes->data() + i * 2, &x, 2);
      }
    } else {
      for (std::byte& b : *bytes) b = static_cast<std::byte>(random());
      for (std::size_t block = 0; block < bytes->size(); block += info.block_bytes) {
        const auto put = [&](std::size_t offset, float x) {
          const std::uint16_t h = core::float_to_half(x);
          std::memcpy(bytes->data() + block + offset, &h, 2);
        };
        // Standard deviation of a uniform code.
        const float codes = t == WeightType::q8_0 ? 74.0f : t == WeightType::fp8 ? 104.0f : 4.6f;
        const float scale = size / codes * (0.5f + static_cast<float>(random() % 1000) / 1000.0f);
        if (t == WeightType::fp8) {
          std::memcpy(bytes->data() + block, &scale, sizeof scale);
          for (std::size_t i = block + 4; i < block + 36; ++i) {  // no NaN
            if (((*bytes)[i] & std::byte{0x7f}) == std::byte{0x7f}) (*bytes)[i] ^= std::byte{1};
          }
          continue;
        }
        put(0, scale);
        if (t == WeightType::q4_1) put(2, -7.5f * scale);
      }
    }
    m.types.push_back(t);
    m.data.push_back(std::move(bytes));
    m.values.emplace_back(count);
    m.details.emplace_back();
    unpack_rows(m.view(m.data.size() - 1), 0, spec.rows, m.values.back()).value();
  }
  return m;
}

/// Makes `count` numbers, `stride` apart, what an int4 cache keeps of them: multiples of a scale above a minimum, both
/// of 8 significant bits, the minimum rounded down.
inline void round_to_4_bits(double* x, std::size_t count, std::size_t stride) {
  const auto to_8_bits = [](double value, double (*rounding)(double)) {
    int exponent = 0;
    const double fraction = std::frexp(value, &exponent);
    return std::ldexp(rounding(std::ldexp(fraction, 8)), exponent - 8);
  };
  double low = x[0], high = x[0];
  for (std::size_t i = 0; i < count; ++i) low = std::min(low, x[i * stride]), high = std::max(high, x[i * stride]);
  low = to_8_bits(low, std::floor);
  const double scale = to_8_bits((high - low) / 15, std::nearbyint);
  for (std::size_t i = 0; i < count; ++i) {
    double& value = x[i * stride];
    value = scale * std::clamp(std::floor((value - low) / scale + 0.5), 0.0, 15.0) + low;
  }
}

/// What inputs whose largest magnitude is `most` are divided by before they are rounded to E4M3.
inline float e4m3_scale(const InputQuantization& how, float most) {
  if (!how.dynamic) return how.scale;
  const float scale = std::min(most, how.limit) / 448.0f;
  return how.powers ? std::exp2(std::ceil(std::log2(scale))) : scale;
}

/// What a program gives for one sequence from its start: [tokens, width] of each value, in double precision.
class Oracle {
 public:
  /// `int4`: a token sees the pages before its own in 4 bits.
  Oracle(const Model& model, const std::vector<std::int32_t>& tokens, bool int4 = false)
      : m_(model), tokens_(tokens), int4_(int4) {
    values_.resize(m_.program.values.size());
    for (const Op& op : m_.program.ops) {
      std::visit([&](const auto& o) { run(o); }, op);
    }
  }
  const std::vector<double>& value(ValueId id) const { return values_[static_cast<std::size_t>(id)]; }
  const std::vector<double>& logits() const { return value(m_.program.logits); }
  const std::vector<double>& hidden() const { return value(m_.program.hidden); }

 private:
  std::size_t width(ValueId id) const {
    return static_cast<std::size_t>(m_.program.values[static_cast<std::size_t>(id)].width);
  }
  const std::vector<float>& weight(WeightId id) const { return m_.values[static_cast<std::size_t>(id)]; }
  /// `x` as the weight takes it; of the roundings to int8 only those with a scale of its own.
  std::vector<double> input_of(WeightId id, const double* x, std::size_t size) const {
    std::vector<double> taken(x, x + size);
    const InputQuantization& how = m_.details[static_cast<std::size_t>(id)].input;
    if (how.kind == InputQuantization::Kind::none) return taken;
    if (how.kind == InputQuantization::Kind::int8) {
      for (double& f : taken) {
        f = how.scale * (std::clamp(std::nearbyint(f / how.scale + how.zero), -128.0, 127.0) - how.zero);
      }
      return taken;
    }
    const std::size_t group = how.dynamic && how.group > 0 ? static_cast<std::size_t>(how.group) : size;
    for (std::size_t begin = 0; begin < size; begin += group) {
      const std::size_t end = std::min(begin + group, size);
      double most = 0;
      for (std::size_t i = begin; i < end; ++i) most = std::max(most, std::abs(taken[i]));
      const double scale = e4m3_scale(how, static_cast<float>(most));
      for (std::size_t i = begin; i < end && scale > 0; ++i) {
        taken[i] = scale * core::e4m3_to_float(core::float_to_e4m3(static_cast<float>(taken[i] / scale)));
      }
    }
    return taken;
  }
  std::vector<double>& make(ValueId id) {
    auto& v = values_[static_cast<std::size_t>(id)];
    v.assign(tokens_.size() * width(id), 0.0);
    return v;
  }

  void run(const op::Embed& o) {
    auto& out = make(o.out);
    const std::size_t n = width(o.out);
    for (std::size_t t = 0; t < tokens_.size(); ++t) {
      for (std::size_t i = 0; i < n; ++i)
        out[t * n + i] = weight(o.table)[static_cast<std::size_t>(tokens_[t]) * n + i];
    }
  }
  void run(const op::Linear& o) {
    auto& out = make(o.out);
    const auto& in = value(o.in);
    const std::size_t n = width(o.out), k = width(o.in);
    for (std::size_t t = 0; t < tokens_.size(); ++t) {
      const std::vector<double> x = input_of(o.weight, &in[t * k], k);
      for (std::size_t i = 0; i < n; ++i) {
        double sum = o.bias == WeightId::none ? 0.0 : weight(o.bias)[i];
        for (std::size_t j = 0; j < k; ++j) sum += x[j] * weight(o.weight)[i * k + j];
        out[t * n + i] = sum;
      }
    }
  }
  void run(const op::RmsNorm& o) {
    auto& out = make(o.out);
    const auto& in = value(o.in);
    const std::size_t n = weight(o.weight).size();
    for (std::size_t at = 0; at < in.size(); at += n) {
      double sum = 0;
      for (std::size_t i = 0; i < n; ++i) sum += in[at + i] * in[at + i];
      const double factor = 1.0 / std::sqrt(sum / static_cast<double>(n) + o.epsilon);
      for (std::size_t i = 0; i < n; ++i) out[at + i] = in[at + i] * factor * weight(o.weight)[i];
    }
  }
  void run(const op::Rope& o) {
    auto& out = make(o.out);
    out = value(o.in);
    const RopeTable& table = m_.program.rope_tables[static_cast<std::size_t>(o.table)];
    const std::size_t n = width(o.out), pairs = table.inverse_frequency.size(),
                      dim = static_cast<std::size_t>(o.head_dim);
    for (std::size_t t = 0; t < tokens_.size(); ++t) {
      for (std::size_t head = 0; head < n; head += dim) {
        for (std::size_t i = 0; i < pairs; ++i) {
          const std::size_t a = t * n + head + (table.interleaved ? 2 * i : i);
          const std::size_t b = table.interleaved ? a + 1 : a + pairs;
          const double angle = static_cast<double>(t) * table.inverse_frequency[i];
          const double c = std::cos(angle) * table.magnitude, s = std::sin(angle) * table.magnitude;
          const double x = out[a], y = out[b];
          out[a] = x * c - y * s;
          out[b] = x * s + y * c;
        }
      }
    }
  }
  void run(const op::Attention& o) {
    auto& out = make(o.out);
    const auto &q = value(o.q), &k = value(o.k), &v = value(o.v);
    const CacheGroup& g = m_.program.cache_groups[static_cast<std::size_t>(o.group)];
    const auto dim = static_cast<std::size_t>(g.head_dim), heads = static_cast<std::size_t>(o.heads);
    const auto kv_heads = static_cast<std::size_t>(g.kv_heads);
    std::vector<double> sealed_k = k, sealed_v = v;
    const std::size_t row = kv_heads * dim;
    for (std::size_t page = 0; int4_ && page + kPageTokens <= tokens_.size(); page += kPageTokens) {
      for (std::size_t i = 0; i < row; ++i) round_to_4_bits(&sealed_k[page * row + i], kPageTokens, row);
      for (std::size_t i = 0; i < kPageTokens * kv_heads; ++i) {
        round_to_4_bits(&sealed_v[page * row + i * dim], dim, 1);
      }
    }
    for (std::size_t t = 0; t < tokens_.size(); ++t) {
      const auto window = static_cast<std::size_t>(g.window);
      const std::size_t first = window > 0 && t + 1 > window ? t + 1 - window : 0;
      for (std::size_t h = 0; h < heads; ++h) {
        const std::size_t kh = h * kv_heads / heads, own = t / kPageTokens * kPageTokens;
        std::vector<double> p;
        double highest = -1e300, total = 0;
        for (std::size_t s = first; s <= t; ++s) {
          double dot = 0;
          const std::vector<double>& keys = s < own ? sealed_k : k;
          for (std::size_t i = 0; i < dim; ++i) {
            dot += q[(t * heads + h) * dim + i] * keys[(s * kv_heads + kh) * dim + i];
          }
          p.push_back(dot * o.scale);
          highest = std::max(highest, p.back());
        }
        if (o.sinks != WeightId::none) total = std::exp(static_cast<double>(weight(o.sinks)[h]) - highest);
        for (double& x : p) total += x = std::exp(x - highest);
        for (std::size_t s = first; s <= t; ++s) {
          const std::vector<double>& values = s < own ? sealed_v : v;
          for (std::size_t i = 0; i < dim; ++i) {
            out[(t * heads + h) * dim + i] += p[s - first] / total * values[(s * kv_heads + kh) * dim + i];
          }
        }
      }
    }
  }
  void run(const op::Glu& o) {
    auto& out = make(o.out);
    const auto &gate = value(o.gate), &up = value(o.up);
    for (std::size_t i = 0; i < out.size(); ++i) out[i] = gated(o.activation, gate[i], up[i]);
  }
  void run(const op::Add& o) {
    auto& out = make(o.out);
    for (std::size_t i = 0; i < out.size(); ++i) out[i] = value(o.a)[i] + value(o.b)[i];
  }

  void run(const op::Reduce& o) { make(o.out) = value(o.in); }  // one shard
  void run(const op::Moe& o) {
    auto& out = make(o.out);
    const std::size_t n = width(o.out);
    for (std::size_t t = 0; t < tokens_.size(); ++t) {
      add_mixture(
          o, m_.program, [&](WeightId id) { return weight(id).data(); }, &value(o.in)[t * n],
          &value(o.router)[t * width(o.router)], &out[t * n],
          [&](WeightId id, const double* x, std::size_t size) { return input_of(id, x, size); });
      for (std::size_t i = 0; o.shared != ValueId::none && i < n; ++i) {
        out[t * n + i] += value(o.shared)[t * n + i] / (1 + std::exp(-value(o.shared_gate)[t]));
      }
    }
  }

  const Model& m_;
  const std::vector<std::int32_t>& tokens_;
  const bool int4_;
  std::vector<std::vector<double>> values_;
};

/// Normalized mean squared error.
inline double nmse(const std::vector<float>& found, const std::vector<double>& expected) {
  double error = 0, power = 0;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    error += (found[i] - expected[i]) * (found[i] - expected[i]);
    power += expected[i] * expected[i];
  }
  return found.size() == expected.size() ? error / power : 1e9;
}

/// Of the errors of single tokens the median: a value that is rounded the other way spoils few.
inline double median_nmse(const std::vector<float>& found, const std::vector<double>& expected, std::size_t width) {
  std::vector<double> errors;
  for (std::size_t at = 0; at < std::min(found.size(), expected.size()); at += width) {
    const auto first = static_cast<std::ptrdiff_t>(at), last = static_cast<std::ptrdiff_t>(at + width);
    errors.push_back(
        nmse({found.begin() + first, found.begin() + last}, {expected.begin() + first, expected.begin() + last}));
  }
  const auto middle = errors.begin() + static_cast<std::ptrdiff_t>(errors.size() / 2);
  std::nth_element(errors.begin(), middle, errors.end());
  return *middle;
}

/// A sequence in a Driver's caches.
struct Sequence {
  std::vector<std::vector<std::int32_t>> tables;  ///< per cache group
  std::int32_t position = 0;
};

struct Feed {
  Sequence* sequence;
  std::vector<std::int32_t> tokens;
};

/// Runs a model on a backend with caches of its own.
struct Driver {
  std::shared_ptr<Backend> backend;
  const Model& model;
  std::unique_ptr<Plan> plan;
  std::vector<std::unique_ptr<CacheStorage>> caches;
  std::vector<CacheStorage*> cache_pointers;
  std::vector<std::int32_t> free_pages;  ///< taken from the back
  std::vector<std::shared_ptr<const PreparedWeight>> weights;

  Driver(const Model& m, const BackendOptions& options, CacheType cache, std::int32_t max_rows = 256,
         std::int32_t pages = 40, std::uint32_t shuffle = 0)
      : Driver(m, make_cpu_backend(options).value(), cache, max_rows, pages, shuffle) {}
  /// `later`: weights are prepared by the passes.
  Driver(const Model& m, std::shared_ptr<Backend> b, CacheType cache, std::int32_t max_rows = 256,
         std::int32_t pages = 40, std::uint32_t shuffle = 0, bool later = false)
      : backend(std::move(b)), model(m) {
    for (std::size_t i = 0; i < m.types.size(); ++i) {
      weights.push_back((later ? backend->prepare_later(m.view(i), {}) : backend->prepare(m.view(i))).value());
    }
    plan = backend->compile(m.program, weights, {max_rows}).value();
    for (const CacheGroup& group : m.program.cache_groups) {
      caches.push_back(backend->make_cache(group, cache, pages).value());
      cache_pointers.push_back(caches.back().get());
    }
    for (std::int32_t i = pages; i-- > 0;) free_pages.push_back(i);
    if (shuffle) std::shuffle(free_pages.begin(), free_pages.end(), std::mt19937(shuffle));
  }

  void grow(Sequence& s, std::int32_t tokens) {
    const auto pages = static_cast<std::size_t>((s.position + tokens + kPageTokens - 1) / kPageTokens);
    s.tables.resize(caches.size());
    while (s.tables.size() && s.tables[0].size() < pages) {
      for (auto& table : s.tables) table.push_back(free_pages.back());
      free_pages.pop_back();
    }
  }

  /// One pass over all feeds; the logits of every row.
  std::vector<float> forward(const std::vector<Feed>& feeds) {
    std::vector<std::int32_t> tokens, positions, wanted;
    std::vector<Run> runs;
    for (const Feed& feed : feeds) {
      const auto count = static_cast<std::int32_t>(feed.tokens.size());
      grow(*feed.sequence, count);
      Run run{static_cast<std::int32_t>(tokens.size()), count, feed.sequence->position, {}};
      for (const auto& table : feed.sequence->tables) run.block_tables.emplace_back(table);
      runs.push_back(run);
      for (const std::int32_t token : feed.tokens) {
        wanted.push_back(static_cast<std::int32_t>(tokens.size()));
        tokens.push_back(token);
        positions.push_back(feed.sequence->position++);
      }
    }
    std::vector<float> logits(tokens.size() * static_cast<std::size_t>(model.program.vocab_size));
    Batch batch;
    batch.tokens = tokens;
    batch.positions = positions;
    batch.runs = runs;
    batch.logit_rows = wanted;
    batch.logits = logits;
    plan->submit(batch, cache_pointers).value();
    plan->wait().value();
    return logits;
  }

  /// The logits of every token of a fresh sequence that is fed in chunks of these sizes, in turn.
  std::vector<float> feed(const std::vector<std::int32_t>& tokens, const std::vector<std::int32_t>& chunks) {
    Sequence s;
    std::vector<float> all;
    for (std::size_t at = 0, i = 0; at < tokens.size(); ++i) {
      const std::size_t n = std::min(tokens.size() - at, static_cast<std::size_t>(chunks[i % chunks.size()]));
      const auto begin = tokens.begin() + static_cast<std::ptrdiff_t>(at);
      const std::vector<float> some = forward({{&s, {begin, begin + static_cast<std::ptrdiff_t>(n)}}});
      all.insert(all.end(), some.begin(), some.end());
      at += n;
    }
    return all;
  }
};

inline std::vector<std::int32_t> random_tokens(std::size_t count, std::int64_t vocab, std::uint32_t seed = 7) {
  std::mt19937 random(seed);
  std::vector<std::int32_t> tokens(count);
  for (auto& token : tokens) token = static_cast<std::int32_t>(random() % static_cast<std::uint32_t>(vocab));
  return tokens;
}

/// A batch over one fresh sequence of `tokens`, with all outputs; tests then spoil it.
struct Parts {
  std::vector<std::int32_t> tokens, positions, wanted, table;
  std::vector<Run> runs;
  std::vector<float> logits, hidden;
  Batch batch;

  Parts(const Model& model, std::int32_t count, std::int32_t pages = 3)
      : tokens(random_tokens(static_cast<std::size_t>(count), model.program.vocab_size)) {
    for (std::int32_t i = 0; i < count; ++i) positions.push_back(i), wanted.push_back(i);
    for (std::int32_t i = 0; i < pages; ++i) table.push_back(i);
    runs.push_back({0, count, 0, {std::span<const std::int32_t>(table)}});
    logits.resize(static_cast<std::size_t>(count * model.program.vocab_size));
    hidden.resize(static_cast<std::size_t>(count * model.program.hidden_size));
    batch.tokens = tokens;
    batch.positions = positions;
    batch.runs = runs;
    batch.logit_rows = wanted;
    batch.hidden_rows = wanted;
    batch.logits = logits;
    batch.hidden = hidden;
  }
};

inline Result<void> pass(Driver& driver, const Batch& batch) {
  auto submitted = driver.plan->submit(batch, driver.cache_pointers);
  if (!submitted) return submitted;
  return driver.plan->wait();
}

}  // namespace llminfer::test
