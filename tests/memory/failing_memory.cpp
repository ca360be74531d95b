#include "tests/memory/failing_memory.hpp"

#include <malloc.h>
#include <sys/mman.h>

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <atomic>
#include <cerrno>
#include <cstddef>
#include <cstdlib>
#include <new>

namespace {

std::atomic<long> countdown{-1};  ///< allocations that still succeed; negative: not armed
std::atomic<bool> from_then_on{false};
std::atomic<bool> failed{false};
std::atomic<long> live{0}, bytes_held{0}, bytes_peak{0};

/// Whether this allocation is one to fail.
bool fails() noexcept {
  long left = countdown.load();
  do {
    if (left < 0) return false;
    if (left == 0 && from_then_on.load()) break;
  } while (!countdown.compare_exchange_weak(left, left - 1));
  if (left > 0) return false;
  failed.store(true);
  return true;
}

void* counted(void* block) noexcept {
  if (!block) return block;
  live.fetch_add(1);
  const long size = static_cast<long>(malloc_usable_size(block)), held = bytes_held.fetch_add(size) + size;
  for (long peak = bytes_peak.load(); held > peak && !bytes_peak.compare_exchange_weak(peak, held);) {
  }
  return block;
}

void* allocate(std::size_t bytes, std::size_t alignment) noexcept {
  if (fails()) return nullptr;
  if (alignment <= alignof(std::max_align_t)) return counted(std::malloc(bytes ? bytes : 1));
  return counted(std::aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment));
}

void* allocate_or_throw(std::size_t bytes, std::size_t alignment) {
  if (void* block = allocate(bytes, alignment)) return block;
  throw std::bad_alloc();
}

void release(void* block) noexcept {
  if (block) {
    live.fetch_sub(1);
    bytes_held.fetch_sub(static_cast<long>(malloc_usable_size(block)));
  }
  std::free(block);
}

}  // namespace

namespace llminfer::test {

void arm(long successes, Failing failing) {
  failed.store(false);
  from_then_on.store(failing == Failing::from_then_on);
  countdown.store(successes);
}

bool disarm() {
  countdown.store(-1);
  return failed.load();
}

long live_blocks() { return live.load(); }
long live_bytes() { return bytes_held.load(); }
long peak_bytes() { return bytes_peak.load(); }
void reset_peak() { bytes_peak.store(bytes_held.load()); }

}  // namespace llminfer::test

// The forms that are not replaced here call one of these.
void* operator new(std::size_t bytes) { return allocate_or_throw(bytes, 1); }
void* operator new(std::size_t bytes, std::align_val_t alignment) {
  return allocate_or_throw(bytes, static_cast<std::size_t>(alignment));
}
void* operator new(std::size_t bytes, const std::nothrow_t&) noexcept { return allocate(bytes, 1); }
void* operator new(std::size_t bytes, std::align_val_t alignment, const std::nothrow_t&) noexcept {
  return allocate(bytes, static_cast<std::size_t>(alignment));
}
void operator delete(void* block) noexcept { release(block); }
void operator delete(void* block, std::size_t) noexcept { release(block); }
void operator delete(void* block, std::align_val_t) noexcept { release(block); }
void operator delete(void* block, std::size_t, std::align_val_t) noexcept { release(block); }

// What the library's objects call is linked here with --wrap.
extern "C" {

void* __real_calloc(std::size_t count, std::size_t bytes);
void* __wrap_calloc(std::size_t count, std::size_t bytes) { return fails() ? nullptr : __real_calloc(count, bytes); }

void* __real_aligned_alloc(std::size_t alignment, std::size_t bytes);
void* __wrap_aligned_alloc(std::size_t alignment, std::size_t bytes) {
  return fails() ? nullptr : __real_aligned_alloc(alignment, bytes);
}

void* __real_mmap(void* address, std::size_t bytes, int protection, int flags, int file, off_t offset);
void* __wrap_mmap(void* address, std::size_t bytes, int protection, int flags, int file, off_t offset) {
  if (fails()) {
    errno = ENOMEM;
    return MAP_FAILED;
  }
  return __real_mmap(address, bytes, protection, flags, file, offset);
}

pcre2_code* __real_pcre2_compile_8(PCRE2_SPTR pattern, PCRE2_SIZE length, std::uint32_t options, int* error,
                                   PCRE2_SIZE* offset, pcre2_compile_context* context);
pcre2_code* __wrap_pcre2_compile_8(PCRE2_SPTR pattern, PCRE2_SIZE length, std::uint32_t options, int* error,
                                   PCRE2_SIZE* offset, pcre2_compile_context* context) {
  if (fails()) {
    *error = PCRE2_ERROR_HEAP_FAILED;
    return nullptr;
  }
  return __real_pcre2_compile_8(pattern, length, options, error, offset, context);
}

pcre2_compile_context* __real_pcre2_compile_context_create_8(pcre2_general_context* context);
pcre2_compile_context* __wrap_pcre2_compile_context_create_8(pcre2_general_context* context) {
  return fails() ? nullptr : __real_pcre2_compile_context_create_8(context);
}

pcre2_match_context* __real_pcre2_match_context_create_8(pcre2_general_context* context);
pcre2_match_context* __wrap_pcre2_match_context_create_8(pcre2_general_context* context) {
  return fails() ? nullptr : __real_pcre2_match_context_create_8(context);
}

pcre2_match_data* __real_pcre2_match_data_create_8(std::uint32_t pairs, pcre2_general_context* context);
pcre2_match_data* __wrap_pcre2_match_data_create_8(std::uint32_t pairs, pcre2_general_context* context) {
  return fails() ? nullptr : __real_pcre2_match_data_create_8(pairs, context);
}

pcre2_jit_stack* __real_pcre2_jit_stack_create_8(PCRE2_SIZE start, PCRE2_SIZE most, pcre2_general_context* context);
pcre2_jit_stack* __wrap_pcre2_jit_stack_create_8(PCRE2_SIZE start, PCRE2_SIZE most, pcre2_general_context* context) {
  return fails() ? nullptr : __real_pcre2_jit_stack_create_8(start, most, context);
}
}
