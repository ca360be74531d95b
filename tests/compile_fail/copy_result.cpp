// A Result is moved, not copied.
#include <llminfer/result.hpp>

llminfer::Result<int> pass_on(llminfer::Result<int> result) {
#if defined(LLMINFER_MUST_FAIL)
  return llminfer::Result<int>(static_cast<const llminfer::Result<int>&>(result));
#else
  return llminfer::Result<int>(std::move(result));
#endif
}
