// A host with a GPU backend starts on any machine: without a GPU it says so, uses the CPU, and goes on; with one, the
// two give the same tokens. gpu_host MODEL [--need-gpu]. Exit status 0: all went well.
#include <cstdio>
#include <cstring>

#include <llminfer/cuda.hpp>
#include <llminfer/hip.hpp>
#include <llminfer/llminfer.hpp>

using namespace llminfer;

namespace {

std::vector<Token> generate(const char* model, std::shared_ptr<Backend> backend) {
  EngineOptions options;
  options.custom_backend = std::move(backend);
  options.context_length = 256;
  const Engine engine = Engine::load(model, options).value();
  std::printf("%s\n", engine.info().backend.c_str());
  CompletionRequest request;
  request.tokens = {5, 6, 7, 8, 9, 10, 11, 12};
  request.options.max_tokens = 8;
  request.options.ignore_end = true;
  return engine.complete(std::move(request)).value().tokens;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) return 2;
  const bool need_gpu = argc > 2 && std::strcmp(argv[2], "--need-gpu") == 0;
  auto backend = MAKE_BACKEND({});
  if (!backend) {
    std::printf("%s: %s\n", std::string(to_string(backend.error().code)).c_str(), backend.error().message.c_str());
    if (need_gpu || backend.error().code != ErrorCode::no_device) return 1;
    return generate(argv[1], nullptr).size() == 8 ? 0 : 1;
  }
  if (MAKE_BACKEND({.device = 1000}).error().code != ErrorCode::no_device) return 1;
  return generate(argv[1], std::move(*backend)) == generate(argv[1], nullptr) ? 0 : 1;
}
