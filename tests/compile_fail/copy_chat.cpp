// A Chat has one owner.
#include <llminfer/chat.hpp>

llminfer::Chat second(llminfer::Chat& chat) {
#if defined(LLMINFER_MUST_FAIL)
  return chat;
#else
  return std::move(chat);
#endif
}
