// Programs on the emulated GPU backend against the double-precision interpreter: shapes, cache types, ragged batches,
// outputs, pages, and what can go wrong.
#include <catch2/catch.hpp>

#include <cmath>
#include <limits>
#include <utility>

#include "tests/cpu/model.hpp"
#include "tests/gpu/machines.hpp"

using namespace llminfer;
using namespace llminfer::test;

namespace {

constexpr Shape kGrouped{.layers = 1, .heads = 6, .kv_heads = 2, .head_dim = 32, .ffn = 128};
constexpr CacheType kCacheTypes[] = {CacheType::f16,  CacheType::f32,  CacheType::bf16,
                                     CacheType::int8, CacheType::int4, CacheType::fp8};

/// Grouped heads, windows, odd widths, biases, interleaved and partial rotations, tied embeddings, all activations.
std::vector<Shape> shapes() {
  std::vector<Shape> all;
  all.push_back({});
  all.push_back(
      {.layers = 1, .heads = 4, .kv_heads = 4, .head_dim = 8, .window = 70, .interleaved = true, .tied = true});
  all.push_back({.layers = 1, .heads = 3, .kv_heads = 1, .head_dim = 21, .ffn = 33, .rotary_dim = 10, .bias = true});
  all.push_back({.layers = 1,
                 .heads = 8,
                 .kv_heads = 2,
                 .head_dim = 80,
                 .vocab = 33,
                 .bias = true,
                 .activation = Activation::gelu});
  all.push_back({.layers = 1,
                 .heads = 20,
                 .kv_heads = 2,
                 .head_dim = 128,
                 .hidden = 96,
                 .window = 5,
                 .activation = Activation::gelu_tanh});
  all.push_back({.layers = 1, .heads = 2, .kv_heads = 1, .head_dim = 264, .ffn = 32});
  all.push_back({.layers = 1, .window = 70, .sinks = true, .activation = Activation::clamped_swiglu});
  return all;
}

double error_of(const Model& model, std::shared_ptr<Backend> backend, CacheType cache,
                const std::vector<std::int32_t>& chunks, std::size_t count) {
  const auto tokens = random_tokens(count, model.program.vocab_size);
  Driver driver(model, std::move(backend), cache, 256, 40, 5);
  return nmse(driver.feed(tokens, chunks), Oracle(model, tokens, cache == CacheType::int4).logits());
}

}  // namespace

TEST_CASE("A plan equals the interpreter") {
  const Model model = make_model(make_program({.layers = 1, .heads = 4, .kv_heads = 2, .window = 40}), WeightType::f32);
  CHECK(error_of(model, make_machine_backend(), CacheType::f32, {20, 1, 30, 2}, 75) < 1e-6);
  CHECK(error_of(model, make_machine_backend(), CacheType::f16, {20, 1, 30, 2}, 75) < 1e-5);
}

TEST_CASE("Many rows are multiplied by warpgroups where the device has them, unless they shall not be") {
  const Model model = make_model(make_program({.layers = 1, .heads = 4, .kv_heads = 2, .ffn = 160}), WeightType::q4_0);
  const auto tokens = random_tokens(100, model.program.vocab_size);
  const auto logits = [&](const GpuOptions& options) {
    Driver driver(model, gpu::make_backend(make_machine(), options), CacheType::f16, 256, 40, 5);
    return driver.feed(tokens, {100});
  };
  const auto expected = Oracle(model, tokens, false).logits();
  const auto with = logits({}), without = logits({.warpgroups = false}), invariant = logits({.batch_invariant = true});
  CHECK(nmse(with, expected) < 1e-5);
  CHECK(nmse(without, expected) < 1e-5);
  const bool has = make_machine()->info().warpgroups;
  if (!has) CHECK(same_bits(with, without));
#ifndef LLMINFER_TEST_GPU  // whose two units may sum in the same order
  if (has) CHECK_FALSE(same_bits(with, without));
#endif
  CHECK(same_bits(invariant, logits({.batch_invariant = true, .warpgroups = false})));
}

