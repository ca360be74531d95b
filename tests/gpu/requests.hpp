// Requests to engines on GPUs, for tests.
#pragma once

#include <cstdint>

#include "tests/engine/split_models.hpp"

namespace llminfer::test {

/// For so many tokens after a short prompt.
inline CompletionRequest request_of(std::int32_t tokens) {
  CompletionRequest request;
  request.tokens = some_tokens(3, 2);
  request.options.max_tokens = tokens;
  request.options.ignore_end = true;
  return request;
}

}  // namespace llminfer::test
