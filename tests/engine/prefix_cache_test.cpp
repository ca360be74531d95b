// Prompts that begin alike: what is computed, and that no result hangs on it.
#include "engine/prefix_cache.hpp"

#include <llminfer/llminfer.hpp>

#include <algorithm>
#include <atomic>
#include <catch2/catch.hpp>
#include <deque>
#include <fstream>
#include <future>
#include <nlohmann/json.hpp>
#include <random>

#include "tests/engine/split_models.hpp"
#include "tests/forwarding.hpp"

using namespace llminfer;
using namespace llminfer::test::tiny;

namespace {

std::vector<Token> joined(std::vector<Token> first, const std::vector<Token>& rest) {
  first.insert(first.end(), rest.begin(), rest.end());
  return first;
}

std::vector<Token> first_of(std::vector<Token> tokens, std::size_t count) {
  tokens.resize(count);
  return tokens;
}

Engine without(EngineOptions options = {}) {
  options.prefix_cache = false;
  return load(options);
}

CompletionResult complete(const Engine& engine, std::vector<Token> tokens, std::string salt = {}) {
  return engine.complete({.tokens = std::move(tokens), .options = sampled(5, 1), .cache_salt = std::move(salt)})
      .value();
}

std::vector<float> logits_after(const Engine& engine, const std::vector<Token>& tokens) {
  Session session = engine.new_session().value();
  session.prefill(tokens).value();
  return {session.logits().begin(), session.logits().end()};
}

}  // namespace

TEST_CASE("prompts that begin alike compute their beginning once") {
  EngineOptions options;
  options.cache_type = GENERATE(CacheType::f16, CacheType::int8, CacheType::int4);
  options.max_batch_tokens = 100;
  const Engine engine = load(options), alone = without(options);
  const auto check = [&](const std::vector<Token>& tokens, std::int32_t cached) {
    const auto before = engine.stats();
    const auto result = complete(engine, tokens);
    CHECK(result.cached_tokens == cached);
    CHECK(engine.stats().cached_tokens - before.cached_tokens == cached);
    const auto size = static_cast<std::int32_t>(tokens.size());
    CHECK(engine.stats().prefill_tokens - before.prefill_tokens == size - cached);
    CHECK(result.tokens == complete(alone, tokens).tokens);
  };
  const auto tokens = some_tokens(300, 1);
  check(first_of(tokens, 200), 0);
  CHECK(engine.stats().pages_kept == 3);
  check(first_of(tokens, 200), 192);
  check(first_of(tokens, 193), 192);
  check(first_of(tokens, 192), 128);  // the last token is computed for its logits
  check(first_of(tokens, 64), 0);
  check(first_of(tokens, 65), 64);
  check(joined(first_of(tokens, 150), some_tokens(50, 2)), 128);
  check(joined(first_of(tokens, 150), some_tokens(50, 2)), 192);  // a second branch
  check(tokens, 192);
  check(tokens, 256);
  CHECK(complete(alone, tokens).cached_tokens == 0);
  CHECK(alone.stats().pages_kept == 0);
  CHECK(engine.stats().pages_used == 0);

  // An answer is found, too.
  Session session = engine.new_session().value();
  session.prefill(some_tokens(60, 3)).value();
  session.generate(sampled(70, 1)).value();
  const std::vector<Token> text(session.tokens().begin(), session.tokens().end());
  check(text, 128);
  CHECK(logits_after(engine, text) == logits_after(alone, text));
}

TEST_CASE("requests that wait find what others have computed in between") {
  EngineOptions options;
  options.max_sequences = 1;
  const Engine engine = load(options);
  const auto tokens = some_tokens(200, 1);
  Completion first = engine.submit({.tokens = tokens, .options = sampled(5, 1)}).value();
  Completion second = engine.submit({.tokens = tokens, .options = sampled(5, 1)}).value();
  const auto waited = second.wait().value();
  CHECK(waited.tokens == first.wait().value().tokens);
  CHECK(waited.cached_tokens == 192);
}

