#include <iostream>
#include <llminfer/llminfer.hpp>

int main(int argc, char** argv) try {
  auto engine = llminfer::Engine::load(argc > 1 ? argv[1] : "model.gguf").value();
  auto chat = engine.new_chat({.system = "You are terse."}).value();
  auto answer = chat.send("What is the capital of France?", {.max_tokens = 64});
  for (std::string_view piece : answer) std::cout << piece << std::flush;
  answer.finish().value();
  std::cout << '\n';
  return 0;
} catch (const llminfer::Exception& error) {
  std::cerr << error.what() << '\n';
  return 1;
}
