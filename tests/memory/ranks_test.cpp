// A rank whose memory runs out in a pass says so to rank 0, and serves the next pass: the others do not wait for it.
#include <catch2/catch.hpp>
#include <deque>
#include <optional>
#include <vector>

#include "engine/ranks.hpp"
#include "tests/memory/failing_memory.hpp"

using namespace llminfer;
using test::Failing;

namespace {

constexpr std::int32_t kRows = 3, kHidden = 4, kVocab = 5;
using Message = std::vector<std::byte>;

/// Rank 0's end: keeps what is sent to rank 1.
class Recorder final : public Communicator {
 public:
  std::deque<Message> sent;
  int rank() const noexcept override { return 0; }
  int size() const noexcept override { return 2; }
  Result<void> send(int, std::span<const std::byte> data) override {
    sent.emplace_back(data.begin(), data.end());
    return {};
  }
  Result<void> receive(int, std::span<std::byte>) override { return Error{ErrorCode::internal, "nothing comes"}; }
};

/// Rank 1's end: gives those messages, keeps the beginnings of its own, and has memory fail once a pass is announced.
class Player final : public Communicator {
 public:
  explicit Player(std::deque<Message> messages) : messages_(std::move(messages)) { codes.reserve(64); }
  std::vector<std::int64_t> codes;  ///< the first word of each message from rank 1
  long successes = 0;
  bool failed = false;

  int rank() const noexcept override { return 1; }
  int size() const noexcept override { return 2; }
  Result<void> send(int, std::span<const std::byte> data) override {
    failed = test::disarm() || failed;
    std::int64_t word = 0;
    std::copy_n(data.begin(), sizeof word, reinterpret_cast<std::byte*>(&word));
    codes.push_back(word);
    return {};
  }
  Result<void> receive(int, std::span<std::byte> data) override {
    REQUIRE(data.size() == messages_.front().size());
    std::copy(messages_.front().begin(), messages_.front().end(), data.begin());
    messages_.pop_front();
    if (received_++ == 0) test::arm(successes, Failing::once);
    return {};
  }

 private:
  std::deque<Message> messages_;
  int received_ = 0;
};

class NoPlan final : public Plan {
 public:
  std::int64_t bytes() const noexcept override { return 0; }
  Result<void> submit(const Batch& batch, std::span<CacheStorage* const>) override {
    std::fill(batch.logits.begin(), batch.logits.end(), 1.0f);
    return {};
  }
  Result<void> wait() override { return {}; }
};

}  // namespace

TEST_CASE("a rank without memory for a pass gives that as its outcome") {
  const auto recorder = std::make_shared<Recorder>();
  {
    engine::Leader leader(recorder);
    leader.begin({std::vector<std::int64_t>(engine::kModelNumbers), 64, 1, 1, 0, kRows, CacheType::f16, 1, {0, 1, 2}})
        .value();
    recorder->sent.clear();
    const std::vector<std::int32_t> positions = {0, 1, 2}, logit_rows = {1, 2}, table = {0};
    const std::vector<float> rows(kRows * kHidden);
    Run run;
    run.rows = kRows;
    run.block_tables.emplace_back(table);
    Batch batch;
    batch.positions = positions;
    batch.runs = std::span(&run, 1);
    batch.logit_rows = logit_rows;
    for (int pass = 0; pass < 2; ++pass) {
      leader.announce(batch).value();
      leader.give(1, {}, rows).value();
    }
    CHECK_FALSE(leader.ready());
    recorder->sent.emplace_back(recorder->sent.front().size());  // a Command of zeros: stop
  }
  long failures = 0;
  for (long n = 0;; ++n) {
    Player player(recorder->sent);
    player.successes = n;
    engine::RankStage stage;
    stage.group = std::make_shared<engine::ShardGroup>(recorder, 1, 1, 0);
    stage.plan = std::make_unique<NoPlan>();
    stage.hidden_size = kHidden;
    stage.vocab_size = kVocab;
    stage.max_batch_rows = kRows;
    const Result<void> outcome = engine::make_follower(player, stage)->run();
    CAPTURE(n);
    REQUIRE(outcome);
    constexpr auto kNoMemory = static_cast<std::int64_t>(ErrorCode::out_of_memory);
    if (!player.failed) {
      CHECK(player.codes.size() == 4);  // of each pass the outcome and the logits
      break;
    }
    ++failures;
    REQUIRE(player.codes.size() == 3);
    CHECK(player.codes[0] == kNoMemory);
    CHECK(player.codes[1] == -1);
  }
  CHECK(failures > 2);
}
