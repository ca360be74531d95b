// Mixtures of experts on the CPU backend: against the double-precision interpreter, bit for bit whatever the batch, the
// threads and the level, in every weight type, and programs that make no sense.
#include <catch2/catch.hpp>

#include "tests/cpu/mixture.hpp"
#include "tests/cpu/random_weight.hpp"

using namespace llminfer;
using namespace llminfer::test;

namespace {

/// A model of floats whose experts, but for every seventh matrix, have blocks of `type`.
Model make_typed(const Mixture& m, WeightType type, std::uint32_t seed) {
  Model model = make_model(make_mixture(m), WeightType::f32, seed);
  std::size_t matrices = 0;
  for (const Op& op : model.program.ops) {
    const auto* moe = std::get_if<op::Moe>(&op);
    if (!moe) continue;
    for (const auto* weights : {&moe->gate, &moe->up, &moe->down}) {
      for (const WeightId id : *weights) {
        if (++matrices % 7 == 0) continue;
        const auto i = static_cast<std::size_t>(id);
        const WeightSpec& spec = model.program.weights[i];
        model.types[i] = type;
        *model.data[i] = random_weight(type, spec.rows, spec.cols, seed + static_cast<unsigned>(i)).bytes;
        model.set_details(i, {});
      }
    }
  }
  return model;
}

BackendOptions options_of(const std::string& level, int threads, bool exact = false) {
  BackendOptions options;
  options.threads = threads;
  options.cpu_level = level;
  options.exact = exact;
  return options;
}

op::Moe& first_mixture(Program& program) {
  for (Op& op : program.ops) {
    if (auto* moe = std::get_if<op::Moe>(&op)) return *moe;
  }
  throw std::logic_error("no mixture");
}

}  // namespace

TEST_CASE("mixtures: exact mode equals the interpreter") {
  const Mixture mixtures[] = {
      {},
      {.experts = 8, .used = 3, .ffn = 41, .normalize = true, .shared = true},
      {.experts = 1, .used = 1, .ffn = 7, .activation = Activation::gelu_tanh},
      {.experts = 4, .used = 4, .ffn = 33, .hidden = 50, .scoring = Scoring::sigmoid, .scale = 2.5f},
      {.experts = 33, .used = 6, .ffn = 16, .scoring = Scoring::sigmoid, .normalize = true, .shared = true},
      {.experts = 6, .used = 2, .ffn = 50, .normalize = true, .biases = true, .activation = Activation::clamped_swiglu},
  };
  std::uint32_t seed = 1;
  for (const Mixture& mixture : mixtures) {
    const Model model = make_model(make_mixture(mixture), WeightType::f32, seed++);
    const auto tokens = random_tokens(40, model.program.vocab_size);
    const Oracle oracle(model, tokens);
    for (const std::string& level : cpu_levels()) {
      CAPTURE(seed, level);
      Driver exact(model, options_of(level, 2, true), CacheType::f32);
      CHECK(nmse(exact.feed(tokens, {30, 1}), oracle.logits()) < 1e-10);
      Driver packed(model, options_of(level, 2), CacheType::f32);
      CHECK(nmse(packed.feed(tokens, {30, 1}), oracle.logits()) < 1e-10);
    }
  }
}

TEST_CASE("mixtures: of equal scores those of lower index are chosen") {
  Model model = make_model(make_mixture({.experts = 6, .used = 2}), WeightType::f32, 3);
  for (std::size_t i = 0; i < model.types.size(); ++i) {
    if (model.program.weights[i].name.find("wrouter") == std::string::npos) continue;
    std::fill(model.data[i]->begin(), model.data[i]->end(), std::byte{0});
    model.set_details(i, {});
  }
  const auto tokens = random_tokens(20, model.program.vocab_size);
  Driver driver(model, options_of(cpu_levels().back(), 2), CacheType::f32);
  CHECK(nmse(driver.feed(tokens, {20}), Oracle(model, tokens).logits()) < 1e-10);
}

