// Started without mpirun: a group of one rank, with which an engine works as without. mpi_consumer MODEL
#include <cstdio>

#include <llminfer/llminfer.hpp>
#include <llminfer/mpi.hpp>

using namespace llminfer;

int main(int argc, char** argv) try {
  if (argc != 2) return 2;
  EngineOptions options;
  options.communicator = make_mpi_communicator().value();
  if (options.communicator->rank() != 0 || options.communicator->size() != 1) return 3;
  const Engine engine = Engine::load(argv[1], options).value();
  CompletionRequest request;
  request.tokens = {1, 2, 3};
  request.options.max_tokens = 4;
  request.options.ignore_end = true;
  return engine.complete(std::move(request)).value().tokens.size() == 4 ? 0 : 4;
} catch (const std::exception& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 1;
}
