// A host under mpirun: mpi_host CASE MODEL. Exit status 0: all went well, on this rank.
#include <mpi.h>

#include <algorithm>
#include <cstdio>
#include <string>
#include <vector>

#include <llminfer/llminfer.hpp>
#include <llminfer/mpi.hpp>

using namespace llminfer;

namespace {

bool expect(bool true_, const char* what) {
  if (!true_) std::fprintf(stderr, "FAILED: %s\n", what);
  return true_;
}

EngineOptions options_with(std::shared_ptr<Communicator> communicator) {
  EngineOptions options;
  options.threads = 1;
  options.context_length = options.cache_tokens = 512;
  options.max_batch_tokens = 48;
  options.communicator = std::move(communicator);
  return options;
}

/// The tokens of requests that run side by side, and the logits of a session and its fork.
std::vector<float> everything(const Engine& engine) {
  std::vector<float> all;
  std::vector<Completion> running;
  for (int i = 0; i < 4; ++i) {
    CompletionRequest request;
    for (int t = 0; t < 20 + 30 * i; ++t) request.tokens.push_back((7 * t + i) % 1000);
    request.options.max_tokens = 20;
    request.options.ignore_end = true;
    request.options.sampling.temperature = 1.0f;
    request.options.sampling.seed = static_cast<std::uint64_t>(i);
    running.push_back(engine.submit(std::move(request)).value());
  }
  for (Completion& completion : running) {
    for (const Token token : completion.wait().value().tokens) all.push_back(static_cast<float>(token));
  }
  Session session = engine.new_session().value();
  session.prefill(std::vector<Token>(100, 5)).value();
  Session fork = session.fork().value();
  fork.prefill(std::vector<Token>(3, 6)).value();
  for (const Session* s : {&session, &fork}) all.insert(all.end(), s->logits().begin(), s->logits().end());
  return all;
}

bool same_as_alone(std::shared_ptr<Communicator> communicator, const std::string& model) {
  if (communicator->rank() != 0) return expect(Engine::serve(model, options_with(communicator)).has_value(), "serve");
  const std::vector<float> alone = everything(Engine::load(model, options_with(nullptr)).value());
  const Engine engine = Engine::load(model, options_with(communicator)).value();
  std::printf("%s\n", engine.info().backend.c_str());
  return expect(everything(engine) == alone, "the ranks give what one process gives");
}

bool errors(const std::string& model) {
  auto communicator = make_mpi_communicator().value();
  const bool leads = communicator->rank() == 0;
  bool good = true;
  // Rank 1 has no such file.
  if (leads) {
    const auto engine = Engine::load(model, options_with(communicator));
    good &= expect(!engine && engine.error().code == ErrorCode::not_found &&
                       engine.error().message.find("rank 1: ") != std::string::npos,
                   "a file that rank 1 has not");
  } else {
    const auto served = Engine::serve("/nonexistent.gguf", options_with(communicator));
    good &= expect(!served && served.error().code == ErrorCode::not_found, "serve without the file");
  }
  // The same ranks go on with the right one.
  good &= same_as_alone(communicator, model);
  // Rank 1 leaves.
  if (leads) {
    const auto engine = Engine::load(model, options_with(communicator));
    good &= expect(!engine && engine.error().code == ErrorCode::peer_lost, "a rank that has left");
  }
  return good;
}

int run(const std::string& which, const std::string& model) {
  if (which == "tokens") return !same_as_alone(make_mpi_communicator().value(), model);
  if (which == "errors") {
    const bool good = errors(model);
    const auto again = make_mpi_communicator();
    return !(good & expect(!again && again.error().code == ErrorCode::invalid_state, "MPI was finalized"));
  }
  const bool serialized = which == "host_initializes";
  int level = 0;
  MPI_Init_thread(nullptr, nullptr, serialized ? MPI_THREAD_SERIALIZED : MPI_THREAD_SINGLE, &level);
  bool good = true;
  if (serialized) {
    for (int i = 0; i < 2; ++i) good &= same_as_alone(make_mpi_communicator().value(), model);
  } else {
    good = expect(make_mpi_communicator().error().code == ErrorCode::unsupported, "one thread only");
  }
  int finalized = 0;
  MPI_Finalized(&finalized);
  good &= expect(!finalized, "MPI is left to the host");
  MPI_Finalize();
  return !good;
}

}  // namespace

int main(int argc, char** argv) try {
  return argc == 3 ? run(argv[1], argv[2]) : 2;
} catch (const std::exception& error) {
  std::fprintf(stderr, "FAILED: %s\n", error.what());
  return 1;
}
