// UsedBackend: that one engine at a time uses a backend.
#pragma once

#include <memory>
#include <utility>

#include <llminfer/backend.hpp>

#include "core/error.hpp"

namespace llminfer::inline v0::engine {

class UsedBackend {
 public:
  /// The same backend, which is used as long as this pointer or a copy of it lives. Errors: invalid_argument, if it is
  /// already; `option` is whose it is.
  static Result<std::shared_ptr<Backend>> use(std::shared_ptr<Backend> backend, const char* option) {
    if (backend->used_.exchange(true)) {
      return core::fail(ErrorCode::invalid_argument, "EngineOptions::", option,
                        ": another engine uses this backend; expected one for each engine");
    }
    Backend* const raw = backend.get();
    return std::shared_ptr<Backend>(raw, [owner = std::move(backend)](Backend* used) { used->used_.store(false); });
  }
};

}  // namespace llminfer::inline v0::engine