// Of a layer so wide that blocks share its tiles by columns.
TEST_CASE("Batch-invariant passes give the same bits however a prompt is cut, also where sums are added in parts") {
  static_assert(gpu::column_splits(64, 1056) > 1);
  static_assert(gpu::column_splits(64, 1000) == 1 && gpu::column_splits(64, 1024) > 1);  // 1000 columns are padded
  for (const auto& [ffn, type] : {std::pair(1056, WeightType::q4_0), {1000, WeightType::f32}}) {
    const Model model = make_model(make_program({.layers = 1, .heads = 4, .kv_heads = 2, .ffn = ffn}), type);
    const auto tokens = random_tokens(70, model.program.vocab_size);
    const auto logits = [&](bool invariant, const std::vector<std::int32_t>& chunks) {
      Driver driver(model, gpu::make_backend(make_machine(), {.batch_invariant = invariant}), CacheType::f16, 256, 40,
                    5);
      return driver.feed(tokens, chunks);
    };
    const auto expected = Oracle(model, tokens, false).logits();
    const auto all = logits(true, {70});
    CHECK(nmse(all, expected) < 1e-5);
    CHECK(same_bits(all, logits(true, {1, 20, 1, 40, 8})));
    CHECK(nmse(logits(false, {20, 50}), expected) < 1e-5);
  }
}

TEST_CASE("Gate and up whose codes stand for numbers of different tables") {
  Model model = make_model(make_program({.layers = 1, .heads = 4, .kv_heads = 2}), WeightType::iq4_nl);
  for (std::size_t i = 0; i < model.types.size(); ++i) {
    const WeightSpec& spec = model.program.weights[i];
    if (!spec.name.ends_with("wu")) continue;
    model.types[i] = WeightType::mxfp4;
    model.data[i] = std::make_shared<std::vector<std::byte>>(static_cast<std::size_t>(spec.rows * spec.cols / 32 * 17));
    for (std::size_t at = 0; at < model.data[i]->size(); ++at) {
      (*model.data[i])[at] = at % 17 == 0 ? std::byte{123} : static_cast<std::byte>(at * 37);  // an exponent, codes
    }
    model.set_details(i, {});
  }
  CHECK(error_of(model, make_machine_backend(), CacheType::f16, {1, 1, 20}, 22) < 1e-5);
}

// Of one row, of few and of many; the embeddings' table is a layer, too.
TEST_CASE("Weights on the GPU whose columns are in an order of their own") {
  const Shape shape{.layers = 1, .heads = 4, .kv_heads = 2, .ffn = 96, .bias = true, .tied = true};
  for (const WeightType type : {WeightType::q4_0, WeightType::q8_0, WeightType::f32}) {
    Model model = make_model(make_program(shape), type);
    model.order_columns();
    for (const Machine& machine : machines(static_cast<std::uint64_t>(type))) {
      CAPTURE(weight_type_info(type).name, machine.name);
      CHECK(error_of(model, make_machine_backend(machine.options), CacheType::f32, {1, 2, 70, 1}, 74) < 1e-5);
    }
    const WeightSpec& spec = model.program.weights[0];  // the table
    const auto bytes = [&](const WeightDetails& details) {
      return make_machine_backend()->prepared_bytes(type, spec.rows, spec.cols, details);
    };
    CHECK(bytes(model.details[0]) - bytes({}) == (type == WeightType::f32 ? 0 : (spec.cols * 4 + 255) / 256 * 256));
  }
}

