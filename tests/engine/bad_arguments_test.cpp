// Arguments, options and calls that are wrong: each gives its error code and names what is wrong, and the engine goes
// on.
#include <llminfer/llminfer.hpp>

#include <atomic>
#include <catch2/catch.hpp>
#include <fstream>
#include <limits>
#include <memory>
#include <stdexcept>
#include <thread>

using namespace llminfer;

namespace {

const std::string kModel = std::string(LLMINFER_TEST_DATA) + "/models/tiny-bf16";

Engine load(EngineOptions options = {}) {
  if (options.threads == 0) options.threads = 1;
  return Engine::load(kModel, options).value();
}

template <class T>
void refused(const Result<T>& result, ErrorCode code, const std::string& named) {
  INFO(named);
  REQUIRE_FALSE(result);
  INFO(result.error().message);
  CHECK(to_string(result.error().code) == to_string(code));
  CHECK_THAT(result.error().message, Catch::Contains(named));
}

CompletionRequest request(std::int32_t max_tokens = 2) {
  CompletionRequest request;
  request.tokens = {1, 2, 3};
  request.options.max_tokens = max_tokens;
  request.options.ignore_end = true;
  return request;
}

constexpr std::int32_t kMin = std::numeric_limits<std::int32_t>::min();
constexpr std::int32_t kMax = std::numeric_limits<std::int32_t>::max();

/// What load and plan say of a change to the options.
template <class Change>
void refused_options(const std::string& named, Change&& change, ErrorCode code = ErrorCode::invalid_argument) {
  EngineOptions options;
  options.threads = 1;
  change(options);
  refused(Engine::load(kModel, options), code, named);
  refused(Engine::plan(kModel, options), code, named);
}

}  // namespace

TEST_CASE("engine options out of their ranges") {
  using O = EngineOptions;
  for (const std::int32_t bad : {-1, 1025, kMin, kMax}) refused_options("threads", [&](O& o) { o.threads = bad; });
  for (const std::int32_t bad : {0, -1, 65537, kMin, kMax}) {
    refused_options("max_batch_tokens", [&](O& o) { o.max_batch_tokens = bad; });
    refused_options("max_sequences", [&](O& o) { o.max_sequences = bad; });
  }
  refused_options("device_sums", [](O& o) { o.device_sums = static_cast<DeviceSums>(3); });
  for (const int bad : {0, 4, 15, kMax}) refused_options("output_bits", [&](O& o) { o.output_bits = bad; });
  for (const std::int32_t bad : {0, -1, kMin}) refused_options("max_queue", [&](O& o) { o.max_queue = bad; });
  for (const std::int64_t bad : {std::int64_t{-1}, (std::int64_t{1} << 36) + 1, INT64_MIN, INT64_MAX}) {
    refused_options("cache_tokens", [&](O& o) { o.cache_tokens = bad; });
  }
  refused_options("cache_tokens", [](O& o) { o.cache_tokens = 2047; });  // less than one sequence of the context
  refused_options("EngineOptions::cache_type is 77", [](O& o) { o.cache_type = static_cast<CacheType>(77); });
  for (const int bad : {-1, 4, 17, kMax}) {
    refused_options("EngineOptions::activation_bits", [&](O& o) { o.activation_bits = bad; });
  }
  refused_options(
      "cache_type is fp8", [](O& o) { o.cache_type = CacheType::fp8; }, ErrorCode::unsupported);
  refused_options(
      "backend", [](O& o) { o.backend = "abacus"; }, ErrorCode::not_found);
  refused_options("cpu_level", [](O& o) { o.cpu_level = "mmx"; });
}

TEST_CASE("a context is at most what the model was trained for") {
  for (const std::int32_t bad : {-1, 2049, kMin, kMax}) {
    refused_options("context_length", [&](EngineOptions& o) { o.context_length = bad; });
  }
  refused_options("2048", [](EngineOptions& o) { o.context_length = 4096; });  // the message tells the limit
  EngineOptions options;
  for (const std::int32_t good : {1, 64, 2048}) {
    options.context_length = good;
    CHECK(load(options).info().context_length == good);
  }
  options.context_length = 0;
  CHECK(load(options).info().context_length == 2048);
}

