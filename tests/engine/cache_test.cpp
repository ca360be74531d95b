// The cache of an engine on a tiny model: preemption, forks, windows, caches of integers.
#include <llminfer/llminfer.hpp>

#include <algorithm>
#include <catch2/catch.hpp>
#include <filesystem>
#include <fstream>
#include <future>
#include <limits>
#include <nlohmann/json.hpp>
#include <thread>

#include "core/file.hpp"
#include "tests/engine/tiny_model.hpp"
#include "tests/forwarding.hpp"
#include "tests/load/temp_dir.hpp"

using namespace llminfer;
using namespace llminfer::test::tiny;

TEST_CASE("a full cache preempts, recomputes and changes no result") {
  EngineOptions small;
  small.context_length = 128;
  small.cache_tokens = 192;  // three pages; each request comes to need two
  const Engine engine = load(small), roomy = load();
  std::vector<Completion> running;
  const auto request = [](int i) {
    CompletionRequest request;
    request.tokens = some_tokens(40, static_cast<unsigned>(i));
    request.options = sampled(60, static_cast<std::uint64_t>(i));
    return request;
  };
  std::promise<void> all;  // until they are queued, the first one gets no further than its first token
  for (int i = 0; i < 6; ++i) {
    CompletionRequest next = request(i);
    if (i == 0) {
      next.options.on_token = [queued = all.get_future().share()](const GeneratedToken&) {
        queued.wait();
        return true;
      };
    }
    running.push_back(engine.submit(std::move(next)).value());
  }
  all.set_value();
  for (int i = 0; i < 6; ++i) {
    CHECK(running[static_cast<std::size_t>(i)].wait().value().tokens == roomy.complete(request(i)).value().tokens);
  }
  CHECK(engine.stats().preemptions > 0);
  CHECK(engine.stats().pages_used == 0);
}

TEST_CASE("requests that wait for room count what they found in the cache once") {
  EngineOptions options;
  options.context_length = 512;
  options.cache_tokens = 512;
  const Engine engine = load(options);
  const std::vector<Token> common = some_tokens(100, 1);
  std::vector<Completion> running;
  for (unsigned i = 0; i < 6; ++i) {
    CompletionRequest request;
    request.tokens = common;
    const std::vector<Token> own = some_tokens(70, 10 + i);
    request.tokens.insert(request.tokens.end(), own.begin(), own.end());
    request.options = sampled(100, i);
    running.push_back(engine.submit(std::move(request)).value());
  }
  std::int64_t found = 0;
  for (Completion& completion : running) {
    const CompletionResult result = completion.wait().value();
    CHECK(result.cached_tokens < result.prompt_tokens);
    found += result.cached_tokens;
  }
  CHECK(found > 0);
  CHECK(engine.stats().cached_tokens == found);
  // Each pass completes the oldest request at least, and a request loses its pages to older ones only.
  CHECK(engine.stats().preemptions < 6 * 6);
}

TEST_CASE("idle sessions whose pages were taken count as preempted when they go on") {
  EngineOptions options;
  options.context_length = 512;
  options.cache_tokens = 512;
  options.prefix_cache = false;
  const Engine engine = load(options);
  Session first = engine.new_session().value(), second = engine.new_session().value();
  first.prefill(some_tokens(400, 1)).value();
  second.prefill(some_tokens(400, 2)).value();
  CHECK(engine.stats().preemptions == 0);
  first.prefill(some_tokens(1, 3)).value();
  CHECK(engine.stats().preemptions == 1);
  first.prefill(some_tokens(1, 4)).value();
  CHECK(engine.stats().preemptions == 1);
  second.prefill(some_tokens(1, 3)).value();
  CHECK(engine.stats().preemptions == 2);
}

TEST_CASE("unless the host says otherwise four sequences have room, also where their last pages are not full") {
  for (const std::int32_t context : {1, 64, 65, 100, 500, 512}) {
    EngineOptions options;
    options.context_length = context;
    const std::int32_t pages = load(options).stats().pages_total;
    INFO(context);
    CHECK(pages == 4 * ((context + kPageTokens - 1) / kPageTokens));
  }
}

