// CancelToken: asks running work to stop. Cheap to copy; every copy is the same token.
#pragma once

#include <atomic>
#include <memory>

#include <llminfer/config.hpp>

namespace llminfer::inline v0 {

/// Thread-safe. cancel() may be called from a signal handler: it is one lock-free store.
class CancelToken {
 public:
  CancelToken() : flag_(std::make_shared<std::atomic<bool>>(false)) {}

  void cancel() noexcept { flag_->store(true, std::memory_order_relaxed); }
  bool cancelled() const noexcept { return flag_->load(std::memory_order_relaxed); }
  /// Makes the token usable for the next request.
  void reset() noexcept { flag_->store(false, std::memory_order_relaxed); }

 private:
  std::shared_ptr<std::atomic<bool>> flag_;
};

}  // namespace llminfer::inline v0
