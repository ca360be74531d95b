// Mixtures of experts on the emulated GPU backend against the double-precision interpreter.
#include <catch2/catch.hpp>

#include "tests/cpu/mixture.hpp"
#include "tests/gpu/machines.hpp"

using namespace llminfer;
using namespace llminfer::test;

namespace {

double error_of(const Model& model, std::shared_ptr<Backend> backend, const std::vector<std::int32_t>& chunks) {
  const auto tokens = random_tokens(40, model.program.vocab_size);
  Driver driver(model, std::move(backend), CacheType::f32);
  return nmse(driver.feed(tokens, chunks), Oracle(model, tokens).logits());
}

}  // namespace

TEST_CASE("Mixtures of experts on the GPU equal the interpreter") {
  std::vector<Mixture> all(6);
  all[1] = {.experts = 7, .used = 1, .ffn = 40, .hidden = 48, .normalize = true, .biases = true};
  all[2] = {
      .experts = 4, .used = 4, .ffn = 33, .hidden = 50, .scoring = Scoring::sigmoid, .shared = true, .scale = 2.5f};
  all[3] = {.experts = 9, .used = 3, .normalize = true, .shared = true, .activation = Activation::gelu};
  all[4] = {.experts = 6, .used = 2, .biases = true, .activation = Activation::clamped_swiglu};
  all[5] = {.experts = 1, .used = 1, .ffn = 96, .hidden = 64};
  for (std::size_t i = 0; i < all.size(); ++i) {
    const Model model = make_model(make_mixture(all[i]), WeightType::f32, static_cast<std::uint32_t>(i + 1));
    const std::vector<Machine> some = machines(i + 3);
    CAPTURE(i, some[i % some.size()].name);
    CHECK(error_of(model, make_machine_backend(some[i % some.size()].options), {1, 25, 9, 5}) < 5e-6);
    if (i < 2) CHECK(error_of(model, make_machine_backend({}, true), {25, 15}) < 5e-6);
  }
  const Model quantized = make_model(make_mixture({}), WeightType::q4_0);
  CHECK(error_of(quantized, make_machine_backend(), {40}) < 1e-5);
}

TEST_CASE("Experts on the GPU whose weights are of several types") {
  Model model = make_model(make_mixture({.experts = 5, .used = 2, .biases = true}), WeightType::q4_0);
  const Model others = make_model(make_mixture({.experts = 5, .used = 2, .biases = true}), WeightType::q8_0);
  for (std::size_t i = 0; i < model.types.size(); ++i) {
    const std::string& name = model.program.weights[i].name;
    if (!name.ends_with("1.gate") && !name.ends_with("2.up") && !name.ends_with("3.down")) continue;
    model.types[i] = others.types[i];
    model.data[i] = others.data[i];
    model.values[i] = others.values[i];
  }
  CHECK(error_of(model, make_machine_backend(), {1, 25, 9, 5}) < 1e-5);
}

TEST_CASE("Layers and experts on the GPU that read the same input, each rounded in its own way") {
  const Mixture mixture{.experts = 5, .used = 3, .layers = 1, .shared = true, .biases = true};
  for (const bool dense : {true, false}) {
    Model model = make_model(dense ? make_program({.layers = 1, .ffn = 64, .bias = true}) : make_mixture(mixture),
                             WeightType::f32);
    const auto tokens = random_tokens(40, model.program.vocab_size);
    const std::vector<double> unrounded = Oracle(model, tokens).logits();
    round_inputs_unlike(model, dense);
    const auto vocab = static_cast<std::size_t>(model.program.vocab_size);
    const std::vector<double> rounded = Oracle(model, tokens).logits();
    for (const Machine& machine : machines(dense ? 1 : 2)) {
      CAPTURE(dense, machine.name);
      Driver driver(model, make_machine_backend(machine.options), CacheType::f32);
      const auto logits = driver.feed(tokens, {1, 25, 9, 5});
      CHECK(median_nmse(logits, unrounded, vocab) > 1e-2);
      CHECK(median_nmse(logits, rounded, vocab) < 1e-5);
    }
  }
}

TEST_CASE("Layers and experts on the GPU whose columns are in an order of their own") {
  const Mixture mixture{.experts = 5, .used = 3, .ffn = 96, .layers = 1, .shared = true, .biases = true};
  for (const WeightType type : {WeightType::q4_0, WeightType::f32}) {
    Model model = make_model(make_mixture(mixture), type);
    model.order_columns();
    for (const Machine& machine : machines(3)) {
      CAPTURE(weight_type_info(type).name, machine.name);
      CHECK(error_of(model, make_machine_backend(machine.options), {1, 25, 9, 5}) < 1e-5);
    }
  }
}

TEST_CASE("A plan with mixtures takes what was said") {
  Model model = make_model(make_mixture({}), WeightType::f32);
  const auto backend = make_machine_backend();
  REQUIRE(backend->supports(model.program, model.types));
  for (const char* inputs : {"as they are", "in another order", "rounded"}) {
    if (inputs[0] == 'i') model = make_model(make_mixture({}), WeightType::q4_0), model.order_columns();
    if (inputs[0] == 'r') model = make_model(make_mixture({}), WeightType::f32), round_inputs_unlike(model, false);
    CAPTURE(inputs);
    std::vector<std::shared_ptr<const PreparedWeight>> weights;
    std::vector<WeightView> views;
    for (std::size_t i = 0; i < model.types.size(); ++i) views.push_back(model.view(i));
    for (const WeightView& view : views) weights.push_back(backend->prepare(view).value());
    CHECK(backend->compile(model.program, weights, {17}).value()->bytes() ==
          backend->plan_bytes(model.program, views, {17}));
  }
}
