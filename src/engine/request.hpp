// Request: one prefill or generation on a sequence, from submission to its result.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include <llminfer/completion.hpp>
#include <llminfer/options.hpp>
#include <llminfer/sampling.hpp>
#include <llminfer/session.hpp>

#include "engine/sequence.hpp"
#include "engine/stop_matcher.hpp"

namespace llminfer::inline v0::engine {

using Clock = std::chrono::steady_clock;

/// At least 0, and not of centuries, which would overflow the clock.
constexpr std::chrono::milliseconds in_clock_range(std::chrono::milliseconds wait) noexcept {
  return std::clamp(wait, std::chrono::milliseconds(0), std::chrono::milliseconds(1'000'000'000'000));
}

struct Request {
  // Set by the submitter, then not changed.
  std::shared_ptr<Sequence> sequence;
  GenerateOptions options;
  bool generate = true;        ///< false: a prefill only
  bool keep_sequence = false;  ///< the sequence is a session's and outlives the request
  bool want_hidden = false;
  LogitsCallback on_logits;  ///< of a prefill, may be empty
  bool stream = false;       ///< collect text in stream_text
  std::optional<Clock::time_point> deadline;
  Clock::time_point submitted;
  // The sequence as it was before, for the case of an error.
  std::vector<Token> tokens_before;
  std::optional<std::vector<float>> hidden_before;  ///< if the request begins with forgetting it

  // The engine thread's own.
  /// More of the sequence as it was before: its logits once they were replaced, its embeddings once they were moved.
  std::optional<std::vector<float>> logits_before;
  std::optional<std::unordered_map<std::int32_t, std::vector<float>>> embeddings_before;
  std::optional<Sampler> sampler;
  std::optional<StreamDecoder> decoder;
  StopMatcher stop;
  CompletionResult result;
  bool started = false;
  bool computed = false;         ///< a pass has computed tokens of it
  bool callback_failed = false;  ///< on_token or on_logits threw
  /// In place of the sequence's logits after the last token: what the pass gave of them, until they are fetched.
  struct {
    std::vector<TokenLogit> best;
    std::optional<double> sum;
    std::optional<DrawnToken> drawn;
    std::size_t row = 0;  ///< of the pass's logit rows
  } candidates;
  std::int32_t logits_given = 0;  ///< on_logits has had those of the positions before
  bool answered = false;          ///< the reason is set; only the last token is still to be computed
  Clock::time_point prefill_start, first_token;

  // Shared.
  std::atomic<bool> cancel_requested{false};
  std::atomic<bool> result_taken{false};  ///< by Completion::wait
  std::mutex mutex;                       ///< guards what follows
  std::condition_variable changed;
  bool done = false;
  Result<void> outcome;     ///< valid once done
  std::string stream_text;  ///< text that the reader of a stream has not taken yet

  /// Cancelled by its handle or its token. Thread-safe.
  bool cancelled() const noexcept {
    return cancel_requested.load(std::memory_order_relaxed) || (options.cancel && options.cancel->cancelled());
  }
  /// Takes the sequence's logits away.
  void take_logits() noexcept {
    if (!logits_before) logits_before.emplace().swap(sequence->logits);
    sequence->logits.clear();
  }
  bool late() const noexcept { return deadline && Clock::now() >= *deadline; }
  void wait_done() {
    std::unique_lock lock(mutex);
    changed.wait(lock, [this] { return done; });
  }
};

}  // namespace llminfer::inline v0::engine
