// Weights that stay in host memory and are copied to the device in each pass: the bits of those that lie there.
#include <catch2/catch.hpp>

#include "tests/cpu/mixture.hpp"
#include "tests/gpu/streamed.hpp"

using namespace llminfer;
using namespace llminfer::test;

namespace {

using Chosen = std::function<bool(std::int32_t)>;
const Chosen kAll = [](std::int32_t) { return true; };

Model deep_model(WeightType type = WeightType::q4_0) {
  return make_model(
      make_program({.layers = 5, .heads = 2, .kv_heads = 1, .ffn = 32, .vocab = 48, .hidden = 32, .bias = true}), type);
}

/// Passes of several sequences each; in the first one of `rows` tokens.
std::vector<float> ragged(Driver driver, std::size_t rows) {
  const std::int64_t vocab = driver.model.program.vocab_size;
  const auto slice = [&](unsigned seed, std::size_t count) { return random_tokens(count, vocab, seed); };
  Sequence a, b, c;
  std::vector<float> all;
  const auto add = [&](const std::vector<float>& logits) { all.insert(all.end(), logits.begin(), logits.end()); };
  add(driver.forward({{&a, slice(1, rows)}, {&b, slice(2, 3)}}));
  add(driver.forward({{&c, slice(3, 3)}, {&a, slice(4, 1)}, {&b, slice(5, 1)}}));
  add(driver.forward({{&a, slice(6, 1)}, {&c, slice(7, 1)}}));
  return all;
}

/// The logits of a pass of Parts(model, 3) with all weights on the device.
std::vector<float> resident_logits(const Model& model) {
  Parts parts(model, 3);
  Driver whole(model, make_machine_backend(), CacheType::f16);
  REQUIRE(pass(whole, parts.batch));
  return parts.logits;
}

}  // namespace

TEST_CASE("A plan whose layers are streamed gives the bits of one that holds them") {
  Model model = deep_model();
  if (GENERATE(false, true)) model.order_columns();
  for (const Chosen& chosen : {kAll, Chosen([](std::int32_t layer) { return layer % 2 == 1; })}) {
    CHECK(same_bits(ragged(streamed_driver(model, make_machine_backend(), groups_of(model.program, chosen)), 2),
                    ragged(Driver(model, make_machine_backend(), CacheType::f16), 2)));
  }
}

TEST_CASE("Streamed layers of all choices on all machines", "[.slow]") {
  const Model model = deep_model();
  const Model mixture =
      make_model(make_mixture({.experts = 3, .layers = 4, .shared = true, .biases = true}), WeightType::q4_1);
  for (unsigned choice = 3; choice < 32; choice += 5) {
    const auto chosen = [&](std::int32_t layer) { return (choice >> layer & 1) != 0; };
    const std::vector<Machine> all = machines(choice + 20);
    const Machine& machine = all[choice % all.size()];
    for (const Model* m : {&model, &mixture}) {
      CAPTURE(choice, machine.name, m == &model);
      CHECK(same_bits(
          ragged(streamed_driver(*m, make_machine_backend(machine.options), groups_of(m->program, chosen)), 17),
          ragged(Driver(*m, make_machine_backend(machine.options), CacheType::f16), 17)));
    }
  }
}

TEST_CASE("Mixtures of experts are streamed") {
  const Model model =
      make_model(make_mixture({.experts = 3, .ffn = 32, .hidden = 32, .layers = 3, .biases = true}), WeightType::q8_0);
  CHECK(same_bits(ragged(streamed_driver(model, make_machine_backend(), groups_of(model.program, kAll)), 2),
                  ragged(Driver(model, make_machine_backend(), CacheType::f16), 2)));
}

TEST_CASE("A weight that several layers read may stay, but is streamed with none of them") {
  Builder b("tied");
  const std::int32_t group = b.cache_group({3, 1, 32, 0});
  const WeightId shared = b.weight("shared", 32, 32);
  ValueId x = b.embed(b.weight("embed", 40, 32), "x");
  for (int l = 0; l < 3; ++l) {
    const std::string p = "blk." + std::to_string(l) + ".";
    const ValueId v = b.linear(x, b.weight(p + "v", 32, 32), p + "v");
    const ValueId a = b.attention(v, v, v, group, l, 1, 0.2f, p + "a");
    x = b.add(x, b.linear(a, shared, p + "o"), p + "x");
  }
  const Model model =
      make_model(std::move(b).finish(x, b.linear(x, b.weight("head", 40, 32), "l")).value(), WeightType::f32);
  std::vector<std::int32_t> groups = groups_of(model.program, kAll);
  CHECK(same_bits(ragged(streamed_driver(model, make_machine_backend(), groups), 3),
                  ragged(Driver(model, make_machine_backend(), CacheType::f16), 3)));
  const auto backend = make_machine_backend();
  groups[0] = 1;
  const auto plan = compile_streamed(model, *backend, groups);
  REQUIRE_FALSE(plan);
  CHECK(plan.error().code == ErrorCode::invalid_argument);
  CHECK_THAT(plan.error().message, Catch::Contains("PlanOptions::streamed"));
}

