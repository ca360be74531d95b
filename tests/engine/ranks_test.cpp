// Models whose layers lie on several ranks of a Communicator: the bits of one process, and typed errors when one is
// lost.
#include <llminfer/llminfer.hpp>

#include <catch2/catch.hpp>
#include <cstring>
#include <thread>

#include "engine/ranks.hpp"
#include "tests/engine/split_models.hpp"

using namespace llminfer;
using namespace llminfer::test;

namespace {

EngineOptions of_rank(std::shared_ptr<Communicator> rank, std::vector<LayerShare> split = {}) {
  EngineOptions options = options_of(std::move(split));
  options.communicator = std::move(rank);
  return options;
}

/// The ranks but 0, each in a thread.
class Followers {
 public:
  Followers(std::vector<std::shared_ptr<Communicator>> ranks, const std::string& path,
            std::vector<LayerShare> split = {})
      : outcomes_(ranks.size()) {
    for (std::size_t r = 1; r < ranks.size(); ++r) {
      threads_.emplace_back([this, r, path, split, rank = std::move(ranks[r])]() mutable {
        outcomes_[r] = Engine::serve(path, of_rank(std::move(rank), std::move(split)));
      });
    }
  }
  ~Followers() {
    for (std::thread& thread : threads_) thread.join();
  }
  /// Of rank r, once all have ended.
  const Result<void>& outcome(std::size_t r) {
    for (std::thread& thread : threads_) thread.join();
    threads_.clear();
    return outcomes_[r];
  }

 private:
  std::vector<Result<void>> outcomes_;
  std::vector<std::thread> threads_;
};

CompletionRequest some_request() {
  CompletionRequest request;
  request.tokens = some_tokens(30, 1);
  request.options.max_tokens = 10;
  request.options.ignore_end = true;
  return request;
}

}  // namespace

TEST_CASE("ranks give the bits of one process") {
  const WindowModel windows;
  for (const std::string& model : {path_of("tiny-bf16"), windows.path()}) {
    const Engine whole = Engine::load(model, options_of({})).value();
    const std::vector<float> expected = everything(whole);
    const std::vector<std::vector<LayerShare>> splits = {
        {{}, {}}, {{}, {}, {}}, {{{}, 2}, {cpu(2), 1}}, {{{}, 0}, {}}, {{{}, 1}, {}, {{}, 0}}};
    for (std::size_t i = 0; i < splits.size(); ++i) {
      CAPTURE(model, i);
      auto ranks = make_thread_communicators(static_cast<int>(splits[i].size())).value();
      const auto rank0 = std::move(ranks[0]);
      const std::vector<LayerShare> split = i < 2 ? std::vector<LayerShare>() : splits[i];
      Followers followers(std::move(ranks), model, split);
      {
        const Engine engine = Engine::load(model, of_rank(rank0, split)).value();
        CHECK(engine.stats().cache_bytes == whole.stats().cache_bytes);
        CHECK(engine.stats().weight_bytes >= whole.stats().weight_bytes);
        CHECK_THAT(engine.info().backend, Catch::Contains(" on rank 1, cpu, level"));
        const std::vector<float> found = everything(engine);
        REQUIRE(found.size() == expected.size());
        CHECK(std::memcmp(found.data(), expected.data(), found.size() * sizeof(float)) == 0);
      }
      for (std::size_t r = 1; r < splits[i].size(); ++r) CHECK(followers.outcome(r));
    }
  }
}

TEST_CASE("ranks seal the pages of an int4 cache as one process does") {
  auto ranks = make_thread_communicators(2).value();
  EngineOptions alone = options_of({}), leading = of_rank(ranks[0]);
  alone.cache_type = leading.cache_type = CacheType::int4;
  Followers followers(std::move(ranks), path_of("tiny-bf16"));
  CHECK(everything(Engine::load(path_of("tiny-bf16"), leading).value()) ==
        everything(Engine::load(path_of("tiny-bf16"), alone).value()));
}

namespace {

/// Notes which pages are forgotten and copied.
struct NotingCache final : CacheStorage {
  std::vector<std::int32_t>* forgotten;
  std::int64_t bytes() const noexcept override { return 0; }
  Result<void> copy_page(std::int32_t, std::int32_t, std::int32_t) override { return {}; }
  std::int64_t canonical_page_bytes() const noexcept override { return 0; }
  Result<void> export_page(std::int32_t, std::span<std::byte>) override { return {}; }
  Result<void> import_page(std::int32_t, std::span<const std::byte>) override { return {}; }
  bool seals_pages() const noexcept override { return true; }
  void forget_page(std::int32_t page) noexcept override { forgotten->push_back(page); }
};

struct IdlePlan final : Plan {
  std::int64_t bytes() const noexcept override { return 0; }
  Result<void> submit(const Batch&, std::span<CacheStorage* const>) override { return {}; }
  Result<void> wait() override { return {}; }
};

}  // namespace

