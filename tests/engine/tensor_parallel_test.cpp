// Ranks that share each layer: what one process gives but for rounding, the same each time, and no rank that waits for
// another when one fails.
#include <llminfer/llminfer.hpp>

#include <algorithm>
#include <catch2/catch.hpp>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <map>
#include <thread>

#include "core/file.hpp"
#include "load/safetensors.hpp"
#include "load/slice.hpp"
#include "tests/engine/rank_models.hpp"
#include "tests/forwarding.hpp"

using namespace llminfer;
using namespace llminfer::test;

namespace {

using Shares = std::vector<LayerShare>;

/// The logits and hidden states of a session that goes on, forks and gets embeddings.
std::vector<float> some_logits(const Engine& engine) {
  std::vector<float> all;
  const auto add = [&](std::span<const float> values) { all.insert(all.end(), values.begin(), values.end()); };
  Session session = engine.new_session().value();
  session.prefill(some_tokens(100, 1), {.hidden_states = true}).value();
  add(session.logits());
  add(session.hidden_states());
  Session fork = session.fork().value();
  fork.prefill(some_tokens(3, 2)).value();
  add(fork.logits());
  std::vector<float> embeddings(2 * static_cast<std::size_t>(engine.info().hidden_size), 0.25f);
  session.prefill_embeddings(embeddings).value();
  add(session.logits());
  return all;
}

/// Fails when it is asked to compute the n-th time, before or after the sums of the pass.
class FailingBackend final : public ForwardingBackend {
 public:
  FailingBackend(std::shared_ptr<Backend> inner, int pass, bool late)
      : ForwardingBackend(std::move(inner)), pass_(pass), late_(late) {}
  Result<std::unique_ptr<Plan>> compile(const Program& program,
                                        std::vector<std::shared_ptr<const PreparedWeight>> weights,
                                        const PlanOptions& options) override {
    struct Failing final : ForwardingPlan {
      Failing(std::unique_ptr<Plan> inner, int pass, bool late)
          : ForwardingPlan(std::move(inner)), left(pass), late(late) {}
      int left;
      const bool late;
      Result<void> submit(const Batch& batch, std::span<CacheStorage* const> caches) override {
        if (--left == 0 && !late) return Error{ErrorCode::device_error, "broken"};
        return ForwardingPlan::submit(batch, caches);
      }
      Result<void> wait() override {
        auto outcome = ForwardingPlan::wait();
        if (left == 0 && late) return Error{ErrorCode::device_error, "broken"};
        return outcome;
      }
    };
    auto plan = ForwardingBackend::compile(program, std::move(weights), options).value();
    return std::unique_ptr<Plan>(new Failing(std::move(plan), pass_, late_));
  }

 private:
  const int pass_;
  const bool late_;
};

}  // namespace

TEST_CASE("ranks that share each layer give the logits of one process, but for rounding") {
  const WindowModel windows;
  const UnevenModel uneven("llama"), mixtral("mixtral"), qwen("qwen2_moe"), gpt_oss("gpt_oss");
  EngineOptions exact = options_of({}), standard = options_of({});
  exact.exact = true;
  exact.cache_type = standard.cache_type = CacheType::f32;
  for (const std::string& model :
       {path_of("tiny-bf16"), windows.path(), uneven.path(), mixtral.path(), qwen.path(), gpt_oss.path()}) {
    CAPTURE(model);
    const Engine whole = Engine::load(model, exact).value();
    const std::vector<float> expected = some_logits(whole);
    const auto tokens = whole.complete(some_request()).value().tokens;
    const bool odd = model != path_of("tiny-bf16") && model != windows.path();
    for (const auto& [ranks, shards] : {std::pair{2, 2}, {4, 2}, {odd ? 3 : 2, odd ? 3 : 2}}) {
      CAPTURE(ranks, shards);
      Ranks exactly(model, ranks, shards, exact);
      CHECK(distance(some_logits(*exactly.engine()), expected) < 2e-6);
      CHECK(exactly.engine()->complete(some_request()).value().tokens == tokens);
      for (const auto& outcome : exactly.end()) CHECK(outcome);
    }
    Ranks normally(model, 2, 2, standard);
    CHECK(distance(some_logits(*normally.engine()), expected) <
          1e-4 + 2 * distance(some_logits(Engine::load(model, standard).value()), expected));
  }
}