TEST_CASE("mixtures: batches, chunks, threads and levels do not change a bit") {
  const Mixture mixture{.experts = 12, .used = 3, .ffn = 96, .shared = true, .biases = true};
  for (const WeightType type : {WeightType::q4_1, WeightType::q8_0, WeightType::f32, WeightType::bf16}) {
    const Model model = make_model(make_mixture(mixture), type);
    const auto options = [&](const std::string& level, int threads) {
      BackendOptions of_type = options_of(level, threads);
      of_type.activation_bits = type == WeightType::bf16 ? 8 : 16;
      return of_type;
    };
    const auto a = random_tokens(50, model.program.vocab_size, 1), b = random_tokens(23, model.program.vocab_size, 2);
    Driver reference(model, options("scalar", 1), CacheType::f16);
    const auto of_a = reference.feed(a, {50}), of_b = reference.feed(b, {23});
    for (const std::string& level : cpu_levels()) {
      for (const int threads : {1, 2, 3}) {
        CAPTURE(level, threads, weight_type_info(type).name);
        Driver driver(model, options(level, threads), CacheType::f16);
        CHECK(same_bits(driver.feed(a, {1, 30, 1, 7}), of_a));
        Sequence first, second;
        auto both = driver.forward({{&first, a}, {&second, b}});
        auto expected = of_a;
        expected.insert(expected.end(), of_b.begin(), of_b.end());
        CHECK(same_bits(both, expected));
      }
    }
  }
}

TEST_CASE("mixtures: every weight type, mixed within a layer") {
  const Mixture mixture{.experts = 4, .used = 2, .ffn = 256, .hidden = 256, .layers = 1, .normalize = true};
  const std::string level = cpu_levels().back();
  for (int t = 0; t <= static_cast<int>(WeightType::fp8); ++t) {
    const auto type = static_cast<WeightType>(t);
    const Model model = make_typed(mixture, type, 5);
    const auto tokens = random_tokens(9, model.program.vocab_size);
    const Oracle dequantized(model, tokens);
    CAPTURE(weight_type_info(type).name);
    Driver exact(model, options_of(level, 2, true), CacheType::f32);
    CHECK(nmse(exact.feed(tokens, {9}), dequantized.logits()) < 1e-10);
    Driver packed(model, options_of(level, 2), CacheType::f32);
    CHECK(nmse(packed.feed(tokens, {8, 1}), dequantized.logits()) < 1e-5);
  }
}

TEST_CASE("mixtures: columns in an order of their own, and inputs that are rounded") {
  const Mixture mixture{.experts = 5, .used = 3, .ffn = 64, .layers = 1, .biases = true};
  Model model = make_model(make_mixture(mixture), WeightType::q8_0, 9);
  const op::Moe moe = first_mixture(model.program);
  const auto ordered = [&](WeightId id) {
    model.order_columns(static_cast<std::size_t>(id), static_cast<unsigned>(id));
  };
  SECTION("orders, other ones for gate and up") {
    for (std::size_t e = 1; e < 4; ++e) ordered(moe.gate[e]), ordered(moe.up[e]), ordered(moe.down[e]);
    const auto tokens = random_tokens(20, model.program.vocab_size);
    const Oracle oracle(model, tokens);
    for (const std::string& level : cpu_levels()) {
      CAPTURE(level);
      Driver driver(model, options_of(level, 2), CacheType::f32);
      CHECK(nmse(driver.feed(tokens, {15, 1}), oracle.logits()) < 1e-6);
    }
  }
  SECTION("rounding changes results, the same ones on all levels and in exact mode") {
    WeightDetails rounded;
    rounded.input.kind = InputQuantization::Kind::int8;
    const auto tokens = random_tokens(20, model.program.vocab_size);
    const Oracle unrounded(model, tokens);
    for (const auto* weights : {&moe.gate, &moe.up, &moe.down}) {
      for (const WeightId id : *weights) model.set_details(static_cast<std::size_t>(id), rounded);
    }
    Driver first(model, options_of("scalar", 1), CacheType::f32);
    const auto expected = first.feed(tokens, {20});
    const double changed = nmse(expected, unrounded.logits());
    CHECK(changed > 1e-7);
    CHECK(changed < 1e-3);
    for (const std::string& level : cpu_levels()) {
      CAPTURE(level);
      Driver driver(model, options_of(level, 2), CacheType::f32);
      CHECK(same_bits(driver.feed(tokens, {3, 1, 16}), expected));
    }
    Driver exact(model, options_of(cpu_levels().back(), 2, true), CacheType::f32);
    CHECK(nmse(exact.feed(tokens, {20}), {expected.begin(), expected.end()}) <
          1e-4);  // where a rounding goes the other way
  }
}

