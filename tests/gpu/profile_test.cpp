// The profile of a GPU's passes: the steps that ran, the time of each, and what the shapes say of them, as the CPU's
// has it; and passes that are profiled give the bits of others.
#include <catch2/catch.hpp>

#include <string>
#include <vector>

#include "tests/cpu/mixture.hpp"
#include "tests/cpu/saved_profiles.hpp"
#include "tests/gpu/graph_script.hpp"

using namespace llminfer;
using namespace llminfer::test;

namespace {

/// Without the bits per value, which differ by backend.
std::string plain(const std::string& name) { return name.substr(0, name.find(" (")); }

}  // namespace

TEST_CASE("A profile of the GPU counts what the CPU's counts") {
  const Shape shape{.layers = 1, .heads = 4, .kv_heads = 2, .head_dim = 32, .vocab = 1500, .window = 40};
  const Model model = make_model(make_program(shape), WeightType::q8_0);
  const auto tokens = random_tokens(58, shape.vocab);
  const auto device = make_machine();
  std::vector<SavedProfile> of_gpu, of_cpu;
  GpuOptions options;
  options.on_profile = save_to(of_gpu);
  Driver gpu(model, gpu::make_backend(device, options), CacheType::f32),
      cpu(model, BackendOptions{.threads = 1, .on_profile = save_to(of_cpu)}, CacheType::f32);
  gpu.feed(tokens, {50, 1});
  cpu.feed(tokens, {50, 1});
  REQUIRE(of_gpu.size() == 3);
  REQUIRE(of_cpu.size() == of_gpu.size());
  std::int64_t values = 0;
  for (const WeightSpec& spec : model.program.weights) {
    if (spec.rows > 1 && spec.name != "embed") values += spec.rows * spec.cols;
  }
  for (std::size_t p = 0; p < of_gpu.size(); ++p) {
    const SavedProfile &g = of_gpu[p], &c = of_cpu[p];
    CAPTURE(p);
    CHECK(g.rows == c.rows);
    CHECK(g.level == device->info().architecture);
    CHECK(g.threads == 0);
    REQUIRE(g.steps.size() == c.steps.size());
    std::int64_t weights = 0;
    for (std::size_t i = 0; i < g.steps.size(); ++i) {
      CAPTURE(i, g.names[i]);
      CHECK(plain(g.names[i]) == plain(c.names[i]));
      CHECK(g.steps[i].kind == c.steps[i].kind);
      CHECK(g.steps[i].operations == c.steps[i].operations);
      CHECK(g.steps[i].activation_bytes == c.steps[i].activation_bytes);
      CHECK(g.steps[i].cache_bytes == c.steps[i].cache_bytes);
      CHECK(g.steps[i].seconds >= 0);
      CHECK(g.steps[i].seconds < 60);
      weights += g.steps[i].weight_bytes;
    }
    CHECK(weights >= values);
    CHECK(weights < values * 5 / 4);
#ifndef LLMINFER_TEST_GPU                         // whose launches take longer than so small a model
    const std::size_t head = g.steps.size() - 1;  // the vocabulary is wide
    if (p == 0) CHECK(g.steps[head].seconds > 2 * g.steps[head - 1].seconds);
#endif
  }
}

TEST_CASE("A profile of a mixture on the GPU counts the experts that the rows can choose") {
  const Mixture mixture{.experts = 6, .used = 2, .layers = 1};
  const Model model = make_model(make_mixture(mixture), WeightType::f16);
  std::vector<SavedProfile> passes;
  GpuOptions options;
  options.on_profile = save_to(passes);
  Driver driver(model, gpu::make_backend(make_machine(), options), CacheType::f16);
  driver.feed(random_tokens(7, model.program.vocab_size), {4, 2, 1});
  REQUIRE(passes.size() == 3);
  std::vector<std::int64_t> bytes;
  for (const SavedProfile& pass : passes) {
    for (std::size_t i = 0; i < pass.names.size(); ++i) {
      if (plain(pass.names[i]) == "experts") bytes.push_back(pass.steps[i].weight_bytes);
    }
  }
  REQUIRE(bytes.size() == 3);
  const std::int64_t expert = 3 * mixture.ffn * mixture.hidden * 2;
  CHECK(bytes[2] >= 2 * expert);
  CHECK(bytes[2] < 2 * expert * 5 / 4);  // rows may be filled up
  CHECK(bytes[1] == 2 * bytes[2]);
  CHECK(bytes[0] == 3 * bytes[2]);  // four rows could choose eight of six
}

TEST_CASE("Profiled passes give the bits of others, without graphs") {
  const Model model = decoded_model(2, 70);
  int calls = 0;
  GpuOptions options;
  options.on_profile = [&](const PassProfile&) { ++calls; };
  Decoder profiled(model, options), plain(model, {});
  CHECK(same_bits(decode_all(profiled), decode_all(plain)));
  CHECK(calls > 10);
#ifndef LLMINFER_TEST_GPU
  CHECK(gpu::emulated_counts(*profiled.device).graphs_made == 0);
  CHECK(gpu::emulated_counts(*plain.device).graphs_made > 0);
#endif
}

TEST_CASE("A pass that nothing is asked of ends its profile where it ends, and one that fails has none") {
  const Model model = decoded_model();
  std::vector<SavedProfile> passes;
  GpuOptions options;
  options.on_profile = save_to(passes);
  Driver driver(model, gpu::make_backend(make_machine(), options), CacheType::f16);
  Parts parts(model, 3);
  REQUIRE(pass(driver, parts.batch));
  parts.batch.logit_rows = parts.batch.hidden_rows = {};
  parts.batch.logits = parts.batch.hidden = {};
  REQUIRE(pass(driver, parts.batch));
  REQUIRE(passes.size() == 2);
  REQUIRE(passes[1].steps.size() < passes[0].steps.size());
  CHECK(passes[1].names.back() == "select rows");
  parts.batch.interrupted = [] { return true; };
  CHECK_FALSE(pass(driver, parts.batch));
  CHECK(passes.size() == 2);
}

#ifndef LLMINFER_TEST_GPU
TEST_CASE("The emulator has the time of timed events that were reached, and of no others") {
  const auto device = make_machine();
  const auto timed = [&] { return gpu::Event::make(device, true).value(); };
  const gpu::Event first = timed(), last = timed(), never = timed(), untimed = gpu::Event::make(device).value();
  first.record(gpu::Stream::work).value();
  untimed.record(gpu::Stream::work).value();
  last.record(gpu::Stream::work).value();
  device->wait().value();
  CHECK(last.seconds_since(first).value() >= 0);
  for (const gpu::Event* event : {&never, &untimed}) {
    CHECK(event->seconds_since(first).error().code == ErrorCode::device_error);
    CHECK(last.seconds_since(*event).error().code == ErrorCode::device_error);
  }
}
#endif
