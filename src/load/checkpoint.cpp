// Finding the loader for a path, and reading tensors of an opened checkpoint.
#include "load/checkpoint.hpp"

#include <filesystem>
#include <system_error>
#include <utility>

#include "core/error.hpp"
#include "load/gguf.hpp"
#include "load/hf.hpp"

namespace llminfer::load {

std::string shape_text(const std::vector<std::int64_t>& shape) {
  std::string text;
  for (const std::int64_t side : shape) text += (text.empty() ? "" : ", ") + (side < 0 ? "any" : std::to_string(side));
  return "[" + text + "]";
}

TensorInfo piece_of(TensorInfo tensor, std::int64_t index, std::int64_t count) {
  tensor.bytes /= static_cast<std::uint64_t>(count);
  tensor.offset += static_cast<std::uint64_t>(index) * tensor.bytes;
  return tensor;
}

const TensorInfo* Checkpoint::find(const std::string& name) const {
  const auto found = by_name.find(name);
  return found == by_name.end() ? nullptr : &tensors[found->second];
}

std::optional<std::string> Checkpoint::replace_tensors(std::vector<TensorInfo> replacement) {
  tensors = std::move(replacement);
  by_name.clear();
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    if (!by_name.emplace(tensors[i].name, i).second) return tensors[i].name;
  }
  return std::nullopt;
}

Result<WeightView> Checkpoint::read(const TensorInfo& tensor, core::Team* team) const {
  if (tensor.packing) return tensor.packing->read(*this, tensor, team);
  core::Bytes bytes = LLMINFER_TRY(sources[tensor.source]->read(tensor.offset, tensor.bytes));
  return WeightView{.name = tensor.name,
                    .type = tensor.type,
                    .rows = tensor.rows,
                    .cols = tensor.cols,
                    .data = bytes.data,
                    .keep = std::move(bytes.keep),
                    .details = tensor.details};
}

Result<Checkpoint> open_checkpoint(const std::string& path, bool use_mmap) {
  if (path.empty()) return core::fail(ErrorCode::invalid_argument, "the path of the checkpoint is empty");
  std::error_code ignored;  // a path that can't be examined can't be opened either, and that error says more
  if (std::filesystem::is_directory(path, ignored)) return open_hf_directory(path, use_mmap);
  return open_gguf_file(path, use_mmap);
}

}  // namespace llminfer::load