TEST_CASE("logits and hidden states that are asked for are computed") {
  const Engine engine = load(), alone = without();
  const auto tokens = some_tokens(200, 1);
  complete(engine, tokens);
  const auto all = [&](const Engine& of) {
    std::vector<float> values;
    PrefillOptions options;
    options.on_logits = [&](std::int32_t, std::span<const float> logits) {
      values.insert(values.end(), logits.begin(), logits.end());
      return true;
    };
    of.new_session().value().prefill(tokens, options).value();
    Session session = of.new_session().value();
    session.prefill(first_of(tokens, 70)).value();
    session.prefill(std::span(tokens).subspan(70), {.hidden_states = true}).value();
    values.insert(values.end(), session.hidden_states().begin(), session.hidden_states().end());
    return values;
  };
  const auto expected = all(alone);
  REQUIRE(expected.size() == 200 * static_cast<std::size_t>(engine.tokenizer().vocab_size()) +
                                 130 * static_cast<std::size_t>(engine.info().hidden_size));
  CHECK(all(engine) == expected);
}

TEST_CASE("a sequence that is rewound into a page that others may find writes to a copy") {
  EngineOptions options;
  options.cache_type = GENERATE(CacheType::f16, CacheType::int4);
  const Engine engine = load(options), alone = without(options);
  const auto tokens = some_tokens(200, 1), others = some_tokens(100, 2);
  Session session = engine.new_session().value();
  session.prefill(tokens).value();
  session.truncate(70).value();
  session.prefill(others).value();
  const auto changed = joined(first_of(tokens, 70), others);
  const auto logits = [](const Session& s) { return std::vector<float>(s.logits().begin(), s.logits().end()); };
  CHECK(logits(session) == logits_after(alone, changed));
  CHECK(logits_after(engine, tokens) == logits_after(alone, tokens));
  CHECK(complete(engine, tokens).cached_tokens == 192);
  CHECK(complete(engine, changed).cached_tokens == 128);
  // Back to where it was before: what it comes to have again is what others know.
  session.truncate(70).value();
  const auto before = engine.stats().prefill_tokens;
  session.prefill(std::span(tokens).subspan(70)).value();
  CHECK(engine.stats().prefill_tokens - before == 8);
  CHECK(logits(session) == logits_after(alone, tokens));
}

TEST_CASE("embeddings are not found, and tokens before them are") {
  const Engine engine = load(), alone = without();
  const auto width = static_cast<std::size_t>(engine.info().hidden_size);
  const auto tokens = some_tokens(200, 1);
  const auto logits = [&](const Engine& of, float value, std::size_t before) {
    Session session = of.new_session().value();
    session.prefill(first_of(tokens, before)).value();
    session.prefill_embeddings(std::vector<float>(70 * width, value)).value();
    session.prefill(first_of(tokens, 100)).value();
    return std::vector<float>(session.logits().begin(), session.logits().end());
  };
  for (const float value : {0.1f, -0.2f}) {
    for (const std::size_t before : {1, 130}) CHECK(logits(engine, value, before) == logits(alone, value, before));
  }
  CHECK(engine.stats().cached_tokens == 128 + 2 * (1 + 71) + 2 * (130 + 200));  // and what sessions have themselves
}

TEST_CASE("only sequences with one salt find each other's tokens") {
  const Engine engine = load();
  const auto tokens = some_tokens(100, 1);
  CHECK(complete(engine, tokens, "one").cached_tokens == 0);
  CHECK(complete(engine, tokens, "two").cached_tokens == 0);
  CHECK(complete(engine, tokens).cached_tokens == 0);
  CHECK(complete(engine, tokens, "one").cached_tokens == 64);
  Session session = engine.new_session({.cache_salt = "three"}).value(), fork = session.fork().value();
  session.prefill(tokens).value();
  const auto before = engine.stats().prefill_tokens;
  fork.prefill(tokens).value();
  CHECK(engine.stats().prefill_tokens - before == 36);
}

TEST_CASE("what was used least recently makes room first") {
  EngineOptions options;
  options.context_length = 256;
  options.cache_tokens = 512;  // eight pages
  const Engine engine = load(options);
  const auto cached = [&](unsigned seed) { return complete(engine, some_tokens(150, seed)).cached_tokens; };
  for (const unsigned seed : {1, 2, 3}) CHECK(cached(seed) == 0);  // two pages each stay
  CHECK(cached(1) == 128);
  CHECK(cached(4) == 0);  // has room for all but one
  CHECK(cached(2) == 64);
  CHECK(cached(1) == 128);
  CHECK(cached(4) == 128);
  CHECK(engine.stats().pages_used == 0);
  CHECK(engine.stats().pages_kept == 7);  // the last pages of prompts are not full, and free
  CHECK(complete(engine, some_tokens(240, 9)).cached_tokens == 0);
  CHECK(engine.stats().pages_kept == 7);
  CHECK(engine.stats().preemptions == 0);
}