namespace {

/// The CPU's, with caches that copy no pages.
class BackendWithoutCopies final : public test::ForwardingBackend {
 public:
  BackendWithoutCopies() : ForwardingBackend(make_cpu_backend({}).value()) {}
  Result<std::unique_ptr<CacheStorage>> make_cache(const CacheGroup& group, CacheType type,
                                                   std::int32_t pages) override {
    struct Cache final : test::ForwardingCache {
      using ForwardingCache::ForwardingCache;
      Result<void> copy_page(std::int32_t, std::int32_t, std::int32_t) override {
        return Error{ErrorCode::device_error, "broken"};
      }
    };
    return std::unique_ptr<CacheStorage>(new Cache(ForwardingBackend::make_cache(group, type, pages).value()));
  }
  Result<std::unique_ptr<Plan>> compile(const Program& program,
                                        std::vector<std::shared_ptr<const PreparedWeight>> weights,
                                        const PlanOptions& options) override {
    auto plan = ForwardingBackend::compile(program, std::move(weights), options).value();
    return std::unique_ptr<Plan>(new test::UnwrappingPlan(std::move(plan)));
  }
};

}  // namespace

TEST_CASE("a page that cannot be copied ends the request that needs it, and no other") {
  EngineOptions options;
  options.custom_backend = std::make_shared<BackendWithoutCopies>();
  const Engine engine = load(options);
  Session session = engine.new_session().value();
  session.prefill(some_tokens(10, 1)).value();
  {
    Session fork = session.fork().value();
    CHECK(fork.prefill(some_tokens(3, 2)).error().code == ErrorCode::device_error);
  }
  CHECK(session.prefill(some_tokens(3, 2)));  // its page is its own again
  CHECK(engine.stats().pages_used == 1);
}

TEST_CASE("an idle session gives its pages away and computes them again") {
  EngineOptions small;
  small.context_length = 128;
  small.cache_tokens = 128;
  const Engine engine = load(small);
  Session first = engine.new_session().value();
  first.prefill(some_tokens(100, 1)).value();
  const std::vector<float> before(first.logits().begin(), first.logits().end());
  Session second = engine.new_session().value();
  second.prefill(some_tokens(100, 2)).value();
  CHECK(std::equal(before.begin(), before.end(), first.logits().begin()));
  const std::vector<Token> last = {first.tokens().back()};
  first.truncate(99).value();
  CHECK(first.logits().empty());
  first.prefill(last).value();
  CHECK(std::equal(before.begin(), before.end(), first.logits().begin()));
}

TEST_CASE("a session that loses its pages in the step that it was chosen for is computed anew") {
  EngineOptions small;
  small.context_length = 256;
  small.cache_tokens = 320;  // five pages; the older request takes two of the three that the session has
  small.max_batch_tokens = 128;
  small.prefix_cache = false;
  const Engine engine = load(small);
  Session session = engine.new_session().value(), alone = load(small).new_session().value();
  for (Session* s : {&session, &alone}) s->prefill(some_tokens(150, 1)).value();
  std::promise<void> queued;
  CompletionRequest gate{.tokens = some_tokens(3, 2), .options = sampled(1, 1)};
  gate.options.on_token = [all = queued.get_future().share()](const GeneratedToken&) {
    all.wait();
    return true;
  };
  Completion first = engine.submit(std::move(gate)).value();
  while (engine.stats().waiting > 0) std::this_thread::yield();  // until the step has begun
  Completion older = engine.submit({.tokens = some_tokens(200, 3), .options = sampled(4, 2)}).value();
  auto younger = std::async(std::launch::async, [&] { return session.generate(sampled(20, 3)).value().tokens; });
  while (engine.stats().waiting < 2) std::this_thread::yield();
  queued.set_value();
  CHECK(younger.get() == alone.generate(sampled(20, 3)).value().tokens);
  CHECK(older.wait().value().tokens.size() == 4);
  CHECK(engine.stats().preemptions > 0);
}

