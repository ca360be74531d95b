// ShardGroup's sums on the ranks' devices: how they begin, and how a pass with them ends.
#include <algorithm>
#include <array>
#include <utility>

#include "core/error.hpp"
#include "engine/rank_messages.hpp"
#include "engine/shard_group.hpp"

namespace llminfer::inline v0::engine {

using core::fail;

namespace {

/// What the first rank of a group tells the others.
struct IdMessage {
  std::array<char, 64> kind{};
  std::array<std::byte, 256> id{};
  std::int64_t bytes = 0;
};

}  // namespace

/// An error says whose it is.
Result<void> ShardGroup::named(Result<void> own) const noexcept {
  if (own) return own;
  return core::guarded([&]() -> Result<void> {
    return core::at("rank " + std::to_string(communicator_->rank()), std::move(own).error());
  });
}

/// Whatever a rank cannot do, it takes part in what comes next, which the others wait for.
Result<std::string> ShardGroup::start_collective(Backend& backend, Plan& plan, bool copies_block) {
  if (broken_) return core::copy_of(*broken_);
  const int self = communicator_->rank() - first_;
  std::string kind;
  LLMINFER_TRY(finish(named(core::guarded([&]() -> Result<void> {
    kind = LLMINFER_TRY(backend.collective_kind());
    if (copies_block) {
      return fail(ErrorCode::unsupported, "pages that a device has no room for lie in EngineOptions::cache_folder");
    }
    for (int other = 0; other < count_; ++other) {
      if (other == self || communicator_->ready(first_ + other)) continue;
      return fail(ErrorCode::unsupported, "the Communicator has no ready()");
    }
    return {};
  }))));

  IdMessage message;
  Result<void> own;
  if (self == 0) {
    own = core::guarded([&]() -> Result<void> {
      const auto id = LLMINFER_TRY(backend.collective_id());
      if (id.size() > message.id.size()) return fail(ErrorCode::unsupported, "an id of ", id.size(), " bytes");
      kind.copy(message.kind.data(), message.kind.size() - 1);
      std::copy(id.begin(), id.end(), message.id.begin());
      message.bytes = static_cast<std::int64_t>(id.size());
      return {};
    });
    for (int other = 1; other < count_; ++other) {
      auto sent = send_message(*communicator_, first_ + other, message);
      if (!sent && !broken_) broken_ = std::move(sent).error();
    }
  } else if (auto received = receive_message<IdMessage>(*communicator_, first_); received) {
    message = *received;
    const std::string_view theirs = message.kind.data();
    if (message.bytes > 0 && theirs != std::string_view(kind).substr(0, message.kind.size() - 1)) {
      own = core::guarded([&]() -> Result<void> { return fail(ErrorCode::unsupported, kind, ", but ", theirs); });
    }
  } else {
    broken_ = std::move(received).error();
  }
  LLMINFER_TRY(finish(named(std::move(own))));

  own = core::guarded([&]() -> Result<void> {
    const auto bytes = static_cast<std::size_t>(message.bytes);
    auto collective = LLMINFER_TRY(backend.make_collective(std::span(message.id).first(bytes), self, count_,
                                                           [this] { return core::guarded([&] { return watch(); }); }));
    LLMINFER_TRY(plan.sum_with(collective));
    collective_ = std::move(collective);
    return {};
  });
  const bool made = own.has_value();
  if (!made && watch()) own = named(std::move(own));  // or it is another's error, which says whose
  LLMINFER_TRY(finish_on_devices(std::move(own), made));
  return collective_->description();
}

/// Takes the message of a rank at the end of its pass, waiting for it. If there is none, the rank is lost.
void ShardGroup::hear(int other) {
  auto message = receive_message<OutcomeMessage>(*communicator_, first_ + other);
  Heard& heard = heard_[static_cast<std::size_t>(other)].emplace();
  if (message) {
    heard = {message->outcome(), message->floats != 0};
    return;
  }
  if (!broken_) broken_ = core::copy_of(message.error());
  heard = {std::move(message).error(), false};
}

/// See Watch. Errors: of a rank whose sums will not come.
Result<void> ShardGroup::watch() {
  for (int other = 0; other < count_; ++other) {
    if (first_ + other == communicator_->rank()) continue;
    auto& heard = heard_[static_cast<std::size_t>(other)];
    if (!heard && communicator_->ready(first_ + other).value_or(false)) hear(other);
    if (!heard || heard->made) continue;
    if (!heard->outcome) return core::copy_of(heard->outcome.error());
    return fail(ErrorCode::internal, "rank ", first_ + other, " has not made its sums");
  }
  return {};
}

/// Each sends first, which does not wait (Communicator::ready): a rank that has failed, while others wait for their
/// devices, must not wait for them.
Result<void> ShardGroup::finish_on_devices(Result<void> own, bool made) {
  OutcomeMessage message = own ? OutcomeMessage() : OutcomeMessage(own.error());
  message.floats = made ? 1 : 0;
  const int self = communicator_->rank() - first_;
  for (int other = 0; other < count_; ++other) {
    if (other == self) continue;
    auto sent = send_message(*communicator_, first_ + other, message);
    if (!sent && !broken_) broken_ = std::move(sent).error();
  }
  Result<void> outcome;
  for (int other = 0; other < count_; ++other) {
    auto& heard = heard_[static_cast<std::size_t>(other)];
    if (other != self && !heard) hear(other);
    const Result<void>& theirs = other == self ? own : heard->outcome;
    if (!theirs && outcome) outcome = core::copy_of(theirs.error());
    made = made && (other == self || heard->made);
    heard.reset();
  }
  if (broken_) outcome = core::copy_of(*broken_);
  if ((!made || broken_) && collective_) {
    collective_->abort();
    collective_ = nullptr;
  }
  return outcome;
}

}  // namespace llminfer::inline v0::engine
