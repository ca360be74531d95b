#include "engine/ranks.hpp"

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

#include "core/error.hpp"
#include "engine/rank_messages.hpp"
#include "engine/shards.hpp"
#include "engine/staged_plan.hpp"

namespace llminfer::inline v0::engine {
namespace {

using core::fail;

struct ReplyMessage {
  OutcomeMessage outcome;  ///< of success: the text describes the backend
  std::int64_t weight_bytes = 0, cache_bytes = 0, seals_pages = 0;
  std::int64_t groups = 0;  ///< so many LimitMessages follow
};
struct LimitMessage {
  std::int64_t group = 0, resident = 0, most = 0;
};

struct Command {
  enum Kind : std::int64_t { stop, copy_page, pass, start_collective } kind = stop;
  /// copy_page: group, from, to, tokens. pass: the number of words that follow.
  std::array<std::int64_t, 4> numbers{};
};

constexpr std::size_t kSetupNumbers = 8;

/// A Setup as numbers: whether there is one, its fields, its places.
std::vector<std::int64_t> setup_numbers(const Setup* setup, int ranks) {
  std::vector<std::int64_t> numbers(kSetupNumbers + kModelNumbers + static_cast<std::size_t>(ranks) + 1);
  if (!setup) return numbers;
  numbers[0] = 1;
  numbers[1] = setup->context_length;
  numbers[2] = setup->pages;
  numbers[3] = setup->max_batch_rows;
  numbers[4] = static_cast<std::int64_t>(setup->cache_type);
  numbers[5] = setup->shards;
  numbers[6] = setup->windows;
  numbers[7] = setup->resident;
  std::copy(setup->model.begin(), setup->model.end(), numbers.begin() + kSetupNumbers);
  std::copy(setup->places.begin(), setup->places.end(), numbers.begin() + kSetupNumbers + kModelNumbers);
  return numbers;
}

/// A batch without its tokens, as words: five counts, positions, runs with their block tables, wanted rows. After them
/// come ForgottenPages.
void write_pass(const Batch& batch, std::vector<std::int32_t>& words) {
  const auto count = [](const auto& list) { return static_cast<std::int32_t>(list.size()); };
  const auto append = [&](std::span<const std::int32_t> some) { words.insert(words.end(), some.begin(), some.end()); };
  words.clear();
  const std::int32_t groups = batch.runs.empty() ? 0 : count(batch.runs[0].block_tables);
  append(
      std::array{count(batch.positions), count(batch.runs), groups, count(batch.logit_rows), count(batch.hidden_rows)});
  append(batch.positions);
  for (const Run& run : batch.runs) {
    append(std::array{run.first_row, run.rows, run.first_position});
    for (const auto& table : run.block_tables) {
      words.push_back(count(table));
      append(table);
    }
  }
  append(batch.logit_rows);
  append(batch.hidden_rows);
}

/// The batch that the words are of. Its spans lie in `words` and `runs`.
Result<Batch> read_pass(std::span<const std::int32_t> words, std::vector<Run>& runs) {
  bool whole = true;
  const auto take = [&](std::int64_t count) {
    whole = whole && count >= 0 && static_cast<std::size_t>(count) <= words.size();
    const auto taken = words.first(whole ? static_cast<std::size_t>(count) : 0);
    words = words.subspan(taken.size());
    return taken;
  };
  const auto next = [&] {
    const auto one = take(1);
    return one.empty() ? 0 : one[0];
  };
  const std::int32_t rows = next(), run_count = next(), groups = next(), logits = next(), hidden = next();
  Batch batch;
  batch.positions = take(rows);
  runs.clear();
  for (std::int32_t r = 0; r < run_count && whole; ++r) {
    Run& run = runs.emplace_back();
    run.first_row = next();
    run.rows = next();
    run.first_position = next();
    for (std::int32_t g = 0; g < groups && whole; ++g) run.block_tables.push_back(take(next()));
  }
  batch.runs = runs;
  batch.logit_rows = take(logits);
  batch.hidden_rows = take(hidden);
  if (!whole || !words.empty()) return fail(ErrorCode::corrupt, "rank 0 sent a batch that contradicts itself");
  return batch;
}

/// `outcome`, and after success all of `rows`.
Result<void> send_outcome(Communicator& communicator, int to, const Result<void>& outcome,
                          std::initializer_list<std::span<const float>> rows) {
  LLMINFER_TRY(send_message(communicator, to, outcome ? OutcomeMessage() : OutcomeMessage(outcome.error())));
  for (const auto& some : rows) {
    if (outcome && !some.empty()) LLMINFER_TRY(communicator.send(to, std::as_bytes(some)));
  }
  return {};
}

/// The same from the other side: errors are those of the messages, `outcome` what they say.
Result<void> receive_outcome(Communicator& communicator, int from, Result<void>& outcome,
                             std::initializer_list<std::span<float>> rows) {
  outcome = LLMINFER_TRY(receive_message<OutcomeMessage>(communicator, from)).outcome();
  for (const auto& some : rows) {
    if (outcome && !some.empty()) LLMINFER_TRY(communicator.receive(from, std::as_writable_bytes(some)));
  }
  return {};
}

Result<Reply> receive_reply(Communicator& communicator, int rank) {
  const auto message = LLMINFER_TRY(receive_message<ReplyMessage>(communicator, rank));
  LLMINFER_TRY(message.outcome.outcome());
  Reply reply{message.outcome.text_of(), message.weight_bytes, message.cache_bytes, message.seals_pages != 0, {}};
  for (std::int64_t i = 0; i < message.groups; ++i) {
    const auto limit = LLMINFER_TRY(receive_message<LimitMessage>(communicator, rank));
    reply.limits.push_back({static_cast<std::size_t>(limit.group),
                            {static_cast<std::int32_t>(limit.resident), static_cast<std::int32_t>(limit.most)}});
  }
  return reply;
}

}  // namespace

CacheStorage* RankStage::cache(std::size_t whole_group) const noexcept {
  for (std::size_t g = 0; g < groups.size(); ++g) {
    if (groups[g] == whole_group) return caches[g].get();
  }
  return nullptr;
}

std::vector<CacheStorage*> RankStage::all_caches() const {
  std::vector<CacheStorage*> all;
  for (const auto& cache : caches) all.push_back(cache.get());
  return all;
}

void Leader::release() noexcept {
  if (state_ == State::released) return;
  (void)core::guarded([&]() -> Result<void> {
    if (state_ == State::begun) (void)ready();
    const auto none = setup_numbers(nullptr, ranks());
    for (int rank = 1; rank < ranks(); ++rank) {  // whoever is gone does not keep the others waiting
      if (state_ == State::fresh) {
        (void)communicator_->send(rank, std::as_bytes(std::span(none)));
      } else if (ended_.empty() || !ended_[static_cast<std::size_t>(rank)]) {
        (void)send_message(*communicator_, rank, Command{});
      }
    }
    return {};
  });
  state_ = State::released;
}

Result<void> Leader::checked(Result<void> outcome) {
  if (!outcome && !broken_) broken_ = core::copy_of(outcome.error());
  return outcome;
}

Result<void> Leader::begin(const Setup& setup) {
  const auto numbers = setup_numbers(&setup, ranks());
  shards_ = setup.shards;
  ended_.assign(static_cast<std::size_t>(ranks()), false);
  state_ = State::begun;
  Result<void> first_error;
  for (int rank = 1; rank < ranks(); ++rank) {  // also to those after one that is gone: they wait for it
    auto sent = communicator_->send(rank, std::as_bytes(std::span(numbers)));
    if (sent) continue;
    ended_[static_cast<std::size_t>(rank)] = true;
    if (first_error) first_error = std::move(sent);
  }
  return first_error;
}

Result<std::vector<Reply>> Leader::ready() {
  std::vector<Reply> replies(static_cast<std::size_t>(ranks()));
  state_ = State::ready;
  Result<void> first_error;
  for (int rank = 1; rank < ranks(); ++rank) {
    const auto r = static_cast<std::size_t>(rank);
    if (ended_[r]) continue;
    auto reply = receive_reply(*communicator_, rank);
    if (reply) {
      replies[r] = std::move(*reply);
      continue;
    }
    ended_[r] = true;
    if (first_error) first_error = core::at("rank " + std::to_string(rank), std::move(reply).error());
  }
  LLMINFER_TRY(std::move(first_error));
  return replies;
}

Result<std::vector<Result<std::string>>> Leader::start_collectives(const RankStage& own) {
  std::vector<Result<std::string>> outcomes;
  for (int rank = 0; rank < ranks(); ++rank) outcomes.emplace_back(std::string());
  const Command command{Command::start_collective, {}};
  for (int rank = 1; rank < ranks(); ++rank) LLMINFER_TRY(checked(send_message(*communicator_, rank, command)));
  outcomes[0] = own.group->start_collective(*own.backend, *own.plan, own.copies_block);
  if (own.group->broken()) return lost(*own.group->broken()).error();
  for (int rank = 1; rank < ranks(); ++rank) {
    auto message = receive_message<OutcomeMessage>(*communicator_, rank);
    if (!message) return checked(std::move(message).error()).error();
    if (auto outcome = message->outcome(); outcome) {
      outcomes[static_cast<std::size_t>(rank)] = message->text_of();
    } else {
      outcomes[static_cast<std::size_t>(rank)] = std::move(outcome).error();
    }
  }
  return outcomes;
}

Result<void> Leader::copy_page(std::size_t group, std::int32_t from, std::int32_t to, std::int32_t tokens) {
  if (broken_) return core::copy_of(*broken_);
  forgotten_.remove(group, to);
  const Command command{Command::copy_page, {static_cast<std::int64_t>(group), from, to, tokens}};
  for (int rank = 1; rank < ranks(); ++rank) LLMINFER_TRY(checked(send_message(*communicator_, rank, command)));
  return {};
}

Result<void> Leader::announce(const Batch& batch) {
  if (broken_) return core::copy_of(*broken_);
  write_pass(batch, words_);
  forgotten_.move_to(words_);
  // Memory for collect(), which has to come to its end.
  if (shards_ > 1) logits_.reserve(batch.logits.size() / static_cast<std::size_t>(shards_) + batch.logit_rows.size());
  const Command command{Command::pass, {static_cast<std::int64_t>(words_.size())}};
  for (int rank = 1; rank < ranks(); ++rank) {
    LLMINFER_TRY(checked(send_message(*communicator_, rank, command)));
    LLMINFER_TRY(checked(communicator_->send(rank, std::as_bytes(std::span(words_)))));
  }
  return {};
}

Result<void> Leader::give(int rank, const Result<void>& outcome, std::span<const float> rows) {
  return checked(send_outcome(*communicator_, rank, outcome, {rows}));
}

Result<void> Leader::collect(const Batch& batch, std::int64_t vocab_size, std::span<const float> own_logits) {
  Result<void> first_error;
  for (int shard = 0; shard < shards_; ++shard) {
    const int rank = ranks() - shards_ + shard;
    const ShardRange tokens = shard_range(vocab_size, shard, shards_);
    std::span<const float> logits = own_logits;
    if (rank > 0) {
      const std::size_t floats = batch.logit_rows.size() * static_cast<std::size_t>(tokens.count);
      if (shards_ > 1) logits_.resize(floats);
      const auto to = shards_ > 1 ? std::span(logits_) : batch.logits;
      Result<void> outcome;
      const auto hidden = shard == 0 ? batch.hidden : std::span<float>();
      LLMINFER_TRY(checked(core::guarded([&] {
        return receive_outcome(*communicator_, rank, outcome, {to, hidden});
      })));
      if (!outcome && first_error) first_error = std::move(outcome);
      logits = to;
    }
    if (shards_ == 1 || !first_error) continue;
    for (std::size_t i = 0; i < batch.logit_rows.size(); ++i) {
      const std::int64_t row = static_cast<std::int64_t>(i);
      std::copy_n(logits.data() + row * tokens.count, tokens.count,
                  batch.logits.data() + row * vocab_size + tokens.first);
    }
  }
  return first_error;
}

Result<void> Leader::lost(const Error& error) { return checked(core::copy_of(error)); }

Result<Setup> receive_setup(Communicator& communicator) {
  auto numbers = setup_numbers(nullptr, communicator.size());
  LLMINFER_TRY(communicator.receive(0, std::as_writable_bytes(std::span(numbers))));
  if (numbers[0] == 0) return fail(ErrorCode::peer_lost, "rank 0 has given up the load");
  Setup setup;
  setup.context_length = static_cast<std::int32_t>(numbers[1]);
  setup.pages = static_cast<std::int32_t>(numbers[2]);
  setup.max_batch_rows = static_cast<std::int32_t>(numbers[3]);
  setup.cache_type = static_cast<CacheType>(numbers[4]);
  setup.shards = static_cast<std::int32_t>(numbers[5]);
  setup.windows = static_cast<std::int32_t>(numbers[6]);
  setup.resident = static_cast<std::int32_t>(numbers[7]);
  if (setup.shards < 1 || communicator.size() % setup.shards != 0) {
    return fail(ErrorCode::corrupt, "rank 0 says that ", communicator.size(), " ranks make stages of ", setup.shards);
  }
  const auto places = numbers.begin() + kSetupNumbers + kModelNumbers;
  setup.model.assign(numbers.begin() + kSetupNumbers, places);
  for (auto place = places; place <= places + communicator.size() / setup.shards; ++place) {
    setup.places.push_back(static_cast<std::int32_t>(*place));
  }
  return setup;
}

Result<void> send_reply(Communicator& communicator, const Result<RankStage>& stage) {
  ReplyMessage message;
  if (stage) {
    message.outcome.set_text(stage->backend->description());
    message.weight_bytes = stage->weight_bytes;
    for (const auto& cache : stage->caches) {
      message.cache_bytes += cache->bytes();
      if (cache->seals_pages()) message.seals_pages = 1;
    }
    message.groups = static_cast<std::int64_t>(stage->groups.size());
  } else {
    message.outcome = OutcomeMessage(stage.error());
  }
  LLMINFER_TRY(send_message(communicator, 0, message));
  for (std::size_t g = 0; stage && g < stage->groups.size(); ++g) {
    const PassPages pages = stage->caches[g]->pass_pages();
    LLMINFER_TRY(send_message(
        communicator, 0, LimitMessage{static_cast<std::int64_t>(stage->groups[g]), pages.resident, pages.most}));
  }
  return {};
}

namespace {

/// Others wait for what a follower sends, so nothing that it does in a pass may fail but what has an outcome to say it:
/// memory for what has to be received is there before.
class StageFollower final : public Follower {
 public:
  /// Throws std::bad_alloc.
  StageFollower(Communicator& communicator, const RankStage& stage)
      : communicator_(communicator), stage_(stage), stage_batch_(stage.max_batch_rows) {
    words_.reserve(kUsualWords);
    const auto floats = static_cast<std::size_t>(stage.max_batch_rows * stage.hidden_size);
    in_.resize(floats);
    out_.resize(floats);
  }

