// Memory runs out at every allocation of every call of the public API, once or from then on: the call succeeds or says
// out_of_memory, nothing escapes or leaks, and the same engine, session and chat go on as if nothing had been.
//
// Each walk makes the first allocation fail, then the second, and so on until a run needs no more; where a walk's
// stride is not 1, it leaves some out for the sake of time.
#include <llminfer/llminfer.hpp>

#include <algorithm>
#include <catch2/catch.hpp>
#include <fstream>
#include <optional>
#include <thread>

#include "chat/template.hpp"
#include "core/error.hpp"
#include "engine/prefix_cache.hpp"
#include "load/module_list.hpp"
#include "tests/failing_threads.hpp"
#include "tests/memory/walk.hpp"

using namespace llminfer;
using namespace llminfer::test;

namespace {

/// The embedding on one backend, the layer and the output on another.
EngineOptions split() {
  EngineOptions options = small();
  options.split = {{make_cpu_backend({.threads = 1}).value(), 0}, {}};
  return options;
}

}  // namespace

TEST_CASE("out of memory while loading") {
  const auto load = [](const auto& make) {
    return [make]() -> Outcome {
      const auto engine = make();
      return engine ? Outcome() : failed(engine);
    };
  };
  const auto nothing = [] {};
  walk("load_memory", 1, load([] { return load_model(); }), nothing);
  const EngineOptions two_backends = split();
  walk("load of a split model", 3, load([&] { return load_model(two_backends); }), nothing);
  const auto read = [](std::uint64_t offset, std::span<std::byte> out) {
    std::copy_n(reinterpret_cast<const std::byte*>(model_bytes().data()) + offset, out.size(), out.begin());
    return true;
  };
  walk("load_reader", 11, load([&] { return Engine::load_reader(model_bytes().size(), read, small()); }), nothing);
  const std::string directory = std::string(LLMINFER_TEST_DATA) + "/models/tiny-bf16";
  EngineOptions unmapped = small();
  unmapped.mmap = false;
  walk("load", 199, load([&] { return Engine::load(directory, small()); }), nothing);
  walk("load without mmap", 997, load([&] { return Engine::load(directory, unmapped); }), nothing);
  walk("plan", 5, load([&] { return Engine::plan(directory, small()); }), nothing);
  const std::string absent = directory + "/a-name-that-is-too-long-for-a-short-string";
  walk(
      "load of a file that does not exist", 1,
      [&]() -> Outcome {
        const auto engine = Engine::load(absent, small());
        return engine || engine.error().code == ErrorCode::not_found ? Outcome() : failed(engine);
      },
      nothing);
}

TEST_CASE("out of memory while settings name layers") {
  const auto attempt = []() -> Outcome {
    const auto found = core::guarded([]() -> Result<bool> {
      const core::Json list = LLMINFER_TRY(core::parse_json(R"(["re:.*gate", "re:.*up$", "Linear"])", "test"));
      load::ModuleList modules;
      LLMINFER_TRY(modules.add(list, 1, "test"));
      return LLMINFER_TRY(modules.find("model.layers.0.mlp.up")) == 1;
    });
    if (!found) return failed(found);
    return *found ? Outcome() : Outcome{ErrorCode::internal, {}};
  };
  walk("settings that name layers", 1, attempt, [] {});
}

TEST_CASE("out of memory in new sessions") {
  const bool whole = GENERATE(true, false);
  const Running running(whole ? small() : split());
  const std::vector<Token> prompt = some_tokens(70);
  const GenerateOptions options = all_options();
  PrefillOptions hidden;
  hidden.hidden_states = true;
  const std::vector<float> rows(static_cast<std::size_t>(2 * running.engine.info().hidden_size), 0.1f);
  const auto attempt = [&]() -> Outcome {
    auto session = running.engine.new_session();
    if (!session) return failed(session);
    if (auto done = session->prefill(prompt, hidden); !done) return failed(done);
    auto branch = session->fork();
    if (!branch) return failed(branch);
    if (auto done = branch->prefill_embeddings(rows); !done) return failed(done);
    if (auto done = branch->truncate(60); !done) return failed(done);
    const auto generated = branch->generate(options);
    if (!generated) return failed(generated);
    return {{}, Tokens(branch->tokens().subspan(60))};
  };
  walk("sessions", 1, attempt, [&] { running.tidy(); });
}

