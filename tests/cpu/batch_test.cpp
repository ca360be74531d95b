// A token's bits do not depend on its company: chunks, batches, threads, pages. And what a batch may ask for, and get
// wrong.
#include <catch2/catch.hpp>
#include <limits>
#include <thread>

#include "tests/cpu/model.hpp"

using namespace llminfer;
using namespace llminfer::test;

namespace {

BackendOptions options_of(const std::string& level, int threads) {
  BackendOptions options;
  options.threads = threads;
  options.cpu_level = level;
  return options;
}

constexpr Shape kGrouped{.heads = 6, .kv_heads = 2, .head_dim = 32, .ffn = 128};
constexpr Shape kWindowed{.heads = 2, .kv_heads = 2, .head_dim = 32, .ffn = 64, .window = 100, .interleaved = true};

constexpr CacheType kCacheTypes[] = {CacheType::f16, CacheType::f32, CacheType::bf16, CacheType::int8, CacheType::int4};

/// Each level with each type, but the scalar one, which is slow, with f16 only.
std::vector<std::pair<std::string, CacheType>> levels_and_caches() {
  std::vector<std::pair<std::string, CacheType>> all;
  for (const std::string& level : cpu_levels()) {
    for (const CacheType type : kCacheTypes) {
      if (level != "scalar" || type == CacheType::f16) all.emplace_back(level, type);
    }
  }
  return all;
}

}  // namespace

TEST_CASE("chunks, threads and pages do not change a bit, whatever the cache holds") {
  for (const Shape& shape : {kGrouped, kWindowed}) {
    const Model model = make_model(make_program(shape), WeightType::q4_1);
    const auto tokens = random_tokens(330, shape.vocab);
    for (const CacheType type : kCacheTypes) {
      const auto expected = Driver(model, options_of(cpu_levels().back(), 1), type, 512).feed(tokens, {330});
      for (const std::string& level : cpu_levels()) {
        CAPTURE(level, shape.window, static_cast<int>(type));
        int threads = 0;  // other ones each time
        for (const auto& chunks :
             std::vector<std::vector<std::int32_t>>{{1, 63, 2, 64, 20}, {128, 128, 70, 1}, {330}, {40, 1, 1}}) {
          ++threads;
          CAPTURE(threads, chunks.size());
          if (level == "scalar" && threads > 2) break;  // slow
          Driver driver(model, options_of(level, threads), type, 512, 40, static_cast<std::uint32_t>(threads));
          CHECK(same_bits(driver.feed(tokens, chunks), expected));
        }
      }
    }
  }
}

TEST_CASE("with activations of 8 bits, too, and they are other bits than those of 16") {
  const auto type = GENERATE(WeightType::q4_1, WeightType::bf16);
  const Model model = make_model(make_program(kGrouped), type);
  const auto tokens = random_tokens(150, kGrouped.vocab);
  BackendOptions options = options_of("scalar", 1);
  const auto sixteen = Driver(model, options, CacheType::f16).feed(tokens, {150});
  options.activation_bits = 8;
  const auto expected = Driver(model, options, CacheType::f16).feed(tokens, {150});
  CHECK_FALSE(same_bits(expected, sixteen));
  CHECK(nmse(expected, Oracle(model, tokens).logits()) < 1e-3);
  for (const std::string& level : cpu_levels()) {
    CAPTURE(level);
    options.cpu_level = level;
    Driver driver(model, options, CacheType::f16);
    CHECK(same_bits(driver.feed(tokens, {40, 1, 7, 102}), expected));
  }
}

TEST_CASE("inputs with outliers keep their 16 bits, whichever are asked for") {
  Model model = make_model(make_program(kGrouped), WeightType::q8_0);
  const auto tokens = random_tokens(40, kGrouped.vocab);
  const auto feed = [&](int bits) {
    BackendOptions options = options_of(cpu_levels().back(), 2);
    options.activation_bits = bits;
    return Driver(model, options, CacheType::f16).feed(tokens, {39, 1});
  };
  const auto sixteen = feed(16), eight = feed(8);
  InputQuantization outliers;
  outliers.outliers = true;
  model.round_inputs("q", outliers);  // one of the three that read the same input
  const auto mixed = feed(8);
  CHECK_FALSE(same_bits(mixed, eight));
  CHECK_FALSE(same_bits(mixed, sixteen));
  model.round_inputs("", outliers);
  CHECK(same_bits(feed(8), sixteen));
}

