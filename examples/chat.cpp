// llminfer-chat: a conversation in the terminal, written against the public headers alone.
#include <sys/resource.h>

#include <cstdio>
#include <iostream>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include <llminfer/llminfer.hpp>

#include "chat_options.hpp"
#include "terminal.hpp"

namespace li = llminfer;

namespace {

constexpr int kExitInterrupted = 130;  // 128 + SIGINT, as shells have it

void complain(const li::Error& error) {
  const std::string_view code = li::to_string(error.code);
  std::fprintf(stderr, "llminfer-chat: %s (%.*s)\n", error.message.c_str(), static_cast<int>(code.size()), code.data());
}

/// Who answers: a Chat in the model's own format, or, for a model without a chat template, a Session that goes on with
/// the text as it is.
class Conversation {
 public:
  Conversation(li::Engine engine, std::string system) : engine_(std::move(engine)), system_(std::move(system)) {}

  /// Begins anew.
  li::Result<void> reset() {
    if (engine_.info().has_chat_template) {
      auto chat = engine_.new_chat({.system = system_});
      if (!chat) return std::move(chat).error();
      chat_.emplace(std::move(chat).value());
      return {};
    }
    auto session = engine_.new_session();
    if (!session) return std::move(session).error();
    session_.emplace(std::move(session).value());
    return {};
  }

  /// Prints the answer as it comes.
  li::Result<li::CompletionResult> answer(const std::string& message, const li::GenerateOptions& options) {
    return chat_ ? answer_in_chat(message, options) : go_on_with(message, options);
  }

 private:
  li::Result<li::CompletionResult> answer_in_chat(const std::string& message, const li::GenerateOptions& options) {
    li::ChatStream stream = chat_->send(message, options);
    for (const std::string_view piece : stream) std::cout << piece << std::flush;
    if (auto finished = stream.finish(); !finished) return std::move(finished).error();
    return stream.result();
  }

  li::Result<li::CompletionResult> go_on_with(const std::string& text, li::GenerateOptions options) {
    const bool first = session_->size() == 0;
    auto tokens =
        engine_.tokenizer().encode(first ? system_ + text : text, {.add_special = first, .parse_special = true});
    if (!tokens) return std::move(tokens).error();
    if (!tokens->empty()) {
      if (auto done = session_->prefill(*tokens, {.cancel = options.cancel}); !done) {
        return std::move(done).error();
      }
    }
    options.on_token = [](const li::GeneratedToken& token) {
      std::cout << token.text << std::flush;
      return true;
    };
    return session_->generate(options);
  }

