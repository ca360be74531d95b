// The CPU backend against a double-precision interpreter, on every level that this machine has.
#include <algorithm>
#include <catch2/catch.hpp>
#include <cstdlib>
#include <iostream>

#include "backends/cpu/level.hpp"
#include "tests/cpu/model.hpp"

using namespace llminfer;
using namespace llminfer::test;

namespace {

BackendOptions options_of(const std::string& level, bool exact, int threads = 2) {
  BackendOptions options;
  options.threads = threads;
  options.exact = exact;
  options.cpu_level = level;
  return options;
}

std::vector<Shape> shapes() {
  std::vector<Shape> all;
  all.push_back({});
  all.push_back({.heads = 4, .kv_heads = 4, .head_dim = 8, .window = 70, .interleaved = true, .tied = true});
  all.push_back({.heads = 3, .kv_heads = 1, .head_dim = 21, .ffn = 32, .rotary_dim = 10, .bias = true});
  all.push_back({.heads = 8, .kv_heads = 2, .head_dim = 80, .vocab = 33, .bias = true, .activation = Activation::gelu});
  all.push_back({.layers = 1,
                 .heads = 5,
                 .kv_heads = 1,
                 .head_dim = 128,
                 .hidden = 96,
                 .window = 5,
                 .activation = Activation::gelu_tanh});
  all.push_back({.layers = 1, .window = 70, .sinks = true, .activation = Activation::clamped_swiglu});
  return all;
}

}  // namespace

TEST_CASE("levels that this machine lacks are named") {
  const std::vector<std::string> levels = cpu_levels();
  REQUIRE_FALSE(levels.empty());
  CHECK(levels.front() == "scalar");
  for (const std::string_view level : cpu::missing_levels()) {
    CHECK(std::find(levels.begin(), levels.end(), level) == levels.end());
    std::cout << "skipped: level " << level << ", which this machine cannot run\n";
  }
}

TEST_CASE("exact mode equals the interpreter") {
  const auto all = shapes();
  for (std::size_t i = 0; i < all.size(); ++i) {
    const Model model = make_model(make_program(all[i]), WeightType::f32, static_cast<std::uint32_t>(i + 1));
    const auto tokens = random_tokens(150, all[i].vocab);
    const Oracle oracle(model, tokens);
    for (const std::string& level : cpu_levels()) {
      CAPTURE(i, level);
      Driver driver(model, options_of(level, true), CacheType::f32);
      CHECK(nmse(driver.feed(tokens, {100, 1}), oracle.logits()) < 1e-10);
    }
  }
}

TEST_CASE("exact mode multiplies quantized weights exactly") {
  Shape shape{.heads = 4, .kv_heads = 2, .head_dim = 32, .ffn = 128, .tied = true};
  for (const WeightType type : {WeightType::q8_0, WeightType::q4_0, WeightType::q4_1}) {
    const Model model = make_model(make_program(shape), type);
    const auto tokens = random_tokens(90, shape.vocab);
    const Oracle oracle(model, tokens);
    for (const std::string& level : cpu_levels()) {
      CAPTURE(level, weight_type_info(type).name);
      Driver driver(model, options_of(level, true), CacheType::f32);
      CHECK(nmse(driver.feed(tokens, {90}), oracle.logits()) < 1e-10);
    }
  }
}

TEST_CASE("default mode is close to the interpreter") {
  Shape shape{.heads = 4, .kv_heads = 2, .head_dim = 32, .ffn = 128, .bias = true};
  const struct {
    WeightType type;
    double bound;
  } cases[] = {{WeightType::f32, 1e-5}, {WeightType::q8_0, 1e-3}, {WeightType::q4_0, 1e-3}, {WeightType::q4_1, 1e-3}};
  for (const auto& c : cases) {
    const Model model = make_model(make_program(shape), c.type);
    const auto tokens = random_tokens(150, shape.vocab);
    const Oracle oracle(model, tokens);
    for (const std::string& level : cpu_levels()) {
      Driver driver(model, options_of(level, false), CacheType::f16);
      const double error = nmse(driver.feed(tokens, {60, 90}), oracle.logits());
      CAPTURE(level, weight_type_info(c.type).name, error);
      CHECK(error < c.bound);
      CHECK(error > 0);
    }
  }
}