TEST_CASE("a long context that is split over threads gives the same bits, alone and beside short ones") {
  const Shape one_head{.heads = 4, .kv_heads = 1, .head_dim = 32, .ffn = 64};
  for (const Shape& shape : {kGrouped, one_head}) {
    const Model model = make_model(make_program(shape), WeightType::q8_0);
    const auto tokens = random_tokens(1500, shape.vocab);
    const std::string level = cpu_levels().back();
    for (const CacheType type : kCacheTypes) {
      CAPTURE(static_cast<int>(type), shape.kv_heads);
      Driver whole(model, options_of(level, 1), type, 1500);
      const auto expected = whole.feed(tokens, {1500});
      for (const int threads : {2, 3, 4}) {
        CAPTURE(threads);
        Driver driver(model, options_of(level, threads), type, 1500, 40, static_cast<std::uint32_t>(threads));
        CHECK(same_bits(driver.feed(tokens, {1300, 1, 1, 1, 7, 1}), expected));

        Driver mixed(model, options_of(level, threads), type, 1500, 40, static_cast<std::uint32_t>(threads));
        const auto slice = [&](std::size_t begin, std::size_t count) {
          const auto at = tokens.begin() + static_cast<std::ptrdiff_t>(begin);
          return std::vector<std::int32_t>(at, at + static_cast<std::ptrdiff_t>(count));
        };
        Sequence longest;
        std::vector<Sequence> others(12);
        mixed.forward({{&longest, slice(0, 1300)}});
        for (std::size_t at = 0; at < 3; ++at) {  // of each sequence a token
          std::vector<Feed> feeds{{&longest, slice(1300 + at, 1)}};
          for (Sequence& other : others) feeds.push_back({&other, slice(at, 1)});
          const auto found = mixed.forward(feeds);
          const auto vocab = static_cast<std::ptrdiff_t>(shape.vocab);
          for (std::size_t i = 0; i < feeds.size(); ++i) {
            const auto row = found.begin() + static_cast<std::ptrdiff_t>(i) * vocab;
            const auto want = expected.begin() + static_cast<std::ptrdiff_t>(i == 0 ? 1300 + at : at) * vocab;
            CHECK(same_bits({row, row + vocab}, {want, want + vocab}));
          }
        }
      }
    }
  }
}

TEST_CASE("all levels give the same bits, whatever the cache holds") {
  for (const Shape& shape : {kGrouped, kWindowed}) {
    for (const WeightType weights : {WeightType::q4_1, WeightType::f32}) {
      const Model model = make_model(make_program(shape), weights);
      const auto tokens = random_tokens(150, shape.vocab);
      for (const CacheType type : kCacheTypes) {
        if (weights == WeightType::f32 && type != CacheType::f16) continue;
        Driver first(model, options_of("scalar", 1), type);
        const auto expected = first.feed(tokens, {149, 1});
        for (const std::string& level : cpu_levels()) {
          CAPTURE(level, shape.window, static_cast<int>(type), weight_type_info(weights).name);
          Driver driver(model, options_of(level, 2), type);
          CHECK(same_bits(driver.feed(tokens, {40, 1, 108}), expected));
        }
      }
    }
  }
}