  Result<void> run() override {
    while (true) {
      const Command command = LLMINFER_TRY(receive_message<Command>(communicator_, 0));
      if (command.kind == Command::stop) return {};
      if (command.kind == Command::copy_page) {
        copy_page(command);
      } else if (command.kind == Command::pass && command.numbers[0] >= 0) {
        LLMINFER_TRY(pass(static_cast<std::size_t>(command.numbers[0])));
      } else if (command.kind == Command::start_collective) {
        LLMINFER_TRY(start_collective());
      } else {
        return fail(ErrorCode::corrupt, "rank 0 sent an unknown command");
      }
    }
  }

 private:
  Result<void> start_collective() {
    auto started = core::guarded(
        [&] { return stage_.group->start_collective(*stage_.backend, *stage_.plan, stage_.copies_block); });
    OutcomeMessage message = started ? OutcomeMessage() : OutcomeMessage(started.error());
    if (started) message.set_text(*started);
    LLMINFER_TRY(send_message(communicator_, 0, message));
    return stage_.group->broken() ? Result<void>(core::copy_of(*stage_.group->broken())) : Result<void>();
  }

  /// An error waits for the next pass, which says it to rank 0.
  void copy_page(const Command& command) {
    CacheStorage* const cache = stage_.cache(static_cast<std::size_t>(command.numbers[0]));
    if (!cache) return;
    const auto number = [&](std::size_t i) { return static_cast<std::int32_t>(command.numbers[i]); };
    auto copied = cache->copy_page(number(1), number(2), number(3));
    if (!copied && copied_) copied_ = std::move(copied);
  }