TEST_CASE("An order of columns on the GPU beside inputs that are rounded, each its own scale or in groups") {
  for (const int group : {0, 32}) {
    Model model = make_model(make_program({.layers = 1, .heads = 4, .kv_heads = 2, .ffn = 96}), WeightType::q4_0);
    model.order_columns();
    const auto tokens = random_tokens(40, model.program.vocab_size);
    const std::vector<double> unrounded = Oracle(model, tokens).logits();
    model.round_inputs("wd", {InputQuantization::Kind::fp8, true, group});
    model.round_inputs("wo", {InputQuantization::Kind::fp8, true, group});
    const std::vector<double> rounded = Oracle(model, tokens).logits();
    const auto vocab = static_cast<std::size_t>(model.program.vocab_size);
    Driver driver(model, make_machine_backend(), CacheType::f32);
    const auto logits = driver.feed(tokens, {1, 25, 9, 5});
    CHECK(median_nmse(logits, unrounded, vocab) > 20 * median_nmse(logits, rounded, vocab));
    CHECK(median_nmse(logits, rounded, vocab) < 1e-4);
  }
}

TEST_CASE("All shapes on all machines", "[.slow]") {
  const auto all = shapes();
  for (std::size_t i = 0; i < all.size(); ++i) {
    const Model model = make_model(make_program(all[i]), WeightType::f32, static_cast<std::uint32_t>(i + 1));
    const std::vector<Machine> machines_now = machines(i + 11);
    for (std::size_t m = 0; m < machines_now.size(); ++m) {
      const Machine& machine = machines_now[m];
      CAPTURE(i, machine.name);
      const auto error = [&](CacheType type, const std::vector<std::int32_t>& chunks) {
        return error_of(model, make_machine_backend(machine.options), type, chunks, 150);
      };
      CHECK(error(CacheType::f16, {100, 1, 1, 9, 39}) < 1e-5);
      if (m != i % machines_now.size()) continue;  // the others differ in nothing that knows the kind of machine
      CHECK(error(CacheType::f32, {100, 1, 1, 9, 39}) < 1e-5);
      CHECK(error(CacheType::bf16, {64, 86}) < 1e-4);
      CHECK(error(CacheType::int8, {64, 86}) < 1e-3);
      CHECK(error(CacheType::int4, {60, 1, 89}) < 1e-3);
      CHECK(error(CacheType::fp8, {64, 86}) < 1e-2);
    }
  }
}

TEST_CASE("A batch of many sequences gives each what it would have alone") {
  const Model model =
      make_model(make_program({.layers = 1, .heads = 2, .kv_heads = 1, .head_dim = 16, .ffn = 32, .window = 30}),
                 WeightType::q4_0);
  const auto a = random_tokens(70, 101, 1), b = random_tokens(23, 101, 2), c = random_tokens(40, 101, 3);
  const auto slice = [](const std::vector<std::int32_t>& v, std::size_t from, std::size_t to) {
    return std::vector<std::int32_t>(v.begin() + static_cast<std::ptrdiff_t>(from),
                                     v.begin() + static_cast<std::ptrdiff_t>(to));
  };
  for (const bool invariant : {false, true}) {
    const auto run = [&](bool together) {
      Driver driver(model, make_machine_backend({}, invariant), CacheType::f16, 256, 40, together ? 3 : 0);
      Sequence sa, sb, sc;
      std::vector<std::vector<Feed>> passes;
      if (together) {
        passes = {{{&sa, slice(a, 0, 50)}, {&sb, slice(b, 0, 3)}},
                  {{&sc, slice(c, 0, 39)}, {&sa, slice(a, 50, 69)}, {&sb, slice(b, 3, 22)}},
                  {{&sb, slice(b, 22, 23)}, {&sc, slice(c, 39, 40)}, {&sa, slice(a, 69, 70)}}};
      } else {
        passes = {{{&sa, a}}, {{&sb, b}}, {{&sc, c}}};
      }
      std::vector<std::vector<float>> last;
      for (const auto& feeds : passes) {
        const auto logits = driver.forward(feeds);
        std::size_t row = 0;
        for (const Feed& feed : feeds) {
          row += feed.tokens.size();
          if (together && feed.tokens.size() != 1) continue;
          last.emplace_back(logits.begin() + static_cast<std::ptrdiff_t>((row - 1) * 101),
                            logits.begin() + static_cast<std::ptrdiff_t>(row * 101));
        }
      }
      if (together) std::rotate(last.begin(), last.begin() + 2, last.end());  // a, b, c
      return last;
    };
    const auto alone = run(false), together = run(true);
    REQUIRE(alone.size() == together.size());
    for (std::size_t i = 0; i < alone.size(); ++i) {
      CAPTURE(i, invariant);
      if (invariant) {
        CHECK(same_bits(alone[i], together[i]));
      } else {
        CHECK(nmse(together[i], std::vector<double>(alone[i].begin(), alone[i].end())) < 1e-5);
      }
    }
  }
}

