// Streaming: which layers of a stage stay in host memory, because its backend has no room for them, and are copied
// there for each pass; and which of these lie in a file, because host memory has none either. Whoever asks says what a
// choice would take.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include <llminfer/program.hpp>
#include <llminfer/result.hpp>

namespace llminfer::inline v0::engine {

/// Per weight the layer that it is streamed with, or -1, as PlanOptions::streamed; empty: no weight is.
using Streamed = std::vector<std::int32_t>;
/// What the backend would hold itself.
using StreamedBytes = std::function<std::int64_t(const Streamed& streamed)>;

/// Streams as few layers as `limit` bytes take, spread evenly, so that copies go on while the others are computed. Of a
/// layer its matrices are streamed: vectors are small, and a weight that several layers read stays, too.
/// Errors: out_of_memory, if it is too little even with all of them streamed; those of find_borders().
Result<Streamed> choose_streamed(const Program& stage, std::int64_t limit, const StreamedBytes& bytes);

/// Streamed weights that lie in a file (EngineOptions::stream_folder).
struct Stored {
  std::vector<std::int64_t> offset{};  ///< per weight in the file, or -1; empty: none is in it
  std::int64_t bytes = 0;              ///< of the file
  std::int64_t largest_layer = 0;      ///< bytes of it that are in the file
  bool has(std::size_t weight) const noexcept { return !offset.empty() && offset[weight] >= 0; }
};

/// Puts as few of the streamed layers in a file as host memory of `limit` bytes asks for, spread evenly, so that the
/// file is read while the others are copied. `bytes`: per weight.
Stored choose_stored(const Streamed& streamed, std::span<const std::int64_t> bytes, std::int64_t limit);

}  // namespace llminfer::inline v0::engine