TEST_CASE("layers that read the same input, each rounded in its own way") {
  const Mixture mixture{.experts = 5, .used = 3, .layers = 1, .shared = true, .biases = true};
  for (const bool dense : {true, false}) {
    const Program program = dense ? make_program({.layers = 1, .ffn = 64, .bias = true}) : make_mixture(mixture);
    Model model = make_model(program, WeightType::q8_0, 17);
    const auto tokens = random_tokens(20, model.program.vocab_size);
    const std::vector<double> unrounded = Oracle(model, tokens).logits();
    round_inputs_unlike(model, dense);
    const auto vocab = static_cast<std::size_t>(model.program.vocab_size);
    const Oracle oracle(model, tokens);
    CAPTURE(dense);
    Driver exact(model, options_of(cpu_levels().back(), 2, true), CacheType::f32);
    const auto expected = exact.feed(tokens, {20});
    CHECK(nmse(expected, oracle.logits()) < 1e-9);
    CHECK(nmse(expected, unrounded) > 1e-2);
    std::vector<float> packed;
    for (const std::string& level : cpu_levels()) {
      CAPTURE(level);
      Driver driver(model, options_of(level, 2), CacheType::f32);
      const auto logits = driver.feed(tokens, {13, 1});
      if (packed.empty()) packed = logits;
      CHECK(same_bits(logits, packed));
      CHECK(median_nmse(logits, oracle.logits(), vocab) < 1e-5);
      std::vector<WeightView> views;
      for (std::size_t i = 0; i < model.types.size(); ++i) views.push_back(model.view(i));
      CHECK(driver.plan->bytes() == driver.backend->plan_bytes(program, views, {256}));
    }
  }
}

TEST_CASE("mixtures: activations of 8 bits") {
  const Model model = make_model(make_mixture({.experts = 6, .used = 2, .normalize = true}), WeightType::q8_0, 2);
  const auto tokens = random_tokens(20, model.program.vocab_size);
  const Oracle oracle(model, tokens);
  std::vector<float> expected;
  for (const std::string& level : cpu_levels()) {
    CAPTURE(level);
    BackendOptions options = options_of(level, 2);
    options.activation_bits = 8;
    Driver driver(model, options, CacheType::f32);
    const auto logits = driver.feed(tokens, {13, 1});
    if (expected.empty()) expected = logits;
    CHECK(same_bits(logits, expected));
    // Medians of rows: of nearly equal scores another expert may be chosen, which changes a row altogether.
    const double error = median_nmse(logits, oracle.logits(), static_cast<std::size_t>(model.program.vocab_size));
    CHECK(error > 1e-7);  // of 16 bits: below
    CHECK(error < 2e-3);
  }
  InputQuantization outliers;
  outliers.outliers = true;
  Model wide = model;
  wide.round_inputs("", outliers);
  BackendOptions options = options_of(cpu_levels().back(), 2);
  const auto sixteen = Driver(model, options, CacheType::f32).feed(tokens, {13, 1});
  options.activation_bits = 8;
  CHECK(same_bits(Driver(wide, options, CacheType::f32).feed(tokens, {13, 1}), sixteen));
}

TEST_CASE("FP8 weights and rows of E4M3 or BF16 numbers: all levels alike, close to exact mode") {
  for (const bool dense : {true, false}) {
    const Program program = dense ? make_program({.layers = 1, .ffn = 64, .bias = true})
                                  : make_mixture({.experts = 5, .used = 2, .layers = 1, .biases = true});
    Model model = make_model(program, WeightType::fp8, 19);
    const auto tokens = random_tokens(20, program.vocab_size);
    const std::vector<double> unrounded = Oracle(model, tokens).logits();
    for (const bool declared : {false, true}) {
      InputQuantization input;
      input.kind = InputQuantization::Kind::fp8;
      if (declared) model.round_inputs("", input);
      const Oracle oracle(model, tokens);
      std::vector<float> expected;
      for (const std::string& level : cpu_levels()) {
        CAPTURE(dense, declared, level);
        BackendOptions options = options_of(level, 2);
        options.activation_bits = declared ? 16 : 8;
        Driver driver(model, options, CacheType::f32);
        const auto logits = driver.feed(tokens, {13, 1});
        if (expected.empty()) expected = logits;
        CHECK(same_bits(logits, expected));
        const auto vocab = static_cast<std::size_t>(program.vocab_size);
        CHECK(median_nmse(logits, oracle.logits(), vocab) < (declared ? 1e-5 : 1e-3));
        CHECK(median_nmse(logits, unrounded, vocab) > (declared ? 1e-4 : 1e-8));
        std::vector<WeightView> views;
        for (std::size_t i = 0; i < model.types.size(); ++i) views.push_back(model.view(i));
        CHECK(driver.plan->bytes() == driver.backend->plan_bytes(program, views, {256}));
      }
    }
  }
}