TEST_CASE("sums of ranks have the same bits each time, whatever the threads and who is first") {
  const UnevenModel model("llama");
  EngineOptions options = options_of({});
  Ranks first(model.path(), 3, 3, options);
  const std::vector<float> expected = everything(*first.engine());
  for (const int threads : {1, 2}) {
    options.threads = threads;
    Ranks again(model.path(), 3, 3, options);
    const std::vector<float> found = everything(*again.engine());
    REQUIRE(found.size() == expected.size());
    CHECK(std::memcmp(found.data(), expected.data(), found.size() * sizeof(float)) == 0);
  }
  options.cache_type = CacheType::int4;
  CHECK(everything(*Ranks(model.path(), 2, 2, options).engine()).size() == expected.size());
}

TEST_CASE("quantized weights are cut between ranks where their blocks and groups end") {
  const std::string golden = LLMINFER_TEST_DATA "/quantized/";
  EngineOptions options = options_of({});
  options.exact = true;
  int cut = 0;
  for (const auto& file : std::filesystem::directory_iterator(golden)) {
    const std::string name = file.path().stem().string();
    if (file.path().extension() != ".safetensors" || name == "base") continue;
    CAPTURE(name);
    const ModelFolder model;
    std::string map;
    for (const std::string& part : {std::string("base.safetensors"), name + ".safetensors"}) {
      std::filesystem::copy_file(golden + part, model.folder() / part);
      const auto source = core::open_file(golden + part, true).value();
      for (const load::TensorInfo& tensor : load::read_safetensors_header(*source, 0).value()) {
        map += (map.empty() ? "\"" : ",\"") + tensor.name + "\":\"" + part + "\"";
      }
    }
    model.folder().write("model.safetensors.index.json", "{\"weight_map\":{" + map + "}}");
    std::filesystem::copy_file(golden + name + ".json", model.folder() / "config.json");
    const std::vector<float> expected = some_logits(Engine::load(model.path(), options).value());
    Ranks ranks(model.path(), 2, 2, options);
    REQUIRE(ranks.engine());
    // Activations that are rounded hide their rounding by turns; ranks that cut them have scales of their own.
    const bool rounds = name.find("w8a8") != std::string::npos || name.find("fp8") != std::string::npos;
    const bool dynamic = name.find("dynamic") != std::string::npos;
    CHECK(distance(some_logits(*ranks.engine()), expected) < (!rounds ? 2e-6 : dynamic ? 1e-1 : 1e-2));
    ++cut;
  }
  CHECK(cut >= 8);
}

TEST_CASE("an error of one rank's part is that of the request, and all go on") {
  const std::string model = path_of("tiny-bf16");
  for (const std::size_t broken : {1, 2, 3}) {
    for (const bool late : {false, true}) {
      CAPTURE(broken, late);
      Ranks ranks(model, make_thread_communicators(4).value(), 2, options_of({}),
                  {{broken, std::make_shared<FailingBackend>(cpu(1), 3, late)}});
      const Engine& engine = *ranks.engine();
      int failed = 0, well = 0;
      for (int i = 0; i < 4; ++i) {
        const auto result = engine.complete(some_request(3));
        if (!result) CHECK(result.error().code == ErrorCode::device_error);
        (result ? well : failed) += 1;
      }
      CHECK(failed == 1);
      CHECK(well == 3);
      for (const auto& outcome : ranks.end()) CHECK(outcome);
    }
  }
}

