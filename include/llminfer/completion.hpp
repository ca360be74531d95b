// Completion: a request that runs inside the engine beside others.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include <llminfer/config.hpp>
#include <llminfer/options.hpp>
#include <llminfer/result.hpp>

namespace llminfer::inline v0 {

namespace engine {
struct Request;
}

struct Timings {
  double queue_seconds = 0;    ///< from submission to the first forward pass
  double prefill_seconds = 0;  ///< from there to the first token
  double decode_seconds = 0;   ///< from the first token to the end of the request
};

struct CompletionResult {
  std::string text;
  std::vector<Token> tokens;    ///< as generated, without the end token
  std::vector<Sample> samples;  ///< one per token if SamplingOptions::logprobs > 0
  FinishReason reason = FinishReason::end_token;
  std::int32_t prompt_tokens = 0;
  std::int32_t cached_tokens = 0;  ///< of the prompt, found in the KV cache
  Timings timings;
};

/// A handle to a submitted request. Movable. Keeps the engine alive. Dropping it cancels the request and does not wait
/// for it, unless it is the engine's last handle: a callback that has begun may still be running then, so wait() first
/// where it uses what dies with the handle. done(), wait_for() and cancel() may be called from any thread, also while
/// another one is in wait().
class LLMINFER_API Completion {
 public:
  explicit Completion(std::shared_ptr<engine::Request> request);
  ~Completion();
  Completion(Completion&&) noexcept;
  Completion& operator=(Completion&&) noexcept;

  bool done() const noexcept;
  /// Waits for the end, but no longer than `timeout`, which is 0 if negative; returns done(). Must not be called from a
  /// callback.
  bool wait_for(std::chrono::milliseconds timeout) const noexcept;
  /// Waits for the end. A cancelled or late request is not an error: its result says so and holds what was generated.
  /// May be called once. Must not be called from a callback. Errors: what stopped the request.
  Result<CompletionResult> wait();
  /// Ends the request at the next step, or in the queue. Its callbacks are not called again, but for a call that has
  /// begun or is about to.
  void cancel() noexcept;

 private:
  std::shared_ptr<engine::Request> request_;
};

}  // namespace llminfer::inline v0
