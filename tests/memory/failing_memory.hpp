// Memory that runs out on purpose. The program's operator new, the C allocation functions and mappings that the library
// calls, and PCRE2's own allocations fail from a chosen one on, on whatever thread it falls.
#pragma once

namespace llminfer::test {

enum class Failing {
  once,         ///< one allocation fails, those after it succeed
  from_then_on  ///< all fail until disarm()
};

/// After `successes` more allocations of the program, one fails.
void arm(long successes, Failing failing);
/// Ends the failing. Whether an allocation has failed since arm().
bool disarm();
/// Blocks of memory that operator new gave and that are held now.
long live_blocks();
/// Bytes of such blocks, and the most that there were since reset_peak().
long live_bytes();
long peak_bytes();
void reset_peak();

}  // namespace llminfer::test