TEST_CASE("a prompt that is interrupted on rank 0 ends on all ranks") {
  EngineOptions options = options_of({});
  options.context_length = options.cache_tokens = 1024;
  Ranks ranks(path_of("tiny-bf16"), 2, 2, options);
  const Engine& engine = *ranks.engine();
  for (int i = 0; i < 8; ++i) {
    CompletionRequest request = some_request(100);
    CancelToken cancel;
    request.options.cancel = cancel;
    Completion running = engine.submit(std::move(request)).value();
    std::this_thread::sleep_for(std::chrono::microseconds(300 * i));
    cancel.cancel();
    (void)running.wait();
  }
  CHECK(engine.complete(some_request()).value().tokens.size() == 10);
}

TEST_CASE("a rank that is lost is an error of the requests of those that share its layers") {
  const UnevenModel model("llama");
  int later = 0;
  for (int messages = 0; messages < 120; messages += 7) {
    CAPTURE(messages);
    auto communicators = make_thread_communicators(3).value();
    communicators[1] = std::make_shared<FailingCommunicator>(communicators[1], messages);
    Ranks ranks(model.path(), std::move(communicators), 3, options_of({}));
    if (ranks.engine()) {
      Result<CompletionResult> result = ranks.engine()->complete(some_request());
      CHECK(result.error().code == ErrorCode::peer_lost);
      CHECK(ranks.engine()->complete(some_request()).error().code == ErrorCode::peer_lost);
      ++later;
    } else {
      CHECK(ranks.engine().error().code == ErrorCode::peer_lost);
    }
    CHECK(ranks.end()[1].error().code == ErrorCode::peer_lost);
  }
  CHECK(later > 10);
}

TEST_CASE("the plan of ranks that share layers tells what each holds, and it comes to be") {
  const std::string model = path_of("tiny-bf16");
  const MemoryPlan whole = Engine::plan(model, options_of({})).value();
  const auto communicators = make_thread_communicators(2).value();
  const EngineOptions options = of_rank(communicators[0], 2, options_of({}));
  const MemoryPlan plan = Engine::plan(model, options).value();
  REQUIRE(plan.shares.size() == 2);
  for (std::size_t r = 0; r < 2; ++r) {
    CHECK(plan.shares[r].layers == 3);
    CHECK(plan.shares[r].shard == static_cast<int>(r));
    CHECK(plan.shares[r].shards == 2);
    CHECK(2 * plan.shares[r].cache == whole.cache);
  }
  const std::int64_t table = 1024 * 128 * 2;
  CHECK(plan.shares[0].weights - plan.shares[1].weights == Approx(table).epsilon(0.05));
  CHECK(plan.weights == Approx(whole.weights).epsilon(0.02));  // the norms lie on both
  Ranks ranks(model, 2, 2);
  const EngineStats stats = ranks.engine()->stats();
  CHECK(stats.weight_bytes == plan.weights);
  CHECK(stats.cache_bytes == plan.cache);
  CHECK_THAT(ranks.engine()->info().backend, Catch::Contains("layers 0 to 2, part 2 of 2, on rank 1, cpu"));
}

TEST_CASE("what cannot be shared by so many ranks is refused, naming what is in the way") {
  const std::string model = path_of("tiny-bf16");
  const auto refusal = [](const std::string& path, int ranks, int shards, Shares split = {}) {
    const auto communicators = make_thread_communicators(ranks).value();
    auto plan = Engine::plan(path, of_rank(communicators[0], shards, options_of(std::move(split))));
    REQUIRE_FALSE(plan);
    return plan.error();
  };
  CHECK_THAT(refusal(model, 3, 2).message, Catch::Contains("tensor_parallel is 2") && Catch::Contains("ranks, 3"));
  CHECK_THAT(refusal(model, 2, 0).message, Catch::Contains("tensor_parallel is 0"));
  CHECK_THAT(refusal(model, 3, 3).message, Catch::Contains("blk.0.attention") && Catch::Contains("2 KV heads"));
  CHECK(refusal(model, 3, 3).code == ErrorCode::unsupported);
  CHECK_THAT(refusal(model, 4, 2, {{{}, 0}, {}}).message, Catch::Contains("nothing to do"));
  CHECK_THAT(refusal(model, 4, 2, {{}}).message, Catch::Contains("1 shares") && Catch::Contains("2 of"));
  CHECK_THAT(refusal(path_of("olmoe"), 2, 2).message, Catch::Contains("1 KV heads"));
  EngineOptions alone = options_of({});
  alone.tensor_parallel = 2;
  CHECK(Engine::load(model, alone).error().code == ErrorCode::invalid_argument);
}