  /// Those at the end of the words, which they leave.
  Result<void> forget_pages() {
    const auto take = [&] {
      const std::int32_t last = words_.back();
      words_.pop_back();
      return last;
    };
    const std::int64_t count = words_.empty() ? -1 : take();
    if (count < 0 || 2 * count > static_cast<std::int64_t>(words_.size())) {
      return fail(ErrorCode::corrupt, "rank 0 sent a batch that contradicts itself");
    }
    for (std::int64_t i = 0; i < count; ++i) {
      const std::int32_t page = take(), group = take();
      for (std::size_t g = 0; g < stage_.groups.size(); ++g) {
        if (stage_.groups[g] != static_cast<std::size_t>(group)) continue;
        if (page < 0 || page >= stage_.pages[g]) return fail(ErrorCode::corrupt, "rank 0 forgets a page ", page);
        stage_.caches[g]->forget_page(page);
      }
    }
    return {};
  }

  Result<void> pass(std::size_t words) {
    words_.resize(words);
    LLMINFER_TRY(communicator_.receive(0, std::as_writable_bytes(std::span(words_))));
    LLMINFER_TRY(forget_pages());
    const auto rows = words_.empty() ? std::size_t{0} : static_cast<std::size_t>(words_[0]);  // as in write_pass()
    if (rows > static_cast<std::size_t>(stage_.max_batch_rows)) {
      return fail(ErrorCode::corrupt, "rank 0 sent a batch of ", words_[0], " rows");
    }
    ShardGroup& group = *stage_.group;
    const int rank = communicator_.rank(), before = group.first() == 0 ? 0 : rank - group.count();
    const bool last = group.first() + group.count() == communicator_.size(), first_shard = rank == group.first();
    const auto rows_of = [&](std::vector<float>& values, std::size_t count) {
      return std::span(values).first(count * static_cast<std::size_t>(stage_.hidden_size));
    };
    const auto in = rows_of(in_, rows), out = last ? std::span<float>() : rows_of(out_, rows);
    Result<void> outcome;
    LLMINFER_TRY(receive_outcome(communicator_, before, outcome, {in}));
    Batch batch;
    if (outcome) {
      outcome = std::exchange(copied_, {});
      if (outcome) {
        outcome = core::guarded([&]() -> Result<void> {
          batch = LLMINFER_TRY(read_pass(words_, runs_));
          if (last) {
            if (batch.hidden_rows.size() > rows) return fail(ErrorCode::corrupt, "rank 0 wants too many hidden states");
            logits_.resize(batch.logit_rows.size() * static_cast<std::size_t>(stage_.vocab_size));
            batch.logits = logits_;
            batch.hidden = rows_of(out_, batch.hidden_rows.size());
          }
          return compute(batch, in, out);
        });
      }
      outcome = group.finish(std::move(outcome));
    }
    auto sent = Result<void>();
    if (last) {  // hidden states are the same on all shards
      sent = send_outcome(communicator_, 0, outcome, {batch.logits, first_shard ? batch.hidden : std::span<float>()});
    } else {
      sent = send_outcome(communicator_, rank + group.count(), outcome, {out});
    }
    if (group.broken()) return core::copy_of(*group.broken());
    return sent;
  }

  Result<void> compute(const Batch& batch, std::span<const float> in, std::span<float> out) {
    for (const Run& run : batch.runs) {
      for (const std::size_t group : stage_.groups) {
        if (group >= run.block_tables.size()) return fail(ErrorCode::corrupt, "rank 0 sent too few block tables");
      }
    }
    return stage_.group->compute(*stage_.plan, stage_batch_.make(batch, stage_.groups, in, out), stage_.all_caches());
  }

  Communicator& communicator_;
  const RankStage& stage_;
  StageBatch stage_batch_;
  static constexpr std::size_t kUsualWords = 1 << 16;  ///< more are room for words_ only when they come
  std::vector<std::int32_t> words_;
  std::vector<Run> runs_;
  std::vector<float> in_, out_;  ///< [max_batch_rows, hidden_size]
  std::vector<float> logits_;
  Result<void> copied_;
};

}  // namespace

std::unique_ptr<Follower> make_follower(Communicator& communicator, const RankStage& stage) {
  return std::make_unique<StageFollower>(communicator, stage);
}

}  // namespace llminfer::inline v0::engine