TEST_CASE("A long context is split over blocks") {
  const Model model =
      make_model(make_program({.layers = 1, .heads = 2, .kv_heads = 1, .head_dim = 16, .ffn = 32}), WeightType::f32);
  gpu::EmulatorOptions options;
  options.units = 64;
  CHECK(error_of(model, make_machine_backend(options), CacheType::f32, {128, 128, 4, 1}, 262) < 1e-6);
}

// One key's score is 10.5 above those of 239 others, whose weights together are 0.0066 of its own.
TEST_CASE("Keys count whose weights are far smaller than the largest, on all machines") {
  Builder b("keys");
  const std::int32_t group = b.cache_group({1, 1, 8, 0});
  const ValueId x = b.embed(b.weight("embed", 8, 8), "x");
  const auto layer = [&](const char* name) { return b.linear(x, b.weight(name, 8, 8), name); };
  const ValueId q = layer("q"), k = layer("k"), v = layer("v");
  const ValueId a = b.attention(q, k, v, group, 0, 1, 1.0f, "a");
  Model model = make_model(std::move(b).finish(a, a).value(), WeightType::f32);
  const auto matrix = [](const std::vector<std::pair<std::size_t, float>>& elements) {
    std::vector<float> all(64);
    for (const auto& [at, x] : elements) all[at] = x;
    return all;
  };
  model.set_vector("embed", matrix({{0, 1.0f}, {9, 1.0f}}));
  model.set_vector("q", matrix({{0, 1.0f}, {1, 1.0f}}));
  model.set_vector("k", matrix({{0, 10.5f}}));
  model.set_vector("v", matrix({{0, 1.0f}, {9, 1.0f}}));
  std::vector<std::int32_t> tokens(240, 1);
  tokens[0] = 0;
  const auto expected = Oracle(model, tokens, false).logits();
  for (const Machine& machine : machines(9)) {
    CAPTURE(machine.name);
    Driver driver(model, make_machine_backend(machine.options), CacheType::f16, 256, 40);
    const auto found = driver.feed(tokens, {240});
    CHECK(found.back() == 0.0f);
    CHECK(std::abs(found[239 * 8 + 1] / expected[239 * 8 + 1] - 1) < 1e-3);
  }
}

TEST_CASE("Attention sinks on the GPU: in tiles, in rows, and where the keys are split") {
  Model model =
      make_model(make_program({.layers = 1, .heads = 4, .kv_heads = 2, .head_dim = 16, .ffn = 32, .sinks = true}),
                 WeightType::f32);
  model.set_vector("blk.0.sinks", {-200.0f, 0.5f, 4.0f, 200.0f});  // as if there were none, and the whole sum
  gpu::EmulatorOptions options;
  options.units = 64;
  CHECK(error_of(model, make_machine_backend(options), CacheType::f16, {90, 10, 1, 30, 1}, 142) < 1e-5);
  CHECK(error_of(model, make_machine_backend(options, true), CacheType::f32, {90, 10, 1}, 142) < 1e-6);
}

TEST_CASE("A long context is split over blocks alike in every batch", "[.slow]") {
  const Model model =
      make_model(make_program({.layers = 1, .heads = 2, .kv_heads = 1, .head_dim = 16, .ffn = 32}), WeightType::f32);
  CHECK(error_of(model, make_machine_backend({}, true), CacheType::f32, {256, 256, 256, 256, 76, 1}, 1102) < 1e-6);
}

