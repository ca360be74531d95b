// Engines whose GPU has too little memory and streams the layers that it does not hold: tokens, plans, errors, and what
// is left when they are gone.
#include <catch2/catch.hpp>

#include <thread>

#include "tests/engine/split_models.hpp"
#include "tests/gpu/machines.hpp"

using namespace llminfer;
using namespace llminfer::test;

namespace {

/// A tiny model with its layers one after the other several times.
class DeepModel {
 public:
  static constexpr int kLayers = 8;

  DeepModel() {
    const std::string from = path_of("qwen2/");
    write_byte_tokenizer(folder_);
    auto config = nlohmann::json::parse(std::ifstream(from + "config.json"));
    const int layers = config["num_hidden_layers"];
    config["num_hidden_layers"] = kLayers;
    folder_.write("config.json", config.dump());

    std::ifstream file(from + "model.safetensors", std::ios::binary);
    std::uint64_t header_bytes = 0;
    file.read(reinterpret_cast<char*>(&header_bytes), sizeof header_bytes);
    std::string text(header_bytes, ' ');
    file.read(text.data(), static_cast<std::streamsize>(header_bytes));
    const std::string data((std::istreambuf_iterator<char>(file)), {});
    nlohmann::json header = nlohmann::json::parse(text), deep = nlohmann::json::object();
    std::string all;
    const auto add = [&](const std::string& name, const nlohmann::json& tensor) {
      const std::size_t begin = tensor["data_offsets"][0], end = tensor["data_offsets"][1];
      deep[name] = tensor;
      deep[name]["data_offsets"] = {all.size(), all.size() + end - begin};
      all += data.substr(begin, end - begin);
    };
    const std::string prefix = "model.layers.";
    for (const auto& [name, tensor] : header.items()) {
      if (name == "__metadata__") continue;
      if (!name.starts_with(prefix)) {
        add(name, tensor);
        continue;
      }
      const std::size_t dot = name.find('.', prefix.size());
      const int layer = std::stoi(name.substr(prefix.size()));
      for (int l = layer; l < kLayers; l += layers) add(prefix + std::to_string(l) + name.substr(dot), tensor);
    }
    std::string out = deep.dump();
    out.resize((out.size() + 7) / 8 * 8, ' ');
    const std::uint64_t size = out.size();
    folder_.write("model.safetensors", std::string(reinterpret_cast<const char*>(&size), sizeof size) + out + all);
  }
  const std::string& path() const { return folder_.path(); }

 private:
  TempDir folder_;
};

EngineOptions options_for(std::vector<LayerShare> split) {
  EngineOptions options = options_of(std::move(split));
  options.max_batch_tokens = 16;
  options.cache_tokens = options.context_length = 64;
  return options;
}

/// Requests that run together.
std::vector<Token> some_answers(const Engine& engine) {
  std::vector<Completion> running;
  for (unsigned i = 0; i < 2; ++i) {
    CompletionRequest request;
    request.tokens = some_tokens(2 + 2 * i, i);
    request.options.max_tokens = 2;
    request.options.ignore_end = true;
    running.push_back(engine.submit(std::move(request)).value());
  }
  std::vector<Token> all;
  for (Completion& completion : running) {
    const auto tokens = completion.wait().value().tokens;
    all.insert(all.end(), tokens.begin(), tokens.end());
  }
  return all;
}

}  // namespace

TEST_CASE("An engine that streams gives the tokens of one that does not, and holds what was planned") {
  const DeepModel model;
  const auto gpu = make_machine_backend();
  EngineOptions options = options_for({{gpu}});
  const MemoryPlan whole = Engine::plan(model.path(), options).value();
  CHECK(whole.streamed == 0);
  const std::vector<Token> expected = some_answers(Engine::load(model.path(), options_for({})).value());  // the CPU's

  const std::int64_t layer = Engine::plan(model.path(), options_for({{{}, 1}, {gpu, 1}, {}})).value().shares[1].weights;
  std::int64_t last = 0;
  for (const int fewer : {1, 5}) {
    CAPTURE(fewer);
    options.split = {{gpu, {}, whole.total() - fewer * layer, true}};
    const auto plan = Engine::plan(model.path(), options);
    REQUIRE(plan);
    const MemoryShare& share = plan->shares.at(0);
    CHECK(share.layers == DeepModel::kLayers);
    CHECK(share.total() <= options.split[0].memory);
    CHECK(share.streamed > last);
    CHECK(share.weights + share.streamed == whole.weights);
    CHECK(plan->streamed == share.streamed);
    CHECK(plan->total() == share.total() + share.streamed);
    last = share.streamed;
    const Engine engine = Engine::load(model.path(), options).value();
    CHECK(holds(share.total(), share.streamed));
    CHECK(engine.stats().weight_bytes == whole.weights);
    if (fewer > 1) CHECK(some_answers(engine) == expected);
  }
  options.split[0].memory = whole.total();  // room enough
  CHECK(Engine::plan(model.path(), options).value().streamed == 0);
}