  li::Engine engine_;
  std::string system_;
  std::optional<li::Chat> chat_;
  std::optional<li::Session> session_;
};

double per_second(double count, double seconds) { return seconds > 0 ? count / seconds : 0.0; }

constexpr double kMiB = 1024.0 * 1024.0;

void print_model(const li::Engine& engine) {
  const li::ModelInfo& info = engine.info();
  const li::EngineStats stats = engine.stats();
  std::fprintf(stderr,
               "[%s: %s, %.1f M parameters, context %d; %s; loaded in %.2f s, weights %.0f MiB, cache %.0f MiB]\n",
               info.name.c_str(), info.architecture.c_str(), static_cast<double>(info.parameters) / 1e6,
               static_cast<int>(info.context_length), info.backend.c_str(), stats.load_seconds,
               static_cast<double>(stats.weight_bytes) / kMiB, static_cast<double>(stats.cache_bytes) / kMiB);
}

void print_stats(const li::CompletionResult& result, std::uint64_t seed) {
  const li::Timings& timings = result.timings;
  const int computed = result.prompt_tokens - result.cached_tokens;
  const auto generated = static_cast<int>(result.tokens.size());
  rusage usage = {};
  getrusage(RUSAGE_SELF, &usage);
  std::fprintf(
      stderr,
      "[prefill %d tokens (%d more were cached), %.1f tokens/s; decode %d tokens, %.1f tokens/s; seed %llu; peak "
      "memory %.0f MiB]\n",
      computed, static_cast<int>(result.cached_tokens), per_second(computed, timings.prefill_seconds), generated,
      per_second(generated > 1 ? generated - 1 : 0, timings.decode_seconds), static_cast<unsigned long long>(seed),
      static_cast<double>(usage.ru_maxrss) / 1024.0);
}

/// One turn. False if it failed.
bool take_turn(Conversation& conversation, const std::string& message, const li::GenerateOptions& options, bool stats) {
  const auto result = conversation.answer(message, options);
  std::cout << std::endl;
  if (!result) {
    complain(result.error());
    return false;
  }
  if (!std::cout) {
    std::fputs("error: the answer cannot be written to standard output\n", stderr);
    return false;
  }
  if (result->reason == li::FinishReason::length && options.max_tokens == 0) {
    std::fputs("[the context is full; /reset begins anew]\n", stderr);
  }
  if (stats) print_stats(*result, options.sampling.seed);
  return true;
}

/// Reads messages and commands until the end of the input, /exit, or a second Ctrl-C in a row.
int converse(Conversation& conversation, const li::GenerateOptions& options, bool stats) {
  bool leaving = false;
  for (std::string line;;) {
    switch (terminal::read_line("> ", line)) {
      case terminal::Input::end:
        return 0;
      case terminal::Input::interrupted:
        terminal::clear_interrupt();
        std::cout << std::endl;
        if (leaving) return kExitInterrupted;
        leaving = true;
        std::fputs("[Ctrl-C again leaves]\n", stderr);
        continue;
      case terminal::Input::line:
        leaving = false;
    }
    if (line.ends_with('\r')) line.pop_back();  // of files from other systems
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    if (line == "/exit" || line == "/quit") return 0;
    if (line == "/reset") {
      if (auto done = conversation.reset(); !done) {
        complain(done.error());
        return 1;
      }
      continue;
    }
    take_turn(conversation, line, options, stats);
    if (!std::cout) return 1;
    terminal::clear_interrupt();  // what stopped the answer does not count at the prompt
  }
}

/// What a load would take on each backend.
int print_plan(const ChatCommand& command, const li::EngineOptions& options) {
  const auto plan = li::Engine::plan(command.model, options);
  if (!plan) {
    complain(plan.error());
    return 1;
  }
  const auto mib = [](std::int64_t bytes) { return static_cast<double>(bytes) / kMiB; };
  std::printf("%-14s %10s %10s %10s %10s %10s  backend\n", "layers", "weights", "cache", "scratch", "on host",
              "all, MiB");
  const auto row = [&](const std::string& layers, const auto& bytes, const std::string& backend) {
    std::printf("%-14s %10.1f %10.1f %10.1f %10.1f %10.1f  %s\n", layers.c_str(), mib(bytes.weights), mib(bytes.cache),
                mib(bytes.activations), mib(bytes.streamed + bytes.host_cache),
                mib(bytes.weights + bytes.cache + bytes.activations + bytes.streamed + bytes.host_cache),
                backend.c_str());
  };
  for (const li::MemoryShare& share : plan->shares) {
    const int last = share.first_layer + share.layers - 1;
    std::string layers = share.layers ? std::to_string(share.first_layer) + " to " + std::to_string(last) : "none";
    if (share.shards > 1) layers += ", " + std::to_string(share.shard + 1) + "/" + std::to_string(share.shards);
    row(layers, share, share.backend);
  }
  row("all", *plan, "");
  if (plan->disk_weights > 0) std::printf("%.1f MiB of the weights in files\n", mib(plan->disk_weights));
  if (plan->disk_cache > 0) std::printf("%.1f MiB of the cache in files\n", mib(plan->disk_cache));
  return 0;
}

int run(const ChatCommand& command) {
  auto loading_or_error = engine_options(command);
  if (!loading_or_error) {
    complain(loading_or_error.error());
    return 1;
  }
  li::EngineOptions loading = std::move(*loading_or_error);
  const bool leads = !loading.communicator || loading.communicator->rank() == 0;
  if (command.plan) return leads ? print_plan(command, loading) : 0;
  if (!leads) {
    const auto served = li::Engine::serve(command.model, loading);
    if (!served) complain(served.error());
    return served ? 0 : 1;
  }
  const bool progress = terminal::shows_progress();
  loading.on_progress = [progress](float fraction) {
    if (progress) terminal::draw_progress("loading", fraction);
    return !terminal::interrupted();
  };
  auto engine = li::Engine::load(command.model, loading);
  if (progress) terminal::clear_progress();
  if (!engine) {
    if (terminal::interrupted()) return kExitInterrupted;
    complain(engine.error());
    return 1;
  }
  if (command.stats) print_model(*engine);
  if (!engine->info().has_chat_template) {
    std::fputs("[this model has no chat template: it goes on with the text as it is]\n", stderr);
  }

  Conversation conversation(*engine, command.system);
  if (auto done = conversation.reset(); !done) {
    complain(done.error());
    return 1;
  }
  li::GenerateOptions options = generate_options(command, engine->recommended_sampling());
  options.cancel = terminal::interrupt_token();
  if (!command.prompt) return converse(conversation, options, command.stats);
  const bool answered = take_turn(conversation, *command.prompt, options, command.stats);
  if (terminal::interrupted()) return kExitInterrupted;
  return answered ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) try {
  int exit_code = 0;
  const auto command = parse_command(argc, argv, exit_code);
  if (!command) return exit_code;
  terminal::catch_interrupts();
  return run(*command);
} catch (const std::exception& error) {
  std::fprintf(stderr, "llminfer-chat: %s\n", error.what());
  return 1;
}
