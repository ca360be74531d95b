// Session: one sequence of tokens and its KV cache, under the host's control.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>

#include <llminfer/completion.hpp>
#include <llminfer/config.hpp>
#include <llminfer/options.hpp>
#include <llminfer/result.hpp>

namespace llminfer::inline v0 {

namespace engine {
class EngineCore;
struct Sequence;
}  // namespace engine

/// The logits [vocab_size] after the token at `position` of the session: the log probability of the token at position +
/// 1 is its part of their log softmax. Called on the engine's thread, once per new token, in order; under the rules of
/// TokenCallback. Returning false abandons the prefill with Error{cancelled}.
using LogitsCallback = std::function<bool(std::int32_t position, std::span<const float> logits)>;

struct PrefillOptions {
  bool hidden_states = false;  ///< keep the last hidden state of each new token, see Session::hidden_states()
  LogitsCallback on_logits{};  ///< gets the logits after every new token, not after the last one alone
  /// Checked at every step, and at every layer of a pass that others do not share.
  std::optional<CancelToken> cancel{};
};

/// Move-only; one thread at a time. Keeps the engine alive. After an error the session is as it was before the call.
/// To save one, keep its tokens(); prefill() of a new session, also in another process, restores it, and computes what
/// the cache has no more (EngineOptions::prefix_cache). Rows of embeddings are not among the tokens.
class LLMINFER_API Session {
 public:
  Session(std::shared_ptr<engine::EngineCore> core, std::shared_ptr<engine::Sequence> sequence);
  ~Session();
  Session(Session&&) noexcept;
  Session& operator=(Session&&) noexcept;

  /// Appends tokens and computes them. Errors: invalid_argument (empty, id out of range), context_overflow, cancelled,
  /// queue_full, callback_failed, out_of_memory, and those of a device or another rank.
  Result<void> prefill(std::span<const Token> tokens, const PrefillOptions& options = {});
  /// Appends rows [n, hidden_size] in place of token embeddings; the rows count as tokens of id -1.
  Result<void> prefill_embeddings(std::span<const float> embeddings, const PrefillOptions& options = {});
  /// Generates after what is in the session; what is generated becomes part of it. At least one token must be there.
  Result<CompletionResult> generate(const GenerateOptions& options = {});

  /// The logits [vocab_size] after the last token. Valid until the next call that changes the session; empty before
  /// any, and it may be after truncate() and after a generate() that was cancelled or late.
  std::span<const float> logits() const noexcept;
  /// The hidden states [n, hidden_size], after the model's final norm, of the n tokens of the last prefill that asked
  /// for them: what embeddings of a text are made of, by their mean or the last row. Valid as logits().
  std::span<const float> hidden_states() const noexcept;

  /// A second session with the same content; KV pages are shared until one of them writes.
  Result<Session> fork() const;
  /// Forgets all but the first `count` tokens. Where a sliding window has given back keys and values that are needed
  /// again, more than 64 tokens from the end, the next call computes all tokens again; the results are the same.
  /// Errors: invalid_argument if count is negative or more than size().
  Result<void> truncate(std::int32_t count);
  std::span<const Token> tokens() const noexcept;
  std::int32_t size() const noexcept;

 private:
  std::shared_ptr<engine::EngineCore> core_;
  std::shared_ptr<engine::Sequence> sequence_;
};

}  // namespace llminfer::inline v0
