// What this machine can do at most: the yardsticks of llminfer-bench --profile. Knows nothing of models.
#pragma once

#include <string_view>

namespace bench {

struct Peaks {
  double read_bytes = 0;  ///< per second, from memory
  double int8_ops = 0;    ///< additions and multiplications of 8-bit products per second
  double word_ops = 0;    ///< and of 16-bit ones
  double float_ops = 0;   ///< and of single precision ones
  double bf16_ops = 0;    ///< and of bfloat16 ones, on tiles if there are any; 0 for levels without them
};

/// Measures for about a second, with `threads` threads (at least 1) and the instructions of a level of the CPU backend.
/// The best of several tries. A level that this does not know is measured as plain code. Throws std::bad_alloc.
Peaks measure_peaks(std::string_view level, int threads);

}  // namespace bench
