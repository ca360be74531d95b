// Writing the panels of a weight. Internal to packing: pack.cpp says how large they are, pack_panels.cpp fills them.
#pragma once

#include <cstdint>

#include "backends/cpu/panel.hpp"
#include "llminfer/backend.hpp"

namespace llminfer::cpu {

/// Writes panels [begin, end) at `panels`, those of a weight [view.rows, view.cols] of `type` whose blocks lie at
/// `source`, row by row. They were zeros.
void write_panels(const PackedWeightView& view, WeightType type, const std::uint8_t* source, std::int32_t begin,
                  std::int32_t end, std::uint8_t* panels);

/// Bit i: code i of four is not that of zero, 128.
unsigned nonzero_codes(const std::uint8_t* codes);

/// Panels of floats of which two of four neighbours are zero.
inline bool sparse_floats(PanelKind kind) { return kind == PanelKind::f16_sparse || kind == PanelKind::bf16_sparse; }

}  // namespace llminfer::cpu