TEST_CASE("a session whose call runs out of memory is as it was before") {
  Running running;
  const std::vector<Token> prompt = some_tokens(70), more = some_tokens(5);
  GenerateOptions options = all_options();
  Session session = running.engine.new_session().value();
  PrefillOptions hidden;
  hidden.hidden_states = true;
  session.prefill(prompt, hidden).value();
  const std::vector<float> logits(session.logits().begin(), session.logits().end());
  running.pages = running.engine.stats().pages_used;
  bool changed = false;
  const auto unchanged = [&] {
    return std::equal(session.tokens().begin(), session.tokens().end(), prompt.begin(), prompt.end()) &&
           std::equal(session.logits().begin(), session.logits().end(), logits.begin(), logits.end());
  };
  /// Generates or appends; takes it back in the case of success.
  const auto attempt = [&](const auto& call) {
    return [&]() -> Outcome {
      const auto done = call();
      if (!done) {
        changed = changed || !unchanged();
        return failed(done);
      }
      return {{}, Tokens(session.tokens().subspan(70))};
    };
  };
  const auto check = [&] {
    if (changed) FAIL("the session has changed");
    if (session.size() > 70) {  // a session can only go back to tokens, not to their logits
      session.truncate(69).value();
      session.prefill(std::span(prompt).last(1), hidden).value();
    }
    if (!unchanged()) FAIL("the session does not go on as before");
    running.tidy();
  };
  walk("generate", 1, attempt([&] { return session.generate(options); }), check);
  walk("prefill", 1, attempt([&] { return session.prefill(more); }), check);
  const std::vector<float> rows(static_cast<std::size_t>(2 * running.engine.info().hidden_size), 0.1f);
  walk("prefill_embeddings", 1, attempt([&] { return session.prefill_embeddings(rows); }), check);
  options.overflow = OverflowPolicy::shift;
  options.keep_tokens = 3;
  options.max_tokens = 220;
  walk("shift", 61, attempt([&]() -> Result<void> {
         auto generated = session.generate(options);
         if (!generated) return std::move(generated).error();
         return {};
       }),
       [&] {
         if (changed) FAIL("the session has changed");
         session.truncate(0).value();
         session.prefill(prompt, hidden).value();
         if (!unchanged()) FAIL("the session does not go on as before");
         running.tidy();
       });
}

TEST_CASE("out of memory with several requests") {
  const Running running;
  const std::vector<Token> tokens = some_tokens(20);
  std::optional<CompletionRequest> first, second;
  const auto prepare = [&] {
    first.emplace().tokens = tokens;
    first->options = all_options();
    second.emplace().prompt = "Some text that has to be made tokens of: ab cd, and é";
    second->options.max_tokens = 8;
    second->options.ignore_end = true;
    running.tidy();
  };
  prepare();
  const auto attempt = [&]() -> Outcome {
    auto a = running.engine.submit(std::move(*first));
    auto b = running.engine.complete(std::move(*second));
    if (!a) return failed(a);
    const auto result = a->wait();
    if (!result) return failed(result);
    if (!b) return failed(b);
    return {{}, Tokens(b->tokens)};
  };
  walk("requests", 1, attempt, prepare);
}

TEST_CASE("out of memory in chats") {
  Running running;
  const GenerateOptions options = all_options();
  ChatOptions chat_options;
  chat_options.system = "A system message that is not a short string.";
  chat_options.tools_json = R"([{"name": "f", "values": [1, 2.5, null, true]}])";
  const auto read = [](ChatStream& stream) {
    std::size_t bytes = 0;
    for (std::string_view piece : stream) bytes += piece.size();
    return bytes;
  };
  const auto attempt = [&]() -> Outcome {
    auto chat = running.engine.new_chat(chat_options);
    if (!chat) return failed(chat);
    for (const char* message : {"Hello, this is no short string.", "And neither is this."}) {
      ChatStream stream = chat->send(message, options);
      read(stream);
      if (const auto reason = stream.finish(); !reason) return failed(reason);
      if (chat->history().back().role == "user") return {{}, Tokens(stream.result().tokens)};  // counts as wrong tokens
    }
    { ChatStream dropped = chat->send("A third message", options); }
    const auto text = chat->render();
    if (!text) return failed(text);
    return {};
  };
  walk("new chats", 1, attempt, [&] { running.tidy(); });

  Chat chat = running.engine.new_chat(chat_options).value();
  ChatStream warm_up = chat.send("Hello, this is no short string.", options);
  warm_up.finish().value();
  warm_up = ChatStream(nullptr);
  running.pages = running.engine.stats().pages_used;
  bool changed = false;
  const auto turn = [&]() -> Outcome {
    ChatStream stream = chat.send("And neither is this.", options);
    read(stream);
    const auto reason = stream.finish();
    changed = changed || chat.history().size() != (reason ? 5 : 3);
    return reason ? Outcome{{}, Tokens(stream.result().tokens)} : failed(reason);
  };
  walk("a turn", 1, turn, [&] {
    if (changed) FAIL("the history has changed");
    if (chat.history().size() > 3) chat.rewind(2).value();
    // Whether or not the turn has failed, the same turn gives the same answer.
    running.engine.stats();
    running.pages = running.engine.stats().pages_used;
    running.tidy();
  });
}

