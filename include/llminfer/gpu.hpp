// Options of the GPU backends, llminfer/cuda.hpp and llminfer/hip.hpp.
#pragma once

#include <cstdint>

#include <llminfer/config.hpp>

namespace llminfer::inline v0 {

struct GpuOptions {
  int device = 0;  ///< by the runtime's numbering
  /// One kernel for all batches: each request then gives bit for bit what it would give alone. Otherwise few rows are
  /// multiplied by other kernels than many, which differ in the last bits.
  bool batch_invariant = false;
};

}  // namespace llminfer::inline v0