TEST_CASE("generation options out of their ranges") {
  const Engine engine = load();
  Session session = engine.new_session().value();
  session.prefill(std::vector<Token>{1, 2, 3}).value();
  const auto refuses = [&](const std::string& named, const std::function<void(GenerateOptions&)>& change) {
    CompletionRequest changed = request();
    change(changed.options);
    refused(engine.complete(changed), ErrorCode::invalid_argument, named);
    refused(session.generate(changed.options), ErrorCode::invalid_argument, named);
    CHECK(session.size() == 3);
    CHECK_FALSE(session.logits().empty());
  };
  using O = GenerateOptions;
  for (const std::int32_t bad : {-1, kMin}) refuses("max_tokens", [&](O& o) { o.max_tokens = bad; });
  refuses("stop has 65", [](O& o) { o.stop.assign(65, "x"); });
  refuses("stop has an empty", [](O& o) { o.stop = {"a", ""}; });
  for (const Token bad : {-1, 1024, kMin, kMax}) refuses("stop_tokens", [&](O& o) { o.stop_tokens = {1, bad}; });
  for (const std::int32_t bad : {-1, 1025, kMin, kMax}) refuses("keep_tokens", [&](O& o) { o.keep_tokens = bad; });
  for (const std::int64_t bad : {std::int64_t{-1}, INT64_MIN}) {
    refuses("deadline", [&](O& o) { o.deadline = std::chrono::milliseconds(bad); });
  }
  refuses("overflow is 2", [](O& o) { o.overflow = static_cast<OverflowPolicy>(2); });
  refuses("temperature", [](O& o) { o.sampling.temperature = -1; });
  CompletionRequest extreme = request();
  extreme.options.stop.assign(64, "x");
  extreme.options.deadline = std::chrono::milliseconds(INT64_MAX);
  extreme.options.keep_tokens = 1024;
  CHECK(engine.complete(extreme));
}

TEST_CASE("prompts and tokens that cannot be") {
  const Engine engine = load();
  Session session = engine.new_session().value();
  refused(engine.complete({}), ErrorCode::invalid_argument, "prompt");
  refused(session.generate(), ErrorCode::invalid_argument, "prompt");
  refused(session.prefill({}), ErrorCode::invalid_argument, "no tokens");
  for (const Token bad : {-1, 1024, kMin, kMax}) {
    CompletionRequest wrong = request();
    wrong.tokens.push_back(bad);
    refused(engine.complete(wrong), ErrorCode::invalid_argument, std::to_string(bad));
    refused(session.prefill(wrong.tokens), ErrorCode::invalid_argument, std::to_string(bad));
    refused(engine.tokenizer().decode(wrong.tokens), ErrorCode::invalid_argument, std::to_string(bad));
    CHECK(engine.tokenizer().token_bytes(bad).empty());
    CHECK_FALSE(engine.tokenizer().is_special(bad));
  }
  CHECK(session.size() == 0);
  refused(session.prefill_embeddings({}), ErrorCode::invalid_argument, "rows of 128");
  refused(session.prefill_embeddings(std::vector<float>(127)), ErrorCode::invalid_argument, "rows of 128");
  for (const std::int32_t bad : {-1, 1, kMin, kMax}) {
    refused(session.truncate(bad), ErrorCode::invalid_argument, "truncate");
  }
  refused(session.prefill(std::vector<Token>(2049, 1)), ErrorCode::context_overflow, "2048");
  refused(engine.tokenizer().encode(std::string((std::size_t{1} << 26) + 1, 'a')), ErrorCode::limit_exceeded,
          "text of");
  // Embeddings that are not numbers make logits that are not; no token can be chosen, and that request ends.
  session.prefill_embeddings(std::vector<float>(128, std::numeric_limits<float>::quiet_NaN())).value();
  refused(session.generate({.max_tokens = 1}), ErrorCode::invalid_state, "forbidden");
  CHECK(engine.complete(request()));
}

TEST_CASE("a full queue refuses, and takes requests again") {
  EngineOptions options;
  options.max_sequences = 1;
  options.max_queue = 1;
  const Engine engine = load(options);
  std::atomic<bool> started{false}, go_on{false};
  CompletionRequest slow = request(4);
  slow.options.on_token = [&](const GeneratedToken&) {
    started = true;
    while (!go_on) std::this_thread::yield();
    return true;
  };
  Completion first = engine.submit(slow).value();
  while (!started) std::this_thread::yield();
  Completion second = engine.submit(request()).value();
  refused(engine.submit(request()), ErrorCode::queue_full, "max_queue");
  Session session = engine.new_session().value();
  refused(session.prefill(std::vector<Token>{1}), ErrorCode::queue_full, "max_queue");
  CHECK(session.size() == 0);
  go_on = true;
  CHECK(first.wait().value().tokens.size() == 4);
  CHECK(second.wait());
  CHECK(engine.complete(request()));
  session.prefill(std::vector<Token>{1}).value();
}