TEST_CASE("slices of tensors have the values of the whole") {
  const UnevenModel model("llama");
  for (const bool mapped : {true, false}) {
    const load::Checkpoint checkpoint = load::open_checkpoint(model.path(), mapped).value();
    const load::TensorInfo& tensor = *checkpoint.find("model.layers.0.mlp.down_proj.weight");
    const WeightView whole = checkpoint.read(tensor).value();
    for (const load::TensorSlice& slice :
         {load::TensorSlice{3, 7, 0, 20}, {0, 48, 4, 9}, {40, 8, 19, 1}, {0, 48, 0, 20}}) {
      const load::TensorInfo part = load::slice_of(tensor, slice).value();
      const WeightView view = checkpoint.read(part).value();
      REQUIRE(view.rows == slice.rows);
      REQUIRE(view.cols == slice.cols);
      for (std::int64_t r = 0; r < slice.rows; ++r) {
        const auto* const from = whole.data.data() + 4 * ((slice.first_row + r) * 20 + slice.first_col);
        CHECK(std::memcmp(view.data.data() + 4 * r * slice.cols, from, 4 * static_cast<std::size_t>(slice.cols)) == 0);
      }
    }
  }
  load::TensorInfo tensor;
  tensor.name = "some";
  tensor.type = WeightType::q4_k;
  tensor.rows = 4, tensor.cols = 1024;
  CHECK(load::slice_of(tensor, {0, 4, 256, 512}));
  CHECK_THAT(load::slice_of(tensor, {0, 4, 128, 512}).error().message,
             Catch::Contains("some") && Catch::Contains("multiples of 256"));
  tensor.type = WeightType::w4;
  tensor.details.scale_columns = 128;
  CHECK(load::column_unit(tensor) == 128);
}

TEST_CASE("slices of columns in activation order are floats in the usual one") {
  const std::string golden = LLMINFER_TEST_DATA "/quantized/", name = "gptq-w4g64-sym-actorder";
  const ModelFolder model;
  std::filesystem::copy_file(golden + name + ".safetensors", model.folder() / "model.safetensors");
  std::filesystem::copy_file(golden + name + ".json", model.folder() / "config.json");
  const load::Checkpoint checkpoint = load::open_checkpoint(model.path(), true).value();
  const load::TensorInfo& tensor = *checkpoint.find("model.layers.0.mlp.down_proj.weight");
  REQUIRE(tensor.details.permutation);
  CHECK(load::column_unit(tensor) == 1);
  const auto values_of = [&](const load::TensorInfo& info) {
    std::vector<float> values(static_cast<std::size_t>(info.rows * info.cols));
    unpack_rows(checkpoint.read(info).value(), 0, info.rows, values).value();
    return values;
  };
  const std::vector<float> whole = values_of(tensor);
  for (const load::TensorSlice& slice : {load::TensorSlice{3, 7, 0, tensor.cols}, {5, 9, 11, 50}}) {
    const load::TensorInfo part = load::slice_of(tensor, slice).value();
    CHECK(part.type == (slice.cols == tensor.cols ? tensor.type : WeightType::f32));
    const std::vector<float> some = values_of(part);
    for (std::int64_t r = 0; r < slice.rows; ++r) {
      const auto from = whole.begin() + (slice.first_row + r) * tensor.cols + slice.first_col;
      CHECK(std::equal(from, from + slice.cols, some.begin() + r * slice.cols));
    }
  }
}
