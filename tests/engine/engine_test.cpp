// The engine end to end on a tiny model: reference tokens, sessions, batching, cancellation, limits.
#include <llminfer/llminfer.hpp>

#include <algorithm>
#include <atomic>
#include <catch2/catch.hpp>
#include <cmath>
#include <future>
#include <thread>

#include "tests/engine/tiny_model.hpp"

using namespace llminfer;
using namespace llminfer::test::tiny;

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

TEST_CASE("embeddings in and hidden states out") {
  EngineOptions alone;
  alone.prefix_cache = false;
  const Engine engine = load(alone);
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
  small.prefix_cache = false;
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

TEST_CASE("requests are ended in the queue, too, and from other threads") {
  EngineOptions options;
  options.max_sequences = 1;
  const Engine engine = load(options);
  GenerateOptions endless = sampled(0, 1);
  endless.overflow = OverflowPolicy::shift;
  Completion running = engine.submit({.tokens = some_tokens(3, 1), .options = endless}).value();
  Completion queued = engine.submit({.tokens = some_tokens(3, 2), .options = endless}).value();
  queued.cancel();
  CHECK(queued.wait().value().reason == FinishReason::cancelled);
  endless.deadline = std::chrono::milliseconds(20);
  CHECK(engine.complete({.tokens = some_tokens(3, 3), .options = endless}).value().reason == FinishReason::deadline);
  CHECK_FALSE(running.done());
  CHECK_FALSE(running.wait_for(std::chrono::milliseconds::min()));
  const auto before = std::chrono::steady_clock::now();
  CHECK_FALSE(running.wait_for(std::chrono::milliseconds(20)));
  CHECK(std::chrono::steady_clock::now() - before >= std::chrono::milliseconds(20));
  auto waiting = std::async(std::launch::async, [&] { return running.wait().value().reason; });
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  running.cancel();
  CHECK(running.wait_for(std::chrono::milliseconds::max()));
  CHECK(running.done());
  CHECK(waiting.get() == FinishReason::cancelled);
  check_error(running.wait(), ErrorCode::invalid_state, "before");
}

TEST_CASE("context overflow: stop and shift") {
  EngineOptions single;
  single.context_length = 1;
  GenerateOptions shift;
  shift.overflow = OverflowPolicy::shift;
  check_error(load(single).complete({.tokens = some_tokens(2, 1), .options = shift}), ErrorCode::invalid_argument,
              "one token");
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
  options.max_tokens = 0;
  options.ignore_end = true;
  options.overflow = OverflowPolicy::shift;
  ChatStream open = chat.send("Not wanted", options);
  const std::size_t before = chat.history().size();
  chat.rewind(2).value();  // the message and what there is of the answer
  CHECK(open.finish().value() == FinishReason::cancelled);
  CHECK(chat.history().size() == before);
  ChatStream cancelled = chat.send("Short", options);
  std::string_view piece;
  CHECK(cancelled.next(piece));
  cancelled.cancel();
  CHECK(cancelled.finish().value() == FinishReason::cancelled);
  CHECK(chat.history().size() == before + 2);
  Chat broken = engine.new_chat({.chat_template = "{{ raise_exception('no such role') }}"}).value();
  ChatStream failed = broken.send("x");
  check_error(failed.finish(), ErrorCode::template_error, "no such role");
  CHECK(broken.history().empty());
  check_error(engine.new_chat({.chat_template = "{% if %}"}), ErrorCode::template_error, "line 1");
}

TEST_CASE("a control token that a message spells is text, unless the host says otherwise") {
  const Engine engine = load();
  const Token end = engine.tokenizer().find("<|im_end|>").value();
  const auto ends = [&](const std::string& role, bool parse_special) {
    const Chat chat = engine.new_chat({.history = {{role, "a<|im_end|>b"}}, .parse_special = parse_special}).value();
    const auto tokens = engine.tokenizer().encode(chat.render().value()).value();
    return std::count(tokens.begin(), tokens.end(), end);
  };
  for (const std::string role : {"system", "user", "assistant"}) CHECK(ends(role, false) + 1 == ends(role, true));
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
