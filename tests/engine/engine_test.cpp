// The engine end to end on a tiny model: reference tokens, sessions, batching, cancellation, limits.
#include <llminfer/llminfer.hpp>

#include <atomic>
#include <catch2/catch.hpp>
#include <filesystem>
#include <fstream>
#include <future>
#include <limits>
#include <nlohmann/json.hpp>
#include <random>
#include <thread>

#include "tests/load/temp_dir.hpp"

using namespace llminfer;

namespace {

const std::string kModel = std::string(LLMINFER_TEST_DATA) + "/models/tiny-bf16";

const nlohmann::json& reference() {
  static const nlohmann::json data = nlohmann::json::parse(std::ifstream(kModel + "/reference.json"));
  return data;
}

Engine load(EngineOptions options = {}) {
  if (options.threads == 0) options.threads = 2;
  return Engine::load(kModel, options).value();
}

std::vector<Token> prompt() { return reference()["prompt_ids"]; }

std::vector<Token> some_tokens(std::size_t count, unsigned seed) {
  std::mt19937 random(seed);
  std::vector<Token> tokens(count);
  for (Token& token : tokens) token = static_cast<Token>(random() % 1000);
  return tokens;
}

GenerateOptions sampled(std::int32_t tokens, std::uint64_t seed) {
  GenerateOptions options;
  options.max_tokens = tokens;
  options.ignore_end = true;
  options.sampling.temperature = 1.0f;
  options.sampling.top_p = 0.95f;
  options.sampling.seed = seed;
  return options;
}

template <class T>
void check_error(const Result<T>& result, ErrorCode code, const std::string& named) {
  REQUIRE_FALSE(result);
  CHECK(to_string(result.error().code) == to_string(code));
  CHECK_THAT(result.error().message, Catch::Contains(named));
}

}  // namespace

TEST_CASE("greedy tokens are the reference's, in default and exact mode") {
  const std::vector<Token> expected = reference()["greedy"];
  const std::vector<double> margins = reference()["margins"];
  for (const bool exact : {false, true}) {
    EngineOptions options;
    options.exact = exact;
    options.cache_type = exact ? CacheType::f32 : CacheType::f16;
    const Engine engine = load(options);
    CompletionRequest request;
    request.tokens = prompt();
    request.options.max_tokens = static_cast<std::int32_t>(expected.size());
    request.options.ignore_end = true;
    const CompletionResult result = engine.complete(request).value();
    REQUIRE(result.tokens.size() == expected.size());
    for (std::size_t i = 0; i < expected.size() && margins[i] >= 0.05; ++i) CHECK(result.tokens[i] == expected[i]);
    CHECK(result.reason == FinishReason::length);
    CHECK(result.prompt_tokens == static_cast<std::int32_t>(prompt().size()));
  }
}

TEST_CASE("exact logits are the reference's") {
  EngineOptions options;
  options.exact = true;
  options.cache_type = CacheType::f32;
  Session session = load(options).new_session().value();
  session.prefill(prompt()).value();
  const std::vector<float> expected = reference()["last_logits"];
  REQUIRE(session.logits().size() == expected.size());
  double error = 0, power = 0;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    error += std::pow(session.logits()[i] - expected[i], 2);
    power += std::pow(expected[i], 2);
  }
  CHECK(error / power < 1e-6);
}

TEST_CASE("requests from many threads give what each gives alone, bit for bit") {
  const Engine engine = load();
  constexpr int kRequests = 12;
  const auto request = [](int i) {
    CompletionRequest request;
    request.tokens = some_tokens(static_cast<std::size_t>(5 + 37 * i), static_cast<unsigned>(i));
    request.options = sampled(24, static_cast<std::uint64_t>(i));
    request.options.sampling.logprobs = 3;
    return request;
  };
  std::vector<CompletionResult> alone;
  for (int i = 0; i < kRequests; ++i) alone.push_back(engine.complete(request(i)).value());

  for (const std::int32_t batch : {16, 256}) {
    EngineOptions options;
    options.max_batch_tokens = batch;
    const Engine other = load(options);
    std::vector<CompletionResult> together(kRequests);
    std::vector<std::thread> threads;
    for (int i = 0; i < kRequests; ++i) {
      threads.emplace_back([&, i] { together[static_cast<std::size_t>(i)] = other.complete(request(i)).value(); });
    }
    for (std::thread& thread : threads) thread.join();
    for (std::size_t i = 0; i < kRequests; ++i) {
      CHECK(together[i].tokens == alone[i].tokens);
      CHECK(together[i].text == alone[i].text);
      REQUIRE(together[i].samples.size() == 24);
      for (std::size_t t = 0; t < 24; ++t) CHECK(together[i].samples[t].logprob == alone[i].samples[t].logprob);
    }
  }
}

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