TEST_CASE("a generation that is refused after it shifted the context leaves the session as it was") {
  EngineOptions options;
  options.max_sequences = 1;
  options.max_queue = 1;
  options.context_length = 64;
  const Engine engine = load(options);
  Session session = engine.new_session().value();
  std::vector<Token> tokens(64);
  for (std::size_t i = 0; i < tokens.size(); ++i) tokens[i] = static_cast<Token>(i + 1);
  session.prefill(tokens).value();
  GenerateOptions shifting = request(40).options;
  shifting.overflow = OverflowPolicy::shift;
  shifting.on_token = [count = 0](const GeneratedToken&) mutable {
    if (++count == 20) throw std::runtime_error("enough");
    return true;
  };
  refused(session.generate(shifting), ErrorCode::callback_failed, "");
  CHECK(std::equal(tokens.begin(), tokens.end(), session.tokens().begin(), session.tokens().end()));
  shifting.on_token = {};
  const auto again = session.generate(shifting).value().tokens;
  Session fresh = engine.new_session().value();
  fresh.prefill(tokens).value();
  CHECK(fresh.generate(shifting).value().tokens == again);
}

TEST_CASE("callbacks of the host that throw") {
  EngineOptions options;
  options.threads = 1;
  options.on_progress = [](float) -> bool { throw 1; };
  refused(Engine::load(kModel, options), ErrorCode::callback_failed, "on_progress");
  options.on_progress = {};
  options.on_log = [](LogLevel, std::string_view) { throw std::runtime_error("full"); };
  refused(Engine::load(kModel, options), ErrorCode::callback_failed, "on_log");
  options.on_log = {};
  options.executor = [](int, const std::function<void(int, int)>&) { throw std::runtime_error("no threads"); };
  refused(Engine::load(kModel, options), ErrorCode::callback_failed, "no threads");
  refused(Engine::load_reader(100, [](std::uint64_t, std::span<std::byte>) -> bool { throw 1; }),
          ErrorCode::callback_failed, "reader");

  const Engine engine = load();
  CompletionRequest throwing = request();
  throwing.options.on_token = [](const GeneratedToken&) -> bool { throw 1; };
  refused(engine.complete(throwing), ErrorCode::callback_failed, "GenerateOptions::on_token threw");
  throwing.options.on_token = {};
  throwing.options.sampling.processor = [](std::span<const Token>, std::span<float>) { throw std::logic_error("odd"); };
  refused(engine.complete(throwing), ErrorCode::callback_failed, "SamplingOptions::processor threw: odd");
  const auto no_logits = [](std::int32_t, std::span<const float>) -> bool { throw 1; };
  refused(engine.new_session().value().prefill(request().tokens, {.on_logits = no_logits}), ErrorCode::callback_failed,
          "PrefillOptions::on_logits threw");
  CHECK(engine.complete(request()));
}

TEST_CASE("sources and backends that are none") {
  refused(Engine::load_memory({}, nullptr), ErrorCode::truncated, "load_memory");
  refused(Engine::load_reader(10, nullptr), ErrorCode::invalid_argument, "load_reader");
  refused(Engine::load(""), ErrorCode::invalid_argument, "path of the checkpoint is empty");
  refused(Engine::load("/dev/null"), ErrorCode::not_a_file, "/dev/null");
  refused(Engine::load(std::string(5000, 'x')), ErrorCode::io_error, "xxx");  // longer than a path can be
  refused(Engine::load(LLMINFER_TEST_DATA), ErrorCode::not_found, "config.json");
}

TEST_CASE("an error of a load names the checkpoint once") {
  EngineOptions options;
  options.on_progress = [](float) { return false; };
  const auto abandoned = Engine::load(kModel, options);
  refused(abandoned, ErrorCode::cancelled, kModel + ": ");
  CHECK(abandoned.error().message.find(kModel) == abandoned.error().message.rfind(kModel));
}