TEST_CASE("a run's bits do not depend on the other runs of its batch") {
  const Model model = make_model(make_program(kGrouped), WeightType::q4_0);
  const auto a = random_tokens(130, kGrouped.vocab, 1), b = random_tokens(70, kGrouped.vocab, 2),
             c = random_tokens(9, kGrouped.vocab, 3);
  const auto slice = [](const std::vector<std::int32_t>& v, std::size_t begin, std::size_t count) {
    const auto at = v.begin() + static_cast<std::ptrdiff_t>(begin);
    return std::vector<std::int32_t>(at, at + static_cast<std::ptrdiff_t>(count));
  };
  for (const auto& [level, type] : levels_and_caches()) {
    CAPTURE(level, static_cast<int>(type));
    Driver alone(model, options_of(level, 2), type);
    const auto of_a = alone.feed(a, {130}), of_b = alone.feed(b, {70}), of_c = alone.feed(c, {9});
    Driver driver(model, options_of(level, 2), type);
    Sequence sa, sb, sc;
    const auto vocab = static_cast<std::size_t>(kGrouped.vocab);
    const auto rows = [&](const std::vector<float>& all, std::size_t begin, std::size_t count) {
      const auto at = all.begin() + static_cast<std::ptrdiff_t>(begin * vocab);
      return std::vector<float>(at, at + static_cast<std::ptrdiff_t>(count * vocab));
    };
    // Prompts and single tokens mixed, then single tokens only (where attention writes the cache itself).
    auto out = driver.forward({{&sa, slice(a, 0, 100)}, {&sb, slice(b, 0, 1)}, {&sc, slice(c, 0, 5)}});
    CHECK(same_bits(rows(out, 0, 100), rows(of_a, 0, 100)));
    CHECK(same_bits(rows(out, 100, 1), rows(of_b, 0, 1)));
    CHECK(same_bits(rows(out, 101, 5), rows(of_c, 0, 5)));
    out = driver.forward({{&sc, slice(c, 5, 1)}, {&sa, slice(a, 100, 1)}, {&sb, slice(b, 1, 1)}});
    CHECK(same_bits(out, [&] {
      auto expected = rows(of_c, 5, 1);
      for (const auto& more : {rows(of_a, 100, 1), rows(of_b, 1, 1)})
        expected.insert(expected.end(), more.begin(), more.end());
      return expected;
    }()));
    out = driver.forward({{&sb, slice(b, 2, 68)}, {&sa, slice(a, 101, 29)}, {&sc, slice(c, 6, 3)}});
    CHECK(same_bits(rows(out, 0, 68), rows(of_b, 2, 68)));
    CHECK(same_bits(rows(out, 68, 29), rows(of_a, 101, 29)));
    CHECK(same_bits(rows(out, 97, 3), rows(of_c, 6, 3)));
  }
}

TEST_CASE("only the rows that are asked for, with the same bits") {
  for (const WeightType type : {WeightType::q4_1, WeightType::f32}) {
    const Model model = make_model(make_program(kGrouped), type);
    Driver driver(model, options_of("", 2), CacheType::f16);
    Parts all(model, 70);
    REQUIRE(pass(driver, all.batch));
    const auto row = [](const std::vector<float>& v, std::size_t i, std::int64_t width) {
      const auto at = v.begin() + static_cast<std::ptrdiff_t>(i) * width;
      return std::vector<float>(at, at + width);
    };
    const std::int64_t vocab = model.program.vocab_size, width = model.program.hidden_size;
    const std::vector<std::pair<std::vector<std::int32_t>, std::vector<std::int32_t>>> wanted = {
        {{69}, {}}, {{}, {3, 69}}, {{0, 5, 69}, {5}}, {{5}, {0, 5, 68}}, {{}, {}}, {{7, 8}, {7, 8}}};
    for (const auto& [logit_rows, hidden_rows] : wanted) {
      Parts some(model, 70);
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
      // The cache is whole even where nothing was asked for: the next token sees every one before it.
      Sequence next{{some.table}, 70}, after_all{{all.table}, 70};
      const auto found = driver.forward({{&next, {11}}});
      REQUIRE(pass(driver, all.batch));
      CHECK(same_bits(found, driver.forward({{&after_all, {11}}})));
    }
  }
}

TEST_CASE("embedding rows take the place of tokens") {
  const Model model = make_model(make_program(kGrouped), WeightType::f32);
  Driver driver(model, options_of("", 2), CacheType::f16);
  Parts plain(model, 20), mixed(model, 20);
  REQUIRE(pass(driver, plain.batch));
  const auto width = static_cast<std::size_t>(model.program.hidden_size);
  std::vector<float> embeddings(20 * width, -1.0f);
  for (const std::size_t i : {0u, 7u, 19u}) {
    const auto token = static_cast<std::size_t>(std::exchange(mixed.tokens[i], -1));
    std::copy_n(model.values[0].begin() + static_cast<std::ptrdiff_t>(token * width), width,
                embeddings.begin() + static_cast<std::ptrdiff_t>(i * width));
  }
  mixed.batch.embeddings = embeddings;
  REQUIRE(pass(driver, mixed.batch));
  CHECK(same_bits(mixed.logits, plain.logits));
}