TEST_CASE("Several GPUs that each stream their layers, in one process or as ranks", "[.slow]") {
  const DeepModel model;
  const auto first = make_machine_backend(), second = make_machine_backend();
  const std::vector<Token> expected = some_answers(Engine::load(model.path(), options_for({})).value());
  const auto halves = Engine::plan(model.path(), options_for({{first, 4}, {second, 4}})).value().shares;
  const auto limit = [&](std::size_t share) { return halves[share].total() - halves[share].weights / 16; };
  const std::vector<LayerShare> split = {{first, 4, limit(0), true}, {second, {}, limit(1), true}};
  {
    const MemoryPlan plan = Engine::plan(model.path(), options_for(split)).value();
    for (const MemoryShare& share : plan.shares) {
      CHECK(share.layers == 4);
      CHECK(share.streamed > 0);
    }
    CHECK(some_answers(Engine::load(model.path(), options_for(split)).value()) == expected);
  }
  {  // One of three streams.
    std::vector<LayerShare> beside = {{{}, 2}, {first, 4}, {second, 2}};
    const std::int64_t fits = Engine::plan(model.path(), options_for(beside)).value().shares[1].total();
    beside[1] = {first, {}, fits - 1, true};
    const MemoryPlan plan = Engine::plan(model.path(), options_for(beside)).value();
    CHECK(plan.streamed > 0);
    CHECK(plan.shares[1].streamed == plan.streamed);
  }
  auto ranks = make_thread_communicators(2).value();
  Result<void> served;
  std::thread other([&] {
    EngineOptions options = options_for(split);
    options.communicator = std::move(ranks[1]);
    served = Engine::serve(model.path(), options);
  });
  {
    EngineOptions options = options_for(split);
    options.communicator = std::move(ranks[0]);
    CHECK(some_answers(Engine::load(model.path(), options).value()) == expected);
  }
  other.join();
  CHECK(served);
}

TEST_CASE("Loads and unloads of engines that stream leave nothing behind") {
  const auto gpu = make_machine_backend();
  EngineOptions options = options_for({{gpu}});
  const MemoryPlan whole = Engine::plan(path_of("tiny-bf16"), options).value();
  options.split = {{gpu, {}, whole.total() - 1, true}};
  CompletionRequest request;
  request.tokens = some_tokens(5, 1);
  request.options.max_tokens = 1;
  for (int turn = 0; turn < 6; ++turn) {
    const Engine engine = Engine::load(path_of("tiny-bf16"), options).value();
    if (turn == 0) CHECK(engine.complete(request));
  }
  CHECK(holds(0, 0));
}

TEST_CASE("Shares that cannot stream") {
  const std::string model = path_of("tiny-bf16");
  const auto gpu = make_machine_backend();
  const auto error = [&](std::vector<LayerShare> split) { return refusal(model, options_for(std::move(split))); };
  CHECK_THAT(error({{gpu, {}, 0, true}}),
             Catch::Contains("invalid_argument") && Catch::Contains("split[0]: stream without a memory limit"));
  CHECK_THAT(error({{gpu, {}, 1000, true}, {}}), Catch::Contains("invalid_argument") && Catch::Contains("split[1]"));
  CHECK_THAT(error({{gpu, {}, 1000, true}}),
             Catch::Contains("out_of_memory") && Catch::Contains("split[0]") && Catch::Contains("more than its limit"));
  const std::int64_t all = Engine::plan(model, options_for({{}})).value().total();
  CHECK_THAT(error({{{}, {}, all - 1, true}}), Catch::Contains("unsupported") && Catch::Contains("split[0]") &&
                                                   Catch::Contains("does not stream weights"));
  CHECK_THAT(error({{gpu, 1, 1 << 20}, {{}, {}, 1000, true}}), Catch::Contains("split[1]"));
}
