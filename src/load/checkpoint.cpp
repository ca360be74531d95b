// Finding the loader for a path, and reading tensors of an opened checkpoint.
#include "load/checkpoint.hpp"

#include <filesystem>
#include <system_error>
#include <utility>

#include "core/error.hpp"
#include "load/gguf.hpp"
#include "load/hf.hpp"

namespace llminfer::load {

const TensorInfo* Checkpoint::find(const std::string& name) const {
  const auto found = by_name.find(name);
  return found == by_name.end() ? nullptr : &tensors[found->second];
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
  std::error_code ignored;  // a path that can't be examined can't be opened either, and that error says more
  if (std::filesystem::is_directory(path, ignored)) return open_hf_directory(path, use_mmap);
  return open_gguf_file(path, use_mmap);
}

}  // namespace llminfer::load