TEST_CASE("the host's threads run the plan") {
  const Model model = make_model(make_program(kGrouped), WeightType::q4_1);
  Driver own(model, options_of("", 1), CacheType::f16);
  int calls = 0;
  BackendOptions options = options_of("", 3);
  options.executor = [&](int count, const std::function<void(int, int)>& body) {
    ++calls;
    std::vector<std::thread> threads;
    for (int i = 1; i < count; ++i) threads.emplace_back([&body, i, count] { body(i, count); });
    body(0, count);
    for (std::thread& thread : threads) thread.join();
  };
  Driver lent(model, options, CacheType::f16);
  const auto tokens = random_tokens(40, kGrouped.vocab);
  calls = 0;
  CHECK(same_bits(lent.feed(tokens, {38, 1}), own.feed(tokens, {40})));
  CHECK(calls == 3);
}

TEST_CASE("bad batches are refused and change nothing") {
  const Model model = make_model(make_program(kGrouped), WeightType::f32);
  Driver driver(model, options_of("", 2), CacheType::f16, 64, 3);
  const auto refused = [&](const char* what, const auto& spoil) {
    CAPTURE(what);
    Parts parts(model, 10);
    spoil(parts);
    const auto result = driver.plan->submit(parts.batch, driver.cache_pointers);
    REQUIRE_FALSE(result);
    CHECK(result.error().code == ErrorCode::invalid_argument);
    CHECK_FALSE(result.error().message.empty());
  };
  refused("no rows", [](Parts& p) { p.batch.positions = {}, p.batch.tokens = {}, p.batch.runs = {}; });
  refused("a token past the vocabulary", [](Parts& p) { p.tokens[3] = kGrouped.vocab; });
  refused("a negative token", [](Parts& p) { p.tokens[3] = -2; });
  refused("an embedding that is not there", [](Parts& p) { p.tokens[3] = -1; });
  refused("too few embeddings", [](Parts& p) { p.batch.embeddings = std::span<const float>(p.hidden).first(5); });
  refused("too few tokens", [](Parts& p) { p.batch.tokens = p.batch.tokens.first(9); });
  refused("a position that does not follow", [](Parts& p) { p.positions[4] = 6; });
  refused("a negative position", [](Parts& p) { p.runs[0].first_position = -1; });
  refused("a position at the end of all numbers",
          [](Parts& p) { p.runs[0].first_position = std::numeric_limits<std::int32_t>::max() - 3; });
  refused("a run with no rows", [](Parts& p) { p.runs[0].rows = 0; });
  refused("a run past the rows", [](Parts& p) { p.runs[0].rows = 11; });
  refused("rows without a run", [](Parts& p) { p.runs[0].rows = 9; });
  refused("a run that starts late", [](Parts& p) { p.runs[0].first_row = 1; });
  refused("no block table", [](Parts& p) { p.runs[0].block_tables.clear(); });
  refused("an empty block table", [](Parts& p) { p.runs[0].block_tables[0] = {}; });
  refused("a page that is not there", [](Parts& p) { p.table[0] = 3; });
  refused("a negative page", [](Parts& p) { p.table[0] = -1; });
  refused("descending outputs", [](Parts& p) { std::swap(p.wanted[2], p.wanted[3]); });
  refused("an output row twice", [](Parts& p) { p.wanted[3] = p.wanted[2]; });
  refused("an output row past the end", [](Parts& p) { p.wanted[9] = 10; });
  refused("too little room for logits", [](Parts& p) { p.batch.logits = p.batch.logits.first(5); });
  refused("too little room for hidden states", [](Parts& p) { p.batch.hidden = p.batch.hidden.first(5); });
  {
    Parts parts(model, 65);
    CHECK(driver.plan->submit(parts.batch, driver.cache_pointers).error().code == ErrorCode::invalid_argument);
    Parts fine(model, 10);
    CHECK(driver.plan->submit(fine.batch, {}).error().code == ErrorCode::invalid_argument);
    const auto other = driver.backend->make_cache({1, 1, 8, 0}, CacheType::f16, 1).value();
    CacheStorage* wrong = other.get();
    CHECK(driver.plan->submit(fine.batch, {&wrong, 1}).error().code == ErrorCode::invalid_argument);
    CHECK(driver.plan->wait().error().code == ErrorCode::invalid_state);
    REQUIRE(driver.plan->submit(fine.batch, driver.cache_pointers));
    CHECK(driver.plan->submit(fine.batch, driver.cache_pointers).error().code == ErrorCode::invalid_state);
    CHECK(driver.plan->wait());
  }
}

