// The instruction set levels: which are built, which this machine can run, and the kernel tables of each.
#pragma once

#include <span>
#include <string>
#include <string_view>

#include "backends/cpu/attention.hpp"
#include "backends/cpu/elementwise.hpp"
#include "backends/cpu/linear.hpp"

namespace llminfer::cpu {

struct Level {
  const char* name;
  const LinearKernels* linear;
  const ElementwiseKernels* elementwise;
  const AttentionKernels* attention;
};

/// The levels that this machine can run, slowest first; at least the scalar one.
std::span<const Level> runnable_levels();

/// The names of those that are built but that this machine cannot run.
std::span<const std::string_view> missing_levels();

/// The level of this name; the best one if `name` is empty. Only then may its kernels be called: the operating system
/// may want to be asked, as it does for tiles. Errors: invalid_argument, naming `option` and the levels that this
/// machine can run; unsupported, if the operating system refuses the level.
Result<Level> choose_level(std::string_view name, std::string_view option);

}  // namespace llminfer::cpu
