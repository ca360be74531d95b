// openmp_host MODEL: generates with OpenMP's threads and with llminfer's own, and compares. Public API only.
#include <atomic>
#include <iostream>

#include <omp.h>
#include <llminfer/llminfer.hpp>

namespace {

std::atomic<int> most_threads{0};

/// The executor of docs/threading.md.
void lend_openmp(int count, const std::function<void(int, int)>& body) {
#pragma omp parallel num_threads(count)
  {
    if (omp_get_thread_num() == 0) most_threads = std::max(most_threads.load(), omp_get_num_threads());
    body(omp_get_thread_num(), omp_get_num_threads());
  }
}

std::vector<llminfer::Token> generate(const char* model, llminfer::Executor executor) {
  llminfer::EngineOptions options;
  options.threads = 2;
  options.executor = std::move(executor);
  const auto engine = llminfer::Engine::load(model, options).value();
  llminfer::CompletionRequest request;
  request.tokens = {1, 2, 3, 4, 5};
  request.options.max_tokens = 16;
  request.options.ignore_end = true;
  request.options.sampling.temperature = 0.0f;
  return engine.complete(std::move(request)).value().tokens;
}

}  // namespace

int main(int argc, char** argv) try {
  if (argc != 2) return 2;
  const auto lent = generate(argv[1], lend_openmp), own = generate(argv[1], {});
  std::cout << lent.size() << " tokens, " << most_threads << " threads\n";
  return lent == own && lent.size() == 16 && most_threads >= 1 ? 0 : 1;
} catch (const llminfer::Exception& error) {
  std::cerr << error.what() << '\n';
  return 1;
}