TEST_CASE("a pass that is interrupted ends, and the next one is whole") {
  const Model model = make_model(make_program({.layers = 6}), WeightType::f32);
  for (const int threads : {1, 2, 4}) {
    Driver driver(model, options_of("", threads), CacheType::f16);
    Parts before(model, 50), stopped(model, 50), after(model, 50);
    REQUIRE(pass(driver, before.batch));
    std::atomic<bool> interrupt{true};
    stopped.batch.interrupted = [&] { return interrupt.load(); };
    const auto result = pass(driver, stopped.batch);
    REQUIRE_FALSE(result);
    CHECK(result.error().code == ErrorCode::cancelled);
    CHECK(stopped.logits == std::vector<float>(stopped.logits.size(), 0.0f));
    // From another thread, at any moment.
    for (int i = 0; i < 20; ++i) {
      interrupt = false;
      std::thread other([&] {
        std::this_thread::sleep_for(std::chrono::microseconds(20 * i));
        interrupt = true;
      });
      const auto late = pass(driver, stopped.batch);
      if (!late) CHECK(late.error().code == ErrorCode::cancelled);
      other.join();
    }
    REQUIRE(pass(driver, after.batch));
    CHECK(same_bits(after.logits, before.logits));
  }
}

TEST_CASE("pages are copied, exported and imported") {
  const Model model = make_model(make_program({.head_dim = 20}), WeightType::f32);
  const auto tokens = random_tokens(100, model.program.vocab_size);
  for (const CacheType type : kCacheTypes) {
    Driver driver(model, options_of("", 2), type, 256, 8);
    Sequence s;
    driver.forward({{&s, tokens}});
    CacheStorage& cache = *driver.caches[0];
    Sequence copy = s, moved = s;
    copy.tables[0][1] = 7;
    REQUIRE(cache.copy_page(s.tables[0][1], 7, 36));
    // Exactly the tokens that were asked for: the page's other slots keep what they had.
    Sequence full;
    driver.forward({{&full, random_tokens(128, model.program.vocab_size, 9)}});
    const auto exported = [&](std::int32_t page) {
      std::vector<float> values(static_cast<std::size_t>(cache.canonical_page_bytes()) / sizeof(float));
      REQUIRE(cache.export_page(page, std::as_writable_bytes(std::span(values))));
      return values;
    };
    const auto of_first = exported(full.tables[0][0]), before = exported(full.tables[0][1]);
    REQUIRE(cache.copy_page(full.tables[0][0], full.tables[0][1], 13));
    const auto after = exported(full.tables[0][1]);
    const std::size_t row = 2 * 20;
    bool exact = true;
    for (std::size_t i = 0; i < after.size(); ++i) exact &= after[i] == (i / row % 64 < 13 ? of_first[i] : before[i]);
    CHECK(exact);
    std::vector<std::byte> bytes(static_cast<std::size_t>(cache.canonical_page_bytes()));
    CHECK(bytes.size() == sizeof(float) * 2 * 64 * 2 * 2 * 20);
    for (const std::size_t i : {0u, 1u}) {
      moved.tables[0][i] = static_cast<std::int32_t>(5 + i);
      REQUIRE(cache.export_page(s.tables[0][i], bytes));
      REQUIRE(cache.import_page(moved.tables[0][i], bytes));
    }
    const auto expected = driver.forward({{&s, {5}}});
    CHECK(same_bits(driver.forward({{&copy, {5}}}), expected));
    CHECK(same_bits(driver.forward({{&moved, {5}}}), expected));
    const std::int64_t bytes_of_pages = 8 * driver.backend->page_bytes(model.program.cache_groups[0], type);
    CHECK((type == CacheType::int4 ? cache.bytes() > bytes_of_pages : cache.bytes() == bytes_of_pages));  // open pages

    CHECK(cache.copy_page(0, 8, 1).error().code == ErrorCode::invalid_argument);
    CHECK(cache.copy_page(-1, 0, 1).error().code == ErrorCode::invalid_argument);
    CHECK(cache.copy_page(1, 1, 1).error().code == ErrorCode::invalid_argument);
    CHECK(cache.copy_page(0, 1, 65).error().code == ErrorCode::invalid_argument);
    CHECK(cache.export_page(8, bytes).error().code == ErrorCode::invalid_argument);
    CHECK(cache.import_page(0, std::span<const std::byte>(bytes).first(8)).error().code == ErrorCode::invalid_argument);
  }
}