TEST_CASE("fork and truncate") {
  EngineOptions options;
  options.prefix_cache = false;
  const Engine engine = load(options);
  Session trunk = engine.new_session().value();
  trunk.prefill(some_tokens(70, 3)).value();
  const auto pages = engine.stats().pages_used;
  Session branch = trunk.fork().value();
  CHECK(engine.stats().pages_used == pages);
  CHECK(std::equal(trunk.logits().begin(), trunk.logits().end(), branch.logits().begin()));

  const auto a = trunk.generate(sampled(10, 1)).value(), b = branch.generate(sampled(10, 2)).value();
  CHECK(a.tokens != b.tokens);
  Session fresh = engine.new_session().value();
  fresh.prefill(some_tokens(70, 3)).value();
  CHECK(fresh.generate(sampled(10, 1)).value().tokens == a.tokens);
  CHECK(trunk.size() == 80);
  trunk.truncate(70).value();
  trunk.prefill(b.tokens).value();
  branch.truncate(0).value();
  branch.prefill(some_tokens(70, 3)).value();
  branch.prefill(b.tokens).value();
  CHECK(std::equal(trunk.logits().begin(), trunk.logits().end(), branch.logits().begin()));
}

TEST_CASE("pages that a sliding window has left behind go back, and no result changes") {
  const test::TempDir folder;  // the tiny model with a window of 100 tokens
  for (const char* file : {"model.safetensors", "tokenizer.json", "tokenizer_config.json"}) {
    std::filesystem::copy_file(kModel + "/" + file, folder / file);
  }
  auto config = nlohmann::json::parse(std::ifstream(kModel + "/config.json"));
  config["model_type"] = "mistral";
  config["sliding_window"] = 100;
  folder.write("config.json", config.dump());
  for (const CacheType type : {CacheType::f16, CacheType::int8, CacheType::int4}) {
    const auto open = [&](std::int32_t batch) {
      EngineOptions options;
      options.threads = 2;
      options.cache_type = type;
      options.max_batch_tokens = batch;
      options.prefix_cache = false;
      return Engine::load(folder.path(), options).value();
    };
    const Engine whole = open(1024), engine = open(64);
    const std::vector<Token> tokens = some_tokens(1000, 5);
    Session reference = whole.new_session().value();
    reference.prefill(tokens).value();
    const auto same = [&](const Session& s) {
      return std::equal(s.logits().begin(), s.logits().end(), reference.logits().begin(), reference.logits().end());
    };
    const auto prefilled = [&] { return engine.stats().prefill_tokens; };
    {
      Session session = engine.new_session().value();
      session.prefill(std::span(tokens).first(900)).value();
      // The window, 64 tokens to rewind, the last chunk, and what pages hold beyond these.
      const int sealed = type == CacheType::int4 ? 1 : 0;  // a rewind goes to a page's begin
      CHECK(engine.stats().pages_used <= 2 + 1 + 1 + 2 + sealed);
      Session fork = session.fork().value(), near = session.fork().value(), far = session.fork().value();
      session.prefill(std::span(tokens).subspan(900)).value();
      CHECK(same(session));
      // The forks have pages that the first session has left behind by now.
      auto before = prefilled();
      fork.prefill(std::span(tokens).subspan(900)).value();
      CHECK(same(fork));
      near.truncate(860).value();
      near.prefill(std::span(tokens).subspan(860)).value();
      CHECK(same(near));
      CHECK(prefilled() - before == 100 + 140 + sealed * 28);
      before = prefilled();
      far.truncate(400).value();
      far.prefill(std::span(tokens).subspan(400)).value();
      CHECK(same(far));
      CHECK(prefilled() - before == 1000);
    }
    CHECK(engine.stats().pages_used == 0);

    // A cache for one sequence has pages for its window and a chunk only, and the plan says so.
    EngineOptions options;
    options.threads = 2;
    options.cache_type = type;
    options.max_batch_tokens = 64;
    options.max_sequences = 1;
    options.cache_tokens = 2048;
    options.prefix_cache = false;
    const Engine small = Engine::load(folder.path(), options).value();
    CHECK(small.stats().pages_total == (100 + 64 + 64 + 63) / 64 + 2 + 1 + 1);
    Session one = small.new_session().value(), two = small.new_session().value();
    for (Session* session : {&one, &two}) session->prefill(std::span(tokens).first(450)).value();
    for (Session* session : {&one, &two}) {
      session->prefill(std::span(tokens).subspan(450)).value();
      CHECK(same(*session));
    }
    if (type != CacheType::int4) CHECK(small.stats().cache_bytes == Engine::plan(folder.path(), options).value().cache);
  }
  config["sliding_window"] = std::numeric_limits<std::int32_t>::max();
  folder.write("config.json", config.dump());
  const Engine unlimited = Engine::load(folder.path()).value();
  CHECK(unlimited.new_session().value().prefill(some_tokens(100, 5)));
}

