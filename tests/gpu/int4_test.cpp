// Caches in 4 bits on the emulated GPU backend: what is packed beside the CPU backend's, plans beside the interpreter
// that rounds as KIVI does, and that chunks, rewinds, forks and preemption change nothing.
#include <limits>

#include <llminfer/llminfer.hpp>

#include "tests/cpu/sealed_pages.hpp"
#include "tests/gpu/machines.hpp"

using namespace llminfer;
using namespace llminfer::test;

namespace {

std::vector<float> sealed(CacheStorage& cache, const std::vector<float>& page) {
  std::vector<float> out(page.size());
  cache.import_page(1, std::as_bytes(std::span(page))).value();
  cache.finish_page(1);
  cache.export_page(1, std::as_writable_bytes(std::span(out))).value();
  return out;
}

}  // namespace

TEST_CASE("int4 pages on the GPU are those of the CPU backend, also with what is no number") {
  const auto cpu = make_cpu_backend({.threads = 1}).value();
  std::size_t turn = 0;
  for (const std::int32_t dim : {20, 64, 264}) {
    const CacheGroup group{2, 2, dim, 0};
    const auto backend = make_machine_backend(machines(3)[turn++ % machines().size()].options);
    const auto on_gpu = backend->make_cache(group, CacheType::int4, 2).value();
    const auto on_cpu = cpu->make_cache(group, CacheType::int4, 2).value();
    std::vector<float> page(static_cast<std::size_t>(on_gpu->canonical_page_bytes()) / sizeof(float));
    std::mt19937 random(static_cast<std::uint32_t>(dim));
    std::normal_distribution<float> normal;
    for (std::size_t i = 0; i < page.size(); ++i) {
      page[i] = std::ldexp(normal(random) + static_cast<float>(i % 3), static_cast<int>(i % 20) - 10);
    }
    constexpr float kInfinity = std::numeric_limits<float>::infinity();
    page[0] = std::numeric_limits<float>::quiet_NaN();
    page[1] = kInfinity, page[2] = -kInfinity, page[3] = 1e-42f;
    const std::vector<float> found = sealed(*on_gpu, page), expected = sealed(*on_cpu, page);
    CAPTURE(dim);
    CHECK(same_bits(found, expected));
    CHECK(same_bits(sealed(*on_gpu, found), found));
    CHECK_FALSE(same_bits(found, page));
  }
}

TEST_CASE("An int4 cache on the GPU: pages before a token's own are rounded, its own is not") {
  for (const bool invariant : {false, true}) {
    const Shape shape =
        invariant
            ? Shape{.layers = 1, .heads = 2, .kv_heads = 2, .head_dim = 20, .ffn = 32, .window = 90, .sinks = true}
            : Shape{.layers = 1, .heads = 4, .kv_heads = 2, .head_dim = 32, .ffn = 32};
    const Model model = make_model(make_program(shape), WeightType::f32);
    const auto tokens = random_tokens(200, shape.vocab);
    gpu::EmulatorOptions options;
    options.units = 64;  // keys are split
    if (invariant) options = machines(2)[machines().size() - 1].options;
    Driver driver(model, make_machine_backend(options, invariant), CacheType::int4, 256, 40, 7);
    const auto found = driver.feed(tokens, {130, 1, 40, 3});
    const double error = nmse(found, Oracle(model, tokens, true).logits());
    const double unrounded = nmse(found, Oracle(model, tokens).logits());
    CAPTURE(invariant, error, unrounded);
    CHECK(error < 0.02 * unrounded);
  }
}

TEST_CASE("An int4 cache on the GPU: chunks and runs of one sequence do not change a bit") {
  const Model model =
      make_model(make_program({.layers = 1, .heads = 2, .kv_heads = 1, .head_dim = 16, .ffn = 32, .window = 100}),
                 WeightType::q4_1);
  check_chunks(random_tokens(150, 101), {{1, 63, 2, 64, 20}},
               [&] { return Driver(model, make_machine_backend({}, true), CacheType::int4, 256, 40); });
}

TEST_CASE("An int4 cache on the GPU: what a full page does not allow") {
  const Model model = make_model(make_program({.layers = 1, .heads = 2, .kv_heads = 1, .ffn = 32}), WeightType::f32);
  check_full_pages(model, [&] { return Driver(model, make_machine_backend({}, true), CacheType::int4); });
}

TEST_CASE("An int4 cache on the GPU: forks, rewinds and preemption change no token, and the plan foresees its memory",
          "[.slow]") {
  const std::string model = LLMINFER_TEST_DATA "/models/tiny-bf16";
  EngineOptions options;
  options.custom_backend = make_machine_backend({}, true);
  options.cache_type = CacheType::int4;
  options.context_length = 192;
  options.cache_tokens = 192;
  options.max_batch_tokens = 48;
  const Engine engine = Engine::load(model, options).value();
  const auto tokens = [](std::size_t count, unsigned seed) { return random_tokens(count, 64, seed); };
  GenerateOptions some;
  some.max_tokens = 6;
  some.ignore_end = true;
  {
    Session session = engine.new_session().value();
    session.prefill(tokens(70, 1)).value();
    Session fork = session.fork().value();
    const auto first = session.generate(some).value();
    CHECK(fork.generate(some).value().tokens == first.tokens);
    session.truncate(70).value();
    CHECK(session.generate(some).value().tokens == first.tokens);
    session.truncate(30).value();  // into a page that is full
    const std::vector<Token> all = tokens(70, 1);
    session.prefill(std::span(all).subspan(30)).value();
    CHECK(session.generate(some).value().tokens == first.tokens);
  }
  const auto request = [&](unsigned i) {
    CompletionRequest request;
    request.tokens = tokens(60 + 4 * i, i);
    request.options = some;
    request.options.max_tokens = 12;
    return request;
  };
  std::vector<Completion> together;
  for (unsigned i = 0; i < 3; ++i) together.push_back(engine.submit(request(i)).value());
  std::vector<std::vector<Token>> found;
  for (Completion& completion : together) found.push_back(completion.wait().value().tokens);
  CHECK(engine.stats().preemptions > 0);
  for (unsigned i = 0; i < 3; ++i) CHECK(engine.complete(request(i)).value().tokens == found[i]);
  CHECK(engine.stats().cache_bytes <= Engine::plan(model, options).value().cache);
}
