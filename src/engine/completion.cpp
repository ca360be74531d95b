#include <llminfer/completion.hpp>

#include <utility>

#include "core/error.hpp"
#include "engine/request.hpp"

namespace llminfer::inline v0 {

Completion::Completion(std::shared_ptr<engine::Request> request) : request_(std::move(request)) {}
Completion::~Completion() { cancel(); }
Completion::Completion(Completion&&) noexcept = default;
Completion& Completion::operator=(Completion&& other) noexcept {
  std::swap(request_, other.request_);
  return *this;
}

bool Completion::done() const noexcept {
  if (!request_) return true;
  const std::lock_guard lock(request_->mutex);
  return request_->done;
}

Result<CompletionResult> Completion::wait() {
  return core::guarded([&]() -> Result<CompletionResult> {
    if (!request_) return core::fail(ErrorCode::invalid_state, "wait() was called before");
    const auto request = std::exchange(request_, nullptr);
    request->wait_done();
    LLMINFER_TRY(std::move(request->outcome));
    return std::move(request->result);
  });
}

void Completion::cancel() noexcept {
  if (request_) request_->cancel_requested.store(true, std::memory_order_relaxed);
}

}  // namespace llminfer::inline v0
