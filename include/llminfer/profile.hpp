// Where the time of a forward pass goes: what a backend reports to a host that asks for it.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string_view>

#include <llminfer/config.hpp>

namespace llminfer::inline v0 {

/// Which of the machine's limits a step can run into.
enum class StepKind : std::uint8_t {
  linear,     ///< products of activations and weights, with the norm before and the sum or activation after
  attention,  ///< rotation, cache write, scores and weighted values
  other,      ///< lookups and copies
};

/// One step of a pass: its time, and the least that it must move and compute. Caches may save some of the moving.
struct StepProfile {
  std::string_view name;  ///< without the layer's number, so that steps of one name may be added up
  StepKind kind = StepKind::other;
  double seconds = 0;
  /// Each weight once; 0 for weights that are not prepared (exact mode). Of a mixture's experts those that were chosen,
  /// on GPUs, which choose by themselves, as many as the tokens can.
  std::int64_t weight_bytes = 0;
  std::int64_t cache_bytes = 0;       ///< keys and values: read once per run, and the new ones written
  std::int64_t activation_bytes = 0;  ///< inputs read and outputs written
  std::int64_t operations = 0;        ///< additions and multiplications of the model's own arithmetic
};

/// One forward pass. The spans are valid during the call.
struct PassProfile {
  std::int32_t rows = 0;   ///< tokens
  std::string_view level;  ///< instruction set level, or a GPU's architecture
  int threads = 0;         ///< 0: a GPU's
  std::span<const StepProfile> steps;
};

/// Called after each pass by the thread that ran it. Must not throw and must not call into the engine.
using ProfileCallback = std::function<void(const PassProfile&)>;

}  // namespace llminfer::inline v0