TEST_CASE("A pass over streamed weights that is interrupted or asked for nothing leaves the next one right") {
  const Model model = deep_model();
  const std::vector<float> expected = resident_logits(model);
  Driver driver = streamed_driver(model, make_machine_backend(), groups_of(model.program, kAll));
  for (const int patience : {0, 3}) {
    Parts stopped(model, 3), after(model, 3);
    int asked = 0;
    stopped.batch.interrupted = [&] { return asked++ >= patience; };
    CHECK(pass(driver, stopped.batch).error().code == ErrorCode::cancelled);
    REQUIRE(pass(driver, after.batch));
    CHECK(same_bits(after.logits, expected));
  }
  Parts silent(model, 3), after(model, 3);
  silent.batch.logit_rows = silent.batch.hidden_rows = {};
  silent.batch.logits = silent.batch.hidden = {};
  REQUIRE(pass(driver, silent.batch));
  REQUIRE(pass(driver, after.batch));
  CHECK(same_bits(after.logits, expected));
}

TEST_CASE("A plan with streamed weights takes what was said, and fits its weights") {
  const Model model = deep_model(WeightType::q4_1);
  const auto backend = make_machine_backend();
  std::vector<WeightView> views;
  for (std::size_t i = 0; i < model.types.size(); ++i) {
    views.push_back(model.view(i));
    CHECK(backend->prepare_streamed(model.view(i)).value()->bytes() ==
          backend->prepare(model.view(i)).value()->bytes());
  }
  const std::int64_t whole = backend->plan_bytes(model.program, views, {33});
  std::vector<std::int64_t> rings;
  for (const std::int32_t layers : {5, 3, 2, 1}) {
    const auto groups = groups_of(model.program, [&](std::int32_t layer) { return layer < layers; });
    const std::int64_t foreseen = backend->plan_bytes(model.program, views, {33, {}, groups});
    CHECK(compile_streamed(model, *backend, groups, 33).value()->bytes() == foreseen);
    rings.push_back(foreseen - whole);
  }
  CHECK(rings[0] > 0);
  CHECK(rings[0] == rings[1]);
  CHECK(rings[1] == rings[2]);
  CHECK(rings[2] == 2 * rings[3]);

  const auto groups = groups_of(model.program, kAll);
  const auto compile = [&](bool streamed, std::vector<std::int32_t> claimed) {
    std::vector<std::shared_ptr<const PreparedWeight>> weights;
    for (std::size_t i = 0; i < views.size(); ++i) {
      const bool in_host = streamed && groups[i] >= 0;
      weights.push_back(in_host ? backend->prepare_streamed(views[i]).value() : backend->prepare(views[i]).value());
    }
    return backend->compile(model.program, std::move(weights), {33, {}, std::move(claimed)});
  };
  CHECK(compile(true, groups));
  CHECK(compile(true, {}).error().code == ErrorCode::invalid_argument);
  CHECK(compile(false, groups).error().code == ErrorCode::invalid_argument);
  CHECK(compile(true, {0, 1}).error().code == ErrorCode::invalid_argument);
}

TEST_CASE("Layers that are read from a storage give the bits of those on the device") {
  const Model model = deep_model();
  const std::vector<float> expected = ragged(Driver(model, make_machine_backend(), CacheType::f16), 2);
  const Chosen odd = [](std::int32_t layer) { return layer % 2 == 1; }, last = [](std::int32_t l) { return l == 4; };
  for (const Chosen& streamed : {kAll, odd}) {
    for (const Chosen& has : {kAll, odd, last}) {
      const auto storage = std::make_shared<MemoryStorage>();
      CHECK(same_bits(
          ragged(streamed_driver(model, make_machine_backend(), groups_of(model.program, streamed), {storage, has}), 2),
          expected));
    }
  }
  const Model mixture =
      make_model(make_mixture({.experts = 3, .ffn = 32, .hidden = 32, .layers = 3, .biases = true}), WeightType::q8_0);
  const auto storage = std::make_shared<MemoryStorage>();
  CHECK(same_bits(
      ragged(streamed_driver(mixture, make_machine_backend(), groups_of(mixture.program, kAll), {storage}), 2),
      ragged(Driver(mixture, make_machine_backend(), CacheType::f16), 2)));
}

