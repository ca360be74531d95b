// A Result<bool> that holds false must not be taken for a failure, nor a Result for its value.
#include <llminfer/result.hpp>

bool unwrap(const llminfer::Result<bool>& result) {
#if defined(LLMINFER_MUST_FAIL)
  bool value = result; return value;
#else
  return result.has_value() && *result;
#endif
}
