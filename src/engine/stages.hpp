// Stages: a Program cut at the borders of its layers into Programs of their own. What goes from one stage to the next
// is the one value that lives across the border, as rows of Batch::hidden and Batch::embeddings. Knows nothing of
// backends.
#pragma once

#include <cstdint>
#include <vector>

#include <llminfer/program.hpp>
#include <llminfer/result.hpp>

namespace llminfer::inline v0::engine {

/// Where a Program may be cut. A place counts what is before it: 0 nothing, 1 the embedding, k + 1 also k layers, and
/// `places - 1` all. A layer is what there is between two attentions.
struct Borders {
  std::int32_t layers = 0;
  std::vector<std::size_t> ops;  ///< per place: the operations before it, of [0, layers + 2]
  std::vector<ValueId> carried;  ///< per place: the value that goes across; none at both ends

  std::int32_t places() const noexcept { return static_cast<std::int32_t>(ops.size()); }
  /// Layers before a place.
  std::int32_t layers_before(std::int32_t place) const noexcept;
};

/// Errors: unsupported, if a layer's border has more than the hidden state going across.
Result<Borders> find_borders(const Program& program);

struct Stage {
  Program program;
  std::vector<std::size_t> groups;  ///< per cache group its index in the whole program
};

/// What there is between two places, first < last, as a Program. Its hidden state is the value that goes on, or the
/// program's own; it has logits only if the whole ends with it.
Result<Stage> cut_stage(const Program& program, const Borders& borders, std::int32_t first, std::int32_t last);

}  // namespace llminfer::inline v0::engine