TEST_CASE("fork and truncate") {
  const Engine engine = load();
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

TEST_CASE("embeddings in and hidden states out") {
  const Engine engine = load();
  Session session = engine.new_session().value();
  PrefillOptions options;
  options.hidden_states = true;
  session.prefill(some_tokens(300, 4), options).value();
  const auto width = static_cast<std::size_t>(engine.info().hidden_size);
  REQUIRE(session.hidden_states().size() == 300 * width);
  const std::vector<float> hidden(session.hidden_states().begin(), session.hidden_states().end());
  const std::vector<float> last(hidden.end() - static_cast<std::ptrdiff_t>(width), hidden.end());
  Session parts = engine.new_session().value();
  parts.prefill(some_tokens(300, 4)).value();
  CHECK(std::equal(parts.logits().begin(), parts.logits().end(), session.logits().begin()));

  session.prefill_embeddings(std::vector<float>(3 * width, 0.1f), options).value();
  CHECK(session.size() == 303);
  CHECK(session.hidden_states().size() == 3 * width);
  CHECK(session.tokens().back() == -1);
  const std::vector<float> logits(session.logits().begin(), session.logits().end());
  session.prefill(some_tokens(1, 5)).value();
  session.truncate(302).value();
  session.prefill_embeddings(std::vector<float>(width, 0.1f)).value();
  CHECK(std::equal(logits.begin(), logits.end(), session.logits().begin()));
  check_error(session.prefill_embeddings(std::vector<float>(width + 1)), ErrorCode::invalid_argument, "rows of");
}

TEST_CASE("a prefill gives the logits after every token, once and in order, also when its pages are taken") {
  EngineOptions small;
  small.context_length = 256;
  small.cache_tokens = 320;
  small.max_batch_tokens = 32;
  const Engine engine = load(small);
  const std::vector<Token> tokens = some_tokens(200, 6);
  std::vector<std::vector<float>> expected;
  Session one = engine.new_session().value();
  for (const Token& token : tokens) {
    one.prefill(std::span(&token, 1)).value();
    expected.emplace_back(one.logits().begin(), one.logits().end());
  }

  Session session = engine.new_session().value();
  session.prefill(std::span(tokens).first(20)).value();
  CompletionRequest other;
  other.tokens = some_tokens(100, 7);
  other.options = sampled(60, 1);
  const Completion busy = engine.submit(other).value();
  std::int32_t next = 20;
  PrefillOptions options;
  options.on_logits = [&](std::int32_t position, std::span<const float> logits) {
    CHECK(position == next);
    const auto& wanted = expected[static_cast<std::size_t>(next++)];
    CHECK(std::equal(logits.begin(), logits.end(), wanted.begin(), wanted.end()));
    return true;
  };
  session.prefill(std::span(tokens).subspan(20), options).value();
  CHECK(next == 200);
  CHECK(std::equal(expected.back().begin(), expected.back().end(), session.logits().begin()));

  Session third = engine.new_session().value();
  options.on_logits = [](std::int32_t position, auto) { return position < 150; };
  check_error(third.prefill(tokens, options), ErrorCode::cancelled, "");
  CHECK(third.size() == 0);
  options.on_logits = [](std::int32_t, auto) -> bool { throw 1; };
  check_error(third.prefill(tokens, options), ErrorCode::callback_failed, "");
  CHECK(third.size() == 0);
}

TEST_CASE("stop strings, stop tokens and callbacks") {
  const Engine engine = load();
  CompletionRequest request;
  request.tokens = prompt();
  request.options.max_tokens = 40;
  request.options.ignore_end = true;
  const CompletionResult whole = engine.complete(request).value();
  REQUIRE(whole.text.size() > 20);

  const std::string stop = whole.text.substr(10, 5);
  request.options.stop = {stop, "never in the text"};
  std::string streamed;
  request.options.on_token = [&](const GeneratedToken& token) {
    streamed += token.text;
    return true;
  };
  const CompletionResult stopped = engine.complete(request).value();
  CHECK(stopped.reason == FinishReason::stop);
  CHECK(stopped.text == whole.text.substr(0, whole.text.find(stop)));
  CHECK(streamed == stopped.text);

  request.options.stop = {};
  request.options.stop_tokens = {whole.tokens[7]};
  const CompletionResult at_token = engine.complete(request).value();
  CHECK(at_token.reason == FinishReason::stop);
  CHECK(at_token.tokens.size() <= 7);

  request.options.stop_tokens = {};
  int calls = 0;
  request.options.on_token = [&](const GeneratedToken& token) { return token.token < 0 || ++calls < 5; };
  const CompletionResult ended = engine.complete(request).value();
  CHECK(ended.reason == FinishReason::cancelled);
  CHECK(ended.tokens.size() == 5);

  request.options.on_token = [](const GeneratedToken&) -> bool { throw 1; };
  check_error(engine.complete(request), ErrorCode::callback_failed, "");
  CHECK(engine.stats().pages_used == 0);
}

TEST_CASE("cancellation and deadlines leave the engine well") {
  const Engine engine = load();
  Session session = engine.new_session().value();
  session.prefill(some_tokens(10, 6)).value();
  PrefillOptions cancelled;
  cancelled.cancel.emplace().cancel();
  check_error(session.prefill(some_tokens(100, 7), cancelled), ErrorCode::cancelled, "cancelled");
  CHECK(session.size() == 10);

  CompletionRequest request;
  request.tokens = some_tokens(10, 8);
  request.options.ignore_end = true;
  request.options.deadline = std::chrono::milliseconds(0);
  CHECK(engine.complete(request).value().reason == FinishReason::deadline);

  request.options.deadline = {};
  request.options.cancel.emplace();
  CancelToken token = *request.options.cancel;
  std::atomic<int> count{0};
  request.options.on_token = [&](const GeneratedToken&) {
    if (++count == 3) token.cancel();
    return true;
  };
  const CompletionResult result = engine.complete(request).value();
  CHECK(result.reason == FinishReason::cancelled);
  CHECK(result.tokens.size() == 3);

  { const auto dropped = engine.submit({.prompt = "", .tokens = some_tokens(10, 9), .options = sampled(0, 1)}); }
  CHECK(session.generate(sampled(5, 1)).value().tokens.size() == 5);
}

TEST_CASE("context overflow: stop and shift") {
  EngineOptions options;
  options.context_length = 64;
  const Engine engine = load(options);
  CompletionRequest request;
  request.tokens = some_tokens(50, 10);
  request.options = sampled(100, 3);
  const CompletionResult stopped = engine.complete(request).value();
  CHECK(stopped.reason == FinishReason::length);
  CHECK(stopped.tokens.size() == 14);
  request.options.overflow = OverflowPolicy::shift;
  request.options.keep_tokens = 4;
  const CompletionResult shifted = engine.complete(request).value();
  CHECK(shifted.tokens.size() == 100);
  CHECK(std::equal(stopped.tokens.begin(), stopped.tokens.end(), shifted.tokens.begin()));

  request.tokens = some_tokens(65, 10);
  CHECK(engine.complete(request));
  request.options.overflow = OverflowPolicy::stop;
  check_error(engine.complete(request), ErrorCode::context_overflow, "64");
  Session session = engine.new_session().value();
  check_error(session.prefill(some_tokens(65, 1)), ErrorCode::context_overflow, "64");
  CHECK(session.size() == 0);
  session.prefill(some_tokens(64, 1)).value();
}

TEST_CASE("a chat keeps its cache from turn to turn") {
  const Engine engine = load();
  Chat chat = engine.new_chat({.system = "Be brief."}).value();
  GenerateOptions options;
  options.max_tokens = 12;
  std::string text;
  ChatStream first = chat.send("Hello", options);
  for (const std::string_view piece : first) text += piece;
  first.finish().value();
  CHECK(text == first.result().text);
  REQUIRE(chat.history().size() == 3);
  CHECK(chat.history()[2].content == text);
  ChatStream second = chat.send("Again", options);
  second.finish().value();
  CHECK(second.result().cached_tokens > 10);

  chat.rewind(2).value();
  CHECK(chat.history().size() == 3);
  { ChatStream dropped = chat.send("Never read", options); }
  check_error(chat.rewind(100), ErrorCode::invalid_argument, "rewind");
  Chat broken = engine.new_chat({.chat_template = "{{ raise_exception('no such role') }}"}).value();
  ChatStream failed = broken.send("x");
  check_error(failed.finish(), ErrorCode::template_error, "no such role");
  CHECK(broken.history().empty());
  check_error(engine.new_chat({.chat_template = "{% if %}"}), ErrorCode::template_error, "line 1");
}

TEST_CASE("bad options and arguments are named") {
  const auto refuses = [](EngineOptions options, const std::string& name,
                          ErrorCode code = ErrorCode::invalid_argument) {
    check_error(Engine::load(kModel, options), code, name);
  };
  EngineOptions options;
  options.threads = -1;
  refuses(options, "threads");
  refuses({.backend = "abacus"}, "backend", ErrorCode::not_found);
  refuses({.cpu_level = "mmx"}, "level");
  options = {};
  options.context_length = -5;
  refuses(options, "context_length");
  options = {};
  options.cache_tokens = 64;
  refuses(options, "cache_tokens");
  options = {};
  options.max_batch_tokens = 0;
  refuses(options, "max_batch_tokens");
  check_error(Engine::load(kModel + "/nowhere"), ErrorCode::not_found, "nowhere");

  const Engine engine = load();
  check_error(engine.complete({}), ErrorCode::invalid_argument, "prompt");
  CompletionRequest request;
  request.tokens = {1, 100000};
  check_error(engine.complete(request), ErrorCode::invalid_argument, "100000");
  request.tokens = {1};
  request.options.max_tokens = -1;
  check_error(engine.complete(request), ErrorCode::invalid_argument, "max_tokens");
  request.options.max_tokens = 1;
  request.options.stop = {""};
  check_error(engine.complete(request), ErrorCode::invalid_argument, "stop");
  request.options.stop = {};
  request.options.sampling.temperature = std::nanf("");
  check_error(engine.complete(request), ErrorCode::invalid_argument, "temperature");
  Session session = engine.new_session().value();
  check_error(session.generate(), ErrorCode::invalid_argument, "prompt");
  check_error(session.prefill({}), ErrorCode::invalid_argument, "no tokens");
  check_error(session.truncate(1), ErrorCode::invalid_argument, "truncate");
}

TEST_CASE("the plan of a load tells its memory") {
  const MemoryPlan plan = Engine::plan(kModel).value();
  const Engine engine = load();
  CHECK(plan.parameters == engine.info().parameters);
  CHECK(plan.weights == engine.stats().weight_bytes);
  CHECK(plan.cache == engine.stats().cache_bytes);
  CHECK(plan.total() > plan.weights);
}

TEST_CASE("a load can be watched and abandoned") {
  EngineOptions options;
  float last = 0;
  options.on_progress = [&](float fraction) {
    CHECK(fraction >= last);
    last = fraction;
    return true;
  };
  CHECK(Engine::load(kModel, options));
  CHECK(last == Approx(1.0f));
  options.on_progress = [](float) { return false; };
  check_error(Engine::load(kModel, options), ErrorCode::cancelled, "on_progress");
}
