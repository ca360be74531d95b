// Placement: which backend of EngineOptions::split gets which layers. Knows nothing of what a layer is made of; whoever
// asks says what a range of them would take.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include <llminfer/options.hpp>

namespace llminfer::inline v0::engine {

/// Bytes that share number `share` would hold of what lies between two places of Borders.
using RangeBytes =
    std::function<Result<std::int64_t>(std::size_t share, std::int32_t first_place, std::int32_t last_place)>;

/// Per share the place where it begins, and the last place of all, layers + 2: share i has what lies between the i-th
/// and the next. A share that gets nothing ends where it begins. The limits of shares that stream are not looked at.
/// Errors: invalid_argument, naming the option; out_of_memory, saying what is missing.
Result<std::vector<std::int32_t>> place_layers(std::span<const LayerShare> shares, std::int32_t layers,
                                               const RangeBytes& bytes);

}  // namespace llminfer::inline v0::engine