TEST_CASE("out of memory in templates") {
  const chat::Value context = core::parse_json(R"({"messages": [{"role": "user", "content": "Hello there", "n": 2},
    {"role": "assistant", "content": [{"type": "text", "text": "x < y"}], "n": 1}], "tools": [{"name": "f",
    "parameters": {"b": [1, -2.5, null, true], "a": "é"}}], "flag": true})",
                                               "context")
                                  .value();
  const char* const sources[] = {
      "{% macro show(m, end='!') %}{{ m.role | upper }}{{ caller() if caller is defined else end }}{% endmacro %}"
      "{% for m in messages %}{{ show(m, end=loop.index ~ '/' ~ loop.length) }}{% endfor %}"
      "{% call show(messages[0]) %}from the caller, longer than a short string{% endcall %}",
      "{% set ns = namespace(found=false, list=[]) %}{% for m in messages if m.n > 0 recursive %}"
      "{% set ns.list = ns.list + [m.role] %}{% if loop.last %}{% set ns.found = true %}{% endif %}{% endfor %}"
      "{{ ns.list | join(', ') }}{{ ns.found }}",
      "{{ tools | tojson(indent=2) }}{{ tools[0] | dictsort }}{{ messages | map(attribute='role') | list }}"
      "{{ messages | sort(attribute='n') | map(attribute='n') | list }}{{ messages | groupby('role') | list | length }}"
      "{{ messages | selectattr('n', 'equalto', 2) | list | length }}{{ [3, 1, 2, 1] | unique | sort(reverse=true) }}",
      "{{ 'a,b,c'.split(',') | reverse | list }}{{ '%s and %d' % ('text', 3) }}{{ '{0:>8}|{name}'.format('x', name=1) "
      "}}"
      "{{ 'some words in a line' | title | replace('Words', 'letters') | wordcount }}{{ ' x ' | trim }}"
      "{{ 'a\\nb' | indent(4) }}{{ messages[1].content[0].text | escape }}{{ 'abc'[::-1] }}{{ 1.5 | round | int }}",
      "{% filter upper %}filtered {% raw %}{{ }}{% endraw %}{% endfilter %}{% set block %}in a block{% endset %}"
      "{{ block }}{{ {'k': (1, 2), 'l': [none, 0.1]} }}{{ dict(a=1, **{'b': 2}) | items | list }}"
      "{{ strftime_now('%Y') | length }}{{ range(5) | batch(2, 'fill') | list }}{{ range(5) | slice(2) | list }}",
      "{% if messages[0].role != 'system' %}{{ raise_exception('the first message must be a system one') }}{% endif %}",
      "{{ messages[0].content.nosuch.other }}",
      "{{ 'unclosed",
      "{% for i in range(3) %}{{ nosuch(i) }}{% endfor %}"};
  for (const char* source : sources) {
    walk(
        source, 1,
        [&]() -> Outcome {
          // Below the public API exceptions pass through.
          const auto outcome = core::guarded([&]() -> Result<Outcome> {
            const auto parsed = chat::Template::parse(source);
            const auto rendered = parsed ? parsed->render(context) : Result<std::string>(core::copy_of(parsed.error()));
            // The last ones are errors with all the memory of the world, too.
            if (rendered || rendered.error().code == ErrorCode::template_error) return Outcome();
            return failed(rendered);
          });
          return outcome ? *outcome : failed(outcome);
        },
        [] {});
  }
}

