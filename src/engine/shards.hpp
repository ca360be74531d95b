// Shards: a Program cut into several that compute side by side, each with some attention heads and some inner features
// of the feed-forward blocks (Megatron-LM, arXiv:1909.08053). Works on the operations, so that a description of an
// architecture says nothing of it. Knows nothing of ranks.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include <llminfer/program.hpp>
#include <llminfer/result.hpp>

#include "load/slice.hpp"

namespace llminfer::inline v0::engine {

struct ShardRange {
  std::int64_t first = 0, count = 0;
};
/// What shard `index` of `shards` gets of `count` things: as many as the others, or one more.
ShardRange shard_range(std::int64_t count, int index, int shards) noexcept;

struct Shard {
  Program program;
  std::vector<load::TensorInfo> tensors;  ///< one per weight of the shard's program
};

/// Shard `index` of a program. Values go over as follows: those of attention and of gated units are cut, by KV head and
/// by feature; so are the weights that make them, by rows, and those that read them, by columns. What the latter give
/// is summed by an op::Reduce. All else each shard computes by itself, but for the logits, which are cut by token:
/// `program.vocab_size` is then the shard's part, shard_range(vocab_size, index, shards).
/// `tensors`: one per weight of the program; they tell where columns can be cut. The program has no embedding table.
/// Errors: unsupported, naming the value or tensor that cannot be cut.
Result<Shard> make_shard(const Program& program, std::span<const load::TensorInfo* const> tensors, int index,
                         int shards);

}  // namespace llminfer::inline v0::engine