TEST_CASE("the canonical layout holds what attention sees") {
  // One layer whose keys and values are the embeddings themselves.
  Builder b("plain");
  const std::int32_t group = b.cache_group({1, 2, 4, 0});
  const ValueId x = b.embed(b.weight("embed", 8, 8), "x");
  const ValueId a = b.attention(x, x, x, group, 0, 2, 1.0f, "a");
  const Model model = make_model(std::move(b).finish(a, a).value(), WeightType::f32);
  Driver driver(model, options_of("", 1), CacheType::f32);
  Sequence s;
  driver.forward({{&s, {3, 5}}});
  std::vector<float> page(static_cast<std::size_t>(driver.caches[0]->canonical_page_bytes()) / sizeof(float));
  REQUIRE(driver.caches[0]->export_page(s.tables[0][0], std::as_writable_bytes(std::span(page))));
  REQUIRE(page.size() == 2 * 64 * 8);
  for (std::size_t i = 0; i < 8; ++i) {
    CHECK(page[i] == model.values[0][3 * 8 + i]);
    CHECK(page[8 + i] == model.values[0][5 * 8 + i]);
    CHECK(page[64 * 8 + i] == model.values[0][3 * 8 + i]);
  }
}

TEST_CASE("what the backend cannot hold or run") {
  const Model model = make_model(make_program({}), WeightType::f32);
  const auto backend = make_cpu_backend(options_of("", 2)).value();
  CHECK(backend->make_cache({1, 1, 64, 0}, CacheType::f16, 0).error().code == ErrorCode::invalid_argument);
  CHECK(backend->make_cache({0, 1, 64, 0}, CacheType::f16, 1).error().code == ErrorCode::invalid_argument);
  CHECK(backend->make_cache({60000, 4000, 4000, 0}, CacheType::f32, 2000000000).error().code ==
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
  std::vector<WeightView> views;
  for (std::size_t i = 0; i < model.types.size(); ++i) views.push_back(model.view(i));
  CHECK(plan->bytes() == backend->plan_bytes(model.program, views, {33}));
  std::swap(weights[1], weights[2]);
  CHECK(backend->compile(model.program, weights, {}).error().code == ErrorCode::shape_mismatch);
  weights[1] = nullptr;
  CHECK(backend->compile(model.program, weights, {}).error().code == ErrorCode::invalid_argument);

  WeightView view = model.view(2);
  view.data = view.data.first(view.data.size() - 4);
  CHECK(backend->prepare(view).error().code == ErrorCode::invalid_argument);
  view = model.view(1);
  view.data = view.data.first(view.data.size() - 4);
  CHECK(backend->prepare(view).error().code == ErrorCode::invalid_argument);
  view.rows = 0;
  CHECK(backend->prepare(view).error().code == ErrorCode::invalid_argument);

  // Programs that no Builder made.
  const auto broken = [&](const auto& spoil) {
    Program program = model.program;
    spoil(program);
    return backend->supports(program, model.types);
  };
  CHECK(broken([](Program& p) { std::get<op::Embed>(p.ops[0]).out = id(9999); }).error().code ==
        ErrorCode::invalid_argument);
  CHECK(broken([](Program& p) { std::swap(p.ops[0], p.ops[1]); }).error().code == ErrorCode::invalid_argument);
  CHECK(broken([](Program& p) { p.ops.push_back(p.ops.back()); }).error().code == ErrorCode::invalid_argument);
  CHECK(broken([](Program& p) { p.values[1].width = 3; }).error().code == ErrorCode::shape_mismatch);
  CHECK(broken([](Program& p) { p.values[1].width = 0; }).error().code == ErrorCode::invalid_argument);
  CHECK(broken([](Program& p) { p.rope_tables.clear(); }).error().code == ErrorCode::invalid_argument);
  CHECK(broken([](Program& p) { p.cache_groups.clear(); }).error().code == ErrorCode::invalid_argument);
  CHECK(broken([](Program& p) { p.cache_groups[0].kv_heads = 4; }).error().code == ErrorCode::invalid_argument);
  CHECK(broken([](Program& p) { p.hidden = id(1234); }).error().code == ErrorCode::invalid_argument);
}