TEST_CASE("attention sinks") {
  const Shape shape{.layers = 1, .heads = 4, .kv_heads = 2, .head_dim = 32, .ffn = 64, .tied = true, .sinks = true};
  Model model = make_model(make_program(shape), WeightType::q8_0);
  model.set_vector("blk.0.sinks", {-200.0f, 0.5f, 4.0f, 200.0f});  // as if there were none, and the whole sum
  const auto tokens = random_tokens(600, shape.vocab);
  const Oracle oracle(model, tokens);
  for (const auto& [type, bound] : {std::pair{CacheType::f16, 1e-6}, {CacheType::int8, 1e-3}}) {
    std::vector<float> first;
    for (const std::string& level : cpu_levels()) {
      CAPTURE(level, static_cast<int>(type));
      Driver driver(model, options_of(level, false), type);
      const auto logits = driver.feed(tokens, {250, 1, 250, 99});
      CHECK(nmse(logits, oracle.logits()) < bound);
      if (first.empty()) first = logits;
      CHECK(same_bits(logits, first));
    }
  }
  Driver int4(model, options_of(cpu_levels().back(), false), CacheType::int4);
  CHECK(nmse(int4.feed(tokens, {250, 1, 250, 99}), Oracle(model, tokens, true).logits()) < 1e-3);
}

TEST_CASE("weights whose columns are in an order of their own") {
  Shape shape{.heads = 4, .kv_heads = 2, .head_dim = 32, .ffn = 128, .tied = true};
  for (const WeightType type : {WeightType::q4_0, WeightType::f32}) {
    Model model = make_model(make_program(shape), type);
    model.order_columns();
    const auto tokens = random_tokens(90, shape.vocab);
    const Oracle oracle(model, tokens);
    std::vector<float> first;
    for (const std::string& level : cpu_levels()) {
      CAPTURE(level, weight_type_info(type).name);
      Driver exact(model, options_of(level, true), CacheType::f32);
      CHECK(nmse(exact.feed(tokens, {90}), oracle.logits()) < 1e-10);
      Driver driver(model, options_of(level, false), CacheType::f16);
      const auto logits = driver.feed(tokens, {60, 30});
      CHECK(nmse(logits, oracle.logits()) < 1e-3);
      Driver one_by_one(model, options_of(level, false), CacheType::f16);
      CHECK(same_bits(logits, one_by_one.feed(tokens, {1})));
      if (first.empty()) first = logits;
      CHECK(same_bits(logits, first));
    }
  }
}

TEST_CASE("an order that names a column twice is refused") {
  Model model = make_model(make_program({.heads = 4, .kv_heads = 2, .head_dim = 32, .ffn = 128}), WeightType::q4_0);
  const auto matrix = std::find_if(model.program.weights.begin(), model.program.weights.end(),
                                   [](const WeightSpec& spec) { return spec.rows > 1; });
  const auto i = static_cast<std::size_t>(matrix - model.program.weights.begin());
  model.details[i].permutation = std::make_shared<std::vector<std::int32_t>>(matrix->cols, 0);
  const auto prepared = make_cpu_backend(options_of("scalar", false)).value()->prepare(model.view(i));
  REQUIRE_FALSE(prepared);
  CHECK(prepared.error().code == ErrorCode::invalid_argument);
}