TEST_CASE("the open pages of an int4 cache are planned for") {
  EngineOptions options;
  options.cache_type = CacheType::int4;
  options.max_batch_tokens = 128;
  options.max_sequences = 1;
  options.cache_tokens = 2048;
  const MemoryPlan plan = Engine::plan(kModel, options).value();
  const Engine engine = load(options);
  Session session = engine.new_session().value();
  session.prefill(some_tokens(40, 1)).value();
  CHECK(engine.stats().cache_bytes < plan.cache);
  session.prefill(some_tokens(500, 2)).value();  // chunks begin inside of pages, and write to three
  CHECK(engine.stats().cache_bytes == plan.cache);
  CHECK(session.generate(sampled(100, 3)));
  CHECK(engine.stats().cache_bytes == plan.cache);
}

TEST_CASE("caches of integers: preemption, sessions and chunks change no result, and the plan tells their size") {
  const CacheType type = GENERATE(CacheType::int8, CacheType::int4);
  EngineOptions options;
  options.cache_type = type;
  options.max_batch_tokens = 512;
  const Engine engine = load(options);
  EngineOptions tight = options;
  tight.context_length = 256;
  tight.cache_tokens = 256;
  tight.max_batch_tokens = 48;
  const Engine small = load(tight);
  const auto request = [](unsigned i) {
    CompletionRequest request;
    request.tokens = some_tokens(60 + 30 * i, i);
    request.options = sampled(40, i);
    return request;
  };
  std::vector<Completion> together;
  for (unsigned i = 0; i < 4; ++i) together.push_back(small.submit(request(i)).value());
  for (unsigned i = 0; i < 4; ++i)
    CHECK(together[i].wait().value().tokens == engine.complete(request(i)).value().tokens);
  CHECK(small.stats().preemptions > 0);

  Session session = engine.new_session().value();
  session.prefill(some_tokens(150, 8)).value();
  Session fork = session.fork().value();
  const auto first = session.generate(sampled(30, 1)).value();
  CHECK(fork.generate(sampled(30, 1)).value().tokens == first.tokens);
  session.truncate(150).value();
  CHECK(session.generate(sampled(30, 1)).value().tokens == first.tokens);

  EngineOptions half = options;
  half.cache_type = CacheType::f16;
  const auto bytes = [](const EngineOptions& o) { return Engine::plan(kModel, o).value().cache; };
  if (type == CacheType::int8) CHECK(bytes(options) == engine.stats().cache_bytes);
  if (type == CacheType::int4) CHECK(bytes(options) >= engine.stats().cache_bytes);  // not all that may be are open
  options.cache_tokens = half.cache_tokens = 1 << 22;                                // of which few are open
  CHECK(bytes(options) < (type == CacheType::int8 ? 0.7 : 0.34) * static_cast<double>(bytes(half)));
}

TEST_CASE("an int4 cache: a token reads its own page as it was, however the session came there") {
  EngineOptions options;
  options.cache_type = CacheType::int4;
  options.max_batch_tokens = 512;
  options.prefix_cache = false;
  const Engine engine = load(options);
  const std::vector<Token> tokens = some_tokens(270, 9);
  std::vector<std::vector<float>> expected;
  PrefillOptions all;
  all.on_logits = [&](std::int32_t, std::span<const float> logits) {
    expected.emplace_back(logits.begin(), logits.end());
    return true;
  };
  Session whole = engine.new_session().value();
  whole.prefill(tokens, all).value();
  const auto go_on = [&](Session& session, std::int32_t to) {
    const auto from = static_cast<std::size_t>(session.size());
    session.prefill(std::span(tokens).subspan(from, static_cast<std::size_t>(to) - from)).value();
    const auto& wanted = expected[static_cast<std::size_t>(to - 1)];
    CHECK(std::equal(session.logits().begin(), session.logits().end(), wanted.begin(), wanted.end()));
  };
  Session session = engine.new_session().value();
  for (const std::int32_t to : {1, 40, 63, 64, 65, 100, 128, 129, 192, 250}) go_on(session, to);
  for (const std::int32_t rewind : {249, 200, 192, 191, 130, 128, 127, 64, 63, 10}) {
    CAPTURE(rewind);
    Session fork = session.fork().value();
    const auto before = engine.stats().prefill_tokens;
    fork.truncate(rewind).value();
    go_on(fork, rewind + 1);
    // The page's other tokens again, if it was full.
    CHECK(engine.stats().prefill_tokens - before == (rewind >= 192 ? 1 : rewind % 64 + 1));
    go_on(fork, 255);
    fork.truncate(rewind).value();
    GenerateOptions one;
    one.max_tokens = 1;
    one.ignore_end = true;
    fork.generate(one).value();  // of logits that were truncated away
    const auto& wanted = expected[static_cast<std::size_t>(rewind - 1)];
    CHECK(fork.tokens().back() == std::max_element(wanted.begin(), wanted.end()) - wanted.begin());
    go_on(session, session.size() + 1);
  }
}

