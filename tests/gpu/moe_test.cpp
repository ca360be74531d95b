// Mixtures of experts on the emulated GPU backend against the double-precision interpreter.
#include <catch2/catch.hpp>

#include "tests/cpu/model.hpp"
#include "tests/gpu/machines.hpp"

using namespace llminfer;
using namespace llminfer::test;

namespace {

struct Mixture {
  int experts = 5, used = 2, hidden = 48, ffn = 40;
  Scoring scoring = Scoring::softmax;
  bool normalize = false, shared = false, biases = false;
  float scale = 1.0f;
  Activation activation = Activation::silu;
};

Program make_mixture(const Mixture& m) {
  Builder b("mixture");
  ValueId x = b.embed(b.weight("embed", 71, m.hidden), "x");
  for (const std::string p : {"blk.0.", "blk.1."}) {
    op::Moe moe;
    moe.in = b.rms_norm(x, b.vector(p + "norm", m.hidden), 1e-5f, p + "n");
    moe.router = b.linear(moe.in, b.weight(p + "router", m.experts, m.hidden), p + "router");
    for (int e = 0; e < m.experts; ++e) {
      const std::string name = p + std::to_string(e) + ".";
      moe.gate.push_back(b.weight(name + "gate", m.ffn, m.hidden));
      moe.up.push_back(b.weight(name + "up", m.ffn, m.hidden));
      moe.down.push_back(b.weight(name + "down", m.hidden, m.ffn));
      if (!m.biases) continue;
      moe.gate_bias.push_back(b.vector(name + "gate_bias", m.ffn));
      moe.up_bias.push_back(b.vector(name + "up_bias", m.ffn));
      moe.down_bias.push_back(b.vector(name + "down_bias", m.hidden));
    }
    moe.used = m.used;
    moe.scoring = m.scoring;
    moe.normalize = m.normalize;
    moe.scale = m.scale;
    moe.activation = m.activation;
    if (m.shared) {
      moe.shared_gate = b.linear(moe.in, b.weight(p + "sgate", 1, m.hidden), p + "sgate");
      moe.shared = b.linear(moe.in, b.weight(p + "sd", m.hidden, m.hidden), p + "sd");
    }
    x = b.add(b.moe(std::move(moe), p + "moe"), x, p + "x");
  }
  const ValueId hidden = b.rms_norm(x, b.vector("norm", m.hidden), 1e-5f, "hidden");
  return std::move(b).finish(hidden, b.linear(hidden, b.weight("head", 71, m.hidden), "logits")).value();
}

double error_of(const Model& model, std::shared_ptr<Backend> backend, const std::vector<std::int32_t>& chunks) {
  const auto tokens = random_tokens(40, model.program.vocab_size);
  Driver driver(model, std::move(backend), CacheType::f32);
  return nmse(driver.feed(tokens, chunks), Oracle(model, tokens).logits());
}

}  // namespace

TEST_CASE("Mixtures of experts on the GPU equal the interpreter") {
  std::vector<Mixture> all(6);
  all[1] = {.experts = 7, .used = 1, .normalize = true, .biases = true};
  all[2] = {.experts = 4, .used = 4, .scoring = Scoring::sigmoid, .shared = true, .scale = 2.5f};
  all[3] = {.experts = 9, .used = 3, .normalize = true, .shared = true, .activation = Activation::gelu};
  all[4] = {.experts = 6, .used = 2, .biases = true, .activation = Activation::clamped_swiglu};
  all[5] = {.experts = 1, .used = 1, .hidden = 64, .ffn = 96};
  for (std::size_t i = 0; i < all.size(); ++i) {
    const Model model = make_model(make_mixture(all[i]), WeightType::f32, static_cast<std::uint32_t>(i + 1));
    const std::vector<Machine> some = machines(i + 3);
    CAPTURE(i, some[i % some.size()].name);
    CHECK(error_of(model, make_machine_backend(some[i % some.size()].options), {1, 30, 9}) < 1e-6);
    if (i < 2) CHECK(error_of(model, make_machine_backend({}, true), {25, 15}) < 1e-6);
  }
  const Model quantized = make_model(make_mixture({.hidden = 64, .ffn = 64}), WeightType::q4_0);
  CHECK(error_of(quantized, make_machine_backend(), {40}) < 1e-5);
}

TEST_CASE("A plan with mixtures takes what was said, and none whose experts quantize their inputs") {
  Model model = make_model(make_mixture({}), WeightType::f32);
  const auto backend = make_machine_backend();
  REQUIRE(backend->supports(model.program, model.types));
  std::vector<std::shared_ptr<const PreparedWeight>> weights;
  for (std::size_t i = 0; i < model.types.size(); ++i) weights.push_back(backend->prepare(model.view(i)).value());
  CHECK(backend->compile(model.program, weights, {17}).value()->bytes() ==
        backend->plan_bytes(model.program, {}, {17}));
  WeightView view = model.view(3);
  view.details.input.kind = InputQuantization::Kind::int8;
  weights[3] = backend->prepare(view).value();
  const auto plan = backend->compile(model.program, weights, {17});
  REQUIRE_FALSE(plan);
  CHECK(plan.error().code == ErrorCode::unsupported);
  CHECK_THAT(plan.error().message, Catch::Contains(model.program.weights[3].name));
}
