// A Completion has one owner: dropping it cancels the request.
#include <llminfer/completion.hpp>

void assign(llminfer::Completion& to, llminfer::Completion& from) {
#if defined(LLMINFER_MUST_FAIL)
  to = from;
#else
  to = std::move(from);
#endif
}
