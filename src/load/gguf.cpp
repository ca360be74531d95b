// Makes a Checkpoint of GGUF files: joins the parts of a split set and applies the metadata of the first.
#include "load/gguf.hpp"

#include <cstdio>
#include <utility>

#include "core/error.hpp"
#include "load/gguf_metadata.hpp"

namespace llminfer::load {
namespace {

using core::fail;

/// What a file says of its place in a split set; count == 1 for a whole model. Zero-based, as in the file.
struct Split {
  std::int64_t number = 0;
  std::int64_t count = 1;
  std::optional<std::int64_t> tensors;  ///< in the whole set
};

Result<Split> read_split(const GgufFile& file) {
  const GgufMetadata metadata(file);
  Split split;
  split.count = LLMINFER_TRY(metadata.integer("split.count", 0, 65535)).value_or(1);
  if (split.count == 0) split.count = 1;
  split.number = LLMINFER_TRY(metadata.integer("split.no", 0, split.count - 1)).value_or(0);
  split.tensors = LLMINFER_TRY(metadata.integer("split.tensors.count", 0, INT32_MAX));
  return split;
}

/// The end of the name of part `number` (zero-based) of `count`, as the tools that split models write it.
std::string part_suffix(std::int64_t number, std::int64_t count) {
  char text[64];
  std::snprintf(text, sizeof text, "-%05lld-of-%05lld.gguf", static_cast<long long>(number + 1),
                static_cast<long long>(count));
  return text;
}

/// Adds a file's tensors and its source.
Result<void> add_part(Checkpoint& checkpoint, std::shared_ptr<const core::ByteSource> source, GgufFile& file) {
  const auto index = static_cast<std::uint32_t>(checkpoint.sources.size());
  for (TensorInfo& tensor : file.tensors) {
    tensor.source = index;
    if (!checkpoint.by_name.emplace(tensor.name, checkpoint.tensors.size()).second) {
      return fail(ErrorCode::corrupt, source->name(), ": tensor '", tensor.name,
                  "' is also in another part of the set");
    }
    checkpoint.tensors.push_back(std::move(tensor));
  }
  checkpoint.sources.push_back(std::move(source));
  return {};
}

/// Turns "blk.N.ffn_up_exps.weight" [experts, rows, cols] into "blk.N.ffn_up.E.weight" [rows, cols] of each expert E,
/// as older files have them, and "blk.N.ffn_up_exps.bias" [experts, rows] likewise: each is a part of the stack's
/// bytes.
Result<void> split_stacks(Checkpoint& checkpoint) {
  constexpr std::string_view kStack = "_exps", kWeight = "_exps.weight", kBias = "_exps.bias";
  const std::int64_t experts = checkpoint.config.experts;
  std::vector<TensorInfo> tensors;
  for (TensorInfo& stack : checkpoint.tensors) {
    const bool bias = stack.name.ends_with(kBias);
    if (experts == 0 || (!bias && !stack.name.ends_with(kWeight))) {
      tensors.push_back(std::move(stack));
      continue;
    }
    const std::size_t sides = bias ? 2 : 3;
    if (stack.shape.size() != sides || stack.shape[0] != experts) {
      return fail(ErrorCode::shape_mismatch, "tensor '", stack.name, "': ", stack.shape.size(), " dimensions, ",
                  stack.shape.front(), " of them the first; expected ", sides, ", the first the number of experts, ",
                  experts);
    }
    const std::size_t at = stack.name.rfind(kStack);
    const std::string name = stack.name.substr(0, at) + ".", suffix = stack.name.substr(at + kStack.size());
    for (std::int64_t e = 0; e < experts; ++e) {
      TensorInfo& expert = tensors.emplace_back(piece_of(stack, e, experts));  // whole rows
      expert.name = name + std::to_string(e) + suffix;
      expert.shape.erase(expert.shape.begin());
      expert.rows = bias ? 1 : stack.shape[1];
    }
  }
  const auto twice = checkpoint.replace_tensors(std::move(tensors));
  if (!twice) return {};
  return fail(ErrorCode::corrupt, "tensor '", *twice, "' is there by itself and in a stack");
}

Result<Checkpoint> finish(Checkpoint checkpoint, GgufFile& first) {
  auto applied = apply_gguf_metadata(first, checkpoint);
  if (applied) applied = split_stacks(checkpoint);
  if (!applied) return core::at(checkpoint.path, applied.error());
  return checkpoint;
}

}  // namespace

Result<Checkpoint> open_gguf(std::shared_ptr<const core::ByteSource> source) {
  Checkpoint checkpoint;
  checkpoint.path = source->name();
  GgufFile file = LLMINFER_TRY(parse_gguf(*source));
  const auto split = read_split(file);
  if (!split) return core::at(checkpoint.path, split.error());
  if (split->count > 1) {
    return fail(ErrorCode::unsupported, checkpoint.path, ": part ", split->number + 1, " of a split set of ",
                split->count, "; expected a whole model, since the other parts can only be found by path");
  }
  LLMINFER_TRY(add_part(checkpoint, std::move(source), file));
  return finish(std::move(checkpoint), file);
}

Result<Checkpoint> open_gguf_file(const std::string& path, bool use_mmap) {
  auto source = LLMINFER_TRY(core::open_file(path, use_mmap));
  Checkpoint checkpoint;
  checkpoint.path = path;
  GgufFile first = LLMINFER_TRY(parse_gguf(*source));
  const auto split = read_split(first);
  if (!split) return core::at(path, split.error());
  if (split->count == 1) {
    LLMINFER_TRY(add_part(checkpoint, std::move(source), first));
    return finish(std::move(checkpoint), first);
  }

  if (split->number != 0) {
    return fail(ErrorCode::invalid_argument, path, ": part ", split->number + 1, " of ", split->count,
                " of a split set; open the first part");
  }
  const std::string suffix = part_suffix(0, split->count);
  if (!path.ends_with(suffix)) {
    return fail(ErrorCode::invalid_argument, path, ": the first of ", split->count,
                " parts; expected a name that ends in '", suffix, "'");
  }
  const std::string prefix = path.substr(0, path.size() - suffix.size());
  LLMINFER_TRY(add_part(checkpoint, std::move(source), first));
  for (std::int64_t number = 1; number < split->count; ++number) {
    const std::string part_path = prefix + part_suffix(number, split->count);
    auto part_source = LLMINFER_TRY(core::open_file(part_path, use_mmap));
    GgufFile part = LLMINFER_TRY(parse_gguf(*part_source));
    const auto place = read_split(part);
    if (!place) return core::at(part_path, place.error());
    if (place->number != number || place->count != split->count) {
      return fail(ErrorCode::corrupt, part_path, ": says that it is part ", place->number + 1, " of ", place->count);
    }
    LLMINFER_TRY(add_part(checkpoint, std::move(part_source), part));
  }
  if (split->tensors && static_cast<std::size_t>(*split->tensors) != checkpoint.tensors.size()) {
    return fail(ErrorCode::corrupt, path, ": the set holds ", checkpoint.tensors.size(),
                " tensors; split.tensors.count is ", *split->tensors);
  }
  return finish(std::move(checkpoint), first);
}

}  // namespace llminfer::load