TEST_CASE("mixtures: a profile counts the experts that were read") {
  const Mixture mixture{.experts = 6, .used = 2, .layers = 1};
  const Model model = make_model(make_mixture(mixture), WeightType::q8_0);
  std::vector<StepProfile> experts;
  BackendOptions options = options_of("scalar", 2);
  options.on_profile = [&](const PassProfile& pass) {
    for (const StepProfile& step : pass.steps) {
      if (step.name == "experts (8.5)") experts.push_back(step);
    }
  };
  Driver driver(model, options, CacheType::f16);
  driver.feed(random_tokens(65, model.program.vocab_size), {64, 1});
  REQUIRE(experts.size() == 2);
  const std::int64_t values = 3 * mixture.ffn * mixture.hidden, bytes = values / 32 * 34;
  CHECK(experts[0].operations == 64 * 2 * 2 * values);
  CHECK(experts[1].operations == 2 * 2 * values);
  CHECK(experts[0].weight_bytes == 6 * bytes);  // 128 choices of 6
  CHECK(experts[1].weight_bytes == 2 * bytes);
  CHECK(experts[0].kind == StepKind::linear);
}

TEST_CASE("mixtures: memory that a plan takes is foreseen") {
  const Program program = make_mixture({.experts = 12, .used = 3, .ffn = 96, .shared = true});
  const Model model = make_model(program, WeightType::q8_0);
  std::vector<WeightView> views;
  for (std::size_t i = 0; i < model.types.size(); ++i) views.push_back(model.view(i));
  for (const std::int32_t rows : {1, 200}) {
    Driver driver(model, options_of("scalar", 2), CacheType::f16, rows);
    CHECK(driver.plan->bytes() == driver.backend->plan_bytes(program, views, {rows}));
  }
}

TEST_CASE("mixtures that no Builder made") {
  const auto backend = make_cpu_backend({}).value();
  const Program good = make_mixture({.shared = true});
  const auto refused = [&](const auto& change) {
    Program program = good;
    change(program, first_mixture(program));
    const std::vector<WeightType> types(program.weights.size(), WeightType::f32);
    const auto answer = backend->supports(program, types);
    REQUIRE_FALSE(answer);
    return answer.error().code;
  };
  CHECK(backend->supports(good, std::vector<WeightType>(good.weights.size(), WeightType::f32)));
  using P = Program;
  using M = op::Moe;
  CHECK(refused([](P&, M& m) { m.used = 0; }) == ErrorCode::invalid_argument);
  CHECK(refused([](P&, M& m) { m.used = 6; }) == ErrorCode::invalid_argument);
  CHECK(refused([](P&, M& m) { m.gate.clear(), m.up.clear(), m.down.clear(); }) == ErrorCode::invalid_argument);
  CHECK(refused([](P&, M& m) { m.up.pop_back(); }) == ErrorCode::invalid_argument);
  CHECK(refused([](P&, M& m) { m.gate.pop_back(), m.up.pop_back(), m.down.pop_back(); }) == ErrorCode::shape_mismatch);
  CHECK(refused([](P&, M& m) { m.gate.resize(5000), m.up.resize(5000), m.down.resize(5000); }) ==
        ErrorCode::invalid_argument);
  CHECK(refused([](P&, M& m) { m.down[4] = WeightId{9999}; }) == ErrorCode::invalid_argument);
  CHECK(refused([](P& p, M& m) { p.weights[static_cast<std::size_t>(m.up[3])].rows = 63; }) ==
        ErrorCode::shape_mismatch);
  CHECK(refused([](P&, M& m) { m.shared_gate = ValueId::none; }) == ErrorCode::invalid_argument);
  CHECK(refused([](P&, M& m) { std::swap(m.shared, m.shared_gate); }) == ErrorCode::shape_mismatch);
  CHECK(refused([](P&, M& m) { m.gate_bias = m.gate; }) == ErrorCode::invalid_argument);
  CHECK(refused([](P&, M& m) { m.gate_bias = m.gate, m.up_bias = m.up, m.down_bias = m.down; }) ==
        ErrorCode::shape_mismatch);
  CHECK(refused([](P&, M& m) { m.router = m.in; }) == ErrorCode::shape_mismatch);
  CHECK(refused([](P&, M& m) { m.scoring = static_cast<Scoring>(7); }) == ErrorCode::unsupported);
}
