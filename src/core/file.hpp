// ByteSource: where a checkpoint's bytes come from (a mapped file, memory of the host, a reader of the host).
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>

#include <llminfer/backend.hpp>
#include <llminfer/result.hpp>

namespace llminfer::core {

/// Bytes and what keeps them alive.
struct Bytes {
  std::span<const std::byte> data;
  std::shared_ptr<const void> keep;
};

/// A random-access input of known size. Thread-safe.
class ByteSource {
 public:
  virtual ~ByteSource() = default;
  const std::string& name() const noexcept { return name_; }  ///< for error messages
  std::uint64_t size() const noexcept { return size_; }
  /// When the file was last written to, in nanoseconds; 0 where that is not known.
  std::uint64_t modified() const noexcept { return modified_; }
  /// Bytes [offset, offset + count): a view where the source is in memory, a fresh copy otherwise.
  /// Errors: truncated if the range passes the end; io_error.
  virtual Result<Bytes> read(std::uint64_t offset, std::uint64_t count) const = 0;
  /// True where read() gives views of memory that stays.
  virtual bool resident() const noexcept = 0;
  /// Bytes [offset, offset + count) are not needed soon: gives back memory that they take up in this process, if
  /// reading them again brings it back. Views of them stay valid. The range is within the source.
  virtual void release(std::uint64_t offset, std::uint64_t count) const noexcept;

 protected:
  ByteSource(std::string name, std::uint64_t size, std::uint64_t modified = 0)
      : name_(std::move(name)), size_(size), modified_(modified) {}
  Result<void> check_range(std::uint64_t offset, std::uint64_t count) const;

 private:
  std::string name_;
  std::uint64_t size_, modified_;
};

/// Maps the file (or, with use_mmap = false, reads it piece by piece on demand).
/// Errors: not_found, permission_denied, not_a_file, truncated for an empty file, io_error.
Result<std::shared_ptr<const ByteSource>> open_file(const std::string& path, bool use_mmap);

/// Views memory that the caller keeps alive as long as `keep`.
std::shared_ptr<const ByteSource> memory_source(std::string name, std::span<const std::byte> data,
                                                std::shared_ptr<const void> keep);

/// Calls `read(offset, out)`, which fills `out` wholly and returns true. The callback may be called from any one thread
/// at a time.
std::shared_ptr<const ByteSource> reader_source(std::string name, std::uint64_t size,
                                                std::function<bool(std::uint64_t, std::span<std::byte>)> read);

/// Zeros that lie in a file of their own in the folder, which has no name, so that it goes with the memory. The file
/// has all of its room on the disk from the beginning: a disk that is full later does not matter. Errors: not_found,
/// permission_denied, io_error (no room, or a file may not be as large), out_of_memory.
Result<std::shared_ptr<std::byte>> file_memory(const std::string& folder, std::uint64_t bytes);

/// A file for weights.
class StorageFile : public WeightStorage {
 public:
  /// Waits until all that was written is on the disk. Errors: io_error.
  virtual Result<void> flush() = 0;
};
/// One without a name in the folder, which takes all of its room at once, likewise. Nothing of it stays in the system's
/// file cache. Errors: not_found, permission_denied, io_error (no room, or a file may not be as large).
Result<std::shared_ptr<StorageFile>> make_storage_file(const std::string& folder, std::uint64_t bytes);

/// The whole of a small text file, e.g. config.json. Errors as open_file, and limit_exceeded past `limit` bytes.
Result<std::string> read_text_file(const std::string& path, std::uint64_t limit);

/// Bytes and where they go in a file.
struct FilePart {
  std::uint64_t offset;
  std::span<const std::byte> data;
};

/// Whether the process may not write a file of so many bytes: to try it is a signal.
bool over_limit(std::uint64_t bytes) noexcept;

/// Writes a file of these parts, and only once it is whole, on the disk, gives it its name, in the place of what had it
/// before; threads and processes may do so at once. What processes that were killed have left of that goes
/// after ten minutes.
/// Between parts there are zeros. Errors: not_found (the folder),
/// permission_denied, io_error (no room, or a file may not be as large).
Result<void> write_file(const std::string& path, std::span<const FilePart> parts);

}  // namespace llminfer::core
