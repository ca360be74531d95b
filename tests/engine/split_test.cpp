// Models whose layers are split between backends: the bits of one backend, and who gets which layers.
#include <llminfer/llminfer.hpp>

#include <algorithm>
#include <catch2/catch.hpp>
#include <cstring>
#include <random>
#include <utility>

#include "engine/placement.hpp"
#include "engine/staged_plan.hpp"
#include "engine/stages.hpp"
#include "engine/streaming.hpp"
#include "tests/engine/split_models.hpp"

using namespace llminfer;
using namespace llminfer::test;

TEST_CASE("layers split between backends give the bits of one backend") {
  const auto one = cpu(1), two = cpu(2);
  const WindowModel windows;
  for (const std::string& model : {path_of("tiny-bf16"), windows.path()}) {
    const std::vector<float> expected = everything(Engine::load(model, options_of({})).value());
    const std::vector<std::vector<LayerShare>> splits = {
        {{one, 1}, {two}},          {{}, {two, 2}}, {{one, 1}, {two, 1}, {{}, 1}},
        {{one, 0}, {two, 3}},        // the embedding alone
        {{one}, {two, 3}, {{}, 0}},  // and the output alone
    };
    for (const auto& split : splits) {
      CAPTURE(model, &split - splits.data());
      const Engine engine = Engine::load(model, options_of(split)).value();
      const std::vector<float> found = everything(engine);
      REQUIRE(found.size() == expected.size());
      CHECK(std::memcmp(found.data(), expected.data(), found.size() * sizeof(float)) == 0);
    }
  }
  EngineOptions whole = options_of({}), split = options_of({{one, 1}, {two}});
  whole.cache_type = split.cache_type = CacheType::int4;
  CHECK(everything(Engine::load(windows.path(), split).value()) ==
        everything(Engine::load(windows.path(), whole).value()));
}

TEST_CASE("a split load's plan tells who holds what, and it comes to be") {
  const std::string model = path_of("tiny-bf16");
  const auto one = cpu(1);
  const MemoryPlan whole = Engine::plan(model, options_of({})).value();
  REQUIRE(whole.shares.size() == 1);
  CHECK(whole.shares[0].layers == 3);
  CHECK(whole.shares[0].total() == whole.total());

  const MemoryPlan plan = Engine::plan(model, options_of({{one, 2}, {}})).value();
  REQUIRE(plan.shares.size() == 2);
  CHECK(plan.shares[0].backend == one->description());
  CHECK(plan.shares[0].first_layer == 0);
  CHECK(plan.shares[0].layers == 2);
  CHECK(plan.shares[1].first_layer == 2);
  CHECK(plan.shares[1].layers == 1);
  CHECK(plan.weights == whole.weights);  // not tied
  CHECK(plan.cache == whole.cache);
  CHECK(plan.shares[0].weights + plan.shares[1].weights == plan.weights);
  CHECK(plan.shares[0].cache == 2 * plan.shares[1].cache);
  CHECK(plan.activations > plan.shares[0].activations + plan.shares[1].activations);
  const Engine engine = Engine::load(model, options_of({{one, 2}, {}})).value();
  CHECK(engine.stats().weight_bytes == plan.weights);
  CHECK(engine.stats().cache_bytes == plan.cache);
  CHECK(engine.info().backend ==
        "layers 0 to 1 on " + one->description() + "; layers 2 to 2 on " + plan.shares[1].backend);

  // A limit of just so many bytes takes two layers, a byte less takes one; from the back likewise.
  const std::int64_t fits = plan.shares[0].total();
  CHECK(Engine::plan(model, options_of({{one, {}, fits}, {}})).value().shares[0].layers == 2);
  CHECK(Engine::plan(model, options_of({{one, {}, fits - 1}, {}})).value().shares[0].layers == 1);
  const std::int64_t last = Engine::plan(model, options_of({{}, {one, 2}})).value().shares[1].total();
  CHECK(Engine::plan(model, options_of({{}, {one, {}, last}})).value().shares[1].first_layer == 1);
  CHECK(Engine::plan(model, options_of({{}, {one, {}, last - 1}})).value().shares[1].first_layer == 2);
  // Enough for all: the other gets nothing. Too little for anything: the same the other way round.
  const MemoryPlan all = Engine::plan(model, options_of({{one, {}, std::int64_t{1} << 40}, {}})).value();
  CHECK(all.shares[0].total() == all.total());
  CHECK(all.shares[1].total() == 0);
  CHECK(Engine::load(model, options_of({{one, {}, 1000}, {}})).value().info().backend.starts_with("layers 0 to 2 on"));

  // A tied table is held by both, unless they are one backend.
  const WindowModel windows;
  const std::string& tied = windows.path();
  const std::int64_t once = Engine::plan(tied, options_of({})).value().weights;
  CHECK(Engine::plan(tied, options_of({{one, 1}, {one}})).value().weights == once);
  const auto other = cpu(1);
  CHECK(Engine::load(tied, options_of({{other, 1}, {other}})).value().stats().weight_bytes == once);
  const std::int64_t twice = Engine::plan(tied, options_of({{one, 1}, {}})).value().weights;
  CHECK(twice > once);
  CHECK(Engine::load(tied, options_of({{other, 1}, {}})).value().stats().weight_bytes == twice);
}