TEST_CASE("Only the rows that are asked for on the GPU") {
  const Model model = make_model(make_program(kGrouped), WeightType::q4_1);
  Driver driver(model, make_machine_backend({}, true), CacheType::f16);
  Parts all(model, 40);
  REQUIRE(pass(driver, all.batch));
  const auto row = [](const std::vector<float>& v, std::size_t i, std::int64_t width) {
    const auto at = v.begin() + static_cast<std::ptrdiff_t>(i) * width;
    return std::vector<float>(at, at + width);
  };
  const std::int64_t vocab = model.program.vocab_size, width = model.program.hidden_size;
  const std::vector<std::pair<std::vector<std::int32_t>, std::vector<std::int32_t>>> wanted = {
      {{39}, {}}, {{}, {3, 39}}, {{0, 5, 39}, {5}}, {{}, {}}};
  for (const auto& [logit_rows, hidden_rows] : wanted) {
    Parts some(model, 40);
    std::vector<float> logits(logit_rows.size() * static_cast<std::size_t>(vocab));
    std::vector<float> hidden(hidden_rows.size() * static_cast<std::size_t>(width));
    some.batch.logit_rows = logit_rows;
    some.batch.hidden_rows = hidden_rows;
    some.batch.logits = logits;
    some.batch.hidden = hidden;
    REQUIRE(pass(driver, some.batch));
    for (std::size_t i = 0; i < logit_rows.size(); ++i) {
      CHECK(same_bits(row(logits, i, vocab), row(all.logits, static_cast<std::size_t>(logit_rows[i]), vocab)));
    }
    for (std::size_t i = 0; i < hidden_rows.size(); ++i) {
      CHECK(same_bits(row(hidden, i, width), row(all.hidden, static_cast<std::size_t>(hidden_rows[i]), width)));
    }
  }
}

TEST_CASE("Operations that fit no pattern on the GPU") {
  Builder b("odd");
  const int n = 48;
  const std::int32_t group = b.cache_group({2, 2, 12, 0});
  const std::int32_t windowed = b.cache_group({1, 4, 12, 9});
  const std::int32_t rope = b.rope_table({{1.0f, 0.1f, 0.01f}, 1.0f, false});
  const std::int32_t twisted = b.rope_table({{0.7f, 0.2f}, 1.5f, true});
  const ValueId x = b.embed(b.weight("embed", n, n), "x");
  const ValueId norm = b.rms_norm(x, b.vector("n1", n), 1e-6f, "norm");
  const ValueId q = b.linear(norm, b.weight("wq", n, n), "q");
  const ValueId sum = b.add(norm, q, "sum");
  const ValueId rotated = b.rope(q, 12, rope, "rotated");
  const ValueId k = b.linear(sum, b.weight("wk", 24, n), "k");
  const ValueId v = b.linear(sum, b.weight("wv", 24, n), "v");
  const ValueId a = b.attention(rotated, k, v, group, 0, 4, 0.3f, "a");
  const ValueId both = b.add(rotated, a, "both");
  const ValueId twice = b.add(both, both, "twice");
  const ValueId k2 = b.rope(twice, 12, twisted, "k2");
  const ValueId a2 = b.attention(k2, k2, twice, windowed, 0, 4, 0.2f, "a2");
  const ValueId g1 = b.linear(a2, b.weight("g1", n, n), "g1");
  const ValueId h = b.glu(g1, g1, Activation::silu, "h");
  const ValueId single = b.linear(h, b.weight("down", n, n), "single");
  const ValueId late = b.attention(single, k, v, group, 1, 4, 0.3f, "late");
  const ValueId rot = b.rope(b.add(late, x, "lx"), 12, rope, "rot");  // a rotation after the selection of rows
  const ValueId hidden = b.add(rot, both, "hidden");
  const ValueId logits = b.add(b.linear(hidden, b.weight("head", n, n), "head", b.vector("hb", n)), hidden, "logits");
  const Model model = make_model(std::move(b).finish(hidden, logits).value(), WeightType::f32);
  CHECK(error_of(model, make_machine_backend(), CacheType::f32, {33, 1, 1, 15}, 50) < 1e-5);  // many layers of halves
  // The rotation of selected rows goes by their own positions.
  const Oracle oracle(model, random_tokens(30, 48));
  Driver driver(model, make_machine_backend(), CacheType::f32);
  Parts parts(model, 30);
  const std::vector<std::int32_t> wanted = {7, 29};
  std::vector<float> some(2 * 48);
  parts.tokens = random_tokens(30, 48);
  parts.batch.tokens = parts.tokens;
  parts.runs[0].block_tables.assign(2, parts.table);
  parts.batch.logit_rows = wanted;
  parts.batch.logits = some;
  parts.batch.hidden_rows = {};
  parts.batch.hidden = {};
  REQUIRE(pass(driver, parts.batch));
  std::vector<double> expected;
  for (const std::int32_t row : wanted) {
    expected.insert(expected.end(), oracle.logits().begin() + row * 48, oracle.logits().begin() + (row + 1) * 48);
  }
  CHECK(nmse(some, expected) < 1e-6);
}

