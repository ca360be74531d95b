#include <llminfer/completion.hpp>

#include <utility>

#include "core/error.hpp"
#include "engine/request.hpp"

namespace llminfer::inline v0 {

Completion::Completion(std::shared_ptr<engine::Request> request) : request_(std::move(request)) {}
Completion::~Completion() { cancel(); }
Completion::Completion(Completion&&) noexcept = default;
Completion& Completion::operator=(Completion&& other) noexcept {
  Completion before(std::move(other));
  std::swap(request_, before.request_);
  return *this;
}

bool Completion::done() const noexcept {
  if (!request_) return true;
  const std::lock_guard lock(request_->mutex);
  return request_->done;
}

bool Completion::wait_for(std::chrono::milliseconds timeout) const noexcept {
  if (!request_) return true;
  std::unique_lock lock(request_->mutex);
  const auto end = engine::Clock::now() + engine::in_clock_range(timeout);
  return request_->changed.wait_until(lock, end, [this] { return request_->done; });
}

Result<CompletionResult> Completion::wait() {
  return core::guarded([&]() -> Result<CompletionResult> {
    if (!request_) return core::fail(ErrorCode::invalid_state, "the completion was moved from");
    if (request_->result_taken.exchange(true)) return core::fail(ErrorCode::invalid_state, "wait() was called before");
    request_->wait_done();
    LLMINFER_TRY(std::move(request_->outcome));
    return std::move(request_->result);
  });
}

void Completion::cancel() noexcept {
  if (request_) request_->cancel_requested.store(true, std::memory_order_relaxed);
}

}  // namespace llminfer::inline v0