TEST_CASE("pages that nobody has go before those of an idle session") {
  EngineOptions options;
  options.context_length = 256;
  options.cache_tokens = 512;
  const Engine engine = load(options);
  Session session = engine.new_session().value();
  session.prefill(some_tokens(100, 1)).value();
  for (const unsigned seed : {2, 3, 4, 5}) complete(engine, some_tokens(150, seed));
  const auto before = engine.stats().prefill_tokens;
  session.prefill(some_tokens(1, 6)).value();
  CHECK(engine.stats().prefill_tokens - before == 1);
}

TEST_CASE("a request whose pages were taken finds again what was not overwritten") {
  EngineOptions options;
  options.context_length = 256;
  options.cache_tokens = 384;  // three pages for each of two requests, of which the older comes to need a fourth
  const Engine engine = load(options), alone = without();
  const auto request = [](unsigned seed) {
    return CompletionRequest{.tokens = some_tokens(180, seed), .options = sampled(40, seed)};
  };
  std::promise<void> both;  // until they are queued, the older one gets no further than its first token
  CompletionRequest gated = request(1);
  gated.options.on_token = [queued = both.get_future().share()](const GeneratedToken&) {
    queued.wait();
    return true;
  };
  Completion older = engine.submit(std::move(gated)).value(), younger = engine.submit(request(2)).value();
  both.set_value();
  CHECK(older.wait().value().tokens == alone.complete(request(1)).value().tokens);
  const auto result = younger.wait().value();
  CHECK(result.tokens == alone.complete(request(2)).value().tokens);
  CHECK(result.cached_tokens == 0);  // it has computed all of them itself
  CHECK(engine.stats().preemptions == 1);
  CHECK(engine.stats().prefill_tokens + engine.stats().decode_tokens < 2 * (180 + 40) + 128);
}

namespace {

/// The CPU's, which counts the pages that are forgotten.
class CountingBackend final : public test::ForwardingBackend {
 public:
  CountingBackend() : ForwardingBackend(make_cpu_backend({}).value()) {}
  Result<std::unique_ptr<CacheStorage>> make_cache(const CacheGroup& group, CacheType type,
                                                   std::int32_t pages) override {
    struct Cache final : test::ForwardingCache {
      Cache(std::unique_ptr<CacheStorage> inner, std::atomic<int>& count)
          : ForwardingCache(std::move(inner)), forgotten(count) {}
      void forget_page(std::int32_t) noexcept override { ++forgotten; }
      std::atomic<int>& forgotten;
    };
    auto inner = ForwardingBackend::make_cache(group, type, pages).value();
    return std::unique_ptr<CacheStorage>(new Cache(std::move(inner), forgotten));
  }
  Result<std::unique_ptr<Plan>> compile(const Program& program,
                                        std::vector<std::shared_ptr<const PreparedWeight>> weights,
                                        const PlanOptions& options) override {
    auto plan = ForwardingBackend::compile(program, std::move(weights), options).value();
    return std::unique_ptr<Plan>(new test::UnwrappingPlan(std::move(plan)));
  }
  std::atomic<int> forgotten = 0;
};

}  // namespace

TEST_CASE("a cache is told of pages that are free, and not of those that are kept") {
  const auto backend = std::make_shared<CountingBackend>();
  EngineOptions options;
  options.custom_backend = backend;
  options.context_length = 256;
  options.cache_tokens = 512;
  const Engine engine = load(options);
  for (const unsigned seed : {1, 2, 3}) complete(engine, some_tokens(150, seed));
  CHECK(backend->forgotten == 3);  // the last page of each
  complete(engine, some_tokens(150, 4));
  CHECK(backend->forgotten == 5);  // one made room
}