TEST_CASE("Embedding rows take the place of tokens on the GPU") {
  const Model model = make_model(make_program(kGrouped), WeightType::f32);
  Driver driver(model, make_machine_backend(), CacheType::f16);
  Parts plain(model, 6), mixed(model, 6);
  REQUIRE(pass(driver, plain.batch));
  const auto width = static_cast<std::size_t>(model.program.hidden_size);
  std::vector<float> embeddings(6 * width, -1.0f);
  for (const std::size_t i : {0u, 5u}) {
    const auto token = static_cast<std::size_t>(std::exchange(mixed.tokens[i], -1));
    std::copy_n(model.values[0].begin() + static_cast<std::ptrdiff_t>(token * width), width,
                embeddings.begin() + static_cast<std::ptrdiff_t>(i * width));
  }
  mixed.batch.embeddings = embeddings;
  REQUIRE(pass(driver, mixed.batch));
  // The table holds halves, the rows that the host gives are floats.
  CHECK(nmse(mixed.logits, std::vector<double>(plain.logits.begin(), plain.logits.end())) < 1e-6);
}

TEST_CASE("Pages are copied, exported and imported on the GPU") {
  const Model model =
      make_model(make_program({.layers = 1, .heads = 4, .kv_heads = 2, .head_dim = 20, .ffn = 32}), WeightType::f32);
  const auto tokens = random_tokens(70, model.program.vocab_size);
  for (const CacheType type : kCacheTypes) {
    CAPTURE(static_cast<int>(type));
    Driver driver(model, make_machine_backend(), type, 256, 8);
    Sequence s;
    driver.forward({{&s, tokens}});
    CacheStorage& cache = *driver.caches[0];
    cache.finish_page(s.tables[0][0]);
    Sequence copy = s, moved = s;
    copy.tables[0][1] = 7;
    REQUIRE(cache.copy_page(s.tables[0][1], 7, 6));
    std::vector<std::byte> bytes(static_cast<std::size_t>(cache.canonical_page_bytes()));
    for (const std::size_t i : {0u, 1u}) {
      moved.tables[0][i] = static_cast<std::int32_t>(5 + i);
      REQUIRE(cache.export_page(s.tables[0][i], bytes));
      REQUIRE(cache.import_page(moved.tables[0][i], bytes));
    }
    // The CPU backend reads what this one wrote.
    BackendOptions exact;
    exact.exact = true;
    Driver cpu(model, exact, CacheType::f32, 256, 8);
    Sequence on_cpu = s;
    for (const std::size_t i : {0u, 1u}) {
      REQUIRE(cache.export_page(s.tables[0][i], bytes));
      REQUIRE(cpu.caches[0]->import_page(s.tables[0][i], bytes));
    }
    const auto expected = driver.forward({{&s, {5}}});
    CHECK(same_bits(driver.forward({{&copy, {5}}}), expected));
    CHECK(same_bits(driver.forward({{&moved, {5}}}), expected));
    CHECK(nmse(expected, [&] {
            const auto logits = cpu.forward({{&on_cpu, {5}}});
            return std::vector<double>(logits.begin(), logits.end());
          }()) < 1e-5);
    const CacheGroup& group = model.program.cache_groups[0];
    const int open = type == CacheType::int4 ? 4 : 0;  // one of s and copy each, two of moved
    CHECK(cache.bytes() ==
          8 * driver.backend->page_bytes(group, type) + open * driver.backend->open_page_bytes(group, type));
    CHECK(cache.copy_page(0, 8, 1).error().code == ErrorCode::invalid_argument);
    CHECK(cache.copy_page(1, 1, 1).error().code == ErrorCode::invalid_argument);
    CHECK(cache.copy_page(0, 1, 65).error().code == ErrorCode::invalid_argument);
    CHECK(cache.export_page(8, bytes).error().code == ErrorCode::invalid_argument);
    CHECK(cache.import_page(-1, bytes).error().code == ErrorCode::invalid_argument);
  }
}