TEST_CASE("Layers are read once for each pass, and for the next one before that begins") {
  const Model model = deep_model();
  const std::vector<std::int32_t> groups = groups_of(model.program, kAll);
  const auto of_layer = std::count(groups.begin(), groups.end(), 0), of_pass = 5 * of_layer;
  for (std::uint64_t seed = 1; seed <= 3; ++seed) {
    gpu::EmulatorOptions options;
    options.seed = seed;
    const auto storage = std::make_shared<MemoryStorage>();
    Driver driver = streamed_driver(model, make_machine_backend(options), groups, {storage});
    CHECK(storage->reads() == 0);
    for (int passes = 1; passes <= 2; ++passes) {
      Parts parts(model, 3);
      REQUIRE(pass(driver, parts.batch));
      CHECK(storage->await_reads(passes * of_pass + 2 * of_layer));
      CHECK(storage->reads() <= passes * of_pass + 4 * of_layer);
    }
  }
}

TEST_CASE("A read that fails is an error of the pass that needs it alone") {
  const Model model = deep_model();
  const std::vector<float> expected = resident_logits(model);
  const auto storage = std::make_shared<MemoryStorage>();
  Driver driver = streamed_driver(model, make_machine_backend(), groups_of(model.program, kAll), {storage});
  for (const std::int64_t read : {1, 17, 60, 75}) {
    CAPTURE(read);
    storage->fail_read(read);
    int failed = 0;
    for (int i = 0; i < 4; ++i) {
      Parts parts(model, 3);
      const auto passed = pass(driver, parts.batch);
      if (passed) {
        CHECK(same_bits(parts.logits, expected));
        continue;
      }
      ++failed;
      CHECK(passed.error().code == ErrorCode::io_error);
      CHECK(passed.error().message == "the disk is gone");
    }
    CHECK(failed == 1);
  }
}

TEST_CASE("A pass is interrupted though the storage hangs") {
  const Model model = deep_model();
  const std::vector<float> expected = resident_logits(model);
  const auto storage = std::make_shared<MemoryStorage>();
  Driver driver = streamed_driver(model, make_machine_backend(), groups_of(model.program, kAll), {storage});
  for (int turn = 0; turn < 2; ++turn) {
    storage->hold();
    int asked = 0;
    Parts stopped(model, 3), after(model, 3);
    stopped.batch.interrupted = [&] { return ++asked > 20; };
    CHECK(pass(driver, stopped.batch).error().code == ErrorCode::cancelled);
    storage->let_all();
    REQUIRE(pass(driver, after.batch));  // after which up to four of the five layers are read for the next one
    CHECK(same_bits(after.logits, expected));
  }
}

TEST_CASE("Weights of a pass that does not get to them are not waited for") {
  const Model model = deep_model();
  const std::vector<float> expected = resident_logits(model);
  // The last layer's last matrix and its bias are a group, and their disk hangs whenever nobody needs them.
  const auto storage = std::make_shared<MemoryStorage>(), hangs = std::make_shared<MemoryStorage>();
  Driver driver(model, make_machine_backend(), CacheType::f16);
  std::vector<std::int32_t> groups = groups_of(model.program, kAll);
  std::vector<std::shared_ptr<const PreparedWeight>> weights;
  std::int64_t offset = 0;
  for (std::size_t i = 0; i < groups.size(); ++i) {
    const bool last = model.program.weights[i].name == "blk.4.wd" || model.program.weights[i].name == "blk.4.bd";
    if (last) groups[i] = 5;
    auto weight = groups[i] < 0 ? driver.backend->prepare(model.view(i))
                                : driver.backend->prepare_streamed_in(last ? hangs : storage, offset, model.view(i));
    offset += weight.value()->bytes();
    weights.push_back(std::move(*weight));
  }
  REQUIRE(std::count(groups.begin(), groups.end(), 5) == 2);
  driver.plan = driver.backend->compile(model.program, std::move(weights), {256, {}, groups}).value();
  for (int i = 0; i < 3; ++i) {
    Parts silent(model, 3), after(model, 3);
    silent.batch.logit_rows = silent.batch.hidden_rows = {};
    silent.batch.logits = silent.batch.hidden = {};
    hangs->hold();
    REQUIRE(pass(driver, silent.batch));
    hangs->let_all();
    REQUIRE(pass(driver, after.batch));
    CHECK(same_bits(after.logits, expected));
  }
}

TEST_CASE("A storage that takes no weight, and none at all, are errors") {
  const Model model = deep_model();
  const auto backend = make_machine_backend();
  const auto storage = std::make_shared<MemoryStorage>();
  CHECK(backend->prepare_streamed_in(storage, 0, model.view(0)).value()->bytes() ==
        backend->prepare(model.view(0)).value()->bytes());
  CHECK(backend->prepare_streamed_in(nullptr, 0, model.view(0)).error().code == ErrorCode::invalid_argument);
  CHECK(backend->prepare_streamed_in(storage, -1, model.view(0)).error().code == ErrorCode::invalid_argument);
  storage->fail_writes();
  const auto refused = backend->prepare_streamed_in(storage, 0, model.view(0));
  REQUIRE_FALSE(refused);
  CHECK(refused.error().code == ErrorCode::io_error);
  CHECK_THAT(refused.error().message, Catch::Contains("no room") && Catch::Contains(std::string(model.view(0).name)));
}