TEST_CASE("handles that were moved from or used up") {
  const Engine engine = load();
  Session session = engine.new_session().value();
  Session owner = std::move(session);
  refused(session.prefill(std::vector<Token>{1}), ErrorCode::invalid_state, "moved from");
  refused(session.prefill_embeddings(std::vector<float>(128)), ErrorCode::invalid_state, "moved from");
  refused(session.generate(), ErrorCode::invalid_state, "moved from");
  refused(session.fork(), ErrorCode::invalid_state, "moved from");
  refused(session.truncate(0), ErrorCode::invalid_state, "moved from");
  CHECK(session.size() == 0);
  CHECK(session.tokens().empty());
  CHECK(session.logits().empty());
  CHECK(session.hidden_states().empty());
  owner.prefill(std::vector<Token>{1}).value();

  Completion completion = engine.submit(request()).value();
  CHECK(completion.wait());
  refused(completion.wait(), ErrorCode::invalid_state, "wait");
  CHECK(completion.done());
  completion.cancel();

  Chat chat = engine.new_chat().value();
  Chat moved = std::move(chat);
  refused(chat.render(), ErrorCode::invalid_state, "moved from");
  refused(chat.rewind(1), ErrorCode::invalid_argument, "rewind");
  CHECK(chat.history().empty());
  refused(chat.send("x").finish(), ErrorCode::invalid_state, "moved from");
  ChatStream stream = moved.send("x", request().options), other = std::move(stream);
  std::string_view piece;
  CHECK_FALSE(stream.next(piece));
  refused(stream.finish(), ErrorCode::invalid_state, "moved from");
  CHECK(stream.result().tokens.empty());
  CHECK(other.finish());

  Engine first = load();
  const Engine second = std::move(first);
  refused(first.new_session(), ErrorCode::invalid_state, "moved from");
  refused(first.new_chat(), ErrorCode::invalid_state, "moved from");
  refused(first.submit(request()), ErrorCode::invalid_state, "moved from");
  refused(first.complete(request()), ErrorCode::invalid_state, "moved from");
  CHECK(first.info().vocab_size == 0);
  CHECK(first.stats().pages_total == 0);
  CHECK(first.recommended_sampling().temperature == SamplingOptions{}.temperature);
  CHECK(first.tokenizer().vocab_size() == 0);
  CHECK(second.complete(request()));

  Tokenizer words = second.tokenizer();
  const Tokenizer kept = std::move(words);
  refused(words.encode("x"), ErrorCode::invalid_state, "moved from");
  refused(words.escape("x"), ErrorCode::invalid_state, "moved from");
  refused(words.decode(std::vector<Token>{1}), ErrorCode::invalid_state, "moved from");
  refused(StreamDecoder(words).push(1), ErrorCode::invalid_argument, "vocabulary");
  CHECK(words.token_bytes(1).empty());
  CHECK_FALSE(words.find("<s>"));
  CHECK_FALSE(words.is_special(0));
  CHECK_FALSE((words.bos() || words.eos()));
  CHECK(words.end_tokens().empty());
  CHECK(kept.encode("x"));
}

TEST_CASE("an engine has its backend alone") {
  EngineOptions options;
  options.custom_backend = make_cpu_backend({.threads = 1}).value();
  const auto complete = [&] { return Engine::load(kModel, options).value().complete(request()).value().tokens; };
  const std::vector<Token> expected = complete();
  CHECK(complete() == expected);  // the engine before is gone
  EngineOptions shared;
  shared.threads = 1;
  shared.split = {{{}, 1}, {options.custom_backend, 1}, {}};
  {
    const Engine first = Engine::load(kModel, options).value();
    refused(Engine::load(kModel, options), ErrorCode::invalid_argument, "custom_backend: another engine uses");
    refused(Engine::load(kModel, shared), ErrorCode::invalid_argument, "split: another engine uses");
    CHECK(Engine::plan(kModel, options));
    CHECK(first.complete(request()).value().tokens == expected);
    Session session = first.new_session().value();
    options.on_progress = [](float) { return false; };
    refused(Engine::load(kModel, options), ErrorCode::invalid_argument, "another engine uses");
  }
  refused(Engine::load(kModel, options), ErrorCode::cancelled, kModel);
  options.on_progress = nullptr;
  CHECK(complete() == expected);  // nor does a load that failed use it
  CHECK(Engine::load(kModel, shared).value().complete(request()).value().tokens == expected);
}

TEST_CASE("chat options that cannot be") {
  const Engine engine = load();
  refused(engine.new_chat({.tools_json = "{}"}), ErrorCode::invalid_argument, "tools_json");
  refused(engine.new_chat({.tools_json = "["}), ErrorCode::corrupt, "tools_json");
  refused(engine.new_chat({.tools_json = "[\"\xff\"]"}), ErrorCode::invalid_encoding, "tools_json");
  refused(engine.new_chat({.tools_json = std::string(100000, '[')}), ErrorCode::limit_exceeded, "tools_json");
  refused(engine.new_chat({.chat_template = "{% if %}"}), ErrorCode::template_error, "line 1");
  Chat silent = engine.new_chat({.chat_template = "{# nothing #}"}).value();
  refused(silent.send("x").finish(), ErrorCode::template_error, "rendered nothing");
  Chat endless = engine
                     .new_chat({.chat_template = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}"
                                                 "{% endfor %}"})
                     .value();
  refused(endless.send("x").finish(), ErrorCode::limit_exceeded, "chat template");
  CHECK(endless.history().empty());
  Chat chat = engine.new_chat({.tools_json = R"([{"name": "f"}])"}).value();
  refused(chat.send("x", {.max_tokens = -1}).finish(), ErrorCode::invalid_argument, "max_tokens");
  CHECK(chat.history().empty());
  CHECK(chat.send("x", request().options).finish());
}