TEST_CASE("An fp8 cache on the GPU holds the nearest E4M3 numbers under a scale of each key and value") {
  const Model model =
      make_model(make_program({.layers = 1, .heads = 4, .kv_heads = 2, .head_dim = 20, .ffn = 32}), WeightType::f32);
  const auto tokens = random_tokens(64, model.program.vocab_size);
  const auto page_of = [&](CacheStorage& cache) {
    std::vector<float> page(static_cast<std::size_t>(cache.canonical_page_bytes()) / sizeof(float));
    cache.export_page(0, std::as_writable_bytes(std::span(page))).value();
    return page;
  };
  Driver floats(model, make_machine_backend(), CacheType::f32, 256, 2),
      fp8(model, make_machine_backend(), CacheType::fp8, 256, 2);
  Sequence a, b;
  floats.forward({{&a, tokens}});
  fp8.forward({{&b, tokens}});
  REQUIRE(a.tables[0][0] == 0);
  std::vector<float> exact = page_of(*floats.caches[0]);
  const std::vector<float> found = page_of(*fp8.caches[0]);
  std::size_t wrong = 0;
  for (std::size_t at = 0; at < exact.size(); at += 20) {
    float most = 0;
    for (std::size_t i = at; i < at + 20; ++i) most = std::max(most, std::abs(exact[i]));
    for (std::size_t i = at; i < at + 20; ++i) {  // half a step: of normal numbers, of those below the smallest one
      const float step = std::max(std::abs(exact[i]) / 16, most / 448 / 1024);
      wrong += !(std::abs(found[i] - exact[i]) <= step * 1.0001f);
    }
  }
  CHECK(wrong == 0);
  CHECK_FALSE(same_bits(found, exact));
  // Pages that come from the host are rounded alike, and what was read is written back.
  CacheStorage& cache = *fp8.caches[0];
  for (const auto* page : {std::as_const(exact).data(), found.data()}) {
    cache.import_page(0, std::as_bytes(std::span(page, found.size()))).value();
    CHECK(same_bits(page_of(cache), found));
  }
  exact[0] = 1e30f, exact[1] = std::numeric_limits<float>::quiet_NaN();  // spoil their own vector alone
  cache.import_page(0, std::as_bytes(std::span(exact))).value();
  const std::vector<float> spoilt = page_of(cache);
  CHECK(std::equal(spoilt.begin() + 20, spoilt.end(), found.begin() + 20));
  for (const float x : spoilt) REQUIRE(std::isfinite(x));
}