TEST_CASE("operations that fit no pattern run one by one") {
  Builder b("odd");
  const int n = 48;
  const std::int32_t group = b.cache_group({2, 2, 12, 0});
  const std::int32_t windowed = b.cache_group({1, 4, 12, 9});
  const std::int32_t rope = b.rope_table({{1.0f, 0.1f, 0.01f}, 1.0f, false});
  const std::int32_t twisted = b.rope_table({{0.7f, 0.2f}, 1.5f, true});
  const WeightId table = b.weight("embed", 50, n);
  const ValueId x = b.embed(table, "x");
  const ValueId norm = b.rms_norm(x, b.vector("n1", n), 1e-6f, "norm");
  const ValueId q = b.linear(norm, b.weight("wq", n, n), "q");
  const ValueId sum = b.add(norm, q, "sum");  // the norm has other readers
  const ValueId rotated = b.rope(q, 12, rope, "rotated");
  const ValueId k = b.linear(sum, b.weight("wk", 24, n), "k");
  const ValueId v = b.linear(sum, b.weight("wv", 24, n), "v");
  const ValueId a = b.attention(rotated, k, v, group, 0, 4, 0.3f, "a");
  const ValueId both = b.add(rotated, a, "both");  // the rotation has another reader
  const ValueId twice = b.add(both, both, "twice");
  const ValueId k2 = b.rope(twice, 12, twisted, "k2");
  const ValueId a2 = b.attention(k2, k2, twice, windowed, 0, 4, 0.2f, "a2");  // one value as query and key
  const ValueId g1 = b.linear(a2, b.weight("g1", n, n), "g1");
  const ValueId h = b.glu(g1, g1, Activation::silu, "h");
  const ValueId u = b.linear(h, b.weight("u", n, n), "u");
  const ValueId w = b.linear(h, b.weight("w", n, n), "w");
  const ValueId uw = b.add(u, w, "uw");  // both from one step
  const ValueId up_first = b.linear(uw, b.weight("up", 30, n), "up_first");
  const ValueId gate = b.linear(uw, b.weight("gate", 30, n), "gate");
  const ValueId h2 = b.glu(gate, up_first, Activation::gelu, "h2");
  const ValueId single = b.linear(h2, b.weight("down", n, 30), "single");
  const ValueId late = b.attention(single, k, v, group, 1, 4, 0.3f, "late");
  const ValueId rot = b.rope(b.add(late, x, "lx"), 12, rope, "rot");  // a rotation after the selection of rows
  const ValueId hidden = b.add(rot, both, "hidden");
  const ValueId logits = b.linear(hidden, b.weight("head", 50, n), "logits", b.vector("hb", 50));
  const Model model = make_model(std::move(b).finish(hidden, logits).value(), WeightType::f32);
  const auto tokens = random_tokens(80, 50);
  const Oracle oracle(model, tokens);
  for (const std::string& level : cpu_levels()) {
    CAPTURE(level);
    Driver driver(model, options_of(level, true), CacheType::f32);
    CHECK(nmse(driver.feed(tokens, {33, 1, 1, 64}), oracle.logits()) < 1e-10);
  }
}

TEST_CASE("programs without attention, and outputs that no linear layer makes") {
  Builder b("flat");
  const WeightId table = b.weight("embed", 16, 16);
  const ValueId x = b.embed(table, "x");
  const ValueId one = b.linear(x, b.weight("one", 1, 16), "one");  // a matrix of one row
  const ValueId back = b.linear(one, b.weight("back", 16, 1), "back");
  const ValueId hidden = b.rms_norm(b.add(x, back, "s"), b.vector("n", 16), 1e-5f, "hidden");
  const ValueId logits = b.add(hidden, x, "logits");
  const Model model = make_model(std::move(b).finish(hidden, logits).value(), WeightType::f32);
  const auto tokens = random_tokens(30, 16);
  const Oracle oracle(model, tokens);
  for (const bool exact : {true, false}) {
    Driver driver(model, options_of("", exact), CacheType::f32);
    CHECK(nmse(driver.feed(tokens, {7, 1}), oracle.logits()) < 1e-10);
  }
}

TEST_CASE("the forced level is the level that runs") {
  const Model model = make_model(make_program({}), WeightType::f32);
  for (const std::string& level : cpu_levels()) {
    const auto backend = make_cpu_backend(options_of(level, false)).value();
    CHECK(backend->description().find("level " + level + ",") != std::string::npos);
    ::setenv("LLMINFER_CPU_LEVEL", level.c_str(), 1);
    CHECK(make_cpu_backend(options_of("", false)).value()->description() == backend->description());
    ::unsetenv("LLMINFER_CPU_LEVEL");
  }
  const auto best = make_cpu_backend({}).value();
  CHECK(best->description().find("level " + cpu_levels().back() + ",") != std::string::npos);
  CHECK(best->name() == "cpu");
  CHECK(best->interface_version() == kBackendInterfaceVersion);

  const auto unknown = make_cpu_backend(options_of("mmx", false));
  REQUIRE_FALSE(unknown);
  CHECK(unknown.error().code == ErrorCode::invalid_argument);
  CHECK(unknown.error().message.find("cpu_level") != std::string::npos);
  CHECK(unknown.error().message.find("scalar") != std::string::npos);
  ::setenv("LLMINFER_CPU_LEVEL", "turbo", 1);
  const auto variable = make_cpu_backend({});
  ::unsetenv("LLMINFER_CPU_LEVEL");
  REQUIRE_FALSE(variable);
  CHECK(variable.error().code == ErrorCode::invalid_argument);
  CHECK(variable.error().message.find("LLMINFER_CPU_LEVEL") != std::string::npos);
  CHECK(make_cpu_backend(options_of("", false, -1)).error().code == ErrorCode::invalid_argument);
  CHECK(make_cpu_backend(options_of("", false, 1 << 20)).error().code == ErrorCode::invalid_argument);
  BackendOptions bits;
  bits.activation_bits = 4;
  CHECK(make_cpu_backend(bits).error().message.find("activation_bits is 4") != std::string::npos);
}
