// A Result<void> that nobody looks at.
#include <llminfer/chat.hpp>

void rewind(llminfer::Chat& chat) {
#if defined(LLMINFER_MUST_FAIL)
  chat.rewind(2);
#else
  if (!chat.rewind(2)) return;
#endif
}
