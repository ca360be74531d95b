#include "tests/failing_threads.hpp"

#include <dlfcn.h>
#include <pthread.h>

#include <atomic>
#include <cerrno>

namespace {

std::atomic<int> allowed{-1};
std::atomic<int> failed{0};

}  // namespace

int llminfer::test::allow_threads(int count) {
  allowed = count;
  return failed.exchange(0);
}

/// Stands before the system's function of that name, or before a sanitizer's.
extern "C" __attribute__((visibility("default"))) int pthread_create(pthread_t* thread,
                                                                     const pthread_attr_t* attributes,
                                                                     void* (*start)(void*), void* argument) noexcept {
  if (allowed >= 0 && allowed-- == 0) {
    allowed = 0;
    ++failed;
    return EAGAIN;
  }
  static const auto next = reinterpret_cast<decltype(&pthread_create)>(dlsym(RTLD_NEXT, "pthread_create"));
  return next(thread, attributes, start, argument);
}