TEST_CASE("other ranks learn with the next pass which pages nobody has any more") {
  auto ranks = make_thread_communicators(2).value();
  std::vector<std::int32_t> forgotten;
  Result<engine::RankStage> stage = engine::RankStage();
  auto cache = std::make_unique<NotingCache>();
  cache->forgotten = &forgotten;
  stage->backend = cpu(1);
  stage->group = std::make_shared<engine::ShardGroup>(ranks[1], 1, 1, 0);
  stage->plan = std::make_unique<IdlePlan>();
  stage->groups = {1};
  stage->caches.push_back(std::move(cache));
  stage->pages = {6};
  stage->hidden_size = stage->vocab_size = 2;
  stage->max_batch_rows = 1;
  const auto follower = engine::make_follower(*ranks[1], *stage);
  std::thread other([&] {
    engine::receive_setup(*ranks[1]).value();
    engine::send_reply(*ranks[1], stage).value();
    follower->run().value();
  });
  {
    engine::Leader leader(ranks[0]);
    leader.begin({std::vector<std::int64_t>(engine::kModelNumbers), 64, 6, 1, 0, 1, CacheType::int4, 1, {0, 1, 2}})
        .value();
    const engine::Reply reply = leader.ready().value().at(1);
    CHECK(reply.seals_pages);
    CHECK(reply.limits.size() == 1);
    CHECK(reply.limits.at(0).group == 1);
    CHECK(reply.limits.at(0).pages.most == PassPages().most);
    const std::vector<std::int32_t> pages = {4, 6};
    leader.forgotten().reserve(pages);
    const std::vector<std::int32_t> position = {0}, table = {2};
    const std::vector<Run> runs = {{0, 1, 0, {std::span(table), std::span(table)}}};
    std::vector<float> logits(2), rows(2);
    Batch batch;
    batch.positions = position;
    batch.runs = runs;
    batch.logit_rows = position;
    batch.logits = logits;
    const auto pass = [&] {
      leader.announce(batch).value();
      leader.give(1, {}, rows).value();
      leader.collect(batch, 2, {}).value();
    };
    const auto forget = [&](std::size_t group, std::int32_t page) { leader.forgotten().add(group, page); };
    for (const std::int32_t page : {3, 5, 3}) forget(1, page);
    forget(0, 2);  // not of that rank
    pass();
    CHECK(forgotten == std::vector<std::int32_t>{5, 3});
    pass();
    CHECK(forgotten.size() == 2);
    for (const std::int32_t page : {0, 4, 3}) forget(1, page);
    leader.copy_page(1, 2, 4, 7).value();  // which has something in it again
    pass();
    CHECK(forgotten == std::vector<std::int32_t>{5, 3, 3, 0});
  }
  other.join();
}

TEST_CASE("a communicator serves one engine after the other") {
  auto ranks = make_thread_communicators(2).value();
  std::thread other([rank = ranks[1]] {
    for (int i = 0; i < 2; ++i) Engine::serve(path_of("tiny-bf16"), of_rank(rank)).value();
  });
  for (int i = 0; i < 2; ++i) {
    const Engine engine = Engine::load(path_of("tiny-bf16"), of_rank(ranks[0])).value();
    CHECK(engine.complete(some_request()).value().tokens.size() == 10);
  }
  other.join();
}

TEST_CASE("a load that fails on one rank fails on all, and none waits") {
  const WindowModel other;
  SECTION("on rank 0") {
    auto ranks = make_thread_communicators(3).value();
    const auto rank0 = std::move(ranks[0]);
    Followers followers(std::move(ranks), path_of("tiny-bf16"));
    CHECK(Engine::load("/nonexistent.gguf", of_rank(rank0)).error().code == ErrorCode::not_found);
    CHECK(followers.outcome(1).error().code == ErrorCode::peer_lost);
    CHECK(followers.outcome(2).error().code == ErrorCode::peer_lost);
  }
  SECTION("on another one, which has no such file") {
    auto ranks = make_thread_communicators(2).value();
    const auto rank0 = std::move(ranks[0]);
    Followers followers(std::move(ranks), "/nonexistent.gguf");
    const auto engine = Engine::load(path_of("tiny-bf16"), of_rank(rank0));
    REQUIRE_FALSE(engine);
    CHECK(engine.error().code == ErrorCode::not_found);
    CHECK_THAT(engine.error().message, Catch::Contains("rank 1: ") && Catch::Contains("/nonexistent.gguf"));
    CHECK(followers.outcome(1).error().code == ErrorCode::not_found);
  }
  SECTION("on another one, which has another model, while a third has the right one") {
    auto ranks = make_thread_communicators(3).value();
    const auto rank0 = std::move(ranks[0]), rank2 = std::move(ranks[2]);
    ranks.resize(2);
    Followers wrong(std::move(ranks), other.path());
    Followers right({nullptr, rank2}, path_of("tiny-bf16"));
    const auto engine = Engine::load(path_of("tiny-bf16"), of_rank(rank0));
    REQUIRE_FALSE(engine);
    CHECK(engine.error().code == ErrorCode::invalid_argument);
    CHECK_THAT(engine.error().message, Catch::Contains("rank 1: "));
    CHECK(wrong.outcome(1).error().code == ErrorCode::invalid_argument);
    CHECK(right.outcome(1));  // told to stop
  }
  SECTION("on one that never came") {
    auto ranks = make_thread_communicators(2).value();
    ranks[1].reset();
    CHECK(Engine::load(path_of("tiny-bf16"), of_rank(ranks[0])).error().code == ErrorCode::peer_lost);
  }
}

