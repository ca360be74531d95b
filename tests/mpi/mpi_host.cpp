// A host under mpirun: mpi_host CASE MODEL. Exit status 0: all went well, on this rank.
#include <mpi.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <string>
#include <thread>
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

/// Two ranks share each layer; more make stages of two. Sums have another order than in one process, so its logits are
/// met but for rounding, its greedy tokens exactly, and a second engine gives the same bits.
bool near_alone(std::shared_ptr<Communicator> communicator, const std::string& model) {
  EngineOptions options = options_with(communicator), single = options_with(nullptr);
  options.tensor_parallel = 2;
  options.exact = single.exact = true;
  options.cache_type = single.cache_type = CacheType::f32;
  if (communicator->rank() != 0) {
    return expect(Engine::serve(model, options).has_value(), "serve") &
           expect(Engine::serve(model, options).has_value(), "serve again");
  }
  const auto run = [](const Engine& engine, std::vector<Token>& tokens) {
    Session session = engine.new_session().value();
    session.prefill(std::vector<Token>(100, 5)).value();
    const std::vector<float> logits(session.logits().begin(), session.logits().end());
    CompletionRequest request;
    for (int t = 0; t < 70; ++t) request.tokens.push_back((7 * t) % 1000);
    request.options.max_tokens = 20;
    request.options.ignore_end = true;
    tokens = engine.complete(std::move(request)).value().tokens;
    return logits;
  };
  std::vector<Token> tokens, expected_tokens;
  const std::vector<float> expected = run(Engine::load(model, single).value(), expected_tokens);
  std::vector<float> first;
  bool good = true;
  for (int i = 0; i < 2; ++i) {
    const Engine engine = Engine::load(model, options).value();
    const std::vector<float> logits = run(engine, tokens);
    double error = 0, power = 0;
    for (std::size_t v = 0; v < logits.size(); ++v) {
      error += std::pow(double{logits[v]} - double{expected[v]}, 2);
      power += std::pow(double{expected[v]}, 2);
    }
    good &= expect(logits.size() == expected.size() && error <= 1e-10 * power,
                   "the logits of one process but for rounding");
    good &= expect(tokens == expected_tokens, "the tokens of one process");
    good &= expect(first.empty() || first == logits, "the same bits each time");
    first = logits;
    if (i == 0) std::printf("%s\n", engine.info().backend.c_str());
  }
  return good;
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

/// Small messages are sent before anybody waits for them, and ready() tells of them, and of a rank that has left.
bool ready() {
  auto communicator = make_mpi_communicator().value();
  const int self = communicator->rank(), other = 1 - self;
  std::vector<std::byte> message(1024);
  const auto wait = [&] {
    while (!communicator->ready(other).value()) std::this_thread::yield();
  };
  bool good = true;
  for (int i = 0; i < 3; ++i) good &= expect(communicator->send(other, message).has_value(), "send");
  for (int i = 0; i < 3; ++i) {
    wait();
    good &= expect(communicator->receive(other, message).has_value(), "receive what is ready");
  }
  if (self == 1) {
    good &= expect(!communicator->ready(other).value(), "nothing is ready");
    return good & expect(communicator->send(other, message).has_value(), "send");
  }
  good &= expect(communicator->receive(other, message).has_value(), "receive");
  wait();
  const auto lost = communicator->receive(other, message);
  return good & expect(!lost && lost.error().code == ErrorCode::peer_lost, "a rank that has left is ready");
}

int run(const std::string& which, const std::string& model) {
  if (which == "tensor_parallel") return !near_alone(make_mpi_communicator().value(), model);
  if (which == "ready") return !ready();
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