TEST_CASE("splits that cannot be") {
  const std::string model = path_of("tiny-bf16");
  const auto one = cpu(1);
  const auto error = [&](std::vector<LayerShare> split) { return refusal(model, options_of(std::move(split))); };
  CHECK_THAT(error({{}, {}}), Catch::Contains("invalid_argument") && Catch::Contains("split[1]"));
  CHECK_THAT(error({{one, -1}, {}}),
             Catch::Contains("invalid_argument") && Catch::Contains("layers is -1, expected 0 to 3"));
  CHECK_THAT(error({{one, 4}, {}}), Catch::Contains("layers is 4"));
  CHECK_THAT(error({{one, 2}, {{}, 2}}), Catch::Contains("gives out 4 layers; the model has 3"));
  CHECK_THAT(error({{one, 1}, {{}, 1}}), Catch::Contains("gives out 2 layers; the model has 3"));
  CHECK_THAT(error({{one, {}, -5}, {}}), Catch::Contains("memory is -5"));
  CHECK_THAT(error({{one, 2, 5000}, {}}),
             Catch::Contains("out_of_memory") && Catch::Contains("split[0]: 2 layers take"));
  CHECK_THAT(error({{one, {}, 5000}, {{}, {}, 5000}}), Catch::Contains("out_of_memory") &&
                                                           Catch::Contains("3 of 3 layers have no place") &&
                                                           Catch::Contains("MiB more than its limit"));
  const MemoryPlan plan = Engine::plan(model, options_of({{one, 3}, {}})).value();
  CHECK_THAT(error({{one, {}, plan.shares[0].total()}, {{}, {}, 5000}}), Catch::Contains("the output matrix"));
  EngineOptions options = options_of({{one, 1}, {}});
  options.custom_backend = one;
  CHECK(Engine::load(model, options).error().code == ErrorCode::invalid_argument);
}

TEST_CASE("a split model's prepared weights come from files, too") {
  const TempDir folder;
  EngineOptions options = options_of({{cpu(1), 1}, {}});
  options.weight_cache = folder.path();
  std::vector<std::string> warnings;
  options.on_log = [&](LogLevel level, std::string_view message) {
    if (level == LogLevel::warning) warnings.emplace_back(message);
  };
  const std::vector<float> first = everything(Engine::load(path_of("tiny-bf16"), options).value());
  CHECK(everything(Engine::load(path_of("tiny-bf16"), options).value()) == first);
  CHECK(warnings.empty());
}

TEST_CASE("layers go to the shares as their counts and limits say") {
  std::mt19937 random(7);
  const auto below = [&](int n) { return static_cast<std::int32_t>(random() % static_cast<unsigned>(n)); };
  int placed = 0, refused = 0;
  for (int round = 0; round < 3000; ++round) {
    const std::int32_t layers = 1 + below(12);
    std::vector<std::int64_t> unit;  // bytes of the embedding, each layer, the output
    for (std::int32_t i = 0; i < layers + 2; ++i) unit.push_back(1 + below(20));
    const auto bytes = [&](std::size_t, std::int32_t first, std::int32_t last) -> Result<std::int64_t> {
      std::int64_t sum = 0;
      for (std::int32_t i = first; i < last; ++i) sum += unit[static_cast<std::size_t>(i)];
      return sum;
    };
    std::vector<LayerShare> shares(1 + static_cast<std::size_t>(below(4)));
    const auto rest = static_cast<std::size_t>(below(static_cast<int>(shares.size()) + 1));
    std::int32_t left = layers;
    for (std::size_t i = 0; i < shares.size(); ++i) {
      if (i == rest) continue;
      if (below(2)) {
        shares[i].layers = below(left + 1);
        left -= *shares[i].layers;
      } else {
        shares[i].memory = 1 + below(120);
      }
    }
    const auto result = engine::place_layers(shares, layers, bytes);
    const bool all_counted = std::all_of(shares.begin(), shares.end(), [](const auto& s) { return s.layers; });
    if (!result) {
      ++refused;
      CHECK(rest == shares.size());  // somebody who takes the rest can take all
      CHECK(result.error().code == (all_counted ? ErrorCode::invalid_argument : ErrorCode::out_of_memory));
      continue;
    }
    ++placed;
    const std::vector<std::int32_t>& places = *result;
    REQUIRE(places.size() == shares.size() + 1);
    CHECK(places.front() == 0);
    CHECK(places.back() == layers + 2);
    CHECK(std::is_sorted(places.begin(), places.end()));
    for (std::size_t i = 0; i < shares.size(); ++i) {
      const std::int32_t first = std::clamp(places[i] - 1, 0, layers), last = std::clamp(places[i + 1] - 1, 0, layers);
      if (shares[i].layers) CHECK(last - first == *shares[i].layers);
      if (shares[i].memory > 0) CHECK(*bytes(i, places[i], places[i + 1]) <= shares[i].memory);
    }
    // A share beside the one that takes the rest would burst its limit with one more of the rest's.
    if (rest < shares.size() && places[rest] < places[rest + 1]) {
      if (rest > 0 && shares[rest - 1].memory > 0 && (left == layers)) {
        CHECK(*bytes(0, places[rest - 1], places[rest] + 1) > shares[rest - 1].memory);
      }
      if (rest + 1 < shares.size() && shares[rest + 1].memory > 0 && (left == layers)) {
        CHECK(*bytes(0, places[rest + 1] - 1, places[rest + 2]) > shares[rest + 1].memory);
      }
    }
  }
  CHECK(placed > 1000);
  CHECK(refused > 100);
}

