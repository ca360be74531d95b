// The counters of the kernel benchmarks: GB/s and GOP/s, of which a multiplication and its addition are two.
#pragma once

#include <benchmark/benchmark.h>

namespace bench {

/// Of one iteration of all threads together. No operations: there are none worth counting.
inline void count(benchmark::State& state, double bytes, double operations = 0) {
  using benchmark::Counter;
  const double iterations = static_cast<double>(state.iterations()) / state.threads() * 1e-9;
  state.counters["GB/s"] = Counter(iterations * bytes, Counter::kIsRate);
  if (operations > 0) state.counters["GOP/s"] = Counter(iterations * operations, Counter::kIsRate);
}

}  // namespace bench
