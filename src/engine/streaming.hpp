// Streaming: which layers of a stage stay in host memory, because its backend has no room for them, and are copied
// there for each pass. Knows nothing of bytes; whoever asks says what a choice would take.
#pragma once

#include <cstdint>
#include <functional>
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

}  // namespace llminfer::inline v0::engine