TEST_CASE("programs are cut where the hidden state alone goes on") {
  Builder b("crossing");  // the embedding skips a layer
  const std::int32_t group = b.cache_group({2, 1, 16, 0});
  const ValueId x = b.embed(b.weight("table", 32, 16), "x");
  const ValueId first = b.attention(x, x, x, group, 0, 1, 1.0f, "first");
  const ValueId second = b.attention(first, x, first, group, 1, 1, 1.0f, "second");
  const ValueId hidden = b.add(second, second, "hidden");
  const Program program = std::move(b).finish(hidden, b.linear(hidden, b.weight("out", 32, 16), "logits")).value();
  const auto borders = engine::find_borders(program);
  REQUIRE_FALSE(borders);
  CHECK(borders.error().code == ErrorCode::unsupported);
  CHECK_THAT(borders.error().message, Catch::Contains("from layer 0 to the next"));
}

TEST_CASE("pages of a split cache have the canonical form of a whole one") {
  const auto backend = cpu(1);
  const auto whole = backend->make_cache({3, 2, 16, 0}, CacheType::f32, 4).value();
  std::vector<engine::StagedCache::Part> parts;
  parts.push_back({0, backend->make_cache({1, 2, 16, 0}, CacheType::f32, 4).value()});
  parts.push_back({2, backend->make_cache({2, 2, 16, 0}, CacheType::f32, 4).value()});
  engine::StagedCache split(std::move(parts));
  CHECK(split.of_stage(1) == nullptr);
  CHECK(split.bytes() == whole->bytes());
  REQUIRE(split.canonical_page_bytes() == whole->canonical_page_bytes());
  std::vector<float> values(static_cast<std::size_t>(whole->canonical_page_bytes()) / sizeof(float));
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i);
  whole->import_page(1, std::as_bytes(std::span(values))).value();
  split.import_page(1, std::as_bytes(std::span(values))).value();
  for (CacheStorage* cache : {whole.get(), static_cast<CacheStorage*>(&split)}) {
    cache->copy_page(1, 2, 64).value();
    std::vector<float> out(values.size());
    cache->export_page(2, std::as_writable_bytes(std::span(out))).value();
    CHECK(out == values);
    CHECK(cache->export_page(2, std::as_writable_bytes(std::span(out).first(8))).error().code ==
          ErrorCode::invalid_argument);
    CHECK(cache->import_page(2, std::as_bytes(std::span(out).first(8))).error().code == ErrorCode::invalid_argument);
    CHECK(cache->copy_page(1, 4, 64).error().code == ErrorCode::invalid_argument);
  }
}

TEST_CASE("as few streamed layers as host memory asks for are in a file, spread evenly") {
  // Layers 1 to 8 but 4, of two weights each.
  engine::Streamed streamed = {-1};
  std::vector<std::int64_t> bytes = {1000};
  for (const std::int32_t layer : {1, 2, 3, 5, 6, 7, 8}) {
    for (const std::int64_t size : {60, 40}) streamed.push_back(layer), bytes.push_back(size);
  }
  streamed.push_back(-1), bytes.push_back(50);
  const auto layers = [&](const engine::Stored& stored) {
    std::vector<std::int32_t> found;
    std::int64_t next = 0;
    for (std::size_t i = 0; i < stored.offset.size(); ++i) {
      if (!stored.has(i)) continue;
      CHECK(stored.offset[i] == std::exchange(next, next + bytes[i]));
      if (found.empty() || found.back() != streamed[i]) found.push_back(streamed[i]);
    }
    CHECK(stored.bytes == next);
    CHECK(stored.largest_layer == (found.empty() ? 0 : 100));
    return found;
  };
  using Layers = std::vector<std::int32_t>;
  CHECK(layers(engine::choose_stored(streamed, bytes, 0)) == Layers{1, 2, 3, 5, 6, 7, 8});
  CHECK(layers(engine::choose_stored(streamed, bytes, 99)) == Layers{1, 2, 3, 5, 6, 7, 8});
  CHECK(layers(engine::choose_stored(streamed, bytes, 499)) == Layers{3, 6, 8});
  CHECK(layers(engine::choose_stored(streamed, bytes, 600)) == Layers{8});
  CHECK(layers(engine::choose_stored(streamed, bytes, 700)).empty());
  CHECK(layers(engine::choose_stored({}, bytes, 0)).empty());
  for (std::int64_t& size : bytes) size *= 3;
  bytes[3] = 1000;  // in layer 2
  CHECK(engine::choose_stored(streamed, bytes, 0).largest_layer == 1120);
}