TEST_CASE("A pass on the GPU that is interrupted, and one that fails") {
  const Model model =
      make_model(make_program({.layers = 4, .heads = 2, .kv_heads = 1, .ffn = 32, .hidden = 32}), WeightType::f32);
  {
    Driver driver(model, make_machine_backend(), CacheType::f16);
    Parts before(model, 17), stopped(model, 17), after(model, 17);
    REQUIRE(pass(driver, before.batch));
    int asked = 0;
    for (const int patience : {0, 1, 3}) {
      asked = 0;
      stopped.batch.interrupted = [&] { return asked++ >= patience; };
      CHECK(pass(driver, stopped.batch).error().code == ErrorCode::cancelled);
    }
    asked = -1000;
    stopped.batch.interrupted = [&] { return asked++ > 0; };
    CHECK(pass(driver, stopped.batch));
    CHECK(asked + 1000 >= 4);
    REQUIRE(pass(driver, after.batch));
    CHECK(same_bits(after.logits, before.logits));
    CHECK(driver.plan->wait().error().code == ErrorCode::invalid_state);
    REQUIRE(driver.plan->submit(after.batch, driver.cache_pointers));
    CHECK(driver.plan->submit(after.batch, driver.cache_pointers).error().code == ErrorCode::invalid_state);
    CHECK(driver.plan->wait());
  }
}

TEST_CASE("What the GPU backend cannot hold or run") {
  const Model model = make_model(make_program(kGrouped), WeightType::q8_0);
  const auto backend = make_machine_backend();
  CHECK(backend->make_cache({1, 1, 64, 0}, CacheType::f16, 0).error().code == ErrorCode::invalid_argument);
  CHECK(backend->make_cache({0, 1, 64, 0}, CacheType::f16, 1).error().code == ErrorCode::invalid_argument);
  CHECK(backend->make_cache({60000, 4000, 2000, 0}, CacheType::f32, 2000000000).error().code ==
        ErrorCode::out_of_memory);
  CHECK(backend->compile(model.program, {}, {}).error().code == ErrorCode::invalid_argument);
  std::vector<std::shared_ptr<const PreparedWeight>> weights;
  std::int64_t estimate = 0, taken = 0;
  for (std::size_t i = 0; i < model.types.size(); ++i) {
    const WeightSpec& spec = model.program.weights[i];
    weights.push_back(backend->prepare(model.view(i)).value());
    estimate += backend->prepared_bytes(model.types[i], spec.rows, spec.cols, {});
    taken += weights.back()->bytes();
  }
  CHECK(estimate == taken);
  CHECK(backend->supports(model.program, model.types));
  CHECK(backend->compile(model.program, weights, {0}).error().code == ErrorCode::invalid_argument);
  const auto plan = backend->compile(model.program, weights, {33}).value();
  CHECK(plan->bytes() == backend->plan_bytes(model.program, {}, {33}));
  std::swap(weights[2], weights[5]);
  CHECK(backend->compile(model.program, weights, {}).error().code == ErrorCode::shape_mismatch);
  std::swap(weights[2], weights[5]);
  CHECK(make_machine_backend()->compile(model.program, weights, {}).error().code == ErrorCode::invalid_argument);
  weights[1] = nullptr;
  CHECK(backend->compile(model.program, weights, {}).error().code == ErrorCode::invalid_argument);

  WeightView view = model.view(2);
  view.data = view.data.first(view.data.size() - 4);
  CHECK(backend->prepare(view).error().code == ErrorCode::invalid_argument);
  view.rows = 0;
  CHECK(backend->prepare(view).error().code == ErrorCode::invalid_argument);
  Program wide = model.program;
  wide.cache_groups[0].head_dim = 4000;
  CHECK_FALSE(backend->supports(wide, model.types));
  wide = model.program;
  std::swap(wide.ops[0], wide.ops[1]);
  CHECK(backend->supports(wide, model.types).error().code == ErrorCode::invalid_argument);
}
