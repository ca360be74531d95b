// The backend test, from outside: the naive backend plugs into the engine and chooses the same tokens as the CPU backend and as the
// model's reference. custom_backend MODEL, where MODEL is a folder with reference.json. Exit status 0: all went well.
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>

#include <llminfer/llminfer.hpp>

#include "naive_backend.hpp"

using namespace llminfer;

namespace {

/// The array of numbers under `key`: as much of JSON as reference.json needs.
std::vector<double> numbers(const std::string& json, const std::string& key) {
  std::vector<double> found;
  std::size_t at = json.find("\"" + key + "\"");
  if (at == std::string::npos) return found;
  at = json.find('[', at);
  while (at != std::string::npos && json[at] != ']') {
    char* end = nullptr;
    found.push_back(std::strtod(json.c_str() + at + 1, &end));
    at = static_cast<std::size_t>(end - json.c_str());
    at = json.find_first_of(",]", at);
  }
  return found;
}

std::vector<Token> generate(const Engine& engine, const std::vector<Token>& prompt, std::size_t count) {
  CompletionRequest request;
  request.tokens = prompt;
  request.options.max_tokens = static_cast<std::int32_t>(count);
  request.options.ignore_end = true;
  return engine.complete(std::move(request)).value().tokens;
}

int run(const std::string& model) {
  std::ifstream file(model + "/reference.json");
  const std::string json{std::istreambuf_iterator<char>(file), {}};
  std::vector<Token> prompt, greedy;
  for (const double id : numbers(json, "prompt_ids")) prompt.push_back(static_cast<Token>(id));
  for (const double id : numbers(json, "greedy")) greedy.push_back(static_cast<Token>(id));
  if (prompt.empty() || greedy.empty()) {
    std::fprintf(stderr, "%s/reference.json has no prompt or no answer\n", model.c_str());
    return 1;
  }

  EngineOptions options;
  options.threads = 2;
  options.exact = true;
  options.cache_type = CacheType::f32;
  options.context_length = 256;
  options.cache_tokens = 1024;
  const Engine cpu = Engine::load(model, options).value();
  options.custom_backend = std::make_shared<naive::Backend>();
  const Engine custom = Engine::load(model, options).value();
  std::printf("%s\n%s\n", cpu.info().backend.c_str(), custom.info().backend.c_str());
  if (custom.info().backend.find("naive") == std::string::npos) {
    std::fprintf(stderr, "the engine runs on %s\n", custom.info().backend.c_str());
    return 2;
  }
  const std::vector<Token> of_cpu = generate(cpu, prompt, greedy.size());
  const std::vector<Token> of_custom = generate(custom, prompt, greedy.size());
  if (of_cpu != greedy) std::fprintf(stderr, "the CPU backend's tokens are not those of the reference\n");
  if (of_custom != greedy) std::fprintf(stderr, "the custom backend's tokens are not those of the reference\n");
  if (of_cpu != greedy || of_custom != greedy) return 3;

  // The middle layer on it, the others on the CPU.
  EngineOptions split = options;
  split.custom_backend = nullptr;
  split.split = {{{}, 1}, {std::make_shared<naive::Backend>(), 1}, {}};
  if (generate(Engine::load(model, split).value(), prompt, greedy.size()) != greedy) {
    std::fprintf(stderr, "the tokens of both backends together are not those of the reference\n");
    return 6;
  }

  // A prompt in chunks, a fork that copies a page, and a truncation give the same tokens.
  Session session = custom.new_session().value();
  const std::span<const Token> tokens = prompt;
  session.prefill(tokens.first(10)).value();
  session.prefill(tokens.subspan(10)).value();
  Session branch = session.fork().value();
  session.truncate(5).value();
  session.prefill(tokens.subspan(5)).value();
  GenerateOptions generation;
  generation.max_tokens = static_cast<std::int32_t>(greedy.size());
  generation.ignore_end = true;
  if (branch.generate(generation).value().tokens != greedy || session.generate(generation).value().tokens != greedy) {
    std::fprintf(stderr, "sessions on the custom backend give other tokens than the reference\n");
    return 4;
  }
  std::printf("%zu tokens, all as in the reference\n", greedy.size());
  return 0;
}

}  // namespace

int main(int argc, char** argv) try {
  if (argc != 2) {
    std::fprintf(stderr, "usage: custom_backend MODEL\n");
    return 1;
  }
  return run(argv[1]);
} catch (const std::exception& exception) {
  std::fprintf(stderr, "%s\n", exception.what());
  return 5;
}
