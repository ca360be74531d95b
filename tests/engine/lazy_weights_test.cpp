// EngineOptions::lazy_weights.
#include <llminfer/llminfer.hpp>

#include <catch2/catch.hpp>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <thread>
#include <vector>

#include "tests/engine/default_model.hpp"
#include "tests/engine/tiny_model.hpp"

using namespace llminfer;
using namespace llminfer::test;
using namespace std::chrono_literals;

namespace {

struct Answer {
  std::vector<float> logits;  ///< of the first pass
  std::vector<Token> tokens;
};

Answer answer(const Engine& engine) {
  Session session = engine.new_session().value();
  session.prefill(tiny::some_tokens(70, 3)).value();
  Answer answer;
  answer.logits.assign(session.logits().begin(), session.logits().end());
  answer.tokens = session.generate(tiny::sampled(12, 5)).value().tokens;
  return answer;
}

void check_same(const Answer& a, const Answer& b) {
  CHECK(a.logits == b.logits);
  CHECK(a.tokens == b.tokens);
}

void wait_until_prepared(const Engine& engine) {
  for (int i = 0; i < 20000 && engine.stats().pending_weights > 0; ++i) std::this_thread::sleep_for(1ms);
  REQUIRE(engine.stats().pending_weights == 0);
}

}  // namespace

TEST_CASE("weights prepared as they are needed give the same answers") {
  std::vector<std::string> models = {tiny::kModel};
  if (default_model()) models.emplace_back(default_model());
  for (const std::string& model : models) {
    EngineOptions options{.threads = 2};
    options.context_length = 128;
    options.lazy_weights = false;
    const Engine eager = Engine::load(model, options).value();
    CHECK(eager.stats().pending_weights == 0);
    const Answer expected = answer(eager);
    options.lazy_weights = true;
    const Engine lazy = Engine::load(model, options).value();
    check_same(answer(lazy), expected);
    wait_until_prepared(lazy);
    check_same(answer(lazy), expected);
    CHECK(lazy.stats().weight_bytes == eager.stats().weight_bytes);
  }
}

TEST_CASE("an engine with nothing to do prepares all weights, and then needs the file no more") {
  const std::filesystem::path copy = std::filesystem::temp_directory_path() / "llminfer-lazy-weights";
  std::filesystem::remove_all(copy);
  std::filesystem::copy(tiny::kModel, copy, std::filesystem::copy_options::recursive);
  const Engine engine = Engine::load(copy.string(), {.threads = 2}).value();
  wait_until_prepared(engine);
  std::filesystem::resize_file(copy / "model.safetensors", 0);  // what reads the mapping now ends the process
  check_same(answer(engine), answer(tiny::load()));
  std::filesystem::remove_all(copy);
}

TEST_CASE("a model in the host's memory is let go once its weights are prepared") {
  if (!default_model()) return;
  std::ifstream file(default_model(), std::ios::binary);
  auto data =
      std::make_shared<std::vector<char>>(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
  const std::weak_ptr<std::vector<char>> kept = data;
  const std::span bytes = std::as_bytes(std::span(*data));
  EngineOptions options{.threads = 2};
  options.context_length = 128;
  const Engine engine = Engine::load_memory(bytes, std::move(data), options).value();
  wait_until_prepared(engine);
  CHECK(kept.expired());
  CHECK(answer(engine).tokens.size() == 12);
}
