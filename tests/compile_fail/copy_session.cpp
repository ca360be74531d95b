// A Session has one owner; fork() makes a second one.
#include <llminfer/session.hpp>

llminfer::Session second(llminfer::Session& session) {
#if defined(LLMINFER_MUST_FAIL)
  return session;
#else
  return std::move(session);
#endif
}