TEST_CASE("a cache in files gives the same tokens, is no memory, and leaves nothing behind") {
  const test::TempDir folder;
  for (const CacheType type : {CacheType::f16, CacheType::int8, CacheType::int4}) {
    EngineOptions options;
    options.context_length = 128;
    options.cache_tokens = 256;
    options.cache_type = type;
    EngineOptions filed = options;
    filed.cache_folder = folder.path();
    const MemoryPlan plan = Engine::plan(kModel, options).value(), less = Engine::plan(kModel, filed).value();
    CHECK(plan.disk_cache == 0);
    CHECK(less.disk_cache + less.cache == plan.cache);
    CHECK((less.cache > 0) == (type == CacheType::int4));  // its open pages
    CHECK(less.shares.at(0).disk_cache == less.disk_cache);
    CHECK(less.total() == plan.total() - less.disk_cache);
    const auto answers = [](const Engine& engine) {
      std::vector<Token> all;
      Session session = engine.new_session().value();
      session.prefill(some_tokens(70, 1)).value();
      Session fork = session.fork().value();
      for (Session* one : {&session, &fork}) {
        const auto tokens = one->generate(sampled(20, 3)).value().tokens;
        all.insert(all.end(), tokens.begin(), tokens.end());
      }
      return all;
    };
    const Engine engine = load(filed), usual = load(options);
    CHECK(std::filesystem::is_empty(folder.path()));
    CHECK(engine.stats().cache_bytes == usual.stats().cache_bytes);
    CHECK(answers(engine) == answers(usual));
  }
}

TEST_CASE("the CPU's pages lie where they are told to") {
  const test::TempDir folder;
  const auto backend = make_cpu_backend({}).value();
  const CacheGroup group{1, 1, 16, 0};
  for (const CacheType type : {CacheType::f32, CacheType::int8}) {
    const std::int64_t bytes = backend->page_bytes(group, type);
    const auto memory = core::file_memory(folder.path(), static_cast<std::uint64_t>(2 * bytes)).value();
    const auto cache = backend->make_cache_in(memory, group, type, 2, 0).value();
    CHECK(cache->bytes() == 2 * bytes);
    const std::vector<float> ones(static_cast<std::size_t>(cache->canonical_page_bytes()) / sizeof(float), 1.0f);
    cache->import_page(1, std::as_bytes(std::span(ones))).value();
    const auto zero = [](std::byte b) { return b == std::byte{0}; };
    CHECK(std::all_of(memory.get(), memory.get() + bytes, zero));
    CHECK_FALSE(std::all_of(memory.get() + bytes, memory.get() + 2 * bytes, zero));
  }
}

TEST_CASE("a folder that can hold no cache") {
  const test::TempDir folder;
  EngineOptions options;
  options.context_length = 128;
  options.cache_folder = folder / "none";
  check_error(Engine::load(kModel, options), ErrorCode::not_found, "EngineOptions::cache_folder");
  options.cache_folder = folder.path();
  options.cache_tokens = std::int64_t{1} << 36;  // terabytes
  check_error(Engine::load(kModel, options), ErrorCode::io_error, "EngineOptions::cache_folder");
  CHECK(std::filesystem::is_empty(folder.path()));
  options.cache_tokens = 128;
  options.custom_backend = std::make_shared<test::ForwardingBackend>(make_cpu_backend({}).value());
  check_error(Engine::plan(kModel, options), ErrorCode::unsupported, "EngineOptions::cache_folder");
}
