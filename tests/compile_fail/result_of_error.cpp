// A Result of an Error could not tell the two apart.
#include <llminfer/result.hpp>

void make() {
#if defined(LLMINFER_MUST_FAIL)
  llminfer::Result<llminfer::Error> result = llminfer::Error{}; (void)result;
#else
  llminfer::Result<int> result = 1; (void)result;
#endif
}