TEST_CASE("out of memory in tokenizers and samplers") {
  const Engine engine = load_model().value();
  const Tokenizer& tokenizer = engine.tokenizer();
  const auto nothing = [] {};
  const std::string text = "Some text, longer than a short string: ab cd </s> 123 é\xff";
  walk(
      "tokenizer", 1,
      [&]() -> Outcome {
        const auto tokens = tokenizer.encode(text);
        if (!tokens) return failed(tokens);
        const auto decoded = tokenizer.decode(*tokens);
        if (!decoded) return failed(decoded);
        StreamDecoder decoder(tokenizer);
        for (const Token token : *tokens) {
          if (const auto piece = decoder.push(token); !piece) return failed(piece);
        }
        (void)decoder.finish();
        return {{}, Tokens(*tokens)};
      },
      nothing);

  const std::vector<float> logits = random_values(static_cast<std::size_t>(tokenizer.vocab_size()));
  const std::vector<Token> history = some_tokens(90);
  SamplingOptions options = all_options().sampling;
  options.mirostat_tau = 3.0f;
  walk(
      "sampler", 1,
      [&]() -> Outcome {
        auto sampler = Sampler::create(options, tokenizer);
        if (!sampler) return failed(sampler);
        sampler->accept(history);
        const auto sample = sampler->sample(logits);
        if (!sample) return failed(sample);
        sampler->accept(std::span(&sample->token, 1));
        sampler->truncate(50);
        const auto second = sampler->sample(logits);
        if (!second) return failed(second);
        return {{}, Tokens(std::span(&second->token, 1))};
      },
      nothing);
}

TEST_CASE("memory runs out: a tree of pages holds what there was memory for, and evicted pages leave nothing") {
  constexpr std::int32_t kPages = 8;
  const std::vector<CacheGroup> groups(2);
  std::vector<engine::PagePool> pools(2, engine::PagePool(kPages));
  engine::PrefixCache cache(groups, pools);
  std::vector<Token> tokens = some_tokens(kPages * kPageTokens);
  walk(
      "adding pages", 1,
      [&]() -> Outcome {
        std::optional<test::Spared> spared(std::in_place);
        ++tokens[0];  // others each time: what was evicted leaves no place in the tree
        std::vector<std::vector<std::int32_t>> pages(2);
        for (std::size_t group = 0; group < 2; ++group) {
          for (int i = 0; i < kPages; ++i) pages[group].push_back(pools[group].take().value());
        }
        spared.reset();
        cache.add("salt", tokens, pages, kPages);
        spared.emplace();
        for (std::size_t group = 0; group < 2; ++group) {
          for (const std::int32_t page : pages[group]) pools[group].release(page);
        }
        const auto found = cache.find("salt", tokens, 0, kPages);
        for (std::size_t group = 0; group < found.size(); ++group) {
          for (const std::int32_t page : found[group]) CHECK(pools[group].idle(page));
        }
        return {};
      },
      [&] {
        for (std::size_t group = 0; group < 2; ++group) {
          while (cache.evict(group) >= 0) {
          }
          CHECK(pools[group].idle() == 0);
          CHECK(pools[group].used() == 0);
        }
      });
}

TEST_CASE("threads that cannot be started") {
  // With one thread the engine's own is the only one that it needs; the tokenizer is made without.
  EngineOptions one = small();
  one.threads = 1;
  const auto data = std::as_bytes(std::span(model_bytes()));
  for (const EngineOptions& options : {one, small()}) {
    test::allow_threads(0);
    const auto engine = Engine::load_memory(data, nullptr, options);
    CHECK(test::allow_threads(-1) == (options.threads == 1 ? 2 : 1));
    REQUIRE_FALSE(engine);
    CHECK(engine.error().code == ErrorCode::out_of_memory);
    CHECK_THAT(engine.error().message, Catch::Contains("cannot start"));
  }
  // Once loaded it needs no other.
  const Engine engine = load_model().value();
  CompletionRequest request;
  request.tokens = some_tokens(5);
  request.options.max_tokens = 2;
  request.options.ignore_end = true;
  test::allow_threads(0);
  const auto answer = engine.complete(request);
  test::allow_threads(-1);
  CHECK(answer.value().tokens.size() == 2);
}