TEST_CASE("sliding windows: pages of the last window are found, or all is computed") {
  const test::WindowModel model;
  auto config = nlohmann::json::parse(std::ifstream(model.path() + "/config.json"));
  config["max_position_embeddings"] = 2048;
  config["sliding_window"] = 100;
  std::ofstream(model.path() + "/config.json") << config;
  EngineOptions options;
  options.threads = 2;
  options.max_batch_tokens = 128;
  options.cache_type = GENERATE(CacheType::f16, CacheType::int4);
  EngineOptions few = options, off = options;
  few.max_sequences = 1;  // one window
  few.cache_tokens = 2048;
  off.prefix_cache = false;
  const auto open = [&](const EngineOptions& o) { return Engine::load(model.path(), o).value(); };
  const Engine engine = open(options), tight = open(few), alone = open(off);
  const auto tokens = some_tokens(900, 1);
  const auto cached = [&](const Engine& of, const std::vector<Token>& prompt) {
    const auto result = complete(of, prompt);
    CHECK(result.tokens == complete(alone, prompt).tokens);
    return result.cached_tokens;
  };
  for (const Engine* each : {&engine, &tight}) CHECK(cached(*each, tokens) == 0);
  for (const Engine* each : {&engine, &tight}) CHECK(cached(*each, tokens) == 896);
  for (const Engine* each : {&engine, &tight}) {
    CHECK(cached(*each, joined(first_of(tokens, 890), some_tokens(50, 2))) == 832);
  }
  CHECK(cached(engine, first_of(tokens, 500)) == 448);
  CHECK(cached(tight, first_of(tokens, 300)) == 0);  // the windows there are others' by now
  CHECK(cached(tight, first_of(tokens, 300)) == 256);

  // What a session has before a gap goes back when it comes to have what is behind the gap.
  few.max_sequences = 2;
  EngineOptions few_off = few;
  few_off.prefix_cache = false;
  std::vector<std::int32_t> used;
  for (const EngineOptions& o : {few, few_off}) {
    const Engine of = open(o);
    Session session = of.new_session().value();
    session.prefill(first_of(tokens, 130)).value();
    complete(of, tokens);
    session.prefill(std::span(tokens).subspan(130)).value();
    used.push_back(of.stats().pages_used);
  }
  CHECK(used[0] == used[1]);
}

TEST_CASE("whatever is found or evicted, texts are those of an engine without") {
  const test::WindowModel model;
  const std::string path = GENERATE_REF(model.path(), kModel);
  EngineOptions options;
  options.threads = 2;
  options.context_length = 256;
  options.cache_tokens = 640;
  options.max_batch_tokens = 90;
  options.max_sequences = 3;
  options.cache_type = GENERATE(CacheType::f16, CacheType::int4);
  const Engine engine = Engine::load(path, options).value();
  options.prefix_cache = false;
  options.cache_tokens = 2048;
  const Engine alone = Engine::load(path, options).value();
  std::mt19937 random(1);
  std::vector<std::vector<Token>> prompts = {some_tokens(100, 1), some_tokens(150, 2)};
  std::deque<std::pair<std::vector<Token>, Completion>> running;
  std::optional<Session> session;
  const auto check_oldest = [&] {
    CHECK(running.front().second.wait().value().tokens == complete(alone, running.front().first).tokens);
    running.pop_front();
  };
  for (unsigned step = 0; step < 60; ++step) {
    const std::vector<Token>& like = prompts[random() % prompts.size()];
    auto prompt = joined(first_of(like, random() % like.size()), some_tokens(1 + random() % 80, step));
    if (prompt.size() > 240) prompt.resize(240);
    prompts.push_back(prompt);
    running.emplace_back(prompt, engine.submit({.tokens = prompt, .options = sampled(5, 1)}).value());
    if (!session) {
      session.emplace(engine.new_session().value());
      session->prefill(prompt).value();
    } else if (random() % 2 == 0) {
      session->truncate(static_cast<std::int32_t>(random() % static_cast<unsigned>(session->size() + 1))).value();
      const std::size_t more = std::min<std::size_t>(1 + random() % 100, 250 - session->tokens().size());
      session->prefill(some_tokens(more, step)).value();
      const std::vector<Token> all(session->tokens().begin(), session->tokens().end());
      const auto expected = logits_after(alone, all);
      CHECK(std::equal(expected.begin(), expected.end(), session->logits().begin(), session->logits().end()));
    } else {
      session.reset();
    }
    if (running.size() > 4) check_oldest();
  }
  while (!running.empty()) check_oldest();
  CHECK(engine.stats().cached_tokens > 1000);
  session.reset();
  CHECK(engine.stats().pages_used == 0);
}

