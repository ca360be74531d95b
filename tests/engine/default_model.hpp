// The default model, for tests that need a real one.
#pragma once

#include <catch2/catch.hpp>
#include <cstdlib>

namespace llminfer::test {

/// Its path; null, with a warning, where LLMINFER_TEST_MODEL does not name it.
inline const char* default_model() {
  const char* const path = std::getenv("LLMINFER_TEST_MODEL");
  if (!path) WARN("skipped: LLMINFER_TEST_MODEL does not name the default model");
  return path;
}

}  // namespace llminfer::test
