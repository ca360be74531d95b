#include <llminfer/session.hpp>

#include <utility>

#include "core/error.hpp"
#include "engine/core.hpp"

namespace llminfer::inline v0 {

using core::fail;

namespace {

Error moved_from() { return fail(ErrorCode::invalid_state, "the session was moved from"); }

/// Submits a request on the session's sequence, which has its new tokens, and waits for it.
Result<void> run_on(engine::EngineCore& core, const std::shared_ptr<engine::Request>& request) {
  request->keep_sequence = true;
  LLMINFER_TRY(core.submit(request));
  request->wait_done();
  return std::move(request->outcome);
}

std::shared_ptr<engine::Request> prefill_request(const std::shared_ptr<engine::Sequence>& sequence,
                                                 const PrefillOptions& options) {
  auto request = std::make_shared<engine::Request>();
  request->sequence = sequence;
  request->tokens_before = sequence->tokens;
  request->generate = false;
  request->want_hidden = options.hidden_states;
  request->on_logits = options.on_logits;
  request->logits_given = sequence->size();
  request->options.cancel = options.cancel;
  return request;
}

}  // namespace

Session::Session(std::shared_ptr<engine::EngineCore> core, std::shared_ptr<engine::Sequence> sequence)
    : core_(std::move(core)), sequence_(std::move(sequence)) {}
Session::~Session() {
  if (sequence_) core_->close(sequence_);
}
Session::Session(Session&&) noexcept = default;
Session& Session::operator=(Session&& other) noexcept {
  Session before(std::move(other));
  std::swap(core_, before.core_);
  std::swap(sequence_, before.sequence_);
  return *this;
}

Result<void> Session::prefill(std::span<const Token> tokens, const PrefillOptions& options) {
  return core::guarded([&]() -> Result<void> {
    if (!sequence_) return moved_from();
    if (tokens.empty()) return fail(ErrorCode::invalid_argument, "prefill: no tokens");
    LLMINFER_TRY(core_->check_tokens(tokens));
    auto request = prefill_request(sequence_, options);
    sequence_->tokens.insert(sequence_->tokens.end(), tokens.begin(), tokens.end());
    request->hidden_before.emplace().swap(sequence_->hidden);
    return run_on(*core_, request);
  });
}

Result<void> Session::prefill_embeddings(std::span<const float> embeddings, const PrefillOptions& options) {
  return core::guarded([&]() -> Result<void> {
    if (!sequence_) return moved_from();
    const auto width = static_cast<std::size_t>(core_->model().info.hidden_size);
    if (embeddings.empty() || embeddings.size() % width != 0) {
      return fail(ErrorCode::invalid_argument, "prefill_embeddings: ", embeddings.size(),
                  " values are not a positive number of rows of ", width);
    }
    auto request = prefill_request(sequence_, options);
    const std::size_t rows = embeddings.size() / width;
    std::unordered_map<std::int32_t, std::vector<float>> added;
    for (std::size_t row = 0; row < rows; ++row) {
      const auto values = embeddings.subspan(row * width, width);
      added.emplace(sequence_->size() + static_cast<std::int32_t>(row),
                    std::vector<float>(values.begin(), values.end()));
    }
    sequence_->embeddings.reserve(sequence_->embeddings.size() + rows);
    sequence_->tokens.resize(sequence_->tokens.size() + rows, -1);
    sequence_->embeddings.merge(added);  // takes the rows over without memory of its own
    request->hidden_before.emplace().swap(sequence_->hidden);
    return run_on(*core_, request);
  });
}

Result<CompletionResult> Session::generate(const GenerateOptions& options) {
  return core::guarded([&]() -> Result<CompletionResult> {
    if (!sequence_) return moved_from();
    auto request = std::make_shared<engine::Request>();
    request->sequence = sequence_;
    request->options = options;
    request->tokens_before = sequence_->tokens;
    LLMINFER_TRY(run_on(*core_, request));
    return std::move(request->result);
  });
}

std::span<const float> Session::logits() const noexcept {
  return sequence_ ? std::span<const float>(sequence_->logits) : std::span<const float>();
}
std::span<const float> Session::hidden_states() const noexcept {
  return sequence_ ? std::span<const float>(sequence_->hidden) : std::span<const float>();
}

Result<Session> Session::fork() const {
  return core::guarded([&]() -> Result<Session> {
    if (!sequence_) return moved_from();
    return Session(core_, core_->fork(*sequence_));
  });
}

Result<void> Session::truncate(std::int32_t count) {
  return core::guarded([&]() -> Result<void> {
    if (!sequence_) return moved_from();
    if (count < 0 || count > size()) {
      return fail(ErrorCode::invalid_argument, "truncate: count is ", count, ", expected 0 to ", size());
    }
    core_->truncate(*sequence_, count);
    return {};
  });
}

std::span<const Token> Session::tokens() const noexcept {
  return sequence_ ? std::span<const Token>(sequence_->tokens) : std::span<const Token>();
}
std::int32_t Session::size() const noexcept { return sequence_ ? sequence_->size() : 0; }

}  // namespace llminfer::inline v0