TEST_CASE("a tree of pages as deep as the longest context") {
  constexpr std::int32_t kDeep = 100'000;
  const std::vector<CacheGroup> groups(1);
  std::vector<engine::PagePool> pools;
  pools.emplace_back(kDeep);
  std::vector<std::vector<std::int32_t>> pages(1);
  for (std::int32_t i = 0; i < kDeep; ++i) pages[0].push_back(pools[0].take().value());
  const std::vector<Token> tokens(std::size_t{kDeep} * kPageTokens, 7);
  engine::PrefixCache cache(groups, pools);
  cache.add("", tokens, pages, kDeep);
  CHECK(cache.evict(0) == -1);  // all are in use
  for (const std::int32_t page : pages[0]) CHECK_FALSE(pools[0].release(page));
  CHECK(pools[0].idle() == kDeep);
  CHECK(cache.evict(0) == pages[0].back());
  const auto found = cache.find("", tokens, 3, kDeep);
  REQUIRE(found.size() == 1);
  CHECK(std::equal(found[0].begin(), found[0].end(), pages[0].begin() + 3, pages[0].end() - 1));
  CHECK(cache.find("other", tokens, 0, kDeep).empty());
}

namespace {

/// Six pages of tokens in a tree, which no sequence has any more: of layers that see all, and of some with a window.
struct Tree {
  std::vector<CacheGroup> groups = {{}, {.window = 100}};
  std::vector<engine::PagePool> pools = {engine::PagePool(6), engine::PagePool(6)};
  engine::PrefixCache cache{groups, pools};
  std::vector<Token> tokens = some_tokens(6 * kPageTokens, 1);
  std::vector<std::vector<std::int32_t>> pages{2};

  Tree() {
    for (std::size_t group = 0; group < 2; ++group) {
      for (int i = 0; i < 6; ++i) pages[group].push_back(pools[group].take().value());
    }
    cache.add("", tokens, pages, 6);
    for (std::size_t group = 0; group < 2; ++group) {
      for (const std::int32_t page : pages[group]) pools[group].release(page);
    }
  }
  /// The places of the pages that are found.
  std::vector<std::vector<int>> find(std::size_t own, std::size_t most) {
    std::vector<std::vector<int>> places;
    for (const auto& found : cache.find("", tokens, own, most)) {
      auto& of_group = places.emplace_back();
      for (const std::int32_t page : found) of_group.push_back(page < 0 ? -1 : place(places.size() - 1, page));
    }
    return places;
  }
  int evict(std::size_t group) { return place(group, cache.evict(group)); }
  int place(std::size_t group, std::int32_t page) const {
    return static_cast<int>(std::find(pages[group].begin(), pages[group].end(), page) - pages[group].begin());
  }
};

using Places = std::vector<std::vector<int>>;

}  // namespace

TEST_CASE("a tree of pages: windows need the last pages alone, and these have no gap") {
  Tree tree;
  CHECK(tree.find(0, 6) == Places{{0, 1, 2, 3, 4, 5}, {0, 1, 2, 3, 4, 5}});
  CHECK(tree.find(0, 3) == Places{{0, 1, 2}, {0, 1, 2}});  // used last
  CHECK(tree.evict(1) == 3);
  CHECK(tree.find(0, 6) == Places{{0, 1, 2, 3, 4, 5}, {-1, -1, -1, -1, 4, 5}});
  CHECK(tree.find(0, 5) == Places{{0, 1, 2}, {0, 1, 2}});  // after five pages the window begins in the fourth
  CHECK(tree.find(4, 5) == Places{{4}, {4}});
  CHECK(tree.find(3, 5) == Places{});
}

TEST_CASE("a tree of pages: layers that see all need each of them, but for those that a sequence has") {
  Tree tree;
  for (const int place : {4, 5}) tree.pools[0].share(tree.pages[0][static_cast<std::size_t>(place)]);
  CHECK(tree.evict(0) == 3);
  CHECK(tree.find(0, 6) == Places{{0, 1, 2}, {0, 1, 2}});
  CHECK(tree.find(4, 6) == Places{{4, 5}, {4, 5}});
}
