// WeightCache: a file of prepared weights, so that a later load maps them instead of preparing them again. Knows
// nothing of what their bytes mean; the backend does.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <llminfer/backend.hpp>

#include "core/file.hpp"
#include "load/checkpoint.hpp"

namespace llminfer::inline v0::engine {

/// The file `folder`/KEY.weights, where KEY tells the checkpoint and the form of its prepared weights. The checkpoint
/// is told by the names, types and shapes of its tensors, by the sizes and times of change of its files, and by 1 KiB of
/// each tensor's beginning, middle and end: a load that is to be quick cannot read more. One that is not in files is
/// told by all of its bytes.
class WeightCache {
 public:
  /// `form`: Backend::stored_form(). Opens the file if it is there and whole; any other file of that name is ignored.
  /// Errors: those of reading the checkpoint.
  static Result<WeightCache> open(const std::string& folder, const load::Checkpoint& checkpoint,
                                  std::span<const load::TensorInfo* const> tensors, std::string_view form);

  /// Whether there is a file.
  bool found() const noexcept { return !entries_.empty(); }
  /// What the file has of tensor `index`, a view of its mapping; empty if nothing.
  Result<core::Bytes> read(std::size_t index) const;
  /// Writes the file, of the weights that have stored() and are one tensor of the checkpoint. The folder must exist. Errors: those of core::write_file.
  Result<void> save(std::span<const std::shared_ptr<const PreparedWeight>> weights) const;

 private:
  struct Entry {
    std::uint64_t offset, bytes;  ///< in the file
  };
  Result<void> map(std::size_t tensors);

  std::string path_;
  std::uint64_t key_ = 0;
  std::vector<bool> storable_;  ///< per tensor: not put together from several ones
  std::shared_ptr<const core::ByteSource> source_;
  std::vector<Entry> entries_;  ///< one per tensor
};

}  // namespace llminfer::inline v0::engine