TEST_CASE("a rank that is lost is an error of the requests, and the engine ends all the same") {
  int lost_in_load = 0, lost_later = 0;
  for (int messages = 0; messages < 60; messages += 3) {
    CAPTURE(messages);
    auto ranks = make_thread_communicators(3).value();
    const auto rank0 = ranks[0];
    ranks[1] = std::make_shared<FailingCommunicator>(ranks[1], messages);
    Followers followers(std::move(ranks), path_of("tiny-bf16"));
    {
      const auto engine = Engine::load(path_of("tiny-bf16"), of_rank(rank0));
      if (engine) {
        Result<CompletionResult> result = engine->complete(some_request());
        for (int i = 0; i < 10 && result; ++i) result = engine->complete(some_request());
        REQUIRE_FALSE(result);
        CHECK(result.error().code == ErrorCode::peer_lost);
        CHECK(engine->complete(some_request()).error().code == ErrorCode::peer_lost);
        ++lost_later;
      } else {
        CHECK(engine.error().code == ErrorCode::peer_lost);
        ++lost_in_load;
      }
    }
    CHECK(followers.outcome(1).error().code == ErrorCode::peer_lost);
    (void)followers.outcome(2);
  }
  CHECK(lost_in_load > 0);
  CHECK(lost_later > 5);
}

TEST_CASE("calls and splits that ranks cannot have") {
  const std::string model = path_of("tiny-bf16");
  auto ranks = make_thread_communicators(2).value();
  CHECK(Engine::serve(model, options_of({})).error().code == ErrorCode::invalid_argument);
  CHECK(Engine::serve(model, of_rank(ranks[0])).error().code == ErrorCode::invalid_argument);
  CHECK_THAT(Engine::load(model, of_rank(ranks[1])).error().message, Catch::Contains("Engine::serve"));
  const auto refused = [&](std::vector<LayerShare> split) {
    return Engine::plan(model, of_rank(ranks[0], std::move(split))).error().message;
  };
  CHECK_THAT(refused({{}}), Catch::Contains("1 shares, the communicator 2 ranks"));
  CHECK_THAT(refused({{{}, {}, 1 << 20}, {}}), Catch::Contains("memory is not a limit"));
  CHECK_THAT(refused({{{}, 2}, {{}, 2}}), Catch::Contains("gives out 4 layers"));
  const MemoryPlan plan = Engine::plan(model, of_rank(ranks[0])).value();
  REQUIRE(plan.shares.size() == 2);
  CHECK(plan.shares[0].layers == 1);
  CHECK(plan.shares[1].layers == 2);
  auto many = make_thread_communicators(7).value();
  CHECK_THAT(Engine::plan(model, of_rank(many[0])).error().message, Catch::Contains("7 ranks for 3 layers"));
  // One rank is as good as none.
  CHECK(Engine::load(model, of_rank(make_thread_communicators(1).value()[0])).value().complete(some_request()));
}

TEST_CASE("messages between threads") {
  CHECK(make_thread_communicators(0).error().code == ErrorCode::invalid_argument);
  auto ranks = make_thread_communicators(3).value();
  std::array<std::byte, 3> three{std::byte{1}, std::byte{2}, std::byte{3}}, got{};
  CHECK(ranks[0]->send(0, three).error().code == ErrorCode::invalid_argument);
  CHECK(ranks[0]->receive(3, got).error().code == ErrorCode::invalid_argument);
  ranks[0]->send(1, three).value();
  ranks[2]->send(1, std::span(three).first(1)).value();
  ranks[0]->send(1, std::span(three).first(2)).value();
  ranks[0].reset();
  // What was sent before arrives, in order; then the sender is lost.
  ranks[1]->receive(2, std::span(got).first(1)).value();
  ranks[1]->receive(0, got).value();
  CHECK(got == three);
  CHECK(ranks[1]->receive(0, got).error().code == ErrorCode::corrupt);
  CHECK(ranks[1]->receive(0, got).error().code == ErrorCode::peer_lost);
  CHECK(ranks[1]->send(0, got).error().code == ErrorCode::peer_lost);
  ranks[1]->send(2, {}).value();
  ranks[2]->receive(1, {}).value();
}
